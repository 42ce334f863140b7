#!/usr/bin/env bash
# Fuzzes every parser for so many seconds each (20 if none are given), from the seeds beside this file
# and from images of this build. Ends at the first input that crashes one; it is left in the folder that
# is printed.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-20}
target=../../target/fuzz
corpus=$target/corpus

counters="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1"
RUSTFLAGS="$counters" cargo build --release --locked --quiet --target x86_64-unknown-linux-gnu \
    --target-dir "$target"

mkdir -p "$corpus"/{image,policy,request,snapshot,config}
cp ../../sbx-launcher/policies/*.toml seeds/policy/* "$corpus/policy/"
cp seeds/request/* "$corpus/request/"
cp seeds/config/* "$corpus/config/"
for image in libhello_upcall libledger libtrace; do
    strip --strip-debug -o "$corpus/image/$image.so" "../../target/release/$image.so"
done
launcher=../../target/release/sbx-launcher
sandbox=fuzz-$$
"$launcher" up "$sandbox" --size 576
"$launcher" ext load "$sandbox" ../../target/release/libhello_upcall.so
"$launcher" snapshot "$sandbox" "$corpus/snapshot/hello" >/dev/null
"$launcher" down "$sandbox"

for parser in image policy request snapshot config; do
    log=$target/$parser.log
    "$target/x86_64-unknown-linux-gnu/release/$parser" "$corpus/$parser" -max_total_time="$seconds" -seed=1 \
        -max_len=2000000 -timeout=10 -rss_limit_mb=3000 -artifact_prefix="$target/crash-$parser-" \
        >"$log" 2>&1 || { tail -30 "$log"; echo "$parser: see $(realpath "$target")/crash-$parser-*"; exit 1; }
    echo "$parser: $(grep -E '^Done' "$log")"
done
