#!/usr/bin/env bash
# Passes all tests on a fresh machine: installs the Debian packages that the tests run, then checks,
# builds and tests. Takes about 10 minutes on 2 cores; --full runs the long suites whole.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
"") ;;
--full) export SBX_TEST_FULL=1 ;;
*)
    echo "usage: bash integration/test.sh [--full]" >&2
    exit 2
    ;;
esac

# What the tests run, by the program and the package that has it.
needed=(cc:gcc git:git curl:curl redis-server:redis-server redis-cli:redis-tools
    nginx:nginx-light /usr/bin/python3:python3 /usr/bin/node:nodejs ps:procps
    memcached:memcached memccat:libmemcached-tools dig:bind9-dnsutils bwrap:bubblewrap musl-gcc:musl-tools
    javac:default-jdk-headless go:golang-go gdb:gdb strace:strace sqlite3:sqlite3 haproxy:haproxy iperf3:iperf3 wrk:wrk make:make
    tar:tar c++:g++ strip:binutils perf:linux-perf ip:iproute2 ping:iputils-ping tshark:tshark socat:socat
    /usr/lib/nginx/modules/ngx_stream_module.so:libnginx-mod-stream /usr/lib/postgresql:postgresql)
missing=()
for pair in "${needed[@]}"; do
    [ -e "${pair%%:*}" ] || command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
# CPython's own tests, of the version that Debian's python3 is of here.
python=$(apt-cache depends python3 2>/dev/null | sed -n 's/.*Depends: \(python3\.[0-9]*\)$/\1/p' | head -1)
[ -e "/usr/lib/$python/test/test_os.py" ] || missing+=("lib$python-testsuite")
if [ "${#missing[@]}" -gt 0 ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "these Debian packages are missing: ${missing[*]} (run as root once, or install them)" >&2
        exit 1
    fi
    echo "installing ${missing[*]}"
    # Servers are for the tests to start, not for the machine.
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    rm -f /usr/sbin/policy-rc.d
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
# A stage that takes so long hangs, and has failed.
minutes=25
[ -z "${SBX_TEST_FULL:-}" ] || minutes=240
stage() {
    local start=$SECONDS name=$1 status=0
    shift
    echo "== $name: $*"
    timeout --kill-after=10 "${minutes}m" "$@" 2>&1 | tee -a "$log" || status=$?
    [ "$status" != 124 ] || echo "== $name has taken $minutes minutes and is ended"
    [ "$status" = 0 ] || exit "$status"
    echo "== $name took $((SECONDS - start)) s"
}
skip() {
    echo "== $1 skipped: $2" | tee -a "$log"
}

image=(--manifest-path libos/image/Cargo.toml)
stage format cargo fmt --all --check
stage format-image cargo fmt "${image[@]}" --check
stage format-fuzz cargo fmt --manifest-path integration/fuzz/Cargo.toml --check
stage build cargo build --release --workspace --locked
stage lint cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
stage lint-image cargo clippy "${image[@]}" --release --locked --quiet -- -D warnings
stage docs env RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
stage test cargo test --workspace --locked
stage loom env RUSTFLAGS="--cfg loom" cargo test -p ext-api -p libos --lib --release --locked \
    --target-dir target/loom -- loom_
fuzz_seconds=15
[ -z "${SBX_TEST_FULL:-}" ] || fuzz_seconds=600
stage fuzz bash integration/fuzz/run.sh "$fuzz_seconds"
nightly=nightly-2026-05-20
if ! cargo "+$nightly" miri --version >/dev/null 2>&1; then
    timeout 120 rustup toolchain install "$nightly" --profile minimal -c miri -c rust-src >/dev/null 2>&1 || true
fi
if cargo "+$nightly" miri --version >/dev/null 2>&1; then
    stage miri env MIRIFLAGS=-Zmiri-disable-isolation cargo "+$nightly" miri test -p ext-api \
        --lib --locked --target-dir target/miri
else
    skip miri "no miri in the toolchain $nightly (rustup toolchain install $nightly -c miri)"
fi

awk '/^test result:/ { passed += $4; failed += $6; skipped += $8 }
    /^== .* skipped:/ { skipped += 1; print }
    END { printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped }' "$log"
