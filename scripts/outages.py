#!/usr/bin/env python3
"""Takes Redis away from three nodes under load, in four ways and one after the other, and holds everything that clients were told
against everything that was acknowledged.

    scripts/outages.py --scale small killed stopped flushed older

killed:  Redis dies and comes back after --seconds with all that it had acknowledged (appendonly, fsync always).
stopped: SIGSTOP, and SIGCONT after --seconds.
flushed: FLUSHALL.
older:   it dies and comes back as what it was when the run began.

Without names, all of them in one run. Publishers over WebSocket and HTTP and readers are on every node; other clients come and go
from node to node and recover; another program publishes in Redis. One of the nodes has a spool. Each figure stands beside its
bar; what misses it is printed with FAIL, and then the exit status is 1. Needed are target/release/ringfeed and redis-server.
"""

import argparse
import collections
import contextlib
import http.client
import json
import multiprocessing
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback

from attack import FAILED, Client, Server, check, say, text_frame, whole_frame

NODES = 3
# Numbered by Redis, shared through it, and published by another program.
NUMBERED, BRIDGED, FOREIGN = [f"n.{n}" for n in range(6)], [f"b.{n}" for n in range(3)], "ext.one"
CONFIG = """
[[channels]]
pattern = "n.*"
publish = "anyone"
history_size = 100000
history_age_ms = 0
[[channels]]
pattern = "*"
publish = "anyone"
[[redis_channels]]
name = "others:*"
channel = "ext.*"
"""
now = time.monotonic  # the same for all processes of a machine


# -- Redis --------------------------------------------------------------------------------------

class Redis:
    """A real one, on a Unix socket, that acknowledges what is on its disk."""

    def __init__(self, binary):
        self.home = tempfile.TemporaryDirectory(prefix="outages-")
        self.binary, self.process = binary, None
        self.data = os.path.join(self.home.name, "data")
        self.socket = os.path.join(self.home.name, "socket")
        os.mkdir(self.data)
        self.start()

    def start(self):
        """Once it answers."""
        self.process = subprocess.Popen(
            [self.binary, "--port", "0", "--unixsocket", self.socket, "--dir", self.data, "--save", "", "--appendonly", "yes",
             "--appendfsync", "always", "--maxmemory-policy", "noeviction"], stdout=subprocess.DEVNULL)
        end = now() + 30
        while now() < end:
            with contextlib.suppress(OSError):
                if self.ask("PING") == b"+PONG":
                    return
            time.sleep(0.005)
        raise OSError("redis-server does not start")

    def connect(self):
        one = socket.socket(socket.AF_UNIX)
        one.settimeout(5)
        one.connect(self.socket)
        return one

    def ask(self, *words):
        with contextlib.closing(self.connect()) as one:
            one.sendall(words_of(*words))
            got = b""
            while not got.endswith(b"\r\n"):
                more = one.recv(4096)
                if not more:
                    raise OSError("Redis has ended the connection")
                got += more
            return got[:-2]

    def kill(self):
        self.process.kill()
        self.process.wait()

    def copy(self):
        """What is on its disk now."""
        to = os.path.join(self.home.name, "copy")
        shutil.copytree(self.data, to)
        return to

    def replace(self, copy):
        shutil.rmtree(self.data)
        shutil.copytree(copy, self.data)

    def stop(self):
        self.process.send_signal(signal.SIGCONT)
        self.kill()
        self.home.cleanup()


def words_of(*words):
    parts = [word.encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


# -- clients, each kind in a process of its own ------------------------------------------------

class Part:
    """A process that runs a function with `self` and says in the end what came of it."""

    def __init__(self, work, *given):
        context = multiprocessing.get_context("fork")
        self.end, self.results = context.Event(), context.SimpleQueue()
        self.process = context.Process(target=self.run, args=(work, given), daemon=True)
        self.process.start()

    def run(self, work, given):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.nice(5)
        try:
            self.results.put((work(self.end, *given), None))
        except Exception:
            self.results.put((None, traceback.format_exc()))

    def result(self):
        self.end.set()
        found, failed = self.results.get()
        self.process.join()
        if failed:
            sys.exit(f"a client has failed, as when its node ends:\n{failed}")
        return found


def paced(end, rate):
    """Numbers from 0 on, each when it is its turn."""
    number, due = 0, now()
    while not end.is_set():
        if (wait := due - now()) > 0:
            time.sleep(wait)
        due = max(due + 1 / rate, now())
        yield number
        number += 1


def read_all(end, port, readers):
    """Clients that stay on all channels: for each the messages, with the time at which they came."""
    class At:
        public = port
    poller, clients, heard = select.epoll(), {}, []
    for _ in range(readers):
        client, own = Client(At), []
        for number, channel in enumerate([*NUMBERED, *BRIDGED, FOREIGN]):
            client.send({"type": "subscribe", "id": number, "channel": channel})
        client.socket.setblocking(False)
        poller.register(client.socket, select.EPOLLIN)
        clients[client.socket.fileno()] = (client, own)
        heard.append(own)
    quiet_since = now()
    # Until nothing has come for a while: what was taken last has come by then.
    while not end.is_set() or now() - quiet_since < 2:
        for number, _ in poller.poll(0.1):
            quiet_since = now()
            client, own = clients[number]
            with contextlib.suppress(BlockingIOError):
                got = client.socket.recv(1 << 20)
                if not got:
                    own.append((now(), b'{"type":"end"}'))
                    poller.unregister(number)
                    continue
                client.buffer += got
            at, came = 0, now()
            while (found := whole_frame(client.buffer, at)) is not None:
                opcode, begin, at = found
                payload = bytes(client.buffer[begin:at])
                if opcode == 9:
                    client.socket.sendall(text_frame(payload, 10))
                elif opcode != 10:
                    own.append((came, payload))
            del client.buffer[:at]
    return heard


def publish_by_socket(end, port, name, channels, rate, window):
    """One connection that publishes in turn on all channels: each publication, when it was sent, and what was answered when."""
    class At:
        public = port
    client, sent, answers = Client(At), [], []
    client.socket.settimeout(0.002)
    due, waiting, deadline = now(), 0, None
    while True:
        if end.is_set():
            deadline = deadline or now() + 15
            if waiting == 0 or now() > deadline:
                break
        elif now() >= due and waiting < window:
            due = max(due + 1 / rate, now() - 0.5)
            number = len(sent)
            channel = channels[number % len(channels)]
            # A long one would be written in parts.
            client.socket.settimeout(30)
            client.send({"type": "publish", "id": number, "channel": channel, "data": f"{name}:{number}:{'x' * 80}"})
            client.socket.settimeout(0.002)
            sent.append((now(), channel))
            waiting += 1
            if now() < due and waiting < window:
                continue
        try:
            got = client.next()
        except TimeoutError:
            continue
        if isinstance(got, tuple):
            break
        answers.append((now(), got))
        waiting -= 1
    answers = {json.loads(text)["id"]: (at, json.loads(text)) for at, text in answers}
    return [(name, number, channel, at, *answers.get(number, (None, None))) for number, (at, channel) in enumerate(sent)]


def publish_by_request(end, port, name, rate):
    """The same over HTTP, with a key for each; half of what is refused is sent again until it is taken."""
    all_threads, found = [], []

    def one(thread):
        own = f"{name}.{thread}"
        api = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        for number in paced(end, rate):
            channel, at = NUMBERED[(thread + number) % len(NUMBERED)], now()
            body = json.dumps({"channel": channel, "data": f"{own}:{number}:{'x' * 80}", "idempotency_key": f"{own}:{number}"})
            while True:
                try:
                    api.request("POST", "/api/publish", body)
                    answer = api.getresponse()
                    status, answer = answer.status, json.loads(answer.read())
                except (OSError, http.client.HTTPException):
                    api.close()
                    status, answer = 0, {"message": "no answer"}
                answer["type"] = "published" if status in (200, 202) else "error"
                if answer["type"] == "published":
                    break
                if number % 2 or end.is_set():
                    break
            found.append((own, number, channel, at, now(), answer))

    for thread in range(3):
        all_threads.append(threading.Thread(target=one, args=(thread,)))
        all_threads[-1].start()
    for thread in all_threads:
        thread.join()
    return found


def publish_elsewhere(end, path, rate):
    """Another program that publishes in Redis while it is there: what it knows to have been published, and when."""
    one, published = None, []
    for number in paced(end, rate):
        try:
            if one is None:
                one = socket.socket(socket.AF_UNIX)
                one.settimeout(1)
                one.connect(path)
            at = now()
            one.sendall(words_of("PUBLISH", "others:one", f"other:{number}:"))
            if one.recv(64).startswith(b":"):
                published.append((number, at))
        except OSError:
            one = None
            time.sleep(0.02)
    return published


def come_and_go(end, ports, seed):
    """A client that is on one node after the other and goes on behind the last position that it was told."""
    dice, stands, told, refused = random.Random(seed), {}, [], 0

    class At:
        pass
    while not end.is_set():
        At.public = dice.choice(ports)
        until = now() + dice.uniform(0.1, 1.0)
        try:
            client = Client(At)
            client.socket.settimeout(0.2)
            asked = {}
            for number, channel in enumerate(NUMBERED):
                command = {"type": "subscribe", "id": number, "channel": channel}
                if channel in stands:
                    epoch, offset = stands[channel]
                    command["recover"] = {"epoch": epoch, "offset": offset}
                asked[channel] = stands.get(channel)
                client.send(command)
            while now() < until:
                try:
                    got = client.next()
                except TimeoutError:
                    continue
                if isinstance(got, tuple):
                    break
                event = json.loads(got)
                channel = event.get("channel")
                if event["type"] == "error":
                    refused += 1
                elif event["type"] == "subscribed":
                    recovered = event.get("recovered", False)
                    place = asked[channel][1] if recovered else event["offset"]
                    told.append((channel, "recovered" if recovered else "began", asked[channel], (event["epoch"], place)))
                    stands[channel] = (event["epoch"], place)
                elif event["type"] == "gap":
                    stands[channel] = (event["epoch"], event["to"])
                    told.append((channel, "gap", event["from"], stands[channel]))
                elif event["type"] == "message":
                    stands[channel] = (stands[channel][0], event["offset"])
                    told.append((channel, "message", name_of(event["data"]), stands[channel]))
            client.close()
        except OSError:
            refused += 1
            time.sleep(0.05)
    return told, refused


def name_of(data):
    """What tells a publication from all others."""
    publisher, number, _ = data.split(":", 2)
    return publisher, int(number)


# -- what has come of it ------------------------------------------------------------------------

class Reader:
    """What one client that stayed was told, by channel."""

    def __init__(self, node, heard):
        self.node, self.wrong = node, []
        self.messages = collections.defaultdict(list)  # when, epoch, offset, name
        self.gaps = collections.defaultdict(list)      # when, life before, life behind, from, to
        self.lives = {}                                # by channel and epoch: up to which offset this reader was told everything
        at = {}
        for came, text in heard:
            event = json.loads(text)
            channel = event.get("channel")
            if event["type"] == "subscribed":
                at[channel] = (event["epoch"], event["offset"])
            elif event["type"] == "gap":
                epoch, before = at[channel]
                self.gaps[channel].append((came, epoch, event["epoch"], event["from"], event["to"]))
                if event["epoch"] == epoch and event["from"] != before + 1:
                    self.wrong.append(f"{channel} at {before}: {event}")
                at[channel] = (event["epoch"], event["to"])
            elif event["type"] == "message":
                epoch, before = at[channel]
                if event["offset"] != before + 1:
                    self.wrong.append(f"{channel} at {before}: {text[:80]}")
                at[channel] = (epoch, event["offset"])
                self.messages[channel].append((came, epoch, event["offset"], name_of(event["data"])))
            else:
                self.wrong.append(text[:200])
        self.ends = at


Fault = collections.namedtuple("Fault", "name began revived back ready")  # when Redis could go on, when it answered, when all nodes knew


def loses(fault):
    return fault.name in ("flushed", "older")


def check_places(readers, hoppers, published):
    """Nobody was ever told two things of one place."""
    places, twice, count = {}, [], 0

    def put(place, name):
        nonlocal count
        count += 1
        if places.setdefault(place, name) != name:
            twice.append((place, name, places[place]))
    for reader in readers:
        for channel, messages in reader.messages.items():
            for _, epoch, offset, name in messages:
                put((channel, epoch, offset), name)
    for publisher, number, channel, _, _, answer in published:
        if answer and answer["type"] == "published" and "offset" in answer:
            put((channel, answer["epoch"], answer["offset"]), (publisher, number))
    for told, _ in hoppers:
        for channel, kind, name, (epoch, offset) in told:
            if kind == "message":
                put((channel, epoch, offset), name)
    check(not twice, f"two payloads at one epoch and offset: {len(twice)} among {count} of {len(places)} places {twice[:3] or ''}")
    return places


def check_readers(readers):
    wrong = [text for reader in readers for text in reader.wrong]
    gaps = sum(1 for reader in readers for channel in NUMBERED for gap in reader.gaps[channel] if gap[3] <= gap[4])
    count = sum(len(messages) for reader in readers for messages in reader.messages.values())
    check(not wrong, f"silent gaps, repetitions and other surprises of {len(readers)} readers: {len(wrong)} in {count} messages; "
          f"gaps on numbered channels that were told: {gaps} {wrong[:3] or ''}")
    doubled = 0
    for reader in readers:
        for channel, messages in reader.messages.items():
            names = collections.Counter(name for *_, name in messages)
            doubled += sum(times - 1 for times in names.values())
    check(doubled == 0, f"publications that came twice, at whatever places: {doubled}")
    ends = {channel: {reader.ends[channel] for reader in readers} for channel in NUMBERED}
    apart = {channel: found for channel, found in ends.items() if len(found) > 1}
    check(not apart, f"all readers of a numbered channel end at the same place {apart or ''}")


def check_hoppers(hoppers, places):
    recoveries = begun = refused = 0
    wrong = []
    for told, turned_away in hoppers:
        at, refused = {}, refused + turned_away
        for channel, kind, what, place in told:
            if kind == "recovered":
                recoveries += 1
                before = at.get(channel)
                if what != before:
                    wrong.append(("asked with", what, before))
            elif kind == "began":
                begun += what is not None
            elif kind == "message":
                epoch, offset = at[channel]
                if place != (epoch, offset + 1) or places.get((channel, *place)) != what:
                    wrong.append((channel, at[channel], place, what))
            at[channel] = place
    check(not wrong and recoveries > 0, f"{len(hoppers)} clients went from node to node: {recoveries} times recovered, {begun} times told "
          f"that they were not, {refused} times not served; holes behind a recovery: {len(wrong)} {wrong[:3] or ''}")


def check_acknowledged(readers, published, faults, copied):
    """Whatever was acknowledged has come to every reader, except what Redis itself has lost; then they were told of a new life."""
    seen = []
    for reader in readers:
        by_name = {}
        for channel in NUMBERED:
            for _, epoch, offset, name in reader.messages[channel]:
                by_name[channel, *name] = (epoch, offset)
        seen.append(by_name)
    outages = [fault for fault in faults if fault.name != "flushed"]
    kinds, false, lost, lost_told, wrong = collections.Counter(), [], [], 0, []
    for publisher, number, channel, sent, came, answer in published:
        if channel not in NUMBERED:
            continue
        if answer is None or answer["type"] != "published":
            kinds["refused" if answer else "without an answer"] += 1
            continue
        kinds[answer["ack"]] += 1
        if answer["ack"] == "redis":
            # What Redis had said before came a moment later at most.
            if any(fault.began + 1 < came < fault.revived for fault in outages):
                false.append((publisher, number, came))
        for reader, by_name in zip(readers, seen):
            place = by_name.get((channel, publisher, number))
            if place is None:
                # Redis may lose what it had when it was flushed, and what it got after it was copied. Of a life that continues
                # none that a node knows, that node takes nothing that came before it heard of it.
                may = [fault for fault in faults if loses(fault) and (copied if fault.name == "older" else 0) < came + 2
                       and sent < fault.ready + 1]
                told = any(life != behind and start <= answer.get("offset", start) and start <= to
                           for _, life, behind, start, to in reader.gaps[channel])
                if may and told:
                    lost_told += 1
                else:
                    lost.append((reader.node, channel, publisher, number, answer["ack"]))
            elif answer["ack"] == "redis" and place != (answer["epoch"], answer["offset"]):
                # Another life may continue the one that was acknowledged.
                if place[1] != answer["offset"]:
                    wrong.append((place, answer))
    say("on numbered channels: " + ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items())))
    check(not false, f"acknowledged as stored while Redis was away: {len(false)} {false[:3] or ''}")
    check(not lost, f"acknowledged, and not come to a reader who was told nothing: {len(lost)} of {len(readers) * (kinds['redis'] + kinds['spooled'])} deliveries; "
          f"behind a flush or an older copy, where a gap and a new life were told: {lost_told} {lost[:3] or ''}")
    check(not wrong, f"acknowledged at another offset than it came at: {len(wrong)} {wrong[:3] or ''}")
    spooled = {(channel, publisher, number) for publisher, number, channel, _, _, answer in published
               if answer and answer.get("ack") == "spooled"}
    # In order: of one publisher on one channel, whatever waited, and where.
    turned = []
    for reader in readers:
        for channel in NUMBERED:
            last = {}
            for *_, (publisher, number) in reader.messages[channel]:
                if last.get(publisher, -1) >= number:
                    turned.append((reader.node, channel, publisher, number))
                last[publisher] = number
    check(not turned, f"a publisher's publications on a channel that came in another order: {len(turned)} ({len(spooled)} had been in the spool) {turned[:3] or ''}")


def check_fan_out(readers, published, faults, slack):
    """What the node of the reader has published itself on bridged channels came through, with nothing missing, at its pace."""
    for fault in faults:
        silence, worst, count, missing = 0.0, 0.0, 0, 0
        # Where it is over at once, what follows counts.
        until = max(fault.back, fault.began + 2)
        for reader in readers:
            for channel in BRIDGED:
                came = {name: when for when, _, _, name in reader.messages[channel]}
                own = [(sent, came.get((publisher, number))) for publisher, number, of, sent, _, _ in published
                       if of == channel and publisher == f"bridged{reader.node}" and fault.began <= sent < until]
                missing += sum(1 for _, when in own if when is None)
                times = sorted(when for _, when in own if when)
                count += len(times)
                silence = max([silence, *(b - a for a, b in zip(times, times[1:]))])
                worst = max([worst, *(when - sent for sent, when in own if when)])
        check(missing == 0 and silence < slack, f"{fault.name}: bridged channels on the node of the publisher: {count} deliveries, {missing} missing, "
              f"longest silence {silence * 1000:.0f} ms (bar: {slack * 1000:.0f}), longest way {worst * 1000:.0f} ms")


def check_bridged(readers, published, faults):
    """Of what other nodes have published on bridged channels nothing is missing without a word."""
    for channel in BRIDGED:
        sent = {(publisher, number): at for publisher, number, of, at, _, answer in published
                if of == channel and answer and answer["type"] == "published"}
        for reader in readers:
            came = {name for *_, name in reader.messages[channel]}
            told = [when for when, _, _, start, to in reader.gaps[channel] if start <= to]
            silent = [name for name, at in sent.items() if name not in came and not any(when > at for when in told)]
            if silent:
                check(False, f"node {reader.node}: {len(silent)} on {channel} are missing without a word {silent[:3]}")
                return
    gaps = sum(len(reader.gaps[channel]) for reader in readers for channel in BRIDGED)
    check(True, f"of other nodes' publications on bridged channels nothing is missing without a word; gaps that were told: {gaps}")


def check_foreign(readers, published):
    silent, missing = [], 0
    for reader in readers:
        came = {number for *_, (_, number) in reader.messages[FOREIGN]}
        told = [when for when, *_ in reader.gaps[FOREIGN]]
        for number, at in published:
            if number not in came:
                missing += 1
                if not any(when > at for when in told):
                    silent.append((reader.node, number))
    check(not silent, f"another program published {len(published)} in Redis: {missing} deliveries missing, without a word {len(silent)} {silent[:3] or ''}")


def check_healed(readers, published, faults, bar):
    """From the first answer of Redis until every reader had something on every channel that another node has published since."""
    node_of = lambda publisher: int(publisher.split(".")[0][-1])
    for fault in faults:
        worst = {"numbered": 0.0, "bridged": 0.0, "another program's": 0.0}
        sent = {(channel, publisher, number): at for publisher, number, channel, at, *_ in published}
        for reader in readers:
            for kind, channels in (("numbered", NUMBERED), ("bridged", BRIDGED), ("another program's", [FOREIGN])):
                for channel in channels:
                    first = next((when for when, _, _, name in reader.messages[channel] if when > fault.back and (
                        channel == FOREIGN or (sent.get((channel, *name), 0) > fault.back and node_of(name[0]) != reader.node))), None)
                    worst[kind] = max(worst[kind], first - fault.back if first else float("inf"))
        away = f"away for {fault.back - fault.began:.1f} s" if fault.back - fault.began > 0.1 else "at once"
        text = ", ".join(f"{kind} {seconds:.2f} s" for kind, seconds in worst.items())
        check(max(worst.values()) < bar, f"{fault.name} ({away}): flows again between all nodes after: {text} (bar: {bar} s)")


def check_histories(nodes):
    """All nodes keep the same."""
    def kept(node, channel):
        after, found = 0, []
        while True:
            status, body = node.request("GET", f"/api/history?channel={channel}&after={after}&limit=1000")
            page = json.loads(body)
            if status != 200 or not page["publications"]:
                return page.get("epoch"), page.get("offset"), found
            found += [(one["offset"], name_of(one["data"])) for one in page["publications"]]
            after = found[-1][0]
    differ, count = [], 0
    for channel in NUMBERED:
        pages = [kept(node, channel) for node in nodes]
        count += len(pages[0][2])
        # A node that was ahead keeps what it had told already; what all keep must agree.
        by_offset = [dict(page[2]) for page in pages]
        common = set.intersection(*(set(one) for one in by_offset))
        same = all(one[offset] == by_offset[0][offset] for one in by_offset for offset in common)
        if len({page[:2] for page in pages}) > 1 or not same or not common:
            differ.append((channel, [(page[0], page[1], len(page[2])) for page in pages]))
    check(not differ, f"histories of all nodes agree, {count} publications {differ or ''}")


# -- the run ------------------------------------------------------------------------------------

def ready(nodes, seconds=30):
    end = now() + seconds
    while now() < end:
        if all(node.request("GET", "/ready")[0] == 200 for node in nodes):
            return True
        time.sleep(0.02)
    return False


def metric(node, name):
    text = node.request("GET", "/metrics")[1].decode()
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + " "))


def cause(name, redis, nodes, copy, seconds):
    began = revived = now()
    if name == "killed":
        redis.kill()
        time.sleep(seconds)
        revived = now()
        redis.start()
    elif name == "stopped":
        redis.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        revived = now()
        redis.process.send_signal(signal.SIGCONT)
        redis.ask("PING")
    elif name == "flushed":
        redis.ask("FLUSHALL")
    elif name == "older":
        redis.kill()
        redis.replace(copy)
        redis.start()
    back = now()
    check(ready(nodes), f"{name}: all nodes are ready {now() - back:.2f} s after Redis answers")
    fault = Fault(name, began, revived, back, now())
    end = now() + 30
    while (left := metric(nodes[0], "ringfeed_redis_spool_publications")) and now() < end:
        time.sleep(0.02)
    check(not left, f"{name}: the spool is empty {now() - fault.back:.2f} s after Redis answers")
    return fault


def run(options, stack):
    seconds, pause, rate = (options.seconds or 10, 6, 400) if options.full else (options.seconds or 2, 3, 100)
    redis = Redis(options.redis)
    stack.callback(redis.stop)
    spool = os.path.join(redis.home.name, "spool")
    config = f'[redis]\nurl = "unix://{redis.socket}"\n{CONFIG}'
    nodes = []
    for number in range(NODES):
        # The first one has a spool.
        own = [f"redis.spool_dir={spool}"] if number == 0 else []
        nodes.append(Server(options, [f"server.node_id=node-{number}", *own, *options.set], config))
        stack.callback(nodes[-1].stop)
    check(ready(nodes), f"{NODES} nodes, Redis, a spool on the first; {rate * NODES} publications a second on {len(NUMBERED)} numbered channels "
          f"and {rate // 2 * NODES} on {len(BRIDGED)} bridged ones over WebSocket, and what HTTP takes")
    readers = [Part(read_all, node.public, options.readers) for node in nodes]
    time.sleep(0.5)
    publishers = []
    for number, node in enumerate(nodes):
        publishers += [Part(publish_by_socket, node.public, f"ws{number}", NUMBERED, rate, 100),
                       Part(publish_by_socket, node.public, f"bridged{number}", BRIDGED, rate // 2, 100),
                       Part(publish_by_request, node.internal, f"http{number}", 30)]
    other = Part(publish_elsewhere, redis.socket, 50)
    hoppers = [Part(come_and_go, [node.public for node in nodes], seed) for seed in range(4)]
    time.sleep(pause)
    memory = [node.rss() for node in nodes]
    copied, copy = now(), redis.copy()
    faults = []
    for name in options.faults or list(FAULTS):
        faults.append(cause(name, redis, nodes, copy, seconds))
        time.sleep(pause)
    grown = [(node.rss() - before) / 1e6 for node, before in zip(nodes, memory)]
    published = [one for part in publishers for one in part.result()]
    elsewhere = other.result()
    hopped = [part.result() for part in hoppers]
    heard = [Reader(number, own) for number, part in enumerate(readers) for own in part.result()]
    places = check_places(heard, hopped, published)
    check_readers(heard)
    check_acknowledged(heard, published, faults, copied)
    check_bridged(heard, published, faults)
    check_foreign(heard, elsewhere)
    check_hoppers(hopped, places)
    check_histories(nodes)
    check_fan_out(heard, published, faults, options.silence_ms / 1000)
    check_healed(heard, published, faults, 5)
    check(max(grown) < 50, f"memory of the nodes grew by {', '.join(f'{one:.0f}' for one in grown)} MB, history and all (bar: 50)")


FAULTS = ("killed", "stopped", "flushed", "older")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=", ".join(FAULTS))
    parser.add_argument("--scale", default="full", choices=["full", "small"], help="small takes half a minute, with outages of 2 s")
    parser.add_argument("--seconds", type=float, default=0, help="how long Redis is away: 10, or 2 at small scale")
    parser.add_argument("--readers", type=int, default=2, help="that stay, on each node")
    parser.add_argument("--silence-ms", type=float, default=500, help="bar of the longest silence on bridged channels")
    parser.add_argument("--io", default="auto", choices=["auto", "io_uring", "epoll"])
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--binary", default="target/release/ringfeed")
    parser.add_argument("--redis", default="redis-server")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every node, as `ringfeed serve --set`; may be repeated")
    options = parser.parse_args()
    options.full = options.scale == "full"
    unknown = [name for name in options.faults if name not in FAULTS]
    if unknown:
        parser.error(f"no fault is called {', '.join(unknown)}; there are {', '.join(FAULTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with contextlib.ExitStack() as stack:
        run(options, stack)
    for text in FAILED:
        print(f"FAILED {text}")
    sys.exit(1 if FAILED else 0)


if __name__ == "__main__":
    main()
