#!/usr/bin/env bash
# Runs the fuzz targets on the stable toolchain, from the corpus in fuzz/corpus. What is found that covers new
# code is kept in fuzz/found, and what breaks in fuzz/artifacts; `scripts/fuzz.sh 0 TARGET FILE` runs one input.
#
# usage: scripts/fuzz.sh [SECONDS OF EACH [TARGET…]]      default: 10 seconds of every target
#        RUNS=24000000 scripts/fuzz.sh                    so many inputs each instead
# exit:  0 nothing broke, 1 an input broke something, 2 it cannot run here
set -euo pipefail
cd "$(dirname "$0")/../fuzz"
seconds=${1:-10}
[ $# -eq 0 ] || shift
all=$(cargo metadata --no-deps --format-version 1 --offline 2>/dev/null |
  python3 -c 'import json, sys
for package in json.load(sys.stdin)["packages"]:
    if package["name"] == "ringfeed-fuzz":
        print(*sorted(t["name"] for t in package["targets"] if "bin" in t["kind"]))')
command -v c++ >/dev/null || { echo "fuzz: a C++ compiler is needed (package g++)" >&2; exit 2; }

# What `cargo fuzz --sanitizer none` does, without nightly: LLVM's coverage for libFuzzer. A target is given so that
# build scripts are not built with it.
host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares"
cargo build --quiet --release --target "$host" --bins
programs=${CARGO_TARGET_DIR:-target}/$host/release
mkdir -p artifacts

if [ "$seconds" = 0 ]; then
  exec "$programs/$1" "${@:2}"
fi
limit=(-max_total_time="$seconds")
[ -z "${RUNS:-}" ] || limit=(-runs="$RUNS")
status=0
for target in ${*:-$all}; do
  mkdir -p "found/$target" "corpus/$target"
  log=found/$target.log
  if "$programs/$target" "${limit[@]}" -timeout=5 -rss_limit_mb=1024 -max_len=4096 -artifact_prefix="artifacts/$target-" \
    "found/$target" "corpus/$target" >"$log" 2>&1; then
    echo "fuzz: $target: $(sed -n 's/^Done \([0-9]*\) runs.*/\1 inputs, nothing broke/p' "$log")"
  else
    status=1
    echo "fuzz: $target: BROKEN" >&2
    tail -n 40 "$log" >&2
  fi
done
exit $status
