#!/usr/bin/env bash
# Passes all tests on a fresh machine: installs the Debian packages that the tests run, then checks,
# builds and tests. Takes about 5 minutes on 2 cores.
set -euo pipefail
cd "$(dirname "$0")/.."

# What the tests run, by the program and the package that has it.
needed=(cc:gcc git:git curl:curl redis-server:redis-server redis-cli:redis-tools
    nginx:nginx-light /usr/bin/python3:python3 /usr/bin/node:nodejs ps:procps)
missing=()
for pair in "${needed[@]}"; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair##*:}")
done
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

stage() {
    local start=$SECONDS name=$1
    shift
    echo "== $name: $*"
    "$@"
    echo "== $name took $((SECONDS - start)) s"
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT
stage format cargo fmt --all --check
stage build cargo build --release --workspace --locked
stage lint cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
stage test cargo test --workspace --locked 2>&1 | tee "$log"
awk '/^test result:/ { passed += $4; failed += $6; skipped += $8 }
    END { printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped }' "$log"
