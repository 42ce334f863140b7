#!/usr/bin/env bash
# A client, a balancer and two backends, each in a network namespace, on one bridge. Wants to be root.
#
#     bash examples/balancer/try.sh FOLDER-OF-THE-RELEASE-BUILD
set -euo pipefail
bin=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
id=balance$$
names=(lan front one two client)
started=()

finish() {
    # A program outlives whoever started it in the sandbox.
    for pid in "${started[@]}"; do kill $(pgrep -P "$pid") "$pid" 2>/dev/null || true; done
    inside front "$bin/sbx-launcher" down "$id" >/dev/null 2>&1 || true
    for name in "${names[@]}"; do ip netns del "$id-$name" 2>/dev/null || true; done
}
trap finish EXIT

inside() {
    local name=$1
    shift
    ip netns exec "$id-$name" "$@"
}

for name in "${names[@]}"; do
    ip netns add "$id-$name"
    inside "$name" sysctl -qw net.ipv6.conf.default.disable_ipv6=1
done
inside lan ip link add bridge type bridge
inside lan ip link set bridge up
for name in front one two client; do
    # One queue: an XDP socket has the frames of one.
    inside "$name" ip link add line numrxqueues 1 numtxqueues 1 type veth \
        peer name "to-$name" numrxqueues 1 numtxqueues 1 netns "$id-lan"
    inside "$name" ip link set line up
    inside lan ip link set "to-$name" master bridge up
done
# The balancer's address, 10.90.0.100, is nobody's as far as kernels know.
inside one ip addr add 10.90.0.11/24 dev line
inside two ip addr add 10.90.0.12/24 dev line
inside client ip addr add 10.90.0.1/24 dev line

balance() {
    ip netns exec "$id-front" "$bin/sbx-launcher" run --sandbox "$id" -- "$bin/balance" line &
    started+=($!)
    balancer=$!
}

client() {
    inside client timeout 60 python3 "$here/python/client.py" 10.90.0.100 7000 "$@"
}

# Wait until a command says something.
until_said() {
    local wanted=$1
    shift
    for _ in {1..200}; do
        "$@" 2>/dev/null | grep -q "$wanted" && return
        sleep 0.05
    done
    echo "never: $wanted" >&2
    exit 1
}

for name in one two; do
    ip netns exec "$id-$name" python3 "$here/python/echo.py" "$name" &
    started+=($!)
    until_said ":7000" inside "$name" ss -Hlnt
done
inside front "$bin/sbx-launcher" up "$id"
inside front "$bin/sbx-launcher" ext load "$id" "$bin/libbalancer.so"
balance
client one two

echo "-- the balancer's program is killed and started again; a connection goes on"
client keep &
keeping=$!
sleep 0.5
kill -9 $(pgrep -P "$balancer")
sleep 0.3
balance
wait "$keeping"

echo "-- one's server is killed"
kill "${started[0]}"
client two

echo "-- one's line is cut"
inside one ip link set line down
show=(inside front "$bin/sbx-launcher" call "$id" balancer.show)
until_said "10.90.0.11 down" "${show[@]}"
"${show[@]}" | cut -d: -f1
