#!/usr/bin/env python3
"""Shows under load that who may do what is kept to: tokens that end, hooks that hang, clients that all come back
at once, messages to users, configurations that change.

    scripts/access.py --scale small ends hook return send flood reload

Each scenario has servers of its own (target/release/ringfeed) on free ports and, where there is much to be received,
target/release/loadgen beside them. Without names, all of them. Each figure stands beside its bar; what misses it is
printed with FAIL, and then the exit status is 1. Nothing is left behind, and a scenario that takes too long is ended.
"""

import argparse
import asyncio
import base64
import collections
import contextlib
import hashlib
import hmac
import json
import multiprocessing
import os
import re
import resource
import selectors
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from attack import FAILED, Client, Server, check, say

SCENARIOS = {}
SECRET = "a secret of the test that is long enough"


def scenario(function):
    SCENARIOS[function.__name__.rstrip("_")] = function
    return function


class TooLong(Exception):
    """A scenario did not end by itself."""


# -- servers, loads, tokens ---------------------------------------------------------------------

@contextlib.contextmanager
def serving(options, config, flags=(), wrap=(), key=None):
    server = Server(options, [*flags, *options.set], config, wrap)
    server.key = key
    try:
        yield server
    finally:
        server.stop()


def token(user, expires, **claims):
    """A token as `ISSUER` takes it."""
    def part(value):
        return base64.urlsafe_b64encode(value).rstrip(b"=")
    body = part(json.dumps({"sub": user, "exp": expires, **claims}, separators=(",", ":")).encode())
    signed = HEADER + b"." + body
    return (signed + b"." + part(hmac.digest(SECRET.encode(), signed, hashlib.sha256))).decode()


HEADER = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=")
ISSUER = f"""
[[issuers]]
secret = "{SECRET}"
leeway_s = 0
"""


class Load:
    """loadgen, until its report is there."""

    def __init__(self, options, server, *flags, query=""):
        self.directory = tempfile.TemporaryDirectory(prefix="access-")
        self.report_path = os.path.join(self.directory.name, "report.json")
        self.output = open(os.path.join(self.directory.name, "output"), "w+")
        command = [options.loadgen, "--quiet", "--url", f"ws://127.0.0.1:{server.public}/ws?{query}".rstrip("?"),
                   "--api", f"127.0.0.1:{server.internal}", "--json", self.report_path, *map(str, flags)]
        environment = {**os.environ, "RINGFEED_API_KEY": server.key or "none"}
        self.process = subprocess.Popen(command, stdout=self.output, stderr=self.output, env=environment)
        self.server = server
        self.published = server.totals()["publications"]

    def path(self, name):
        return os.path.join(self.directory.name, name)

    def begun(self, seconds=120):
        """Waits until everybody has subscribed and it is published."""
        end = time.time() + seconds
        while time.time() < end and self.process.poll() is None:
            if self.server.totals()["publications"] > self.published:
                return
            time.sleep(0.05)
        raise OSError(f"loadgen does not publish: {self.said()}")

    def said(self):
        self.output.seek(0)
        return self.output.read()[-1500:]

    def report(self, seconds=180):
        status = self.process.wait(seconds)
        if status not in (0, 1):
            raise OSError(f"loadgen ends with {status}: {self.said()}")
        with open(self.report_path) as file:
            return json.load(file)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.output.close()
        self.directory.cleanup()


def lossless(report, what):
    figures = ["lost", "duplicated", "reordered", "corrupted", "unexpected", "false_gaps", "unanswered", "disconnected"]
    wrong = {name: report[name] for name in figures if report[name]}
    check(report["passed"] and not wrong and report["delivered"] == report["expected"],
          f"{what}: {report['delivered']} of {report['expected']} delivered; "
          f"{wrong or 'nothing lost, doubled, changed; nobody dropped'} {'' if report['passed'] else report['verdict']} {report['first_problem'] or ''}")


def latencies(report):
    return f"p50 {report['latency_us']['p50'] / 1000:.2f} ms, p99 {report['latency_us']['p99'] / 1000:.2f} ms"


def compare(options, without, beside, what):
    """p99 beside something, against p99 without it; both lists of reports, taken in turn."""
    for name in ("p50", "p99"):
        pair = [statistics.median(r["latency_us"][name] for r in reports) / 1000 for reports in (without, beside)]
        ratio = pair[1] / pair[0]
        text = (f"fan-out beside {what}: {name} {pair[1]:.2f} ms, without {pair[0]:.2f} ms, ratio {ratio:.2f} "
                f"(medians of {len(beside)} and {len(without)} runs in turn")
        if name == "p50" or not options.full:
            say(f"{text})")  # a short run on a busy machine shows nothing
        else:
            good = ratio <= options.ratio or pair[1] - pair[0] < options.slack_ms
            check(good, f"{text}; bar {options.ratio}, or {options.slack_ms} ms more)")


def metric(server, name, **labels):
    """The sum of a metric's lines that have these labels."""
    total = 0
    for line in server.request("GET", "/metrics")[1].decode().splitlines():
        found = re.match(rf"{name}(?:{{(.*)}})? (\S+)$", line)
        if found and all(f'{key}="{value}"' in (found[1] or "") for key, value in labels.items()):
            total += float(found[2])
    return total


def call(server, path, body, key=None):
    status, answer = server.request("POST", path, json.dumps(body), key=key)
    return status, json.loads(answer)


def quantile(values, part):
    return sorted(values)[min(len(values) - 1, int(len(values) * part))] if values else float("nan")


# -- ends ---------------------------------------------------------------------------------------

CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
static volatile int64_t *offset;
__attribute__((constructor)) static void begin(void) {
    int file = open(getenv("ACCESS_CLOCK"), O_RDONLY);
    offset = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
    if (file < 0 || offset == MAP_FAILED) abort();
    close(file);
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (result == 0 && clock == CLOCK_REALTIME && offset) now->tv_sec += *offset;
    return result;
}
"""


class Clock:
    """The clock on the wall of one server: a library that its process is started with adds an offset to it."""

    def __init__(self, directory):
        source, library = os.path.join(directory, "clock.c"), os.path.join(directory, "clock.so")
        self.path = os.path.join(directory, "offset")
        with open(source, "w") as file:
            file.write(CLOCK)
        with open(self.path, "wb") as file:
            file.write(bytes(8))
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        self.wrap = ["env", f"LD_PRELOAD={library}", f"ACCESS_CLOCK={self.path}"]

    def set(self, seconds):
        with open(self.path, "r+b") as file:
            file.write(seconds.to_bytes(8, "little", signed=True))


@scenario
def ends(options):
    """Tokens expire, are renewed, are revoked, and users are disconnected, under load: on time, with the right code, nobody else."""
    how_connections_end(options, None)
    if not shutil.which("cc"):
        say("there is no C compiler to make another clock with: that the clock on the wall does not matter is for the simulator to show")
        return
    with tempfile.TemporaryDirectory(prefix="access-") as directory:
        how_connections_end(options, Clock(directory))


# What becomes of connection n is in the place n % 8.
STAYS, EXPIRES, RENEWS, SHORTENS, TOKEN, USER, OUT = "stays expires renews shortens token user out".split()
FATES = [STAYS, STAYS, EXPIRES, RENEWS, SHORTENS, TOKEN, USER, OUT]
CODES = {EXPIRES: 4005, SHORTENS: 4005, TOKEN: 4504, USER: 4504, OUT: 4321}
PER_USER = 5


def how_connections_end(options, clock):
    conns, rate, opening, renewing = (4000, 200, 20, 9) if options.full else (240, 20, 9, 4)
    what = "the clock set back and forth" if clock else "the clock as it is"
    with serving(options, ISSUER + '[[channels]]\npattern = "*"\nsubscribe = "users"\n', wrap=clock.wrap if clock else ()) as server, \
            tempfile.TemporaryDirectory(prefix="access-") as directory:
        now = int(time.time())
        late = now + 3600
        users, due, lines = {}, {}, []
        for n in range(conns):
            fate, group = FATES[n % 8], n // 8
            user = f"{fate}{group // PER_USER}"
            users.setdefault(fate, set()).add(user)
            soon = now + opening + group % 4
            claims = {"iat": now, "jti": f"t{n}"}
            if fate == EXPIRES:
                lines.append(token(user, soon, **claims))
                due[n] = soon
            elif fate == RENEWS:
                lines.append(f"{token(user, soon, **claims)} {renewing}:{token(user, late, iat=now, jti=f'n{n}')}")
            elif fate == SHORTENS:
                lines.append(f"{token(user, late, **claims)} {renewing}:{token(user, soon, iat=now, jti=f'n{n}')}")
                due[n] = soon
            else:
                lines.append(token(user, late, **claims))
        tokens, endings = os.path.join(directory, "tokens"), os.path.join(directory, "endings")
        with open(tokens, "w") as file:
            file.write("\n".join(lines) + "\n")
        with Load(options, server, "--conns", conns, "--channels", 8, "--subscriptions", 2, "--rate", rate,
                  "--duration", opening + 8, "--tokens", tokens, "--endings", endings) as load:
            load.begun()
            begun = time.time()
            check(begun < now + opening - 1, f"all {conns} are there {begun - now:.1f} s after their tokens were made")
            shards = [shard["connections"] for shard in server.stats()["by_shard"]]
            stop = threading.Event()

            def swing():
                while not stop.is_set():
                    for offset in (3600, -3600, 60, -60, 86400, -86400, 0):
                        clock.set(offset)
                        if stop.wait(0.15):
                            break
                clock.set(0)

            def tell(fate, groups, path, body):
                """One call a group of connections; when each was told."""
                for numbers, argument in groups:
                    told = time.time()
                    status, answer = call(server, path, body(argument))
                    assert status == 200, (status, answer)
                    due.update((n, told) for n in numbers)
                    if path == "/api/disconnect" and answer["connections"] != len(numbers):
                        check(False, f"{argument} has {len(numbers)} connections, {answer['connections']} were told")

            def of_users(fate):
                mine = [n for n in range(conns) if FATES[n % 8] == fate]
                return [([n for n in mine if f"{fate}{n // 8 // PER_USER}" == user], user) for user in sorted(users[fate])]

            # What is vouched for is compared with the clock when it is shown, or a user is revoked: that one is right then.
            tell(USER, of_users(USER), "/api/revoke", lambda user: {"user": user, "until": late})
            swinging = None
            if clock:
                time.sleep(max(0, begun + renewing + 0.5 - time.time()))
                swinging = threading.Thread(target=swing)
                swinging.start()
            try:
                tell(TOKEN, [([n], f"t{n}") for n in range(conns) if FATES[n % 8] == TOKEN], "/api/revoke",
                     lambda jti: {"token": jti} if clock else {"token": jti, "until": late})
                tell(OUT, of_users(OUT), "/api/disconnect", lambda user: {"user": user, "code": 4321, "reason": "out"})
                called = time.time() - begun
                report = load.report()
            finally:
                stop.set()
                if swinging:
                    swinging.join()
        with open(endings) as file:
            ended = [json.loads(line) for line in file]
        wrong_code = [e for e in ended if e["code"] != CODES.get(FATES[e["connection"] % 8])]
        check({e["connection"] for e in ended} == set(due) and len(ended) == len(due),
              f"{what}: {len(ended)} of {conns} connections over {shards} ended, {len(due)} were to")
        check(not wrong_code, f"each with its code: {collections.Counter(e['code'] for e in ended)} {wrong_code[:2] or ''}")
        worst = {}
        for fate in CODES:
            away = [e["at"] - due[e["connection"]] for e in ended if FATES[e["connection"] % 8] == fate]
            worst[fate] = max(away, key=abs, default=0)
            check(all(-1 <= one <= 1 for one in away), f"{fate}: {len(away)} ended {min(away, default=0):+.3f} to "
                  f"{max(away, default=0):+.3f} s from when they were to (bar 1 s)")
        renewed = sum(FATES[n % 8] in (RENEWS, SHORTENS) for n in range(conns))
        check(report["renewed"] == renewed, f"{report['renewed']} of {renewed} renewed")
        lossless(report, "the others")
        say(f"{rate} messages/s, {report['delivered_per_second']:.0f} deliveries/s, {latencies(report)}; calls took {called:.1f} s; "
            f"worst {max(worst.values(), key=abs):+.3f} s")

        def lets_in(shown):
            """Whether a token does: it may be opened, and is closed at once."""
            try:
                client = Client(server, query=f"&token={shown}")
            except OSError as e:
                return str(e)[:100]
            answer = client.event()
            client.close()
            return True if isinstance(answer, dict) and answer["type"] == "connected" else answer[1:]
        time.sleep(1)
        iat = int(time.time())
        revoked = (4504, "what you have shown was revoked")
        check(lets_in(token("token0", late, iat=now, jti="t5")) == revoked, "a revoked token lets nobody in")
        check(lets_in(token("user0", late, iat=now, jti="again")) == revoked, "nor does an older one of a revoked user")
        check(lets_in(token("user0", late, iat=iat, jti="newer")) is True, "a newer one of that user does")
        check(lets_in(token("out0", late, iat=now, jti="t7")) is True, "who was disconnected may come again")
        if clock:
            old = token("stays0", iat - 1800, iat=now - 7200, jti="old")
            before = lets_in(old)
            clock.set(-3600)
            check(before is not True and lets_in(old) is True, "and the server's clock really was another one")
            clock.set(0)


# -- the application ----------------------------------------------------------------------------

FAST, SLOW, HANG, REDIRECT, GIGABYTE = range(5)
NAMES = ["fast", "slow", "hanging", "redirecting", "a gigabyte"]
EVENTS = ["connect", "subscribe", "publish"]
MODE, DELAY_MS, UNDER_WAY, MOST, ELSEWHERE, FLOODED, FLOODED_MOST, CALLS = range(8)


class Application:
    """What the server asks: a process that does what `mode` says. A user whose name begins with `fan` is let in at once."""

    def __init__(self, host="127.0.0.1", delay=0.0, events=EVENTS):
        self.events = events
        context = multiprocessing.get_context("fork")
        self.shared = context.Array("q", CALLS + len(events))
        self.shared[DELAY_MS] = int(delay * 1000)
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind((host, 0))
        self.socket.listen(4096)
        self.port = self.socket.getsockname()[1]
        self.process = context.Process(target=self.run, daemon=True)
        self.process.start()

    def be(self, mode, delay=0.0):
        self.shared[DELAY_MS] = int(delay * 1000)
        self.shared[MODE] = mode

    def calls(self, event):
        return self.shared[CALLS + self.events.index(event)]

    def run(self):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.alarm(0)

        async def main():
            server = await asyncio.start_server(self.serve, sock=self.socket, backlog=4096)
            await server.serve_forever()
        asyncio.run(main())

    async def serve(self, reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: *(\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                await self.answer(head, body, writer)
        writer.close()

    async def answer(self, head, body, writer):
        shared = self.shared

        def write(status, value, more=""):
            text = json.dumps(value)
            writer.write(f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n{more}\r\n{text}".encode())
        if b" /elsewhere" in head.split(b"\r\n")[0]:
            shared[ELSEWHERE] += 1
            write(200, {"user": "elsewhere", "allow": True})
            return
        question = json.loads(body)
        event, mode = question["event"], shared[MODE]
        if event == "connect" and "as=fan" in question.get("query", ""):
            write(200, {"user": "fan" + question["connection"]})
            return
        shared[CALLS + self.events.index(event)] += 1
        shared[UNDER_WAY] += 1
        shared[MOST] = max(shared[MOST], shared[UNDER_WAY])
        try:
            if mode == HANG:
                await asyncio.sleep(3600)
            elif mode == REDIRECT:
                write(302, {}, f"Location: http://127.0.0.1:{self.port}/elsewhere\r\n")
            elif mode == GIGABYTE:
                writer.write(b'HTTP/1.1 200 X\r\nContent-Length: 1073741824\r\n\r\n{"allow":true,"x":"')
                sent = 0
                try:
                    for _ in range(16384):
                        writer.write(b"x" * 65536)
                        await writer.drain()
                        sent += 65536
                finally:
                    shared[FLOODED] += 1
                    shared[FLOODED_MOST] = max(shared[FLOODED_MOST], sent)
            else:
                await asyncio.sleep(shared[DELAY_MS] / 1000)
                write(200, {"user": "u" + question["connection"]} if event == "connect" else {"allow": True})
        finally:
            shared[UNDER_WAY] -= 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.join()
        self.socket.close()


def asking(host, port, more=""):
    """A configuration whose hooks are all there."""
    urls = "".join(f'{event}_url = "http://{host}:{port}/{event}"\n' for event in EVENTS)
    return f"[hooks]\n{urls}{more}\n"


# -- hook ---------------------------------------------------------------------------------------

class Probes:
    """Clients that go on asking for what the application decides."""

    def __init__(self, server, count):
        self.server, self.count = server, count
        self.clients = {kind: [Client(server) for _ in range(count)] for kind in ("subscribe", "publish")}
        for clients in self.clients.values():
            for client in clients:
                assert client.event()["type"] == "connected"
                client.socket.settimeout(60)
        self.number = 0

    def ask(self, event, at):
        """Asks once: in a word what came of it, and how long that took."""
        self.number += 1
        channel = f"ask.{event}.{at}.{self.number}"
        begun = time.time()
        if event == "connect":
            try:
                Client(self.server).close()
                word = "allowed"
            except OSError as e:
                word = "later" if b"503" in repr(e).encode() and "Retry-After" in str(e) else f"refused: {e}"
        else:
            client = self.clients[event][at]
            client.send({"type": event, "id": 1, "channel": channel, "data": 1})
            answer = client.event()
            good = {"subscribe": "subscribed", "publish": "published"}[event]
            if not isinstance(answer, dict):
                word = f"ended: {answer}"
            elif answer["type"] == good:
                word = "allowed"
                if event == "subscribe":
                    client.send({"type": "unsubscribe", "id": 2, "channel": channel})
                    client.event()
            else:
                word = "later" if answer.get("code") == "busy" else f"refused: {answer}"
        return word, time.time() - begun

    def storm(self, seconds):
        """All ask again and again for so long: counts of words, and times, by event."""
        words = {event: collections.Counter() for event in EVENTS}
        times = {event: [] for event in EVENTS}
        end = time.time() + seconds
        errors = []

        def run(event, at):
            try:
                while time.time() < end:
                    word, took = self.ask(event, at)
                    words[event][word] += 1
                    times[event].append(took)
                    time.sleep(0.05)
            except Exception as e:  # pylint: disable=broad-except
                errors.append(f"{event}: {e!r}")
        threads = [threading.Thread(target=run, args=(event, at)) for event in EVENTS for at in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            check(False, f"probes failed: {errors[:3]}")
        return words, times

    def close(self):
        for clients in self.clients.values():
            for client in clients:
                client.close()


def breakers(server):
    return {event: int(metric(server, "ringfeed_hook_breaker_state", hook=event)) for event in EVENTS}


def mended(server, probes, seconds=60):
    """Asks until all three hooks are asked again; how long that took."""
    begun = time.time()
    while time.time() < begun + seconds:
        good = all(probes.ask(event, 0)[0] == "allowed" for event in EVENTS)
        if good and not any(breakers(server).values()):
            return time.time() - begun
        time.sleep(0.2)
    return None


@scenario
def hook(options):
    """An application that is slow, hangs, redirects, answers with a gigabyte or is at a private address: nothing is let pass, and fan-out beside it goes on."""
    conns, rate, seconds, count, rounds = (5000, 200, 12, 8, 2) if options.full else (300, 50, 5, 3, 1)
    timeout, attempt = (5.0, 2.0) if options.full else (2.0, 0.8)
    more = f"timeout_ms = {int(timeout * 1000)}\nattempt_timeout_ms = {int(attempt * 1000)}"
    rules = '[[channels]]\npattern = "ask.*"\nsubscribe = "hook"\npublish = "hook"\n[[channels]]\npattern = "*"\n'
    for mode in (SLOW, HANG, REDIRECT, GIGABYTE):
        with Application() as application, \
                serving(options, asking("127.0.0.1", application.port, more) + rules, ["limits.subscriptions_per_connection_max=100000"]) as server:
            name, wrong = NAMES[mode], mode in (REDIRECT, GIGABYTE)
            probes = Probes(server, count)
            reports = {FAST: [], mode: []}
            words = {event: collections.Counter() for event in EVENTS}
            times, opened, mending, asked, rss = [], set(), [], 0, 0
            try:
                for _ in range(rounds):
                    for now in (FAST, mode):
                        flags = ("--conns", conns, "--channels", 10, "--rate", rate, "--duration", seconds, "--settle", 1)
                        with Load(options, server, *flags, query="as=fan") as load:
                            load.begun()
                            before, memory = sum(map(application.calls, EVENTS)), server.rss()
                            # Slower than a question may take, whatever it is.
                            application.be(now, 5.0 if now == SLOW else 0.0)
                            watch = Watch(server)
                            told, took = probes.storm(seconds - 1.5)
                            application.be(FAST)
                            if now != FAST:
                                mending.append(mended(server, probes))
                            peak, states = watch.stop()
                            if now == FAST:
                                good = all(set(told[event]) == {"allowed"} for event in EVENTS)
                                check(good, f"fast: all of {sum(sum(told[e].values()) for e in EVENTS)} questions allowed, p99 "
                                      f"{quantile([t for e in EVENTS for t in took[e]], 0.99) * 1000:.0f} ms {'' if good else told}")
                            else:
                                for event in EVENTS:
                                    words[event] += told[event]
                                    times += took[event]
                                opened |= {event for state in states for event in EVENTS if state[event]}
                                asked += sum(map(application.calls, EVENTS)) - before
                                rss = max(rss, peak - memory)
                            reports[now].append(load.report())
            finally:
                probes.close()
            total = sum(sum(words[event].values()) for event in EVENTS)
            check(total and all(set(words[event]) == {"later"} for event in EVENTS),
                  f"{name}: {total} questions, {asked} asked, none allowed, all told to come later: {dict(words)}")
            check(max(times, default=99) <= timeout + 0.5, f"{name}: refused within {max(times, default=99):.2f} s (bar: hooks.timeout_ms, {timeout} s, and 0.5 s); "
                  f"p50 {quantile(times, 0.5) * 1000:.0f} ms, p99 {quantile(times, 0.99) * 1000:.0f} ms")
            if wrong:
                check(not opened, f"{name}: a wrong answer opens no breaker {opened or ''}")
            else:
                check(opened == set(EVENTS), f"{name}: the breakers of {sorted(opened)} open")
            check(None not in mending, f"{name}: asked again {', '.join('never' if m is None else f'{m:.1f} s' for m in mending)} after it was mended, breakers {breakers(server)}")
            check(application.shared[ELSEWHERE] == 0, f"{name}: redirects are not followed")
            if mode == GIGABYTE:
                check(application.shared[FLOODED_MOST] < 32 << 20 and rss < 128 << 20,
                      f"{name}: {application.shared[FLOODED]} times at most {application.shared[FLOODED_MOST] / 2**20:.1f} MiB of it were taken by the kernels and the server, RSS +{rss / 2**20:.1f} MiB")
            for report in reports[FAST] + reports[mode]:
                lossless(report, "fan-out beside it")
            compare(options, reports[FAST], reports[mode], name)
    private(options, rules)


class Watch:
    """Memory of a server, and its breakers, until it is stopped."""

    def __init__(self, server):
        self.server, self.peak, self.states, self.over = server, 0, [], threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while not self.over.wait(0.1):
            self.peak = max(self.peak, self.server.rss())
            with contextlib.suppress(OSError):
                self.states.append(breakers(self.server))

    def stop(self):
        self.over.set()
        self.thread.join()
        return self.peak, self.states


def private(options, rules):
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        address = ""
    if name == "localhost" or not re.match(r"127\.|10\.|192\.168\.|172\.(1[6-9]|2\d|3[01])\.|169\.254\.", address):
        say(f"no name of this machine resolves to a private address ({name}: {address or 'nothing'}): left out")
        return
    secret = 'secret = "a secret of thirty-two bytes or more"'
    for allowed in (False, True):
        with Application("0.0.0.0") as application, \
                serving(options, asking(name, application.port, f"{secret}\nallow_private_addresses = {str(allowed).lower()}") + rules) as server:
            begun, word = time.time(), "allowed"
            try:
                Client(server).close()
            except OSError as e:
                word = "later" if "503" in str(e) and "Retry-After" in str(e) else str(e)
            took, calls = time.time() - begun, application.calls("connect")
            expected = ("allowed", 1) if allowed else ("later", 0)
            check((word, calls) == expected and took < 5.5, f"{name} is {address}, allow_private_addresses = {allowed}: {word}, asked {calls} times, after {took:.2f} s")


# -- return -------------------------------------------------------------------------------------

class Returning:
    """Clients that all come at once, and come again when they are told to."""

    def __init__(self, server, count, addresses):
        self.server, self.count, self.addresses = server, count, addresses
        self.selector = selectors.DefaultSelector()
        self.inside, self.refused, self.untold = {}, collections.Counter(), collections.Counter()
        self.later, self.took = [], [None] * count
        self.request = (f"GET /ws?protocol=ringfeed.v1 HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}\r\nSec-WebSocket-Version: 13\r\n\r\n").encode()

    def connect(self, number):
        one = socket.socket()
        one.setblocking(False)
        if self.addresses > 1:
            at = number % self.addresses
            # Ports are looked for when it is connected, not for all destinations.
            one.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
            one.bind((f"127.{1 + at // 62500}.{at // 250 % 250}.{1 + at % 250}", 0))
        one.connect_ex(("127.0.0.1", self.server.public))
        self.selector.register(one, selectors.EVENT_WRITE, [number, b"", time.time()])

    def again(self, number, seconds):
        self.later.append((time.time() + seconds, number))

    def gone(self, key, why):
        self.selector.unregister(key.fileobj)
        key.fileobj.close()
        if why:
            # Nobody says when: a client that is no worse than others comes after a second or two.
            self.untold[why] += 1
            self.again(key.data[0], 1 + key.data[0] % 1000 / 1000)

    def ready(self, key, events):
        number = key.data[0]
        try:
            if events & selectors.EVENT_WRITE:
                key.fileobj.send(self.request)
                self.selector.modify(key.fileobj, selectors.EVENT_READ, key.data)
                return
            got = key.fileobj.recv(4096)
        except BlockingIOError:
            return
        except OSError as e:
            self.gone(key, type(e).__name__)
            return
        key.data[1] += got
        head = key.data[1].split(b"\r\n\r\n")[0]
        if b"\r\n\r\n" not in key.data[1]:
            if not got:
                self.gone(key, "closed without an answer")
            return
        status = head.split(b" ")[1].decode()
        if status == "101":
            self.selector.unregister(key.fileobj)
            self.inside[number] = key.fileobj
            self.took[number] = time.time() - self.begun
            return
        after = re.search(rb"(?i)retry-after: *(\d+)", head)
        self.refused[status] += 1
        self.gone(key, None if after else f"{status} without Retry-After")
        if after:
            self.again(number, int(after[1]))

    def run(self, seconds):
        """Until all are inside, or so long."""
        self.begun = time.time()
        for number in range(self.count):
            self.connect(number)
            if number % 200 == 0:
                for key, events in self.selector.select(0):
                    self.ready(key, events)
        self.arrived = time.time() - self.begun
        while len(self.inside) < self.count and time.time() < self.begun + seconds:
            for key, events in self.selector.select(0.02):
                self.ready(key, events)
            now = time.time()
            due = [number for at, number in self.later if at <= now]
            if due:
                self.later = [one for one in self.later if one[0] > now]
                for number in due:
                    self.connect(number)

    def close(self):
        for key in list(self.selector.get_map().values()):
            key.fileobj.close()
        for one in self.inside.values():
            one.close()
        self.selector.close()


@scenario
def return_(options):
    """All come back at once, and the application takes 200 ms for each: all are in within 30 s, and who has to wait is told for how long."""
    count = 10_000 if options.full else 600
    # What might be changed where the defaults do not do.
    variants = [[], ["hooks.concurrency_max=512"], ["hooks.concurrency_max=512", "server.handshakes_max=8192"]]
    for addresses, who in ((count, "an address each"), (1, "one address")):
        for more in variants:
            with Application(delay=0.2) as application, \
                    serving(options, f'[hooks]\nconnect_url = "http://127.0.0.1:{application.port}/connect"\n', more) as server:
                clients = Returning(server, count, addresses)
                try:
                    clients.run(120)
                    took = [one for one in clients.took if one is not None]
                    within = len(took) == count and max(took) <= 30
                    text = (f"{count} clients, {who}, {' '.join(more) or 'defaults'}: {len(took)} in, after {quantile(took, 0.5):.1f} s half, "
                            f"{max(took, default=0):.1f} s all (bar 30 s); came within {clients.arrived:.1f} s; refused {dict(clients.refused)}, "
                            f"not told when to come again {dict(clients.untold) or 0}; hook calls {application.calls('connect')}; refused by reason "
                            f"{ {k: v for k, v in server.stats()['refused'].items() if v} }")
                    good = within and not clients.untold
                    calls, most = application.calls("connect"), application.shared[MOST]
                    if more:
                        say(("reaches it: " if good else "does not reach it: ") + text)
                    else:
                        check(within, text)
                        check(calls <= count * 1.02 and most <= 128 * 1.5,
                              f"the application is spared: {calls - len(took)} calls in vain (bar 2 %), at most {most} at once as it sees them "
                              "(hooks.concurrency_max 128; bar half as many more)")
                        check(not clients.untold, f"all who were refused were told when to come again: {dict(clients.untold) or 'yes'}")
                finally:
                    clients.close()
            if good:
                break


# -- send, flood --------------------------------------------------------------------------------

MAY_SEND = ISSUER + '[[permissions]]\nwho = ["user:sender"]\nchannels = ["*"]\nallow = ["send"]\n'

@scenario
def send(options):
    """Messages to one user with many connections, and to many users with one each, over the API and a WebSocket: exactly once; what it costs."""
    many, users, seconds = (1000, 100_000, 10) if options.full else (60, 500, 2)
    late = int(time.time()) + 3600
    sender = token("sender", late)
    for conns, channels, what in ((many, 1, f"one user, {many} connections"), (users, users, f"{users} users, one connection each")):
        with tempfile.TemporaryDirectory(prefix="access-") as directory:
            path = os.path.join(directory, "tokens")
            with open(path, "w") as file:
                file.writelines(token(f"u.c{n % channels}", late, jti=f"t{n}") + "\n" for n in range(conns))
            for how, rate in (("api", 1000 if channels == 1 else 30_000), ("ws", 3500 if channels == 1 else 90_000)):
                # Below what a small machine takes: more is refused for want of room, which `flood` looks at.
                rate = options.rate or (rate if options.full else rate // 10)
                with serving(options, MAY_SEND, [f"server.connections_max={conns + 100}"]) as server, \
                        Load(options, server, "--conns", conns, "--channels", channels, "--interest", "blocks", "--prefix", "u.",
                             "--dialect", "raw", "--send", "--tokens", path, "--publish", how, "--publisher-token", sender,
                             "--rate", rate, "--duration", seconds, "--size", 128, "--threads", 2) as load:
                    shards = []
                    while load.process.poll() is None:
                        now = [shard["connections"] for shard in server.stats()["by_shard"]]
                        shards = now if sum(now) >= sum(shards or [0]) else shards
                        time.sleep(0.5)
                    report = load.report()
                    cost = report["server"]
                    cpu = cost["cpu_user_seconds"] + cost["cpu_system_seconds"]
                    # Where this machine was slower for a moment some is refused for want of room, and nobody gets that.
                    refused, each = report["refused"], conns // channels
                    wrong = {name: report[name] for name in ("duplicated", "reordered", "corrupted", "unexpected", "closes") if report[name]}
                    check(report["lost"] == refused * each and not wrong, f"{what}, over {how}: {report['delivered']} of {report['expected']} delivered, "
                          f"{refused} messages refused; all that was taken came once {wrong or ''}")
                    check(all(shards) and report["published"] > 0,
                          f"{what}, over {how}: {report['published_per_second']:.0f} messages/s, {report['delivered_per_second']:.0f} deliveries/s, "
                          f"CPU {cpu / max(1, report['published']) * 1e6:.1f} us a message, {cpu / max(1, report['delivered']) * 1e6:.2f} us a delivery "
                          f"(user {cost['cpu_user_seconds']:.2f} s, system {cost['cpu_system_seconds']:.2f} s), {latencies(report)}; "
                          f"connections by shard {shards}; opened in {report['opening_seconds']:.1f} s")
    say("ingest has no lines for users: its lines are publications")


@scenario
def flood(options):
    """More is sent to one user than its connections can be handed: who sends waits, not the server's memory, and nobody who reads is closed."""
    conns, rate, seconds = (1000, 20_000, 5) if options.full else (300, 60_000, 3)
    bound = 64 << 20 if options.full else 1 << 20
    late = int(time.time()) + 3600
    sender = token("sender", late)
    flags = [] if options.full else [f"limits.outboxes_bytes_max={bound}"]
    with tempfile.TemporaryDirectory(prefix="access-") as directory:
        path = os.path.join(directory, "tokens")
        with open(path, "w") as file:
            file.writelines(token("u.c0", late) + "\n" for _ in range(conns))
        for how in ("api", "ws"):
            with serving(options, MAY_SEND, flags) as server, \
                    Load(options, server, "--conns", conns, "--channels", 1, "--prefix", "u.", "--dialect", "raw", "--send", "--tokens", path,
                         "--publish", how, "--publisher-token", sender, "--rate", rate, "--duration", seconds, "--threads", 2) as load:
                time.sleep(1)
                peak, memory, most = 0, server.rss(), 0
                while load.process.poll() is None:
                    peak, most = max(peak, server.totals()["outbox_bytes"]), max(most, server.rss())
                    time.sleep(0.1)
                report = load.report()
                what = f"{rate} messages/s asked for over {how} to one user with {conns} connections"
                refused = report["refused"]
                taken = (report["published"] - refused) / report["publishing_seconds"]
                check(refused > 0 and report["lost"] == refused * conns, f"{what}: {refused} of {report['published']} were refused, which are all that "
                      f"{conns} connections miss: {report['lost']}, {report['lost'] / conns:g} each")
                wrong = {name: report[name] for name in ("duplicated", "reordered", "corrupted", "unexpected") if report[name]}
                check(not wrong, f"{what}: nothing doubled, changed or out of order {wrong or ''}")
                check(peak <= bound * 1.25, f"{what}: {taken:.0f} taken; outboxes at most {peak / 2**20:.0f} MiB "
                      f"(limits.outboxes_bytes_max {bound >> 20} MiB; bar a quarter more), RSS +{max(0, most - memory) / 2**20:.0f} MiB")
                check(not report["closes"], f"{what}: nobody who reads is closed {report['closes'] or ''}")


# -- reload -------------------------------------------------------------------------------------

BAD = [
    ("an unknown key", "[limits]\nno_such_key = 1\n", "no_such_key"),
    ("a value of another kind", '[limits]\nsubscriptions_per_connection_max = "many"\n', "subscriptions_per_connection_max"),
    ("no TOML", "[limits\n", "config.toml:1: "),
    ("a wrong pattern", '[[channels]]\npattern = "a b"\n', "pattern"),
    ("a file that is not there", '[[api_keys]]\nname = "gone"\nkey_file = "/nowhere/key"\nscopes = ["all"]\n', "/nowhere/key"),
]
MASTER = "the-key-that-stays-the-same"


def good_file(number):
    """Good configuration: a key of its own, who may publish, and how many channels one may have."""
    allowed = '[[permissions]]\nwho = ["anyone"]\nchannels = ["p.*"]\nallow = ["publish"]\n' if number % 2 else ""
    return (f'[api]\nkeys = ["{MASTER}"]\n[[api_keys]]\nname = "k{number}"\nkey = "key-number-{number:08}"\nscopes = ["stats"]\n'
            f'[[channels]]\npattern = "*"\n{allowed}'), f"[limits]\nsubscriptions_per_connection_max = {10 + number % 3}\n"


def in_force(server, number):
    """What is not as `good_file(number)` says; probes are new clients, so that they have nothing from before."""
    wrong = []
    for other in (number - 1, number, number + 1000):
        status = server.request("GET", "/api/stats", key=f"key-number-{max(other, 0):08}")[0]
        if (status == 200) != (max(other, 0) == number):
            wrong.append(f"key {other}: {status}")
    client = Client(server)
    client.send({"type": "publish", "id": 1, "channel": "p.a", "data": 1})
    answer = client.event()
    if (answer["type"] == "published") != bool(number % 2):
        wrong.append(f"publish: {answer}")
    most = 10 + number % 3
    for at in range(most + 1):
        client.send({"type": "subscribe", "id": 2, "channel": f"s.{at}"})
        answer = client.event()
        if (answer["type"] == "subscribed") != (at < most):
            wrong.append(f"subscription {at + 1} of {most}: {answer}")
    client.close()
    return wrong


@scenario
def reload(options):
    """SIGHUP with good and bad configurations in turn under load: nobody is dropped, nothing lost, the bad ones refused whole."""
    conns, rate, seconds, rounds, pause = (3000, 200, 20, 3, 0.2) if options.full else (200, 50, 6, 1, 0.1)
    first, limits = good_file(0)
    with serving(options, limits + first, key=MASTER) as server:
        path = os.path.join(server.directory.name, "config.toml")
        reports = {"without": [], "beside": []}
        number, done, late, unclear, wrong, took = 0, collections.Counter(), [], [], [], []

        def put(text, outcome):
            """Has the server read this; what it has logged about it."""
            before, at = metric(server, "ringfeed_reloads_total", outcome=outcome), os.path.getsize(server.log_path)
            with open(path + ".new", "w") as file:
                file.write(text)
            os.replace(path + ".new", path)
            begun = time.time()
            server.process.send_signal(signal.SIGHUP)
            while metric(server, "ringfeed_reloads_total", outcome=outcome) == before:
                if time.time() > begun + 5:
                    late.append(outcome)
                    break
                time.sleep(0.01)
            took.append(time.time() - begun)
            done[outcome] += 1
            time.sleep(0.05)
            with open(server.log_path) as file:
                file.seek(at)
                return file.read()

        for _ in range(rounds):
            for what in ("without", "beside"):
                with Load(options, server, "--conns", conns, "--channels", 10, "--rate", rate, "--duration", seconds, "--settle", 1) as load:
                    load.begun()
                    end = time.time() + seconds - 2
                    while time.time() < end:
                        if what == "without":
                            # The same questions, so that only the reloads differ.
                            wrong += in_force(server, number)
                        else:
                            number += 1
                            rest, limits = good_file(number)
                            put(limits + rest, "taken")
                            wrong += [f"good {number}: {one}" for one in in_force(server, number)]
                            name, error, named = BAD[number % len(BAD)]
                            # Good in all but one thing: nothing of it may count.
                            better, more = good_file(number + 1000)
                            error = error if error.startswith("[limits") else more + error
                            text = error + better
                            log = put(text, "refused")
                            if "nothing has changed" not in log or named not in log:
                                unclear.append(f"{name}: {log[-300:]}")
                            wrong += [f"behind {name}: {one}" for one in in_force(server, number)]
                        time.sleep(pause)
                    reports[what].append(load.report())
        check(not late, f"{done['taken']} good and {done['refused']} bad ones in turn, each looked at within {max(took):.2f} s {late or ''}")
        check(not unclear, f"the bad ones are refused with what is wrong {unclear[:1] or ''}")
        check(not wrong, f"what is in force is what the last good one says, whole: keys, permissions, limits {wrong[:3] or ''}")
        for report in reports["without"] + reports["beside"]:
            lossless(report, "fan-out")
        compare(options, reports["without"], reports["beside"], f"{done.total()} reloads")
        closes = {kind: count for kind, count in server.closes().items() if not kind.startswith(("normal", "peer_gone"))}
        check(not closes, f"the server has ended nobody {closes or ''}")


def main(scenarios, description):
    listed = "\n".join(f"  {name:8} {function.__doc__}" for name, function in scenarios.items())
    parser = argparse.ArgumentParser(description=f"{description}\nscenarios:\n{listed}", formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(scenarios))
    parser.add_argument("--scale", default="full", choices=["full", "small"], help="small takes two to three minutes and few cores, and judges no latencies")
    parser.add_argument("--io", default="io_uring", choices=["io_uring", "epoll"])
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--binary", default="target/release/ringfeed")
    parser.add_argument("--loadgen", default="target/release/loadgen")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every server, as `ringfeed serve --set`; may be repeated")
    parser.add_argument("--rate", type=int, default=0, help="for `send`: messages a second; 0 is what a small machine takes")
    parser.add_argument("--ratio", type=float, default=1.5, help="p99 of fan-out beside what is wrong, as a multiple of that without")
    parser.add_argument("--slack-ms", type=float, default=3.0, help="so much more p99 is no failure whatever the ratio")
    parser.add_argument("--limit", type=int, default=900, help="seconds after which a scenario is ended, and has failed")
    options = parser.parse_args()
    options.full = options.scale == "full"
    unknown = [name for name in options.scenarios if name not in scenarios]
    if unknown:
        parser.error(f"no scenario is called {', '.join(unknown)}; there are {', '.join(scenarios)}")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    def too_long(*_):
        raise TooLong
    signal.signal(signal.SIGALRM, too_long)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    for name in options.scenarios or scenarios:
        print(f"{name} ({options.scale}, {options.io}, {options.shards} shards): {scenarios[name].__doc__}", flush=True)
        failed, begun = len(FAILED), time.time()
        signal.alarm(options.limit)
        try:
            scenarios[name](options)
        except TooLong:
            check(False, f"{name} did not end within {options.limit} s")
        except (OSError, AssertionError, subprocess.SubprocessError) as e:
            check(False, f"{name} could not be gone through with: {e!r}")
        finally:
            signal.alarm(0)
        print(f"{'PASS' if len(FAILED) == failed else 'FAIL'} {name}, {time.time() - begun:.0f} s", flush=True)
    for text in FAILED:
        print(f"FAILED {text}")
    sys.exit(1 if FAILED else 0)


if __name__ == "__main__":
    main(SCENARIOS, __doc__)
