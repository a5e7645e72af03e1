#!/usr/bin/env bash
# Builds ringfeed, starts the engine on its built-in defaults, a simulated feed and subscribers, and
# shows live rates until Ctrl-C.
#
# usage: ./run.sh [SUBSCRIBERS]        default: 2000
#        RINGFEED_DEMO_SECONDS=10      stops by itself after so many seconds
set -euo pipefail
cd "$(dirname "$0")"
subscribers=${1:-2000}
[[ $subscribers =~ ^[1-9][0-9]*$ ]] || { echo "usage: ./run.sh [SUBSCRIBERS]" >&2; exit 2; }
command -v cargo >/dev/null || { echo "run.sh: Rust is needed: https://rustup.rs" >&2; exit 2; }
command -v cc >/dev/null || { echo "run.sh: a C compiler is needed (Debian: apt-get install gcc)" >&2; exit 2; }

echo "building (a few minutes the first time)"
cargo build --release --bin ringfeed --bin loadgen

engine=
stop() {
  [ -n "$engine" ] || return 0
  kill -TERM "$engine" 2>/dev/null || true
  wait "$engine" 2>/dev/null || true
  engine=
}
trap stop EXIT
# Ctrl-C reaches the load generator too; its end ends this script.
trap : INT TERM
# In a session of its own, so that Ctrl-C ends the feed first and the engine drains afterwards.
setsid target/release/ringfeed serve &
engine=$!
for _ in $(seq 100); do
  if (exec 3<>/dev/tcp/127.0.0.1/9801) 2>/dev/null; then break; fi
  kill -0 "$engine" 2>/dev/null || { echo "run.sh: the engine did not start" >&2; engine=; exit 1; }
  sleep 0.05
done

cat <<TEXT

  SIMULATED feed: 20 made-up instruments, 200 ticks a second, $subscribers subscribers.
  In a browser:   http://127.0.0.1:9800/      (the same ticks, live)
  Stop:           Ctrl-C

TEXT
duration=()
[ -n "${RINGFEED_DEMO_SECONDS:-}" ] && duration=(--duration "$RINGFEED_DEMO_SECONDS")
status=0
target/release/loadgen demo --prefix "" --conns "$subscribers" "${duration[@]}" || status=$?
stop
exit "$status"
