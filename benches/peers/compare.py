#!/usr/bin/env python3
"""Runs ringfeed, the floor and the peers on the same work and writes one table.

Installs what is missing (apt-get and npm, where it may), starts each server on one core with the smallest
configuration for this work, drives it with loadgen on another core, one after the other in every
round, and writes medians, with ratios beside the bars, as Markdown.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BIN = ROOT / "target" / "release"
CACHE = ROOT / "target" / "peers"
PORT = 9870

# Name: loadgen's flags, and the messages a second that are offered (None: as fast as it goes).
WORKLOADS = {
    "one at a time, 2,000 subscribers, 100/s": (["--conns", "2000", "--rate", "100"], 100),
    "bursts of 20, 2,000 subscribers, 1,000/s": (["--conns", "2000", "--rate", "1000", "--burst", "20"], 1000),
    "saturated, 500 subscribers": (["--conns", "500", "--rate", "0"], None),
    "saturated, 5,000 subscribers": (["--conns", "5000", "--rate", "0"], None),
    "saturated, 15,000 subscribers": (["--conns", "15000", "--rate", "0"], None),
    "saturated, 500 subscribers, 1 KB": (["--conns", "500", "--rate", "0", "--size", "1024"], None),
    "saturated, 500 subscribers, 16 KB": (["--conns", "500", "--rate", "0", "--size", "16384"], None),
    "500 subscribers, 6,000/s": (["--conns", "500", "--rate", "6000"], 6000),
}
for rate in (3000, 10000, 30000, 100000, 0):
    pace = f"{rate:,}/s" if rate else "as fast as it goes"
    WORKLOADS[f"5,000 connections on 50 of 5,000 channels, {pace}"] = (
        ["--conns", "5000", "--channels", "5000", "--subscriptions", "50", "--rate", str(rate)],
        rate or None,
    )

PLAIN = ["--subscribe-frame", "S {channel}", "--publish-frame", "P {channel} {payload}"]


def ringfeed(io):
    def start(directory):
        process = spawn(
            [BIN / "ringfeed", "serve", "--config", ROOT / "config" / "bench.toml", "--port", PORT,
             "--set", f"api.listen=127.0.0.1:{PORT + 1}", "--set", "server.pin=false", "--set", f"server.io={io}"],
            directory)
        return process, [process.pid], [
            "--url", f"ws://127.0.0.1:{PORT}/ws?protocol=raw.v1",
            "--subscribe-frame", '{"action":"subscribe","channel":"{channel}"}',
            "--publish-url", f"ws://127.0.0.1:{PORT}/ws",
            "--publish-frame", '{"type":"publish","channel":"{channel}","data":{payload}}']
    return start


def bun(directory):
    process = spawn([CACHE / "node_modules" / ".bin" / "bun", "run", HERE / "bun.ts", PORT], directory)
    return process, [process.pid], ["--url", f"ws://127.0.0.1:{PORT}/", *PLAIN]


def ws(directory):
    process = spawn(["node", HERE / "ws.mjs", PORT], CACHE)
    return process, [process.pid], ["--url", f"ws://127.0.0.1:{PORT}/", *PLAIN]


def nchan(directory):
    conf = (HERE / "nginx.conf").read_text().replace("PORT", str(PORT))
    Path(directory, "nginx.conf").write_text(conf)
    process = spawn(["nginx", "-p", directory, "-c", "nginx.conf"], directory)
    wait_for_port(PORT, process)
    time.sleep(0.3)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return process, [int(child) for child in children], [
        "--url", f"ws://127.0.0.1:{PORT}/sub/{{channels}}",
        "--publish-tcp", f"127.0.0.1:{PORT}",
        "--publish-frame",
        "POST /pub/{channel} HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: {size}\\r\\n\\r\\n{payload}"]


def nats(directory):
    conf = (HERE / "nats.conf").read_text().replace("CLIENTPORT", str(PORT + 2)).replace("PORT", str(PORT))
    Path(directory, "nats.conf").write_text(conf)
    process = spawn(["nats-server", "-c", "nats.conf"], directory, {"GOMAXPROCS": "1"})
    hello = 'CONNECT {"verbose":false,"pedantic":false}\\r\\n'
    return process, [process.pid], [
        "--url", f"ws://127.0.0.1:{PORT}/", "--hello-frame", hello,
        "--subscribe-frame", "SUB {channel} {channel}\\r\\n",
        "--publish-tcp", f"127.0.0.1:{PORT + 2}", "--publish-hello", hello,
        "--publish-frame", "PUB {channel} {size}\\r\\n{payload}\\r\\n"]


SERVERS = {
    "ringfeed": ringfeed("io_uring"),
    "ringfeed over epoll": ringfeed("epoll"),
    "uWebSockets (Bun)": bun,
    "NATS": nats,
    "Nchan": nchan,
    "ws": ws,
}
BASE = "uWebSockets (Bun)"
# A server that takes so long over its work is far from any bar: it is not measured in every round.
SLOW_SECONDS, SLOW_ROUNDS = 12, 2


def spawn(command, directory, environment=None):
    core = str(ARGS.server_core)
    return subprocess.Popen(
        ["taskset", "-c", core, *map(str, command)], cwd=directory, start_new_session=True,
        env={**os.environ, **(environment or {})}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for_port(port, process):
    import socket
    for _ in range(200):
        if process.poll() is not None:
            sys.exit(f"the server ended with {process.returncode}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    sys.exit("the server does not listen")


def stop(process):
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    except ProcessLookupError:
        pass


def measure(server, flags, seconds):
    """One run against a fresh server: loadgen's report, or a reason why there is none."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        process, pids, speech = SERVERS[server](directory)
        try:
            wait_for_port(PORT, process)
            report = Path(directory, "report.json")
            command = ["taskset", "-c", str(ARGS.loadgen_core), BIN / "loadgen", "--quiet", "--grace", "3",
                       "--pace", "100", "--duration", seconds, "--json", report, *speech, *flags]
            for pid in pids:
                command += ["--server-pid", pid]
            try:
                done = subprocess.run(
                    list(map(str, command)), capture_output=True, text=True, timeout=ARGS.patience)
            except subprocess.TimeoutExpired:
                return f"did not end within {ARGS.patience} s"
            if report.exists():
                return json.loads(report.read_text())
            return done.stderr.strip().splitlines()[-1][:120] if done.stderr.strip() else "no report"
        finally:
            stop(process)


def floor(flags, seconds):
    """The floor on the same work, where it is one channel."""
    if "--channels" in flags:
        return None
    done = subprocess.run(
        [BIN / "floor", "--core", str(ARGS.server_core), "--duration", str(seconds), *flags],
        capture_output=True, text=True, timeout=ARGS.patience)
    return json.loads(done.stdout) if done.returncode == 0 else None


def install():
    """What is missing, where this user may install it."""
    packages = {"nginx": "nginx libnginx-mod-nchan", "nats-server": "nats-server", "node": "nodejs npm", "taskset": "util-linux"}
    missing = " ".join(names for command, names in packages.items() if not shutil.which(command))
    if missing:
        if os.getuid() != 0 or not shutil.which("apt-get"):
            sys.exit(f"compare.py: install these packages first: {missing}")
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", *missing.split()], check=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    if not (CACHE / "node_modules" / "ws").exists():
        (CACHE / "package.json").write_text("{}")
        subprocess.run(["npm", "install", "--silent", "bun", "ws"], cwd=CACHE, check=True)
        subprocess.run(["node", "node_modules/bun/install.js"], cwd=CACHE, check=False)
    subprocess.run(["cargo", "build", "--release", "--workspace"], cwd=ROOT, check=True)


def median(values):
    return statistics.median(values) if values else None


def summary(reports):
    """Medians of one cell."""
    good = [report for report in reports if isinstance(report, dict)]
    if not good:
        return reports[0] if reports else "not run"
    def of(pick):
        return median([pick(report) for report in good])
    return {
        "rate": of(lambda r: r["delivered_per_second"]),
        "user": of(lambda r: r["server"]["cpu_user_ns_per_delivery"]),
        "system": of(lambda r: r["server"]["cpu_system_ns_per_delivery"]),
        "p50": of(lambda r: r["latency_us"]["p50"]),
        "p99": of(lambda r: r["latency_us"]["p99"]),
        "p999": of(lambda r: r["latency_us"]["p999"]),
        "memory": of(lambda r: (r["server_memory"]["resident_bytes_open"]
                                - r["server_memory"]["resident_bytes_before"]) / r["connections"]),
        "lost": max(r["lost"] + r["duplicated"] + r["reordered"] + r["corrupted"] + r["disconnected"] for r in good),
        "loadgen": of(lambda r: r["loadgen"]["cores"]),
        "runs": len(good),
    }


def versions():
    def first(command):
        try:
            done = subprocess.run(command, capture_output=True, text=True)
            return (done.stdout + done.stderr).strip().splitlines()[0]
        except (OSError, IndexError):
            return "?"
    package = json.loads((CACHE / "node_modules" / "ws" / "package.json").read_text())
    commit = first(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"])
    return (f"ringfeed {commit}; Bun {first([CACHE / 'node_modules/.bin/bun', '--version'])}; ws {package['version']} on "
            f"Node {first(['node', '--version'])}; {first(['nginx', '-v'])} with Nchan; {first(['nats-server', '--version'])}")


def human(value):
    if value is None:
        return ""
    for limit, suffix in ((1e6, " M"), (1e3, " k")):
        if value >= limit:
            return f"{value / limit:.2f}{suffix}"
    return f"{value:.0f}"


def table(results, floors):
    lines = []
    for workload, cells in results.items():
        lines += [f"### {workload}", ""]
        head = "| server | deliveries/s | CPU a delivery, user + system | p50 | p99 | p99.9 | memory a connection | lost | loadgen |"
        lines += [head, "|---|--:|--:|--:|--:|--:|--:|--:|--:|"]
        base = summary(cells.get(BASE, []))
        base = base if isinstance(base, dict) else None
        ground = [f for f in floors.get(workload, []) if f]
        if ground:
            user = median([f["cpu_user_ns_per_delivery"] for f in ground])
            system = median([f["cpu_system_ns_per_delivery"] for f in ground])
            rate = median([f["delivered_per_second"] for f in ground])
            lines.append(f"| the floor | {human(rate)} | {user:.0f} + {system:.0f} ns | | | | | | |")
        for server, reports in cells.items():
            cell = summary(reports)
            if not isinstance(cell, dict):
                lines.append(f"| {server} | {cell} | | | | | | | |")
                continue
            cpu = cell["user"] + cell["system"]
            ratio, cpu_ratio = "", ""
            if base and server != BASE:
                ratio = f" ({cell['rate'] / base['rate']:.2f} x)"
                cpu_ratio = f" ({cpu / (base['user'] + base['system']):.2f} x)"
            who = server if cell["runs"] == ARGS.rounds else f"{server}, {cell['runs']} runs"
            lines.append(
                f"| {who} | {human(cell['rate'])}{ratio} | {cell['user']:.0f} + {cell['system']:.0f} ns{cpu_ratio} "
                f"| {cell['p50'] / 1000:.2f} ms | {cell['p99'] / 1000:.2f} ms | {cell['p999'] / 1000:.2f} ms "
                f"| {cell['memory']:.0f} B | {cell['lost']} | {cell['loadgen']:.2f} |")
        lines.append("")
    return "\n".join(lines)


def bars(results, floors):
    """The bars that this comparison can check."""
    def cell(workload, server):
        found = summary(results.get(workload, {}).get(server, []))
        return found if isinstance(found, dict) else None
    lines = ["| figure | bar | found |", "|---|---|---|"]
    def add(figure, bar, found):
        lines.append(f"| {figure} | {bar} | {found} |")
    names = list(WORKLOADS)
    ours, theirs = cell(names[0], "ringfeed"), cell(names[0], BASE)
    ground = [f for f in floors.get(names[0], []) if f]
    if ours:
        cpu = ours["user"] + ours["system"]
        if ground:
            at = median([f["cpu_user_ns_per_delivery"] + f["cpu_system_ns_per_delivery"] for f in ground])
            add("one at a time: CPU a delivery to the floor's", "<= 1.05 x", f"{cpu / at:.2f} x")
        if theirs:
            add("one at a time: CPU a delivery to uWebSockets'", "<= 0.80 x", f"{cpu / (theirs['user'] + theirs['system']):.2f} x")
    for name, bar in zip(names[2:5], (6, 4, 3)):
        ours, theirs = cell(name, "ringfeed"), cell(name, BASE)
        if ours and theirs:
            busy = {who: c["rate"] * (c["user"] + c["system"]) / 1e9 for who, c in (("o", ours), ("t", theirs))}
            per_core = (ours["rate"] / busy["o"]) / (theirs["rate"] / busy["t"])
            add(f"{name}: deliveries/s a server core", f">= {bar} x", f"{per_core:.1f} x (as they came: {ours['rate'] / theirs['rate']:.1f} x)")
            add(f"{name}: user time a delivery", "<= 15 ns", f"{ours['user']:.1f} ns")
    name = names[-1]
    ours, theirs = cell(name, "ringfeed"), cell(name, BASE)
    if ours and theirs:
        add("5,000 connections on 50 of 5,000 channels, as fast as it goes: deliveries/s", ">= 1.5 x",
            f"{ours['rate'] / theirs['rate']:.2f} x")
    name = names[-2]
    ours, theirs = cell(name, "ringfeed"), cell(name, BASE)
    if ours and theirs:
        add("the same at 100,000/s, which saturates uWebSockets: p99", "no higher",
            f"{ours['p99'] / 1000:.0f} ms to {theirs['p99'] / 1000:.0f} ms")
    name = "500 subscribers, 6,000/s"
    ours, theirs = cell(name, "ringfeed"), cell(name, BASE)
    if ours and theirs:
        add("p99 at half of uWebSockets' saturation", "no higher", f"{ours['p99'] / 1000:.2f} ms to {theirs['p99'] / 1000:.2f} ms")
    lost = {server: max((summary(reports)["lost"] for cells in results.values() for who, reports in cells.items()
                         if who == server and isinstance(summary(reports), dict)), default=0) for server in SERVERS}
    add("loss, duplicates, reordering of ringfeed", "0", lost["ringfeed"] + lost["ringfeed over epoll"])
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved runs of each cell (default 5)")
    parser.add_argument("--seconds", type=float, default=3, help="seconds of publishing in each run (default 3)")
    parser.add_argument("--patience", type=float, default=25, help="seconds after which a run is given up, for good (default 25)")
    parser.add_argument("--server-core", type=int, default=0)
    parser.add_argument("--loadgen-core", type=int, default=1)
    parser.add_argument("--only", help="only workloads whose name contains this")
    parser.add_argument("--servers", help="only these servers, separated by commas")
    parser.add_argument("--machine", default=platform.node(), help="name of this machine in the result's file name")
    parser.add_argument("--out", help="file for the table; by default benches/results/DATE-MACHINE.md")
    global ARGS
    ARGS = parser.parse_args()
    install()
    servers = ARGS.servers.split(",") if ARGS.servers else list(SERVERS)
    work = {name: w for name, w in WORKLOADS.items() if not ARGS.only or ARGS.only in name}
    results = {name: {server: [] for server in servers} for name in work}
    floors = {name: [] for name in work}
    # A server that a lower rate has saturated is not offered a higher one.
    saturated, took = set(), {}
    for round_number in range(ARGS.rounds):
        for name, (flags, offered) in work.items():
            floors[name].append(floor(flags, ARGS.seconds))
            for server in servers:
                many = "--channels" in flags
                if many and (server, name) in saturated:
                    continue
                if any(isinstance(earlier, str) for earlier in results[name][server]):
                    continue
                if round_number >= SLOW_ROUNDS and took.get((server, name), 0) > SLOW_SECONDS:
                    continue
                began = time.monotonic()
                report = measure(server, flags, ARGS.seconds)
                took[server, name] = time.monotonic() - began
                results[name][server].append(report)
                if isinstance(report, dict):
                    print(f"{round_number + 1} {name:60} {server:20} {human(report['delivered_per_second']):>9}/s "
                          f"p99 {report['latency_us']['p99'] / 1000:.1f} ms  lost {report['lost']}", flush=True)
                else:
                    print(f"{round_number + 1} {name:60} {server:20} {report}", flush=True)
                failed = not isinstance(report, dict) or report["delivered_per_second"] < 0.5 * (offered or 0) * 50
                if many and failed:
                    higher = [n for n, (f, o) in work.items() if "--channels" in f and (o is None or o > (offered or 0))]
                    saturated.update((server, n) for n in higher)
    for name in work:
        for server in servers:
            if not results[name][server]:
                results[name][server] = ["saturated by a lower rate"]
    today = datetime.date.today().isoformat()
    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    out = Path(ARGS.out) if ARGS.out else ROOT / "benches" / "results" / f"{today}-{ARGS.machine}.md"
    out.write_text("\n".join([
        f"# {today}: ringfeed, the floor and the peers", "",
        f"{cpu}, {os.cpu_count()} cores, Linux {platform.release()}. Server on core {ARGS.server_core}, loadgen on core "
        f"{ARGS.loadgen_core}. Medians of {ARGS.rounds} interleaved rounds of {ARGS.seconds:g} s, a fresh server for each; 128-byte "
        "payloads where nothing else is said. Latency is from the intended time of publishing to the receipt. `lost` is the worst "
        "of all rounds, with duplicates, reordering and lost connections. In brackets: ratio to uWebSockets. `loadgen` is the "
        "cores that loadgen used: near 1 it was the limit, not the server.", "",
        versions(), "", f"Command: `benches/peers/compare.py --rounds {ARGS.rounds} --seconds {ARGS.seconds:g}`", "",
        "## Bars", "", bars(results, floors), "", "## All cells", "", table(results, floors)]))
    print(f"written to {out}")


if __name__ == "__main__":
    main()
