"""Tests of compare.py with real processes: python3 -m unittest discover -s benches/peers

They need ringfeed and loadgen in RINGFEED_BIN_DIR or target/release.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cells
import network
import report
import servers
import verdict
from cells import Cell
from measure import Bench, wrong

HERE = Path(__file__).resolve().parent
BIN = Path(os.environ.get("RINGFEED_BIN_DIR", servers.ROOT / "target" / "release"))
CORES = sorted(os.sched_getaffinity(0))
SMALL = Cell(conns=20, rate=200)


def compare(*flags, **more):
    return subprocess.run(
        [sys.executable, HERE / "compare.py", *map(str, flags)],
        capture_output=True,
        text=True,
        timeout=120,
        **more,
    )


def built(directory):
    """Flags for short runs of what was built, written to a directory."""
    return [
        "--binary",
        BIN / "ringfeed",
        "--loadgen",
        BIN / "loadgen",
        "--rounds",
        1,
        "--seconds",
        0.2,
        "--cache",
        Path(directory, "cache"),
        "--out",
        Path(directory, "out"),
        "--preset",
        "fanout",
        "--only",
        "500 on one channel",
    ]


class Faulty(servers.Server):
    """faulty_server.py with one of its faults."""

    title = "faulty"

    def __init__(self, fault):
        self.fault = fault

    def start(self, place):
        process = place.spawn(
            [sys.executable, HERE / "faulty_server.py", place.port, place.host, self.fault]
        )
        place.wait(place.port)
        return [process.pid], ["--url", f"ws://{place.host}:{place.port}/", *servers.PLAIN]


class CommandLine(unittest.TestCase):
    def test_unknown_servers_are_named_with_those_that_are_known(self):
        done = compare("--servers", "bun,ringfeed,NATS")
        self.assertEqual(done.returncode, 2)
        self.assertIn("'bun', 'NATS'", done.stderr)
        for name in servers.NAMES:
            self.assertIn(name, done.stderr)
        self.assertNotIn("Traceback", done.stderr)

    def test_help_names_servers_and_presets(self):
        told = compare("--help").stdout
        for name in (*servers.NAMES, *cells.PRESETS, *network.NETWORKS):
            self.assertIn(name, told)

    def test_other_wrong_values_are_named(self):
        for flags, told in (
            (("--only", "nonsense"), "nonsense"),
            (("--rounds", "0"), "'0'"),
            (("--loadgen-cores", "x"), "'x'"),
            (("--loadgen-cores", "4096"), "4096"),
            (("--binary", "/nowhere/ringfeed"), "/nowhere/ringfeed"),
            (("--servers", "ringfeed-before"), "--binary-before"),
        ):
            done = compare(*flags)
            self.assertEqual((done.returncode, "Traceback" in done.stderr), (2, False), done.stderr)
            self.assertIn(told, done.stderr)

    def test_what_is_not_chosen_is_not_fetched(self):
        with tempfile.TemporaryDirectory() as directory:
            done = compare("--servers", "ringfeed", *built(directory))
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertFalse(Path(directory, "cache").exists())

    def test_who_cannot_be_had_is_left_out_and_the_others_are_measured(self):
        with tempfile.TemporaryDirectory() as directory:
            programs = Path(directory, "programs")
            programs.mkdir()
            done = compare(
                "--servers",
                "nats,ringfeed,uwebsockets",
                *built(directory),
                env={"PATH": str(programs)},
            )
            self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
            text = Path(directory, "out.md").read_text()
            self.assertIn("'node' is missing", text)
            self.assertIn("'apt-get' is missing", text)
            found = json.loads(Path(directory, "out.json").read_text())["results"]
            self.assertEqual([entry["server"] for entry in found], ["ringfeed"])
            self.assertGreater(found[0]["runs"][0]["delivered"], 0)

    def test_who_is_stopped_has_written_what_there_is_and_leaves_no_process(self):
        with tempfile.TemporaryDirectory() as directory:
            flags = [str(flag) for flag in built(directory)]
            flags[flags.index("--rounds") + 1] = "100"
            running = subprocess.Popen(
                [sys.executable, HERE / "compare.py", "--servers", "ringfeed", *flags],
                stdout=subprocess.PIPE,
                text=True,
            )
            while not running.stdout.readline().startswith("[2/"):
                self.assertIsNone(running.poll())
            # Between two runs there is nobody who could be left.
            while not (children := descendants(running.pid)):
                self.assertIsNone(running.poll())
                time.sleep(0.01)
            running.send_signal(signal.SIGTERM)
            running.communicate(timeout=30)
            self.assertEqual(running.returncode, 128 + signal.SIGTERM)
            self.assertIn(
                "**Not complete**: it was stopped after", Path(directory, "out.md").read_text()
            )
            found = json.loads(Path(directory, "out.json").read_text())["results"][0]["runs"]
            self.assertGreaterEqual(len(found), 2)
            self.assertFalse(left_of(children))


def descendants(pid):
    found = []
    try:
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(child), *descendants(child)]
    except OSError:
        pass
    return found


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def left_of(pids):
    """Who is still alive; those who end with their parent do so a moment after it."""
    deadline = time.monotonic() + 20
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    return [pid for pid in pids if is_alive(pid)]


class Runs(unittest.TestCase):
    def bench(self, loadgen=BIN / "loadgen", patience=20):
        return Bench(
            network.opened("loopback", CORES[0], CORES[1:]),
            loadgen,
            CORES[0],
            set(CORES[1:] or CORES),
            1,
            patience,
        )

    def test_a_server_that_loses_messages_is_seen_to_lose_them(self):
        found = self.bench().measure(Faulty("lose"), SMALL, 0.5, seed=1)
        self.assertIsInstance(found, dict, found)
        self.assertGreater(found["lost"], 0)
        self.assertEqual(wrong(found), found["lost"])

    def test_a_server_without_fault_loses_nothing(self):
        found = self.bench().measure(Faulty("none"), SMALL, 0.5, seed=1)
        self.assertIsInstance(found, dict, found)
        self.assertEqual((wrong(found), found["delivered"]), (0, found["expected"]))

    def test_a_server_that_ends_is_said_to_have_ended_and_how(self):
        found = self.bench().measure(Faulty("end"), SMALL, 0.5, seed=1)
        self.assertEqual(found, "ended with status 3: I cannot go on")

    def test_a_server_that_does_not_start_is_said_not_to(self):
        found = self.bench().measure(Faulty("start"), SMALL, 0.5, seed=1)
        self.assertEqual(found, "ended with status 4: I cannot begin")

    def test_a_generator_that_does_not_end_is_ended(self):
        with tempfile.TemporaryDirectory() as directory:
            sleeper = Path(directory, "sleeper")
            sleeper.write_text("#!/bin/sh\nexec sleep 1000\n")
            sleeper.chmod(0o755)
            bench = self.bench(sleeper, patience=0.01)
            found = bench.measure(Faulty("none"), SMALL, 0.1, seed=1)
            self.assertRegex(found, "did not end within . s")
            self.assertEqual(bench.running, [])

    def test_a_floor_that_does_not_end_is_a_reason_and_no_traceback(self):
        with tempfile.TemporaryDirectory() as directory:
            sleeper = Path(directory, "floor")
            sleeper.write_text("#!/bin/sh\nexec sleep 1000\n")
            sleeper.chmod(0o755)
            self.assertRegex(
                self.bench(patience=0.01).measure(servers.Floor(sleeper), SMALL, 0.1, seed=1),
                "did not end within . s",
            )

    def test_namespaces_carry_a_run_and_end_with_it(self):
        for name in ("veth", "lo-rps"):
            try:
                way = network.opened(name, CORES[0], CORES[1:])
            except network.NotAllowed as error:
                self.skipTest(str(error))
            bench = Bench(way, BIN / "loadgen", CORES[0], set(CORES[1:]), 1, 20)
            try:
                found = bench.measure(Faulty("none"), SMALL, 0.3, seed=1)
                self.assertIsInstance(found, dict, found)
                self.assertEqual((wrong(found), found["delivered"]), (0, found["expected"]))
            finally:
                held = [holder.pid for holder in way.holders]
                way.close()
            self.assertFalse([pid for pid in held if is_alive(pid)])

    def test_a_killed_comparison_takes_its_namespaces_with_it(self):
        code = (
            "import network, time\nway = network.opened('veth', 0, [1])\n"
            "print(*(holder.pid for holder in way.holders), flush=True)\ntime.sleep(1000)"
        )
        running = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=HERE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        held = [int(pid) for pid in running.stdout.readline().split()]
        running.kill()
        told = running.communicate()[1]
        if not held:
            self.skipTest(told.strip().splitlines()[-1])
        self.assertFalse(left_of(held))


class Verdicts(unittest.TestCase):
    def records(self, *p99):
        return [
            {
                "rate": 1000.0,
                "p50_us": 1000.0,
                "p99_us": value,
                "user_ns": 10.0,
                "system_ns": 90.0,
                "cpu_resolution_ns": 1.0,
            }
            for value in p99
        ]

    def difference(self, ours, theirs):
        figure = next(figure for figure in verdict.FIGURES if figure.title == "p99")
        return verdict.difference(figure, self.records(*ours), self.records(*theirs))

    def test_what_is_worse_by_more_than_the_spread_is_behind(self):
        found = self.difference((3000, 3100, 3200), (2000, 2100, 2200))
        self.assertTrue(found.is_behind)
        self.assertAlmostEqual(found.ratio, 3100 / 2100)

    def test_what_is_worse_by_less_than_the_spread_is_noise(self):
        found = self.difference((2000, 3100, 4200), (2000, 2100, 2200))
        self.assertTrue(found.is_noise and not found.is_behind and not found.is_ahead)

    def test_one_wild_round_of_five_does_not_hide_a_difference(self):
        self.assertTrue(
            self.difference(
                (3000, 3100, 3200, 3050, 90000), (2000, 2100, 2200, 2050, 2150)
            ).is_behind
        )

    def test_two_rounds_show_no_spread_and_need_a_large_difference(self):
        self.assertFalse(self.difference((1200, 1200), (1000, 1000)).is_behind)
        self.assertTrue(self.difference((1400, 1400), (1000, 1000)).is_behind)

    def test_less_than_can_be_resolved_is_noise(self):
        self.assertTrue(self.difference((80, 80, 80), (40, 40, 40)).is_noise)

    def test_more_deliveries_are_better(self):
        figure = verdict.FIGURES[0]
        few, many = ([{"rate": rate}] * 3 for rate in (1000.0, 2000.0))
        self.assertTrue(verdict.difference(figure, few, many).is_behind)
        self.assertTrue(verdict.difference(figure, many, few).is_ahead)

    def test_the_report_lists_the_worst_first_and_what_was_lost(self):
        one, two = Cell(10, 10), Cell(20, 10)
        results = report.Results(
            [one, two],
            ["ringfeed", "uwebsockets"],
            {"ringfeed": "ringfeed", "uwebsockets": "uWebSockets (Bun)"},
        )
        rest = dict.fromkeys(("lost", "duplicated", "reordered", "corrupted", "disconnected"), 0)
        for cell, ours, lost in ((one, 2000.0, 0), (two, 9000.0, 7)):
            for _ in range(3):
                results.add(cell, "ringfeed", {**self.records(ours)[0], **rest, "lost": lost})
                results.add(cell, "uwebsockets", {**self.records(1000.0)[0], **rest})
        text = report.behind(results, "ringfeed", "uwebsockets")
        self.assertIn(f"**{two.name}: 7 lost", text)
        self.assertIn("**behind in 2** of 2 cells", text)
        rows = [line for line in text.splitlines() if "| p99 |" in line]
        self.assertEqual([row.rsplit("|", 2)[1].strip() for row in rows], ["9.00 x", "2.00 x"])


class Cells(unittest.TestCase):
    def test_expected_receivers_are_those_of_draws(self):
        draw = random.Random(1)
        for interest, channels, subscriptions in (
            ("random", 60, 7),
            ("popular", 60, 7),
            ("popular", 500, 20),
            ("popular", 12, 10),
        ):

            def channel():
                if interest == "random":
                    return draw.randrange(channels)
                return min(channels - 1, int((channels + 1) ** draw.random()) - 1)

            matches, conns, messages = 0, 300, 300
            for _ in range(conns):
                mine = set()
                while len(mine) < subscriptions:
                    mine.add(channel())
                matches += sum(channel() in mine for _ in range(messages))
            self.assertAlmostEqual(
                cells.chance_of_a_match(channels, subscriptions, interest),
                matches / conns / messages,
                delta=0.02,
            )

    def test_the_grid_reaches_from_one_receiver_to_all_and_asks_for_what_it_says(self):
        found = [cell for cell in cells.grid() if cell]
        self.assertTrue(
            {1, 5, 50, 500, 5_000, 50_000, 100_000} <= {round(cell.receivers) for cell in found}
        )
        self.assertEqual({1, 10, 50, 100}, {cell.subscriptions for cell in found})
        self.assertEqual({128, 1024, 16384}, {cell.size_bytes for cell in found})
        for cell in found:
            self.assertTrue(
                1 <= cell.subscriptions <= cell.channels <= 1_000_000 and cell.conns <= 110_000,
                cell,
            )

    def test_cores_are_masks(self):
        self.assertEqual(network.mask([0]), "00000001")
        self.assertEqual(network.mask([1, 2, 33]), "00000002,00000006")


if __name__ == "__main__":
    unittest.main()
