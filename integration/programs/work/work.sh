#!/bin/bash
# Has a real program work for so many seconds: work.sh PROGRAM SECONDS. What is printed does not depend on
# how much gets done: each different output once.
set -eu
program=$1 seconds=$2 here=$(dirname "$(readlink -f "$0")")
folder=$(mktemp -d)
chmod a+rx "$folder"
trap 'rm -rf "$folder"' EXIT
cd "$folder"
export HOME=$folder LC_ALL=C

again() {
    local end=$((${EPOCHREALTIME/./} + seconds * 1000000))
    while :; do
        "$@"
        [ "${EPOCHREALTIME/./}" -lt "$end" ] || break
    done | sort -u
}

# Until a command succeeds, for 10 s at most.
await() {
    for _ in $(seq 200); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.05
    done
    echo "$* never succeeded"
}

pipeline() {
    seq 3000 | sort -r | tr 0-9 a-j | (read -r first && echo "$first" && cat) | md5sum
}

copy() {
    curl -s "file://$folder/data" | md5sum
}

commits() {
    rm -rf one two
    git init -q one
    for i in 1 2 3 4 5; do
        seq "$i" 2000 >"one/file$i"
        git -C one add .
        git -C one commit -qm "$i"
    done
    git -C one gc -q
    git -C one fsck 2>/dev/null
    git clone -q one two
    git -C two log --format='%H %s'
}

saved() {
    redis-cli -s s eval 'local all = ""
        for i = 1, 3000 do redis.call("set", "k" .. i, string.rep("v" .. i, 50)) end
        for i = 1, 3000 do all = redis.sha1hex(all .. redis.call("get", "k" .. i)) end
        return all' 0
    await redis-cli -s s bgsave
    await eval 'redis-cli -s s info persistence | grep -q bgsave_in_progress:0'
    redis-cli -s s dbsize
}

pages() {
    for page in small large; do
        curl -s --unix-socket s "http://x/$page" | md5sum
    done
}

case $program in
bash) again pipeline ;;
curl)
    seq 2000000 >data
    again copy
    ;;
git)
    git config --global user.name a
    git config --global user.email a@b
    export GIT_AUTHOR_DATE=2020-01-01T00:00:00Z GIT_COMMITTER_DATE=2020-01-01T00:00:00Z
    again commits
    ;;
redis)
    redis-server --port 0 --unixsocket s --save '' --dir "$folder" >log 2>&1 &
    await redis-cli -s s ping
    again saved
    test -s dump.rdb && echo "on disk"
    redis-cli -s s shutdown nosave
    wait
    ;;
nginx)
    seq 100 >small
    seq 300000 >large
    chmod a+r small large
    cat >conf <<CONF
worker_processes 2; pid $folder/pid; events {}
http { access_log off; client_body_temp_path $folder/1; proxy_temp_path $folder/2;
fastcgi_temp_path $folder/3; uwsgi_temp_path $folder/4; scgi_temp_path $folder/5;
server { listen unix:$folder/s; root $folder; } }
CONF
    nginx -e "$folder/errors" -c "$folder/conf" 2>/dev/null
    again pages
    kill "$(cat pid)"
    await test ! -e pid
    ;;
python) /usr/bin/python3 "$here/work.py" "$seconds" ;;
node) /usr/bin/node "$here/work.js" "$seconds" ;;
java) java -Xmx64m -cp "$here" Work "$seconds" ;;
go | musl | asan) "$here/work-$program" "$seconds" ;;
esac
