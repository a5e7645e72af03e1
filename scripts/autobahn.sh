#!/usr/bin/env bash
# Runs the Autobahn conformance suite against the echo dialect, on the production path. Every case
# must end OK or INFORMATIONAL, and close cleanly.
#
# usage: scripts/autobahn.sh [CASE PATTERN…]      default: sections 1 to 7 and 10; as in 9.1.2 or '9.*'
# exit:  0 passed, 1 failed, 2 wrong use, 77 skipped (no Python 2.7, or the suite cannot be installed)
set -euo pipefail
cd "$(dirname "$0")/.."
profile=${RINGFEED_PROFILE:-release}
[ $# -gt 0 ] || set -- '1.*' '2.*' '3.*' '4.*' '5.*' '6.*' '7.*' '10.*'
skip() { echo "autobahn: SKIPPED: $*" >&2; exit 77; }

python27() {
  local candidate
  for candidate in "${PYTHON27:-}" python2.7 "$HOME/.pyenv/versions/2.7.18/bin/python2.7"; do
    [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (2, 7))' \
      2>/dev/null && { echo "$candidate"; return; }
  done
  return 1
}

env=.autobahn/env
if [ ! -x $env/bin/wstest ]; then
  python=$(python27) || skip "no Python 2.7 here; set PYTHON27 to one"
  rm -rf .autobahn/tools $env
  python3 -m venv .autobahn/tools >/dev/null 2>&1 || skip "python3 -m venv does not work"
  .autobahn/tools/bin/pip install -q 'virtualenv<20.22' || skip "virtualenv cannot be installed"
  .autobahn/tools/bin/virtualenv -q -p "$python" $env || skip "no environment for Python 2.7"
  $env/bin/pip install -q autobahntestsuite==25.10.1 2>/dev/null ||
    { rm -rf $env; skip "autobahntestsuite cannot be installed"; }
fi

# With a pattern that matches nothing the suite would wait for ever.
$env/bin/python - "$@" <<'PY' || exit 2
import sys
from autobahntestsuite.case import CaseBasename, CaseCategories, Cases, CaseSetname, CaseSubCategories
from autobahntestsuite.caseset import CaseSet
cases = CaseSet(CaseSetname, CaseBasename, Cases, CaseCategories, CaseSubCategories)
for pattern in sys.argv[1:]:
    try:
        matching = cases.parseSpecCases({"cases": [pattern]})
    except Exception as e:
        matching = []
    if not matching:
        sys.exit("autobahn: %r matches no case; allowed are numbers and stars, as in 9.1.2 or '9.*', of the sections "
                 "1 to 7, 9, 10, 12 and 13" % pattern)
PY

build=(cargo build --quiet --bin ringfeed)
[ "$profile" = release ] && build+=(--release)
"${build[@]}"
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || { kill "$server"; wait "$server" || true; } 2>/dev/null; rm -rf "$work"' EXIT
cat > "$work/echo.toml" <<'TOML'
[limits]
message_bytes_max = 33554432
outbox_bytes_max = 67108864
messages_per_second_max = 0
[[endpoints]]
path = "/echo"
dialect = "echo"
TOML
"${CARGO_TARGET_DIR:-target}/$profile/ringfeed" serve --config "$work/echo.toml" --port 0 --set api.listen=127.0.0.1:0 \
  --set server.shards=1 2>"$work/log" &
server=$!
address=
for _ in $(seq 600); do
  address=$(sed -n 's/.*connect to ws:\/\/\([0-9.:]*\)\/echo.*/\1/p' "$work/log")
  [ -n "$address" ] && break
  kill -0 "$server" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
  sleep 0.05
done
[ -n "$address" ] || { echo "autobahn: the server did not start" >&2; cat "$work/log" >&2; exit 1; }

cases=$(printf '"%s",' "$@")
cat > "$work/spec.json" <<JSON
{"outdir": "$work/reports", "servers": [{"agent": "ringfeed", "url": "ws://$address/echo"}],
 "cases": [${cases%,}], "exclude-cases": [], "exclude-agent-cases": {}}
JSON
timeout 1800 $env/bin/wstest -m fuzzingclient -s "$work/spec.json" > "$work/wstest.log" 2>&1 ||
  { tail -20 "$work/wstest.log" >&2; exit 1; }
python3 - "$work/reports/index.json" <<'PY'
import collections, json, sys
try:
    cases = json.load(open(sys.argv[1])).get("ringfeed", {})
except (OSError, ValueError) as e:
    sys.exit("autobahn: the suite has left no report: %s" % e)
if not cases:
    sys.exit("autobahn: no case was run")
allowed = {"OK", "INFORMATIONAL"}
bad = {name: case for name, case in cases.items()
       if case["behavior"] not in allowed or case["behaviorClose"] not in allowed}
counts = collections.Counter(case["behavior"] for case in cases.values())
for name, case in sorted(bad.items()):
    print("autobahn: case %s: %s, close %s" % (name, case["behavior"], case["behaviorClose"]))
print("autobahn: %d cases: %s" % (len(cases), ", ".join("%d %s" % (n, b) for b, n in counts.items())))
sys.exit(1 if bad else 0)
PY
