"""All rounds over all cells and servers, with progress, and with results written as they come."""

import datetime
import os
import platform
import re
import shlex
import sys
import time

import report
from fetch import first_line
from measure import DISTURBED, wrong
from servers import ROOT
from verdict import SUSPICIOUS, compared

# A paced cell of which less than this share was delivered: higher rates are not asked for there.
OVERLOADED = 0.5
# A server that fails to be measured so often in a row is given up.
FAILURES_MAX = 3


def expected_seconds(cell, seconds):
    return cell.seconds(seconds) + cell.setup_seconds()


def duration(seconds):
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


class Campaign:
    """All rounds over all cells and servers, with progress and results as they come."""

    def __init__(self, arguments, bench, names, left_out, warnings):
        self.arguments = arguments
        self.bench = bench
        self.servers = names
        self.results = report.Results(
            arguments.cells, list(names), {name: server.title for name, server in names.items()}
        )
        # In a row, by server.
        self.failed = dict.fromkeys(names, 0)
        self.given_up = {}
        # Lowest rate by server and ground that was too much.
        self.overloaded = {}
        self.about = about(arguments, bench.network, names, left_out, warnings)
        self.path = (
            arguments.out
            or ROOT / "benches" / "results" / f"{self.about['date']}-{self.about['name']}"
        )
        self.done, self.all = 0, 0
        # What runs took, what they were expected to take, and what the others are expected to.
        self.took, self.expected, self.to_come = 0.0, 0.0, 0.0
        self.plan(arguments.cells, arguments.rounds)

    def go(self):
        print(
            f"{len(self.arguments.cells)} cells, {len(self.servers)} servers,"
            f" {self.arguments.rounds} rounds: {self.all} runs, about"
            f" {duration(self.left_seconds())}; written to {self.path}.md and .json after each",
            flush=True,
        )
        try:
            self.go_round(self.arguments.cells, range(self.arguments.rounds))
            doubtful = self.doubtful() if self.arguments.confirm else []
            if doubtful:
                self.plan(doubtful, self.arguments.confirm)
                print(
                    f"{self.arguments.confirm} more rounds of the {len(doubtful)} cells in which"
                    f" ringfeed is behind, about {duration(self.left_seconds())}",
                    flush=True,
                )
                self.go_round(
                    doubtful,
                    range(self.arguments.rounds, self.arguments.rounds + self.arguments.confirm),
                )
        except BaseException as stopped:
            why = (
                "it was stopped"
                if isinstance(stopped, (KeyboardInterrupt, SystemExit))
                else f"{type(stopped).__name__}: {stopped}"
            )
            self.about["left_undone"] = f"{why} after {self.done} of {self.all} runs"
            if not isinstance(stopped, KeyboardInterrupt):
                raise
            return 130
        else:
            self.about["left_undone"] = ""
            return self.verdict()
        finally:
            self.bench.close()
            self.write()
            print(f"written to {self.path}.md and .json", flush=True)

    def plan(self, chosen, rounds):
        self.all += len(chosen) * len(self.servers) * rounds
        self.to_come += (
            sum(self.expected_seconds(cell) for cell in chosen) * len(self.servers) * rounds
        )

    def go_round(self, chosen, numbers):
        names = list(self.servers)
        for number in numbers:
            for at, cell in enumerate(chosen):
                # Nobody is always the first.
                turn = (number + at) % len(names)
                for name in names[turn:] + names[:turn]:
                    self.step(number, cell, name)

    def doubtful(self):
        """Cells in which ringfeed is worse than another: by more than noise, or by much within it."""
        pairs = [
            ("ringfeed", theirs)
            for theirs in ("uwebsockets", "ringfeed-before")
            if {"ringfeed", theirs} <= set(self.servers)
        ]
        worse = {
            cell
            for pair in pairs
            for cell, found in compared(self.results, *pair)
            if found.is_behind or found.ratio > SUSPICIOUS
        }
        return [cell for cell in self.arguments.cells if cell in worse]

    def step(self, number, cell, name):
        reason = self.reason_to_skip(cell, name)
        began = time.monotonic()
        if reason:
            run = reason
            if number == 0:
                self.results.add(cell, name, run)
        else:
            run = self.bench.measure(
                self.servers[name], cell, self.arguments.seconds, seed=number + 1
            )
            self.results.add(cell, name, run)
            self.judge(cell, name, run)
            self.took += time.monotonic() - began
            self.expected += self.expected_seconds(cell)
        self.done += 1
        self.to_come -= self.expected_seconds(cell)
        if not reason or number == 0:
            print(
                f"[{self.done}/{self.all}] round {number + 1}  {cell.name:50}  {name:15} "
                f" {line(run)}  ({duration(self.left_seconds())} left)",
                flush=True,
            )
        if not reason:
            self.about["left_undone"] = f"{self.done} of {self.all} runs so far"
            self.write()

    def reason_to_skip(self, cell, name):
        """Why this run is not made."""
        if name in self.given_up:
            return self.given_up[name]
        earlier = self.results.of(cell, name)
        if earlier and isinstance(earlier[-1], str):
            return earlier[-1]
        if earlier and self.is_too_much(cell, earlier[-1]):
            return "overloaded"
        lowest = self.overloaded.get((name, cell.ground))
        if lowest is not None and cell.rate > lowest and not earlier:
            return f"{lowest:,}/s were too much"
        return self.bench.refusal(self.servers[name], cell)

    def is_too_much(self, cell, run):
        return (
            cell.rate > 0
            and isinstance(run, dict)
            and run["rate"] < OVERLOADED * cell.offered
            and run.get("limit") in ("server", "both")
        )

    def judge(self, cell, name, run):
        """Learns from a run what need not be tried any more."""
        self.failed[name] = self.failed[name] + 1 if isinstance(run, str) else 0
        if self.failed[name] == FAILURES_MAX:
            self.given_up[name] = f"given up after {FAILURES_MAX} failures in a row: {run}"
        if cell.rate > 0 and (isinstance(run, str) or self.is_too_much(cell, run)):
            lowest = self.overloaded.get((name, cell.ground), cell.rate)
            self.overloaded[name, cell.ground] = min(lowest, cell.rate)

    def expected_seconds(self, cell):
        return expected_seconds(cell, self.arguments.seconds)

    def left_seconds(self):
        """By what runs have taken so far, measured in what they were expected to take."""
        return self.to_come * (self.took / self.expected if self.expected else 1.0)

    def write(self):
        report.write(self.path, self.results, self.about)

    def verdict(self):
        """Exit status."""
        ours = [
            name
            for name in self.servers
            if name.startswith("ringfeed") and name != "ringfeed-before"
        ]
        lost = any(
            wrong(record)
            for cell in self.arguments.cells
            for name in ours
            for record in self.results.records(cell, name)
        )
        missed = any(
            self.results.reasons(cell, name) for cell in self.arguments.cells for name in ours
        )
        return 1 if lost or missed or self.about["left_out_servers"] else 0


def line(run):
    if isinstance(run, str):
        return run
    latency = (
        f"p50 {report.milliseconds(run['p50_us'])} p99 {report.milliseconds(run['p99_us'])}  "
        if "p50_us" in run
        else ""
    )
    bound = {
        "generator": "  the generator is the limit",
        "both": "  the generator is a limit, too",
        "neither": "  neither core is busy",
    }.get(run.get("limit"), "")
    if run.get("disturbed", 0) > DISTURBED:
        bound += f"  others took {run['disturbed']:.0%} of the server's core"
    return (
        f"{report.human(run['rate'])}/s  {latency}{run['user_ns']:.0f} + {run['system_ns']:.0f} ns "
        f" lost {wrong(run)}{bound}"
    )


def about(arguments, way, names, left_out, warnings):
    """What stands at the head of the report."""
    today = datetime.date.today().isoformat()
    machine = this_machine()
    # Reports are for others, too: without the folders of this machine.
    words = [re.sub(r"(^|=)/.*/", r"\1…/", word) for word in sys.argv[1:]]
    on = {
        "loopback": "loopback",
        "veth": (
            "a veth pair between two network namespaces, what arrives at the client is taken by the"
            " generator's cores, at the server by its own (RPS)"
        ),
        "lo-rps": "loopback with all receiving on the generator's cores (RPS)",
    }[way.name]
    kind = "grid" if arguments.preset in ("grid", "full") else arguments.preset
    suffix = "" if way.name == "loopback" else f"-{way.name}"
    return {
        "date": today,
        "preset": arguments.preset,
        "name": f"{arguments.machine or machine['short']}-{kind}{suffix}",
        "machine": machine,
        "network": on,
        "server_core": arguments.server_core,
        "loadgen_cores": ", ".join(map(str, arguments.loadgen_cores)),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "confirm": arguments.confirm,
        "seconds": arguments.seconds,
        "commit": first_line("git", "-C", ROOT, "describe", "--always", "--dirty") or "unknown",
        "versions": [
            text
            for text in [
                f"loadgen: {first_line(arguments.loadgen, '--version')}",
                *(server.version() for server in names.values()),
            ]
            if text
        ],
        "command": shlex.join(["benches/peers/compare.py", *words]),
        "warnings": warnings,
        "left_undone": "nothing is measured yet",
        "left_out_servers": left_out,
        "left_out": (
            left_out
            + [f"{cell.name}: {reason}" for cell, reason in arguments.cells_left_out.items()]
        ),
    }


def this_machine():
    """CPU, cores and kernel in words, and a short name for file names."""
    with open("/proc/cpuinfo") as file:
        cpu = next(
            (line.split(":", 1)[1].strip() for line in file if line.startswith("model name")),
            platform.machine(),
        )
    cores = os.cpu_count()
    known = ("epyc", "xeon", "ryzen", "threadripper", "core", "neoverse", "graviton")
    short = next((word for word in known if word in cpu.lower()), platform.machine())
    return {
        "cpu": cpu,
        "cores": cores,
        "kernel": platform.release(),
        "short": f"{short}-{cores}core",
    }
