"""One run: a fresh server on its core, loadgen on others, and what they report."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

from network import packets_by_core, share_off
from fetch import last_line
from servers import Failed, Floor, Place, files_limit, spawn, stop

# Share of a run after which latencies begin to count, where there are more than a few messages.
SETTLE = 0.2
SETTLE_MESSAGES_MIN = 50
# Seconds without progress after which what is missing counts as lost.
GRACE_SECONDS = 3
# Handshakes under way at once: what the slowest of the servers takes.
PACE = 100
# A publisher that is so far behind its schedule did not offer what it was to offer.
LATE_US = 100_000
# Share of a core from which on it counts as busy all the time; loadgen has the same.
BUSY = 0.9
# The kernel tells a process's CPU time in ticks.
TICK_SECONDS = 0.01
# Share of the server's core that others may take before a run is said to be disturbed.
DISTURBED = 0.05

# Counters of loadgen's report that are 0 where everything is right.
WRONG = ("lost", "duplicated", "reordered", "corrupted", "unexpected", "false_gaps", "disconnected")


class Bench:
    """What all runs share."""

    def __init__(self, network, loadgen, server_core, loadgen_cores, threads, patience_seconds):
        self.network = network
        self.loadgen = loadgen
        self.server_core = server_core
        self.loadgen_cores = loadgen_cores
        self.threads = threads
        self.patience_seconds = patience_seconds
        self.running = []

    def close(self):
        """Ends what runs."""
        while self.running:
            stop(self.running.pop())

    def refusal(self, server, cell):
        """Why a server cannot be given a cell; None where it can."""
        if isinstance(server, Floor):
            if cell.channels > 1:
                return "it has one channel"
            if not self.network.is_loopback or self.network.server_prefix:
                return "it has no network but loopback"
            return None
        files = files_limit()
        most = server.connections_max(files)
        if cell.conns > most:
            return f"{most:,} connections at most with ulimit -n {files:,}"
        return None

    def measure(self, server, cell, seconds, seed):
        """A record of figures, or a sentence that says why there is none."""
        seconds = cell.seconds(seconds)
        try:
            if isinstance(server, Floor):
                return self.floor(server, cell, seconds)
            return self.drive(server, cell, seconds, seed)
        except (Failed, OSError) as error:
            return str(error)
        finally:
            self.close()

    def patience(self, cell, seconds):
        """Opening, publishing at a third of the rate, and closing."""
        return self.patience_seconds + 3 * seconds + 4 * cell.setup_seconds()

    def run(self, prefix, command, cores, directory, patience):
        """Runs a command to its end. Returns its exit status and what it wrote."""
        with open(Path(directory, "output"), "w+b") as out:
            process = spawn(prefix, command, cores, directory, out)
            self.running.append(process)
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                raise Failed(f"did not end within {patience:.0f} s") from None
            finally:
                stop(process)
                self.running.remove(process)
            out.seek(0)
            return process.returncode, out.read().decode(errors="replace")

    def floor(self, server, cell, seconds):
        command = [
            server.binary,
            "--core",
            self.server_core,
            "--duration",
            seconds,
            "--conns",
            cell.conns,
            "--rate",
            cell.rate,
            "--burst",
            cell.burst,
            "--size",
            cell.size_bytes,
            # What the servers beside it send.
            "--dialect",
            "raw",
        ]
        cores = {self.server_core, *self.loadgen_cores}
        with tempfile.TemporaryDirectory() as directory:
            status, text = self.run([], command, cores, directory, self.patience(cell, seconds))
        if status != 0:
            return last_line(text)
        told = json.loads(text)
        return {
            "rate": told["delivered_per_second"],
            "user_ns": told["cpu_user_ns_per_delivery"],
            "system_ns": told["cpu_system_ns_per_delivery"],
        }

    def drive(self, server, cell, seconds, seed):
        with tempfile.TemporaryDirectory() as directory:
            # nginx's workers are another user's.
            os.chmod(directory, 0o755)
            place = Place(directory, self.network, self.server_core)
            try:
                pids, speech = server.start(place)
            finally:
                if place.process:
                    self.running.append(place.process)
            report = Path(directory, "report.json")
            settle = SETTLE * seconds if not 0 < cell.rate * seconds < SETTLE_MESSAGES_MIN else 0
            command = [
                self.loadgen,
                "--quiet",
                "--grace",
                GRACE_SECONDS,
                "--pace",
                PACE,
                "--threads",
                self.threads,
                "--duration",
                seconds,
                "--settle",
                round(settle, 3),
                "--json",
                report,
                *speech,
                *cell.flags(),
            ]
            if cell.is_drawn:
                command += ["--seed", seed]
            command += self.network.clients(cell.conns)
            for pid in pids:
                command += ["--server-pid", pid]
            place.check()
            before, packets = core_use(self.server_core, pids), packets_by_core()
            status, text = self.run(
                self.network.client_prefix,
                command,
                self.loadgen_cores,
                directory,
                self.patience(cell, seconds),
            )
            place.check()
            after, packets_after = core_use(self.server_core, pids), packets_by_core()
            if not report.exists():
                return f"loadgen ended with status {status}: {last_line(text)}"
            try:
                told = json.loads(report.read_text())
                figures = record(told, cell)
            except (KeyError, TypeError, ValueError) as error:
                raise Failed(
                    f"loadgen's report cannot be read: {type(error).__name__} {error}"
                ) from error
            if told.get("passed") is False and not wrong(figures):
                raise Failed(f"loadgen: {told['verdict']}")
            figures["steered"] = share_off(self.server_core, packets, packets_after)
            figures["disturbed"] = disturbance(before, after)
            return figures


def core_use(core, pids):
    """Ticks so far of a core: user time, stolen by other machines, user time of processes, all."""
    with open("/proc/stat") as file:
        fields = next(line.split()[1:] for line in file if line.split()[0] == f"cpu{core}")
    ticks = [int(field) for field in fields[:8]]
    own = 0
    for pid in pids:
        # The name in parentheses may hold anything.
        own += int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11])
    return {"user": ticks[0] + ticks[1], "stolen": ticks[7], "own": own, "all": sum(ticks)}


def disturbance(before, after):
    """The share of a core's time that went to other programs, as far as user time shows it, and to
    other machines."""
    grown = {key: after[key] - before[key] for key in before}
    return max(0, grown["user"] - grown["own"] + grown["stolen"]) / max(1, grown["all"])


def record(report, cell):
    """The figures of loadgen's report that are kept. Nanoseconds are those of a delivery."""
    server, latency, loadgen = report["server"], report["latency_us"], report["loadgen"]
    cpu = server["cpu_user_seconds"] + server["cpu_system_seconds"]
    memory = report.get("server_memory")
    figures = {
        "rate": report["delivered_per_second"],
        "published_rate": report["published_per_second"],
        "published": report["published"],
        "delivered": report["delivered"],
        "expected": report["expected"],
        # Older ones do not count everything.
        **{what: report.get(what, 0) for what in WRONG},
        "p50_us": latency["p50"],
        "p99_us": latency["p99"],
        "p999_us": latency["p999"],
        "user_ns": server["cpu_user_ns_per_delivery"],
        "system_ns": server["cpu_system_ns_per_delivery"],
        "cpu_resolution_ns": 2 * TICK_SECONDS * 1e9 / max(1, report["delivered"]),
        # The server's core, while there was something to deliver.
        "busy": cpu / max(report["delivering_seconds"], 1e-3),
        "memory_bytes": (
            None
            if memory is None
            else (memory["resident_bytes_open"] - memory["resident_bytes_before"])
            / report["connections"]
        ),
        "opening_seconds": report["opening_seconds"],
        "subscribing_seconds": report["subscribing_seconds"],
        "late_us": report["publisher_late_max_us"],
        # Older ones count what publishes with its connections.
        "loadgen_cores": loadgen.get("connection_cores", loadgen["cores"]),
        "loadgen_cores_allowed": loadgen["cores_allowed"],
        "first_problem": report.get("first_problem"),
    }
    figures["limit"] = limit(figures, cell)
    return figures


def limit(figures, cell):
    """What a run was bound by: `server`, `generator` or `both`; `neither` where it could have been
    more and none of their cores was busy all the time; None where everything was taken in time."""
    server = figures["busy"] >= BUSY
    generator = figures["loadgen_cores"] >= BUSY * figures["loadgen_cores_allowed"]
    if server or generator:
        return "both" if server and generator else "server" if server else "generator"
    return "neither" if cell.rate == 0 or figures["late_us"] > LATE_US else None


def wrong(figures):
    """Deliveries and connections that were not as they must be."""
    return sum(figures.get(what, 0) for what in WRONG)
