#!/usr/bin/env python3
"""What one engine holds and what it costs: 100,000 connections, CPU a delivery by connections and shards, stalled
readers. Engine on one core, loadgen on another; writes Markdown. Build first: cargo build --release.
"""

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benches" / "peers"))

import network
import servers

BIN = ROOT / "target" / "release"


class Engine:
    """On free ports; ended on leaving, and with this process."""

    def __init__(self, *flags):
        self.flags = flags

    def __enter__(self):
        self.directory = tempfile.TemporaryDirectory()
        place = self.place = servers.Place(
            self.directory.name, network.opened("loopback", ARGS.server_core, [ARGS.loadgen_core]), ARGS.server_core)
        place.spawn(
            [BIN / "ringfeed", "serve", "--config", ROOT / "config" / "bench.toml", "--port", place.port,
             "--set", f"api.listen=127.0.0.1:{place.port + 1}", "--set", "server.pin=false", *self.flags])
        try:
            place.wait(place.port, place.port + 1)
        except servers.Failed as error:
            self.__exit__()
            sys.exit(f"the engine {error}")
        return self

    def __exit__(self, *_):
        servers.stop(self.place.process)
        self.directory.cleanup()

    def loadgen(self, *flags):
        """The report as JSON and as text."""
        report = Path(self.directory.name, "report.json")
        done = subprocess.run(
            ["taskset", "-c", str(ARGS.loadgen_core), BIN / "loadgen", "--quiet", "--url",
             f"ws://127.0.0.1:{self.place.port}/ws", "--json", report, *flags], capture_output=True, text=True)
        # Had its ports been somebody else's, it would have ended.
        if (status := self.place.process.poll()) is not None:
            sys.exit(f"the engine ended with {status}{self.place.last_words()}")
        # 1: something was lost, which the report says.
        if done.returncode not in (0, 1):
            sys.exit(f"loadgen: {done.stderr}")
        return json.loads(report.read_text()), done.stdout


def verdict(report):
    """Nothing, or what was wrong with the run."""
    return "" if report["passed"] else f" **{report['verdict']}**"


def hundred_thousand():
    flags = ["--conns", "100000", "--rate", "50", "--burst", "50", "--duration", "20"]
    with Engine() as engine:
        report, text = engine.loadgen(*flags)
    print(text)
    server = report["server"]
    return [
        "## 100,000 connections", "",
        f"`loadgen {' '.join(flags)}` against one engine process, both under `ulimit -n` {resource.getrlimit(resource.RLIMIT_NOFILE)[0]:,}: "
        "1,000 messages to everybody.", "", "```", text.rstrip(), "```", "",
        f"Longest turn while one channel had 100,000 subscribers: {server['turn_max_us'] / 1000:.1f} ms, of which the shard had "
        f"the CPU for {server['turn_cpu_max_us'] / 1000:.1f} ms at most (bar: 10 ms).", ""]


def connections_and_shards():
    lines = [
        "## CPU a delivery by connections and shards", "",
        "One message at a time to everybody, 100,000 deliveries a second, 128 bytes; all shards on one core. User + system, ns; in "
        "brackets the ratio to 1,000 connections and one shard. The floor is the kernel's share: the same sends by a program that "
        "does nothing else.", "",
        "| connections | the floor | " + " | ".join(f"{shards} shard{'s' if shards > 1 else ''}" for shards in ARGS.shards) + " |",
        "|--:|" + "--:|" * (len(ARGS.shards) + 1)]
    base, ground = None, None
    for connections in (1000, 10000, 50000, 100000):
        rate = max(1, 100000 // connections)
        done = subprocess.run(
            [BIN / "floor", "--core", str(ARGS.server_core), "--conns", str(connections), "--rate", str(rate), "--duration", "5"],
            capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"floor: {done.stderr}")
        floor = json.loads(done.stdout)
        floor = floor["cpu_user_ns_per_delivery"] + floor["cpu_system_ns_per_delivery"]
        ground = ground or floor
        cells = [f"{floor:,.0f} ({floor / ground:.2f})"]
        for shards in ARGS.shards:
            with Engine("--set", f"server.shards={shards}") as engine:
                report, text = engine.loadgen(
                    "--conns", str(connections), "--rate", str(rate), "--duration", str(max(4, 6 // rate)))
            cost = report["server"]["cpu_user_ns_per_delivery"] + report["server"]["cpu_system_ns_per_delivery"]
            base = base or cost
            cells.append(f"{cost:,.0f} ({cost / base:.2f}){verdict(report)}")
            print(connections, shards, cells[-1], flush=True)
        lines.append(f"| {connections:,} | " + " | ".join(cells) + " |")
    return lines + [""]


def stalled():
    work = ["--rate", "2000", "--burst", "400", "--duration", str(ARGS.stall_seconds), "--settle", "5", "--publish", "ws"]
    with Engine() as engine:
        calm, text = engine.loadgen("--conns", "2000", *work)
        print(text)
    with Engine() as engine:
        report, text = engine.loadgen("--conns", "12000", "--stalled", "10000", *work)
        print(text)
    grown = (report["server"]["resident_bytes"] - report["server"]["resident_bytes_before"]) / (1 << 20)
    before, after = calm["latency_us"]["p99"] / 1000, report["latency_us"]["p99"] / 1000
    return [
        "## 10,000 stalled readers", "",
        f"A busy channel, 2,000 messages a second in bursts of 400, for {ARGS.stall_seconds} s; 2,000 readers that read, beside 10,000 that "
        "stop reading once they are subscribed. Latencies count from the fifth second on.", "",
        f"`loadgen --conns 12000 --stalled 10000 {' '.join(work)}`", "",
        "| | alone | beside 10,000 stalled |", "|---|--:|--:|",
        f"| p50 | {calm['latency_us']['p50'] / 1000:.2f} ms | {report['latency_us']['p50'] / 1000:.2f} ms |",
        f"| p99 | {before:.2f} ms | {after:.2f} ms ({after / before:.2f} x; bar 1.5 x) |",
        f"| lost by those who read | {calm['lost']}{verdict(calm)} | {report['lost']}{verdict(report)} |",
        f"| engine's resident memory grew by | | {grown:.1f} MiB (bar 100 MiB) |", ""]


PARTS = (hundred_thousand, connections_and_shards, stalled)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--loadgen-core", type=int, default=1)
    parser.add_argument("--shards", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2, 4, 8])
    parser.add_argument("--only", choices=[part.__name__ for part in PARTS], help="only this part")
    parser.add_argument("--stall-seconds", type=int, default=60)
    parser.add_argument("--machine", default=platform.node(), help="name of this machine in the result's file name")
    global ARGS
    ARGS = parser.parse_args()
    today = datetime.date.today().isoformat()
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    lines = [
        f"# {today}: connections, shards, stalled readers", "",
        f"{cpu}, {os.cpu_count()} cores, Linux {platform.release()}; ringfeed {commit}. Engine on core {ARGS.server_core}, loadgen on "
        f"core {ARGS.loadgen_core}. Command: `benches/proof.py`", "",
    ]
    for part in PARTS:
        if ARGS.only in (None, part.__name__):
            lines += part()
    out = ROOT / "benches" / "results" / f"{today}-{ARGS.machine}-proof.md"
    out.write_text("\n".join(lines))
    print(f"written to {out}")


if __name__ == "__main__":
    main()
