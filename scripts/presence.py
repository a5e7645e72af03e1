#!/usr/bin/env python3
"""Shows what it costs when many join a channel and leave it at once, and that an application that is told of it and does not
answer costs nobody anything.

    scripts/presence.py --scale small members told

Each scenario has servers of its own (target/release/ringfeed) on free ports, and target/release/loadgen beside them on other
channels. Without names, all of them. Each figure stands beside its bar; what misses it is printed with FAIL, and then the
exit status is 1.
"""

import json
import multiprocessing
import os
import select
import signal
import socket
import statistics
import time

import access
from access import FAST, GIGABYTE, HANG, NAMES, REDIRECT, SLOW, Application, Load, compare, lossless, serving, token
from attack import Client, check, say, text_frame, whole_frame

SCENARIOS = {}


def scenario(function):
    SCENARIOS[function.__name__] = function
    return function


# -- members ------------------------------------------------------------------------------------

OPEN, JOIN, LEAVE, CUT = range(4)


class Part:
    """A process with some of the connections. It does what `order` says and answers with what it saw."""

    def __init__(self, server, first, count, cores):
        context = multiprocessing.get_context("fork")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=self.run, args=(other, server.public, first, count, cores), daemon=True)
        self.process.start()

    def run(self, pipe, port, first, count, cores):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.sched_setaffinity(0, cores)
        os.nice(10)  # the clients are not what is measured
        self.pollers = select.epoll()
        self.sockets, self.buffers = {}, {}
        while True:
            order = pipe.recv()
            if order == OPEN:
                for number in range(first, first + count):
                    self.open(port, number)
                pipe.send(True)
            elif order == JOIN:
                pipe.send(self.all_say(b'{"type":"subscribe","id":1,"channel":"hall"}', b'"subscribed"', pipe))
            elif order == LEAVE:
                pipe.send(self.all_say(b'{"type":"unsubscribe","id":2,"channel":"hall"}', b'"unsubscribed"', pipe))
            elif order == CUT:
                os._exit(0)

    def open(self, port, number):
        # From addresses of their own: one has not enough ports for all.
        one = socket.create_connection(("127.0.0.1", port), source_address=(f"127.0.0.{2 + number // 5000}", 0))
        shown = token(f"u{number:05}", int(time.time()) + 3600)
        one.sendall(f"GET /ws?token={shown} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode())
        buffer = bytearray()
        while b"\r\n\r\n" not in buffer:
            buffer += one.recv(4096)
        assert buffer.startswith(b"HTTP/1.1 101"), bytes(buffer[:200])
        del buffer[:buffer.index(b"\r\n\r\n") + 4]
        one.setblocking(False)
        self.sockets[one.fileno()], self.buffers[one.fileno()] = one, buffer
        self.pollers.register(one.fileno(), select.EPOLLIN)

    def all_say(self, text, reply, pipe):
        """Everybody says something. Returns when the last reply was there, and the bytes that came until nobody waits and `pipe` says enough."""
        said = text_frame(text)
        for one in self.sockets.values():
            one.sendall(said)
        waiting, bytes_in, last = set(self.sockets), 0, 0.0
        enough = False
        while waiting or not enough:
            for number, _ in self.pollers.poll(0.05):
                got = self.sockets[number].recv(1 << 16)
                if not got:
                    raise OSError("a member was dropped")
                bytes_in += len(got)
                if number in waiting:
                    self.buffers[number] += got
                    if self.answers(self.buffers[number], reply):
                        waiting.discard(number)
                        last = time.time()
            enough = enough or not waiting and pipe.poll()
        pipe.recv()
        return last, bytes_in

    @staticmethod
    def answers(buffer, reply):
        """Takes whole messages; whether the reply is among them."""
        found = False
        while whole := whole_frame(buffer, 0):
            _, begin, end = whole
            found = found or reply in buffer[begin:end]
            del buffer[:end]
        return found

    def order(self, what):
        self.pipe.send(what)


def members_of(server):
    status, body = server.request("GET", "/api/presence?channel=hall&limit=0")
    return json.loads(body)["connections"] if status == 200 else 0


def until_members(server, count, seconds=120):
    end = time.time() + seconds
    while (there := members_of(server)) != count:
        if time.time() > end:
            raise OSError(f"{there} members, not {count}")
        time.sleep(0.01)
    return time.time()


# A channel stays usable if p99 of another one becomes no more worse than this while tens of thousands join and leave.
STORM_SLACK_MS = 50
HALL = """
[[channels]]
pattern = "hall"
presence = "full"
join_leave = true
[[channels]]
pattern = "*"
"""


def spread(shards):
    """Cores: those that loadgen, and what this process does itself, have, and those of the clients. The shards, which are what is
    measured, have the first ones for themselves, where there are two more."""
    cores = sorted(os.sched_getaffinity(0))
    return (cores[shards:shards + 1], cores[shards + 1:]) if len(cores) >= shards + 2 else (cores, cores)


@scenario
def members(options):
    """Many join one channel at once, and leave it at once: how long, how many bytes for each, the longest turn, and what others feel."""
    count, parts, conns, rate, seconds, rounds = (50_000, 8, 1000, 100, 15, 3) if options.full else (400, 2, 100, 50, 6, 1)
    flags = ("--conns", conns, "--channels", 10, "--rate", rate, "--duration", seconds, "--settle", 1)
    reports, times, shares, turns = {"without": [], "beside": []}, {}, {}, []
    with serving(options, HALL + access.ISSUER, ["auth.anonymous=true", "server.pin=true"]) as server:
        before_all = os.sched_getaffinity(0)
        own_cores, client_cores = spread(options.shards)
        os.sched_setaffinity(0, own_cores)
        for _ in range(rounds):
            all_parts = [Part(server, n * (count // parts), count // parts, client_cores) for n in range(parts)]

            def together(order):
                for part in all_parts:
                    part.order(order)

            together(OPEN)
            for part in all_parts:
                part.pipe.recv()
            with Load(options, server, *flags) as load:
                reports["without"].append(load.report())
            # Turns of the storm of connections are forgotten after two minutes at most.
            before = server.totals()
            with Load(options, server, *flags) as load:
                load.begun()
                time.sleep(1.5)
                for order, name, there in ((JOIN, "join", count), (LEAVE, "leave", 0), (JOIN, "join", count), (CUT, "cut", 0)):
                    begun = time.time()
                    together(order)
                    took = until_members(server, there) - begun
                    times.setdefault(name, []).append(took)
                    if order != CUT:
                        time.sleep(1)  # notices of the last changes
                        for part in all_parts:
                            part.order(None)
                        seen = [part.pipe.recv() for part in all_parts]
                        times.setdefault(f"{name}: the last one is told", []).append(max(last for last, _ in seen) - begun)
                        shares.setdefault(name, []).append(sum(got for _, got in seen) / count)
                reports["beside"].append(load.report())
            after = server.totals()
            for part in all_parts:
                part.process.join()
            turns.append((after["turn_max_us"] / 1000, after["turn_cpu_max_us"] / 1000, before["turn_cpu_max_us"] / 1000))
        os.sched_setaffinity(0, before_all)
        for name, all_times in times.items():
            say(f"{count} {name}: {', '.join(f'{t:.2f}' for t in all_times)} s")
        for name, all_shares in shares.items():
            share = statistics.median(all_shares)
            check(share < 4096, f"{name}: {share:.0f} bytes to each, notices and all (bar: 4096)")
        wall, cpu, before = (statistics.median(column) for column in zip(*turns))
        check(cpu < 10 or not options.full, f"longest turn {cpu:.1f} ms CPU, {wall:.1f} ms (before, also of the connecting: {before:.1f} ms CPU; medians of {len(turns)}; bar: 10 ms CPU)")
        for report in reports["without"] + reports["beside"]:
            lossless(report, "another channel")
        # The shards have all hands full for a third of the time: the 99th of a hundred is one of the worst of that third.
        options.slack_ms = max(options.slack_ms, STORM_SLACK_MS)
        compare(options, reports["without"], reports["beside"], f"{count} who join and leave")
        closes = {kind: n for kind, n in server.closes().items() if not kind.startswith(("normal", "peer_gone"))}
        check(not closes, f"the server has ended nobody {closes or ''}")


# -- told ---------------------------------------------------------------------------------------

class Told(Application):
    """An application that is told who comes and goes, and keeps it."""

    def __init__(self):
        self.heard, self.mouth = multiprocessing.get_context("fork").Pipe(duplex=False)
        super().__init__(events=[*access.EVENTS, "presence"])

    async def answer(self, head, body, writer):
        question = json.loads(body) if body else {}
        if question.get("event") == "presence" and self.shared[access.MODE] == FAST:
            self.mouth.send((question["id"], question["lost"], question["changes"]))
        await super().answer(head, body, writer)

    def all_heard(self):
        while self.heard.poll(0):
            yield self.heard.recv()


@scenario
def told(options):
    """Users come and go while the application is slow, hangs, redirects or answers with a gigabyte: fan-out goes on, and what it hears is in order."""
    conns, rate, seconds, users, rounds = (5000, 200, 12, 100, 2) if options.full else (300, 50, 5, 20, 1)
    rules = '[[channels]]\npattern = "hall"\npresence = "full"\npresence_hook = true\n[[channels]]\npattern = "*"\n'
    for mode in (SLOW, HANG, REDIRECT, GIGABYTE):
        with Told() as application:
            hooks = (f'[hooks]\npresence_url = "http://127.0.0.1:{application.port}/presence"\nattempt_timeout_ms = 800\ntimeout_ms = 2000\n')
            with serving(options, hooks + rules + access.ISSUER, ["auth.anonymous=true"]) as server:
                reports, there, ids, lost, changes = {FAST: [], mode: []}, set(), set(), 0, 0
                wrong = []

                def listen():
                    nonlocal lost, changes
                    for number, missing, all_changes in application.all_heard():
                        if number in ids:
                            continue
                        ids.add(number)
                        lost += missing
                        for change in all_changes:
                            changes += 1
                            user, joined = change["user"], change["change"] == "join"
                            if joined == (user in there) and not lost:
                                wrong.append(change)
                            (there.add if joined else there.discard)(user)

                def come_and_go(until):
                    clients, turn = {}, 0
                    while time.time() < until:
                        user = f"u{turn % users}"
                        turn += 1
                        if user in clients:
                            clients.pop(user).close()
                        else:
                            client = Client(server, query=f"&token={token(user, int(time.time()) + 600)}")
                            client.send({"type": "subscribe", "id": 1, "channel": "hall"})
                            clients[user] = client
                        listen()
                    return clients, turn

                for _ in range(rounds):
                    for now in (FAST, mode):
                        flags = ("--conns", conns, "--channels", 10, "--rate", rate, "--duration", seconds, "--settle", 1)
                        with Load(options, server, *flags) as load:
                            load.begun()
                            application.be(now, 5.0 if now == SLOW else 0.0)
                            clients, turns = come_and_go(time.time() + seconds - 1.5)
                            application.be(FAST)
                            reports[now].append(load.report())
                        # What it was not told meanwhile it hears now, and who is there in the end.
                        end = time.time() + 60
                        while there != set(clients) and time.time() < end and not lost:
                            time.sleep(0.1)
                            listen()
                        given_up = f", {lost} given up and said so" if lost else ""
                        good = there == set(clients) or lost > 0
                        check(good, f"{NAMES[now]}: {turns} came or went, in the end it knows who is there: {len(there)}{given_up}")
                        for client in clients.values():
                            client.close()
                        # Where something was given up it does not hear of everybody who has left, or of some who never came: when
                        # that is all, the gauge knows, which is written once a second.
                        end, heard = time.time() + 60, time.time() + 3
                        while time.time() < end and (time.time() < heard if lost else there):
                            if members_of(server) or server.totals()["presence_changes_waiting"]:
                                heard = time.time() + 3
                            time.sleep(0.1)
                            listen()
                        check(not there or lost > 0, f"{NAMES[now]}: and that all have left")
                        there.clear()
                        lost = 0
                check(not wrong and changes > 0, f"{NAMES[mode]}: {changes} changes heard, each user in turn {wrong[:3] or ''}")
                for report in reports[FAST] + reports[mode]:
                    lossless(report, "fan-out beside it")
                compare(options, reports[FAST], reports[mode], f"an application that is {NAMES[mode]}")


if __name__ == "__main__":
    access.main(SCENARIOS, __doc__)
