#!/usr/bin/env python3
"""Runs ringfeed and other servers on the same work and says where ringfeed is behind.

Each server runs alone on one core with the smallest configuration for this work, a fresh one for
every run; loadgen drives it from other cores and checks every message at every subscriber. Servers
take turns in every round; medians are compared. After every run is written what there is so far:
benches/results/DATE-MACHINE-PRESET.md and .json.

What the chosen servers need, and nothing else, is fetched into a cache when it is missing. Nothing
is installed into the system and no service is started.

servers:
  floor            sends the same bytes to as many sockets and does nothing else; one channel only
  ringfeed         over io_uring
  ringfeed-epoll   over epoll
  ringfeed-before  what --binary-before names
  uwebsockets      inside Bun, from npm
  nats             NATS with WebSocket subscribers, from Debian's package
  nchan            nginx with Nchan, from Debian's packages
  ws               on Node, from npm

presets:
  peers       fan-out in several shapes and watchlists, all servers (the default)
  watchlists  5,000 connections on 50 of 5,000 channels at random; 2,000 on 20 of 500 by popularity
  fanout      one channel: 500, 5,000, 15,000 subscribers saturated; 2,000, one message at a time
  quick       a few cells from all over the grid
  grid        1 to 100,000 receivers a message, 1 to 100 channels a connection, rates from idle to
              saturation at 128 B; popular interest, 1 KB and 16 KB in part
  full        every combination of these

exit status: 0 when everything was measured and ringfeed lost nothing, 1 when not, 2 for wrong
usage.
"""

import argparse
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import cells
import network
import servers
from campaign import Campaign, duration, expected_seconds
from fetch import Missing
from measure import Bench
from servers import ROOT

BIN = ROOT / "target" / "release"


def main():
    arguments = parse()
    # The limits of shells are lower than what is allowed.
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    for number in (signal.SIGTERM, signal.SIGHUP):
        # nohup ignores it on purpose.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    warnings = []
    if not set(arguments.loadgen_cores) - {arguments.server_core}:
        warnings.append("Server and generator share a core: figures say little.")
    way, names, left_out = prepare(arguments, warnings)
    try:
        os.sched_setaffinity(0, arguments.loadgen_cores)
        bench = Bench(
            way,
            arguments.loadgen,
            arguments.server_core,
            set(arguments.loadgen_cores),
            arguments.threads,
            arguments.patience,
        )
        campaign = Campaign(arguments, bench, names, left_out, warnings)
        return campaign.go()
    finally:
        way.close()


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--preset", choices=cells.PRESETS, default="peers", help="which cells (default peers)"
    )
    what.add_argument(
        "--quick", action="store_const", dest="preset", const="quick", help="--preset quick"
    )
    what.add_argument(
        "--full", action="store_const", dest="preset", const="full", help="--preset full"
    )
    what.add_argument(
        "--only", metavar="TEXT", help="only cells whose name contains this; --list shows names"
    )
    what.add_argument(
        "--servers",
        type=server_names,
        metavar="NAMES",
        help=(
            f"separated by commas, of: {', '.join(servers.NAMES)} (default: what the preset"
            " compares)"
        ),
    )
    what.add_argument("--rounds", type=positive(int), help="interleaved runs of each cell")
    what.add_argument("--seconds", type=positive(float), help="seconds of publishing in each run")
    what.add_argument(
        "--confirm",
        type=positive(int),
        metavar="ROUNDS",
        help=(
            "more rounds of the cells in which ringfeed is behind, or seems to be (default: 2 of"
            " grid and full)"
        ),
    )
    what.add_argument(
        "--subscriptions-max",
        type=positive(int),
        default=500_000,
        metavar="N",
        help="cells with more subscriptions are left out (default 500,000)",
    )
    what.add_argument(
        "--list", action="store_true", help="name the cells, say how long they take, and end"
    )
    binaries = parser.add_argument_group("programs")
    binaries.add_argument(
        "--binary", type=Path, metavar="PATH", help="ringfeed (default: built here)"
    )
    binaries.add_argument(
        "--binary-before",
        type=Path,
        metavar="PATH",
        help=(
            "another ringfeed, which takes turns with it, to compare a change with what was before"
        ),
    )
    binaries.add_argument(
        "--config",
        type=Path,
        metavar="PATH",
        default=ROOT / "config" / "bench.toml",
        help="ringfeed's configuration",
    )
    binaries.add_argument(
        "--config-before",
        type=Path,
        metavar="PATH",
        help="that of --binary-before (default: the same)",
    )
    binaries.add_argument(
        "--loadgen", type=Path, metavar="PATH", help="loadgen (default: built here)"
    )
    binaries.add_argument(
        "--cache",
        type=Path,
        default=ROOT / "target" / "peers",
        metavar="DIR",
        help="where peers are put (default: target/peers)",
    )
    where = parser.add_argument_group("where")
    where.add_argument(
        "--network",
        choices=network.NETWORKS,
        default="loopback",
        help=(
            "veth: two network namespaces, each side's receiving on its own cores; lo-rps: a"
            " loopback device whose receiving is done on the generator's cores. Both need root and"
            " fall back to loopback"
        ),
    )
    where.add_argument("--server-core", type=int, default=0, metavar="N", help="default 0")
    where.add_argument(
        "--loadgen-cores",
        type=core_list,
        metavar="LIST",
        help="as in 1-3 or 1,3 (default: all but the server's)",
    )
    where.add_argument(
        "--loadgen-threads",
        type=positive(int),
        dest="threads",
        metavar="N",
        help=(
            "connection threads (default: its cores less one, which the publisher takes; at least"
            " one)"
        ),
    )
    where.add_argument(
        "--patience",
        type=positive(float),
        default=20,
        metavar="SECONDS",
        help=(
            "how much longer than expected a run may take until it is given up, for good"
            " (default 20)"
        ),
    )
    where.add_argument(
        "--machine",
        help="name of this machine in the files' names (default: from its CPU and cores)",
    )
    where.add_argument(
        "--out", type=Path, metavar="PATH", help="files to write, less .md and .json"
    )
    arguments = parser.parse_args()
    preset = cells.PRESETS[arguments.preset]
    arguments.rounds = arguments.rounds or preset.rounds
    arguments.confirm = arguments.confirm or preset.confirm
    arguments.seconds = arguments.seconds or preset.seconds
    arguments.servers = arguments.servers or list(preset.servers)
    arguments.config_before = arguments.config_before or arguments.config
    if arguments.binary_before and "ringfeed-before" not in arguments.servers:
        arguments.servers.insert(
            arguments.servers.index("ringfeed") + 1 if "ringfeed" in arguments.servers else 0,
            "ringfeed-before",
        )
    if "ringfeed-before" in arguments.servers and not arguments.binary_before:
        parser.error("ringfeed-before: --binary-before must name it")
    arguments.cells, arguments.cells_left_out = cells.chosen(
        arguments.preset, arguments.only, arguments.subscriptions_max
    )
    if not arguments.cells:
        parser.error(
            f"no cell of {arguments.preset} has {arguments.only!r} in its name; --list shows them"
        )
    available = sorted(os.sched_getaffinity(0))
    others = [core for core in available if core != arguments.server_core]
    arguments.loadgen_cores = arguments.loadgen_cores or others or available
    unknown = {arguments.server_core, *arguments.loadgen_cores} - set(available)
    if unknown:
        parser.error(
            f"cores {', '.join(map(str, sorted(unknown)))} are not there; there are"
            f" {', '.join(map(str, available))}"
        )
    arguments.threads = arguments.threads or max(1, len(arguments.loadgen_cores) - 1)
    for path in (arguments.binary, arguments.binary_before, arguments.loadgen):
        if path and not os.access(path, os.X_OK):
            parser.error(f"{path} is no program")
    if arguments.list:
        listed(arguments)
    return arguments


def positive(kind):
    def read(text):
        value = kind(text)
        if not 0 < value < 1e9:
            raise ValueError
        return value

    read.__name__ = "positive number"
    return read


def server_names(text):
    chosen = [name.strip() for name in text.split(",") if name.strip()]
    wrong_names = [name for name in chosen if name not in servers.NAMES]
    if wrong_names or not chosen:
        raise argparse.ArgumentTypeError(
            f"{', '.join(map(repr, wrong_names)) or 'nothing'} is no server; these are:"
            f" {', '.join(servers.NAMES)}"
        )
    return list(dict.fromkeys(chosen))


def core_list(text):
    cores = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        cores += range(int(first), int(last or first) + 1)
    if not cores:
        raise ValueError
    return cores


def listed(arguments):
    for cell in arguments.cells:
        print(cell.name)
    for cell, reason in arguments.cells_left_out.items():
        print(f"left out: {cell.name}: {reason}")
    seconds = (
        sum(expected_seconds(cell, arguments.seconds) for cell in arguments.cells)
        * len(arguments.servers)
        * arguments.rounds
    )
    print(
        f"{len(arguments.cells)} cells, {len(arguments.servers)} servers, {arguments.rounds}"
        f" rounds: about {duration(seconds)}"
    )
    sys.exit(0)


def prepare(arguments, warnings):
    """Builds and fetches what is needed: the network, the servers by name, what cannot be had."""
    release = {"ringfeed": arguments.binary, "loadgen": arguments.loadgen}
    wanted = (
        {"loadgen"}
        | {"ringfeed"} & {name.removesuffix("-epoll") for name in arguments.servers}
        | {"floor"} & set(arguments.servers)
    )
    build = [name for name in sorted(wanted) if not release.get(name)]
    if build:
        command = [
            "cargo",
            "build",
            "--release",
            *(word for name in build for word in ("--bin", name)),
        ]
        print(" ".join(command), flush=True)
        if subprocess.run(command, cwd=ROOT).returncode != 0:
            sys.exit("compare.py: the build failed")
    binaries = {name: release.get(name) or BIN / name for name in ("ringfeed", "loadgen", "floor")}
    binaries["before"] = arguments.binary_before
    arguments.loadgen = binaries["loadgen"].resolve()
    if any(cell.is_drawn for cell in arguments.cells):
        told = subprocess.run([arguments.loadgen, "--help"], capture_output=True, text=True).stdout
        if "--interest" not in told:
            sys.exit(
                f"compare.py: {arguments.loadgen} cannot draw channels at random: it has no"
                " --interest"
            )
    names, left_out = {}, []
    for name in arguments.servers:
        server = servers.made(name, binaries, arguments.config, arguments.config_before)
        try:
            server.prepare(arguments.cache.resolve())
            names[name] = server
        except (Missing, OSError) as error:
            print(f"compare.py: {name} is left out: {error}", flush=True)
            left_out.append(f"{server.title}: {error}")
    if not names:
        sys.exit("compare.py: no server is left to measure")
    try:
        way = network.opened(arguments.network, arguments.server_core, arguments.loadgen_cores)
    except network.NotAllowed as error:
        warning = (
            f"--network {arguments.network} is not possible here ({error}): plain loopback instead."
        )
        print(f"compare.py: {warning}", flush=True)
        warnings.append(warning)
        way = network.opened("loopback", arguments.server_core, arguments.loadgen_cores)
    return way, names, left_out


if __name__ == "__main__":
    sys.exit(main())
