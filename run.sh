#!/usr/bin/env bash
# Builds ringfeed, starts the engine on its built-in defaults, a simulated feed and subscribers, and
# shows live rates until Ctrl-C.
#
# usage: ./run.sh [SUBSCRIBERS]        default: 2000
#        RINGFEED_DEMO_SECONDS=10      stops by itself after so many seconds
#        RINGFEED_SERVER__LISTEN=127.0.0.1:8000 RINGFEED_API__LISTEN=127.0.0.1:8001 ./run.sh
#                                      other ports; any key of docs/CONFIG.md can be set like this
set -euo pipefail
cd "$(dirname "$0")"
usage() { sed -n '5,8s/^# \?//p' "$0" >&2; exit 2; }
[ $# -le 1 ] || usage
subscribers=${1:-2000}
[[ $subscribers =~ ^[1-9][0-9]{0,6}$ ]] || usage
command -v cargo >/dev/null || { echo "run.sh: Rust is needed: https://rustup.rs" >&2; exit 2; }
command -v cc >/dev/null || { echo "run.sh: a C compiler is needed (Debian: apt-get install gcc)" >&2; exit 2; }

echo "building (a few minutes the first time)"
cargo build --release --bin ringfeed --bin loadgen
programs=${CARGO_TARGET_DIR:-target}/release

work=$(mktemp -d)
engine= feed=
# The end of a process, also when a signal interrupts the wait for it.
finish() {
  local status=0
  while kill -0 "$1" 2>/dev/null; do status=0; wait "$1" || status=$?; done
  wait "$1" 2>/dev/null || status=$?
  return "$status"
}
stop() {
  rm -rf "$work"
  [ -n "$engine" ] || return 0
  kill -TERM "$engine" 2>/dev/null || true
  finish "$engine" || true
  engine=
}
trap stop EXIT
# Ctrl-C reaches the load generator by itself; its end ends this script. Once it has ended, the engine drains, and another
# Ctrl-C ends it at once.
interrupted() { [ -n "$feed" ] || [ -z "$engine" ] || kill -TERM "$engine" 2>/dev/null || true; }
trap interrupted INT
trap '[ -z "$feed" ] || kill -INT "$feed" 2>/dev/null || true; interrupted' TERM

# In a session of its own, so that Ctrl-C ends the feed first and the engine drains afterwards. What it says tells where it
# listens: another process on these ports cannot be mistaken for it.
mkfifo "$work/log"
RINGFEED_SERVER__DEMO_PAGE=true setsid "$programs/ringfeed" serve 2>"$work/log" &
engine=$!
exec 3<"$work/log"
url= api=
while [ -z "$api" ] && IFS= read -r line <&3; do
  case $line in
    *" clients connect to ws://"*) [ -n "$url" ] || url=${line##* clients connect to } ;;
    *" HTTP API and metrics at http://"*) api=${line##* at http://} ;;
    *" INFO "*) ;;
    *) echo "$line" >&2 ;;
  esac
done
if [ -z "$api" ]; then
  finish "$engine" || true
  engine=
  echo "run.sh: the engine did not start; RINGFEED_SERVER__LISTEN and RINGFEED_API__LISTEN choose other ports" >&2
  exit 1
fi
setsid cat <&3 >&2 &
# Where it listens on all addresses it is reached on this machine's own.
local_of() { sed 's#0\.0\.0\.0:#127.0.0.1:#; s#\[::\]:#[::1]:#' <<<"$1"; }
url=$(local_of "$url") api=$(local_of "$api")
page=${url#ws://}

cat <<TEXT

  SIMULATED feed: 20 made-up instruments, 200 ticks a second. Each of $subscribers subscribers is on one instrument, so
  each tick is delivered to one in 20 of them: about $((200 * subscribers / 20)) deliveries a second.
  In a browser:   http://${page%%/*}/      (the same ticks, live)
  Stop:           Ctrl-C

TEXT
duration=()
[ -z "${RINGFEED_DEMO_SECONDS:-}" ] || duration=(--duration "$RINGFEED_DEMO_SECONDS")
# The feed publishes with the first key that the engine takes.
[ -z "${RINGFEED_API__KEYS:-}" ] || export RINGFEED_API_KEY=${RINGFEED_API_KEY:-${RINGFEED_API__KEYS%%,*}}
"$programs/loadgen" demo --prefix "" --instruments 20 --rate 200 --conns "$subscribers" --url "$url" --api "$api" \
  "${duration[@]}" &
feed=$!
status=0
finish "$feed" || status=$?
feed=
stop
exit "$status"
