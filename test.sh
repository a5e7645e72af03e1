#!/usr/bin/env bash
# Runs every test. Installs what they need with apt-get where it may, else names the packages.
#
# usage: ./test.sh [arguments for the test runner]
set -euo pipefail
cd "$(dirname "$0")"

need() { # command, Debian package
  command -v "$1" >/dev/null && return
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing $2"
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -qq "$2" >/dev/null || { apt-get update -qq && apt-get install -y -qq "$2" >/dev/null; }
  else
    echo "test.sh: '$1' is missing; install the package $2" >&2
    exit 2
  fi
}
need cc gcc
need python3 python3
need redis-server redis-server
need prlimit util-linux
need setpriv util-linux
need haproxy haproxy
need openssl openssl
# Debian keeps the server out of the path; where there is none, its tests say that they are skipped.
compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || (need postgres postgresql) || true
command -v cargo >/dev/null || { echo "test.sh: Rust is needed: https://rustup.rs" >&2; exit 2; }

# A configuration in the caller's environment is not what is tested.
for name in "${!RINGFEED_@}"; do
  case $name in *__* | RINGFEED_CONFIG | RINGFEED_API_KEY) unset "$name" ;; esac
done

step() { echo "== $1 (after $((SECONDS / 60)) min $((SECONDS % 60)) s)"; }

step "programs under test"
cargo build --release --bin ringfeed --bin loadgen
target=${CARGO_TARGET_DIR:-target}
export RINGFEED_BIN_DIR=$(realpath "$target")/release

step "Autobahn conformance suite, sections 1 to 7 and 10"
status=0
scripts/autobahn.sh || status=$?
# 77: skipped, and it has said why.
[ "$status" = 0 ] || [ "$status" = 77 ] || exit "$status"

step "the demo"
scripts/demo_test.py

step "the comparison's arithmetic"
# Those of its tests that start no server.
(cd benches/peers && python3 -m unittest -q test_compare.Verdicts test_compare.Cells \
  test_compare.CommandLine.test_{unknown_servers_are_named_with_those_that_are_known,help_names_servers_and_presets,other_wrong_values_are_named})

step "documentation examples"
cargo test --quiet --workspace --doc

step "tests"
if cargo nextest --version >/dev/null 2>&1; then
  exec cargo nextest run --workspace "$@"
fi
exec cargo test --workspace --lib --bins --tests "$@"
