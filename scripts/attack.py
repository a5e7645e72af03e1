#!/usr/bin/env python3
"""Hurts a server in every way known, and says whether it stands and what it cost.

    scripts/attack.py --io epoll --shards 2 stalled bursts recover_many …

Each attack has a server of its own (target/release/ringfeed) on free ports. Without names, all of them. A figure that is
worse than promised is printed with FAIL; the exit status is 1 if there is any.
"""

import argparse
import base64
import contextlib
import http.client
import json
import os
import re
import resource
import select
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

ATTACKS = {}
FAILED = []


def attack(function):
    ATTACKS[function.__name__] = function
    return function


def check(good, text):
    print(f"  {'ok  ' if good else 'FAIL'} {text}", flush=True)
    if not good:
        FAILED.append(text)


def say(text):
    print(f"       {text}", flush=True)


# -- the server ---------------------------------------------------------------------------------

CONFIG = """
[[channels]]
pattern = "h.*"
publish = "anyone"
history_size = 100000
[[channels]]
pattern = "*"
publish = "anyone"
"""


class Server:
    def __init__(self, options, flags=(), config=CONFIG, wrap=()):
        self.directory = tempfile.TemporaryDirectory(prefix="attack-")
        path = os.path.join(self.directory.name, "config.toml")
        with open(path, "w") as file:
            file.write(config)
        sets = ["server.listen=127.0.0.1:0", "api.listen=127.0.0.1:0", "server.pin=false",
                f"server.io={options.io}", f"server.shards={options.shards}",
                "limits.messages_per_second_max=0", *flags]
        command = [*wrap, options.binary, "serve", "--config", path]
        for one in sets:
            command += ["--set", one]
        self.log_path = os.path.join(self.directory.name, "log")
        self.log = open(self.log_path, "w")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        for _ in range(200):
            time.sleep(0.05)
            text = open(self.log_path).read()
            found = re.findall(r"://127\.0\.0\.1:(\d+)", text)
            if len(found) >= 2:
                break
        else:
            self.process.kill()
            self.process.wait()
            sys.exit(f"the server does not say where it listens:\n{open(self.log_path).read()}")
        self.public, self.internal = int(found[0]), int(found[1])
        for _ in range(200):
            try:
                if self.request("GET", "/ready")[0] == 200:
                    break
            except OSError:
                pass
            time.sleep(0.05)

    key = None  # of the API, where it needs one

    def request(self, method, path, body=None, timeout=60, key=None):
        key = key or self.key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        api = http.client.HTTPConnection("127.0.0.1", self.internal, timeout=timeout)
        try:
            api.request(method, path, body, headers)
            answer = api.getresponse()
            return answer.status, answer.read()
        finally:
            api.close()

    def stats(self):
        status, body = self.request("GET", "/api/stats")
        assert status == 200, body
        return json.loads(body)

    def totals(self):
        return self.stats()["totals"]

    def closes(self):
        """How many connections were ended, by reason and close code."""
        found = {}
        metrics = self.request("GET", "/metrics")[1].decode()
        for labels, count in re.findall(r"^ringfeed_closes_total{(.*)} ([1-9]\d*)(?:\.0)?$", metrics, re.MULTILINE):
            name = " ".join(re.findall(r'(?:reason|code)="(\w+)"', labels))
            found[name] = found.get(name, 0) + int(count)
        return found

    def publish(self, channel, data):
        status, body = self.request("POST", "/api/publish", json.dumps({"channel": channel, "data": data}))
        assert status == 200, body
        return json.loads(body)

    def batch(self, publications):
        status, body = self.request("POST", "/api/batch", json.dumps({"publications": publications}))
        assert status == 200, (status, body[:300])

    def rss(self):
        for line in open(f"/proc/{self.process.pid}/status"):
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024
        return 0

    def cpu(self):
        with open(f"/proc/{self.process.pid}/stat") as file:
            parts = file.read().rsplit(") ", 1)[1].split()
        return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")

    def wait(self, what, seconds=60):
        end = time.time() + seconds
        while time.time() < end:
            totals = self.totals()
            if what(totals):
                return totals
            time.sleep(0.1)
        return None

    def stop(self):
        died = self.process.poll()
        self.process.terminate()
        try:
            code = self.process.wait(30)
        except subprocess.TimeoutExpired:
            code = "not within 30 s"
            self.process.kill()
            self.process.wait()
        check(died is None and code == 0, f"the server stands ({died}) and ends with 0 when told to ({code})")
        if died is not None:
            say(open(self.log_path).read()[-1500:])
        self.log.close()
        self.directory.cleanup()


@contextlib.contextmanager
def serving(options, flags=(), config=CONFIG, wrap=()):
    server = Server(options, flags, config, wrap)
    try:
        yield server
    finally:
        server.stop()


def asleep(server, shards, seconds=3):
    """Turns and sleeps a second and shard, while nothing happens."""
    before = server.totals()
    cpu = server.cpu()
    time.sleep(seconds)
    after = server.totals()
    return ((after["turns"] - before["turns"]) / seconds / shards,
            (after["sleeps"] - before["sleeps"]) / seconds / shards,
            (server.cpu() - cpu) / seconds)


def clean(server, seconds=20):
    names = ["connections", "sockets", "outbox_bytes", "partial_message_bytes", "log_bytes", "retained_bytes",
             "subscriptions", "sessions_waiting"]
    totals = server.wait(lambda t: all(t[name] == 0 for name in names), seconds)
    left = totals or server.totals()
    check(totals is not None, "memory is back: " + (", ".join(
        f"{name} {left[name]}" for name in names if left[name]) or "all 0"))


# -- clients ------------------------------------------------------------------------------------

def text_frame(data, opcode=1, fin=True):
    if isinstance(data, str):
        data = data.encode()
    head = bytes([opcode | (0x80 if fin else 0)])
    if len(data) < 126:
        head += bytes([0x80 | len(data)])
    elif len(data) < 65536:
        head += bytes([0x80 | 126]) + struct.pack(">H", len(data))
    else:
        head += bytes([0x80 | 127]) + struct.pack(">Q", len(data))
    return head + b"\0\0\0\0" + data  # a mask of zeros: allowed, and cheap


def whole_frame(buffer, at):
    """Opcode, where the payload begins and where it ends; None if the frame that begins there is not whole."""
    if len(buffer) < at + 2:
        return None
    length, begin = buffer[at + 1] & 127, at + 2
    if length >= 126:
        size = 2 if length == 126 else 8
        begin += size
        length = int.from_bytes(buffer[begin - size:begin], "big")
    # Where the length is not whole itself, its end is behind that of the buffer.
    return (buffer[at] & 15, begin, begin + length) if begin + length <= len(buffer) else None


class Client:
    def __init__(self, server, dialect="ringfeed.v1", receive_buffer=0, query=""):
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(60)
        self.socket.connect(("127.0.0.1", server.public))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall((f"GET /ws?protocol={dialect}{query} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n"
                             f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
                             "Sec-WebSocket-Version: 13\r\n\r\n").encode())
        head = b""
        while b"\r\n\r\n" not in head:
            got = self.socket.recv(4096)
            if not got:
                raise OSError(f"refused: {head[:200]}")
            head += got
        head, self.buffer = head.split(b"\r\n\r\n", 1)
        if b" 101 " not in head.split(b"\r\n")[0] + b" ":
            raise OSError(f"refused: {head[:200]}")
        self.buffer = bytearray(self.buffer)

    def send(self, command):
        self.socket.sendall(text_frame(json.dumps(command, separators=(",", ":"))))

    def frame(self):
        """Opcode and payload of the next frame."""
        while (found := whole_frame(self.buffer, 0)) is None:
            got = self.socket.recv(1 << 20)
            if not got:
                raise EOFError
            self.buffer += got
        opcode, begin, end = found
        payload = bytes(self.buffer[begin:end])
        del self.buffer[:end]
        return opcode, payload

    def next(self):
        """The next event, or ("close", code, reason), or ("end",)."""
        while True:
            try:
                opcode, payload = self.frame()
            except (EOFError, ConnectionError):
                return ("end",)
            if opcode == 8:
                # Who waited for the answer may be gone.
                with contextlib.suppress(OSError):
                    self.socket.sendall(text_frame(payload[:2], 8))
                return ("close", struct.unpack(">H", payload[:2])[0] if payload else 0, payload[2:].decode())
            if opcode == 9:
                self.socket.sendall(text_frame(payload, 10))
            elif opcode in (1, 2):
                return payload

    def event(self):
        got = self.next()
        return json.loads(got) if isinstance(got, bytes) else got

    def subscribe(self, channel, recover=None, id=1):
        command = {"type": "subscribe", "id": id, "channel": channel}
        if recover:
            command["recover"] = recover
        self.send(command)
        answer = self.event()
        assert isinstance(answer, dict) and answer["type"] == "subscribed", answer
        return answer

    def until_closed(self):
        """Reads to the end: code or None, reason, and how many messages came before."""
        count = 0
        while True:
            got = self.next()
            if isinstance(got, tuple):
                return (got[1], got[2], count) if got[0] == "close" else (None, "", count)
            count += 1

    def close(self):
        self.socket.close()


def readers(clients, expected, raw=False):
    """Reads with all clients, each in a thread, until each has every offset. The threads, and what was wrong."""
    wrong = []

    def read(number, client):
        want = dict(expected)
        have = {channel: 0 for channel in want}
        total = sum(want.values())
        got = 0
        try:
            while got < total:
                event = client.next()
                if isinstance(event, tuple):
                    wrong.append(f"client {number}: {event} after {got} of {total}")
                    return
                if raw:
                    got += 1
                    i = int(event[1:event.index(b",")])
                    have["one"] = have.get("one", 0) + 1
                    if i != have["one"]:
                        wrong.append(f"client {number}: payload {i}, not {have['one']}")
                        return
                    continue
                if b'"gap"' in event[:16]:
                    wrong.append(f"client {number}: {event[:200]}")
                    return
                match = re.match(rb'{"type":"message","channel":"([^"]*)","offset":(\d+)', event)
                channel, offset = match[1].decode(), int(match[2])
                if offset != have[channel] + 1:
                    wrong.append(f"client {number}: {channel} {offset} behind {have[channel]}")
                    return
                have[channel] = offset
                got += 1
        except Exception as e:  # pylint: disable=broad-except
            wrong.append(f"client {number}: {e!r} after {got} of {total}")

    threads = [threading.Thread(target=read, args=one, daemon=True) for one in enumerate(clients)]
    for thread in threads:
        thread.start()
    return threads, wrong


# -- the attacks --------------------------------------------------------------------------------

@attack
def stalled(options):
    """A client of each kind that stalls (4)."""
    flags = ["limits.outbox_timeout_ms=3000", "heartbeat.interval_ms=1000", "heartbeat.timeout_ms=2000",
             "limits.message_timeout_ms=3000", "server.handshake_timeout_ms=3000", "server.close_timeout_ms=2000",
             "server.send_buffer_bytes=16384"]

    def run(name, begin, code):
        """Whoever `begin` makes is closed with this code; None: it is no WebSocket yet."""
        with serving(options, flags) as server:
            for i in range(400):
                server.publish("h.a", f"{i}" + "x" * 4000)
            client = begin(server)
            since = time.time()
            early = asleep(server, options.shards, 1)
            went = server.wait(lambda t: t["connections"] == 0 and t["handshakes"] == 0, 30)
            took = time.time() - since
            check(went is not None, f"{name}: gone after {took:.1f} s; {early[0]:.0f} turns/s, "
                  f"{early[1]:.0f} sleeps/s a shard, CPU {early[2]:.3f}")
            check(early[0] < 40, f"{name}: the shard sleeps meanwhile")
            closes = server.closes()
            expected = [] if code is None else [str(code)]
            check([one.split()[-1] for one in closes] == expected, f"{name}: closed as {closes}, to be {code}")
            if code is not None:
                try:
                    client.socket.settimeout(3)
                    got = client.until_closed()
                except OSError as e:
                    got = (None, str(e), 0)
                # Who does not read is cut before the close frame has its turn.
                check(got[0] in (code, None), f"{name}: reads afterwards: {got}")
            clean(server)

    def replies(server):
        client = Client(server, receive_buffer=4096)
        client.socket.setblocking(False)
        sent = 0
        frame = text_frame(json.dumps({"type": "history", "id": 1, "channel": "h.a", "limit": 50}))
        with contextlib.suppress(OSError):
            while sent < 200:
                client.socket.send(frame)
                sent += 1
        client.socket.setblocking(True)
        return client

    def replay(server):
        client = Client(server, receive_buffer=4096)
        epoch = json.loads(server.request("GET", "/api/history?channel=h.a&limit=1")[1])["epoch"]
        client.send({"type": "subscribe", "id": 1, "channel": "h.a", "recover": {"epoch": epoch, "offset": 0}})
        return client

    def channel(server):
        client = Client(server, receive_buffer=4096)
        client.subscribe("plain")
        for _ in range(20):
            server.batch([{"channel": "plain", "data": "y" * 4000} for _ in range(50)])
        return client

    def fragments(server):
        client = Client(server)
        client.socket.sendall(text_frame("x" * 20000, 1, fin=False))
        return client

    def half_frame(server):
        client = Client(server)
        client.socket.sendall(text_frame("x" * 20000)[:1000])
        return client

    def head(server):
        one = socket.create_connection(("127.0.0.1", server.public))
        one.sendall(b"GET /ws HTTP/1.1\r\nHo")
        return one

    def close(server):
        client = Client(server)
        client.socket.sendall(text_frame(b"\xff\xff", 8))  # an invalid close code: told 1002, never answers
        return client

    run("unread replies", replies, 4002)
    run("unread replay", replay, 4002)
    run("unread channel", channel, 4001)
    run("unfinished fragments", fragments, 4003)
    run("unfinished frame", half_frame, 4003)
    run("unfinished head", head, None)
    run("unfinished close", close, 1002)


@attack
def bursts(options):
    """Clients that read, and bursts larger than the window (5, D4)."""
    for size in (0.9e6, 1.5e6, 3.9e6, 20e6):
        for count, channels, raw in ((1, 1, False), (8, 1, False), (4, 4, False), (1, 1, True), (4, 1, True)):
            for ingest in (False, True):
                if size > 4e6 and not ingest:
                    continue
                with serving(options) as server:
                    n = int(size / 1040)
                    threads, wrong = subscribed_readers(server, count, channels, raw, n)
                    publications = [{"channel": f"c{i % channels}", "data": [i + 1, "z" * 1000]} for i in range(n)]
                    if ingest:
                        body = "\n".join(json.dumps(p, separators=(",", ":")) for p in publications) + "\n"
                        status, answer = server.request("POST", "/api/ingest", body)
                        assert status == 200 and b'"error"' not in answer, answer[:300]
                    else:
                        server.batch(publications)
                    finish(server, threads, wrong,
                           f"{size / 1e6:.1f} MB {'ingest' if ingest else 'batch'}, {count} readers, {channels} channels"
                           f"{', raw' if raw else ''}")
    for size in (1e6, 2e6, 4e6 - 300):
        for count, channels, raw in ((1, 1, False), (4, 2, False), (2, 1, True)):
            with serving(options) as server:
                n = 12
                threads, wrong = subscribed_readers(server, count, channels, raw, n)
                for i in range(n):
                    server.publish(f"c{i % channels}", [i + 1, "z" * int(size)])
                finish(server, threads, wrong, f"{n} x {size / 1e6:.1f} MB, {count} readers, {channels} channels"
                       f"{', raw' if raw else ''}")


def subscribed_readers(server, count, channels, raw, publications):
    """Readers of channels c0, c1, … that expect so many publications, dealt out to the channels in turn."""
    names = [f"c{c}" for c in range(channels)]
    clients = [Client(server, "raw.v1" if raw else "ringfeed.v1") for _ in range(count)]
    for client in clients:
        for name in names:
            if raw:
                client.send({"action": "subscribe", "channel": name})
            else:
                client.subscribe(name)
    server.wait(lambda t: t["subscriptions"] == count * channels)
    expected = {name: len(range(c, publications, channels)) for c, name in enumerate(names)}
    server.clients = clients  # who is let go when its thread ends is closed before anybody looks
    return readers(clients, expected, raw)


def finish(server, threads, wrong, text):
    for thread in threads:
        thread.join(60)
    late = sum(thread.is_alive() for thread in threads)
    totals = server.totals()
    check(not wrong and not late and not totals["gaps"] and not totals["closes"],
          f"{text}: {wrong[:2] or 'everything arrived'}{f', {late} late' if late else ''}, turn "
          f"{totals['turn_cpu_max_us'] / 1000:.1f} ms CPU, {totals['turn_max_us'] / 1000:.1f} ms, held back {totals['publishers_paused']}")


def fill(server, channel, total, size):
    n = int(total / size)
    for start in range(0, n, 200):
        server.batch([{"channel": channel, "data": [i, "h" * size]} for i in range(start, min(n, start + 200))])
    epoch = json.loads(server.request("GET", f"/api/history?channel={channel}&limit=1")[1])["epoch"]
    return epoch, n


@attack
def recover_many(options):
    """512 clients that recover 200 KiB each at once; one that recovers 100 channels (6)."""
    with serving(options) as server:
        epoch, n = fill(server, "h.a", 200 * 1024, 500)
        clients = [Client(server) for _ in range(512)]
        say(f"before: longest turn {server.totals()['turn_cpu_max_us'] / 1000:.1f} ms CPU")
        rss = server.rss()
        peak = [rss]
        stop = threading.Event()

        def watch():
            while not stop.is_set():
                peak[0] = max(peak[0], server.rss())
                time.sleep(0.02)
        threading.Thread(target=watch, daemon=True).start()
        for client in clients:
            client.send({"type": "subscribe", "id": 1, "channel": "h.a", "recover": {"epoch": epoch, "offset": 0}})
        whole, wrong = drain_all(clients, n + 1)
        stop.set()
        totals = server.totals()
        check(whole == 512 and not wrong, f"512 x 200 KiB: {whole} recovered, wrong {wrong[:3]}")
        check(totals["turn_cpu_max_us"] <= 10_000, f"longest turn {totals['turn_cpu_max_us'] / 1000:.1f} ms CPU "
              f"({totals['turn_max_us'] / 1000:.1f} ms), RSS +{(peak[0] - rss) / 2**20:.1f} MiB at most")
        for client in clients:
            client.close()
    for channels, size in ((100, 30e3), (100, 200e3), (20, 800e3), (2, 3.5e6)):
        with serving(options) as server:
            epochs = [fill(server, f"h.{c}", size, 1000) for c in range(channels)]
            client = Client(server)
            say(f"before: longest turn {server.totals()['turn_cpu_max_us'] / 1000:.1f} ms CPU")
            for c, (epoch, _) in enumerate(epochs):
                client.send({"type": "subscribe", "id": c, "channel": f"h.{c}", "recover": {"epoch": epoch, "offset": 0}})
            whole, wrong = drain_all([client], sum(n + 1 for _, n in epochs))
            totals = server.totals()
            check(whole == 1 and not wrong and totals["recovered"] == channels,
                  f"{channels} channels of {size / 1e3:.0f} KB at once: {totals['recovered']} recovered, wrong {wrong[:3]}, longest turn "
                  f"{totals['turn_cpu_max_us'] / 1000:.1f} ms CPU")


def drain_all(clients, frames, seconds=60):
    """Reads with all until each has so many data frames, of each channel in order. How many have; what was wrong."""
    poll = select.epoll()
    by_fd = {}
    wrong, whole = [], 0
    for client in clients:
        client.socket.setblocking(False)
        client.count, client.offsets = 0, {}
        by_fd[client.socket.fileno()] = client
        poll.register(client.socket.fileno(), select.EPOLLIN)
    end = time.time() + seconds
    while by_fd and time.time() < end:
        for fd, _ in poll.poll(1):
            client = by_fd[fd]
            try:
                got = client.socket.recv(1 << 18)
            except BlockingIOError:
                continue
            except OSError as e:
                got = b""
                wrong.append(repr(e))
            client.buffer += got
            done = not got
            at = 0
            view = client.buffer
            while found := whole_frame(view, at):
                opcode, begin, at = found
                start = bytes(view[begin:min(at, begin + 150)])
                if opcode == 8:
                    wrong.append(start)
                    done = True
                elif opcode == 1:
                    client.count += 1
                    match = re.match(rb'{"type":"message","channel":"([^"]*)","offset":(\d+)', start)
                    if match:
                        channel, offset = match[1], int(match[2])
                        if offset != client.offsets.get(channel, 0) + 1:
                            wrong.append(f"{channel} {offset} behind {client.offsets.get(channel, 0)}")
                            done = True
                        client.offsets[channel] = offset
                    elif b'"recovered":true' not in start:
                        wrong.append(start)
            del client.buffer[:at]
            if client.count >= frames:
                whole += 1
                done = True
            elif not got:
                wrong.append(f"end after {client.count} of {frames}")
            if done:
                poll.unregister(fd)
                del by_fd[fd]
    if by_fd:
        wrong.append(f"{len(by_fd)} are not done")
    return whole, wrong


@attack
def fallen(options):
    """Many readers that fell behind in the middle of a large frame (6, D12)."""
    fall(options, "gap")


@attack
def disconnected(options):
    """The same where the channel disconnects those who fall behind."""
    fall(options, "disconnect")


def fall(options, policy):
    n = options.readers
    config = CONFIG + f'lag_policy = "{policy}"\n'
    with serving(options, ["server.send_buffer_bytes=4608", "heartbeat.interval_ms=0",
                           "server.connections_max=20000"], config) as server:
        clients = []
        for i in range(n):
            client = Client(server, receive_buffer=2304)
            client.subscribe("c")
            clients.append(client)
        time.sleep(1)
        before = server.rss()
        peak = before
        worst = {}
        for i in range(400):
            server.batch([{"channel": "c", "data": "w" * 16000} for _ in range(10)])
            peak = max(peak, server.rss())
            if i % 50 == 0:
                totals = server.totals()
                for name in ("retained_bytes", "outbox_bytes", "log_bytes"):
                    worst[name] = max(worst.get(name, 0), totals[name])
        time.sleep(12)
        peak = max(peak, server.rss())
        totals = server.totals()
        check(peak - before <= 10 << 20, f"{n} readers fallen behind: RSS +{(peak - before) / 2**20:.1f} MiB at most, of "
              f"{before / 2**20:.0f}; {worst}; gaps {totals['gaps']}, connections {totals['connections']}, closes {server.closes()}, longest turn {totals['turn_cpu_max_us'] / 1000:.1f} ms CPU")
        check(totals["turn_cpu_max_us"] <= 10_000, "no turn over 10 ms of CPU")
        for client in clients:
            client.close()
        clean(server)


@attack
def names(options):
    """Channel names made and left (6, D10)."""
    with serving(options, ["limits.channels_max=4000000", "server.drain_timeout_ms=3000"]) as server:
        before = server.rss()
        total = options.names
        done = 0
        while done < total:
            some = min(20_000, total - done)
            server.batch([{"channel": f"n{done + i}", "data": 1} for i in range(some)])
            done += some
        at = server.rss()
        totals = server.totals()
        longest = totals["turn_cpu_max_us"]
        say(f"{total} names: channels {totals['channels']}, RSS +{(at - before) / 2**20:.1f} MiB")
        gone = server.wait(lambda t: t["channels"] == 0, 60)
        check(gone is not None, f"the channels go: {server.totals()['channels']}")
        longest = max(longest, server.totals()["turn_cpu_max_us"])
        check(longest <= 10_000, f"longest turn {longest / 1000:.1f} ms CPU, {server.totals()['turn_max_us'] / 1000:.1f} ms")
        for seconds in (0, 10, 20):
            time.sleep(seconds)
            say(f"RSS +{(server.rss() - before) / 2**20:.1f} MiB {seconds} s after")
        check(server.rss() - before < 30 << 20, f"RSS is back: +{(server.rss() - before) / 2**20:.1f} MiB")


@attack
def anonymous_names(options):
    """Clients use up limits.channels_max by subscribing and leaving (D10)."""
    with serving(options, ["limits.channels_max=5000"]) as server:
        clients = [Client(server) for _ in range(25)]
        for number, client in enumerate(clients):
            for i in range(300):
                client.send({"type": "subscribe", "channel": f"n{number}.{i}"})
                client.send({"type": "unsubscribe", "channel": f"n{number}.{i}"})
        server.wait(lambda t: t["subscriptions"] == 0 and t["messages_in"] >= 25 * 600)
        honest = Client(server)
        honest.send({"type": "subscribe", "id": 1, "channel": "honest"})
        answer = honest.event()
        check(isinstance(answer, dict) and answer["type"] == "subscribed",
              f"an honest subscribe behind 7,500 names made and left: {answer}; channels {server.totals()['channels']}")


@attack
def unread_recovery(options):
    """150 clients that recover much and never read (D3)."""
    with serving(options, ["limits.outbox_timeout_ms=5000"]) as server:
        epoch, _ = fill(server, "h.a", 5_000_000, 1000)
        before = peak = server.rss()
        clients = []
        for _ in range(150):
            client = Client(server, receive_buffer=4096)
            client.send({"type": "subscribe", "id": 1, "channel": "h.a", "recover": {"epoch": epoch, "offset": 0}})
            clients.append(client)
            peak = max(peak, server.rss())
        for _ in range(30):
            peak = max(peak, server.rss())
            time.sleep(0.1)
        check(peak - before < 40 << 20, f"150 unread recoveries of 5 MB: RSS +{(peak - before) / 2**20:.1f} MiB, outbox_bytes "
              f"{server.totals()['outbox_bytes']}")
        gone = server.wait(lambda t: t["connections"] == 0, 30)
        check(gone is not None, f"all are closed: {server.closes()}, longest turn "
              f"{server.totals()['turn_cpu_max_us'] / 1000:.1f} ms CPU")
        for client in clients:
            client.close()
        clean(server)
    for command in ({"type": "history", "id": 1, "channel": "h.a"}, "x" * 60000):
        with serving(options, ["limits.outbox_timeout_ms=5000"]) as server:
            fill(server, "h.a", 5_000_000, 1000)
            before = peak = server.rss()
            clients = []
            for _ in range(300):
                client = Client(server, receive_buffer=4096)
                client.socket.setblocking(False)
                frame = text_frame(json.dumps(command))
                with contextlib.suppress(OSError):
                    for _ in range(50):
                        client.socket.send(frame)
                clients.append(client)
                peak = max(peak, server.rss())
            time.sleep(1)
            turns = asleep(server, options.shards)
            peak = max(peak, server.rss())
            check(peak - before < 110 << 20, f"300 x 50 unread {str(command)[:40]}: RSS +{(peak - before) / 2**20:.1f} MiB, "
                  f"{turns[0]:.0f} turns/s a shard, CPU {turns[2]:.2f}, outbox_bytes {server.totals()['outbox_bytes']}")
            gone = server.wait(lambda t: t["connections"] == 0, 40)
            check(gone is not None or command == "x" * 60000, f"all are closed: {server.closes()}, {server.totals()['connections']} left")
            for client in clients:
                client.close()
            clean(server)


@attack
def fall_behind(options):
    """The ways to D1: lag on several channels with a large outbox; messages above the outbox."""
    with serving(options, ["server.send_buffer_bytes=16384", "limits.outbox_timeout_ms=60000", "heartbeat.interval_ms=0"],
                 CONFIG.replace('pattern = "*"', 'pattern = "*"\nwindow_age_ms = 2000')) as server:
        epoch, n = fill(server, "h.a", 3e6, 1000)
        client = Client(server, receive_buffer=4096)
        client.subscribe("a", id="a")
        client.subscribe("b", id="b")
        client.send({"type": "subscribe", "id": "h", "channel": "h.a", "recover": {"epoch": epoch, "offset": 0}})
        for _ in range(200):
            server.publish("a", "q" * 1000)
            server.publish("b", "q" * 1000)
        time.sleep(4)
        server.publish("a", "last")
        server.publish("b", "last")
        seen = {"a": 0, "b": 0, "h.a": 0}
        end = {"a": 201, "b": 201, "h.a": n}
        wrong = None
        while seen != end:
            event = client.event()
            if isinstance(event, tuple):
                wrong = event
                break
            if event["type"] == "message":
                if event["offset"] != seen[event["channel"]] + 1:
                    wrong = event["offset"], seen
                    break
                seen[event["channel"]] = event["offset"]
            elif event["type"] == "gap":
                if event["from"] != seen[event["channel"]] + 1:
                    wrong = event, seen
                    break
                seen[event["channel"]] = event["to"]
        check(wrong is None, f"behind on two channels and a replay: {seen} {wrong or ''}; gaps {server.totals()['gaps']}")
    for size in (900_000, 1_200_000, 1_500_000, 3_000_000):
        with serving(options) as server:
            slow = [Client(server, receive_buffer=4096) for _ in range(3)]
            for client in slow:
                for name in "abc":
                    client.subscribe(name)
            for i in range(8):
                for name in "abc":
                    server.publish(name, "m" * size)
            alive = server.process.poll() is None
            wrong = []
            for client in slow:
                seen = {"a": 0, "b": 0, "c": 0}
                client.socket.settimeout(15)
                try:
                    while any(seen[name] < 8 for name in "abc"):
                        event = client.event()
                        if isinstance(event, tuple):
                            wrong.append(event)
                            break
                        if event["type"] in ("message", "gap"):
                            first = event.get("from", event.get("offset"))
                            if first != seen[event["channel"]] + 1:
                                wrong.append((first, seen))
                            seen[event["channel"]] = event.get("to", event.get("offset"))
                except OSError as e:
                    wrong.append((repr(e), seen))
            check(alive and not wrong, f"{size} B messages and readers that stop on three channels: {wrong or 'told exactly'}, gaps "
                  f"{server.totals()['gaps']}")


@attack
def spinning(options):
    """One large unread reply (D2) and silent peers with a full outbox."""
    with serving(options, ["heartbeat.interval_ms=1000", "heartbeat.timeout_ms=1000"]) as server:
        client = Client(server, receive_buffer=4096)
        client.socket.setblocking(False)
        with contextlib.suppress(OSError):
            for _ in range(8):
                client.socket.send(text_frame('"' + "\x7f" * 60000 + '"'))
        turns = asleep(server, options.shards)
        say(f"replies to 60 KB of DEL characters: {server.totals()['bytes_out']} bytes for {server.totals()['bytes_in']} (D11)")
        check(server.totals()["bytes_out"] < 4096, "an error repeats little of the command")
        check(turns[0] < 40, f"{turns[0]:.0f} turns/s a shard, CPU {turns[2]:.3f}")
        client.close()
    with serving(options, ["limits.outbox_timeout_ms=8000", "heartbeat.interval_ms=1000", "heartbeat.timeout_ms=1000"]) as server:
        fill(server, "h.a", 2e6, 1000)
        client = Client(server, receive_buffer=4096)
        client.socket.setblocking(False)
        with contextlib.suppress(OSError):
            for i in range(20):
                client.socket.send(text_frame(json.dumps({"type": "history", "id": i, "channel": "h.a"})))
        time.sleep(1)
        turns = asleep(server, options.shards)
        check(turns[0] < 40, f"unread history: {turns[0]:.0f} turns/s a shard, {turns[1]:.0f} sleeps/s, CPU {turns[2]:.3f}, outbox {server.totals()['outbox_bytes']}")
        gone = server.wait(lambda t: t["connections"] == 0, 30)
        check(gone is not None, f"closed: {server.closes()}")
        clean(server)


@attack
def copies(options):
    """Stalled readers of large frames (D12)."""
    with serving(options, ["heartbeat.interval_ms=0"]) as server:
        clients = [Client(server, receive_buffer=4096) for _ in range(300)]
        for client in clients:
            client.subscribe("c")
        before = peak = server.rss()
        for _ in range(8):
            server.publish("c", "m" * 900_000)
            peak = max(peak, server.rss())
        for _ in range(20):
            peak = max(peak, server.rss())
            time.sleep(0.1)
        totals = server.totals()
        check(peak - before < 40 << 20, f"300 stalled, 8 x 0.9 MB: RSS +{(peak - before) / 2**20:.1f} MiB, retained {totals['retained_bytes']}, "
              f"outbox {totals['outbox_bytes']}, closes {server.closes()}")
        for client in clients:
            client.close()
        clean(server)


@attack
def limit_256(options):
    """Everything at once below a memory limit (cgroup v1 or v2), with clients that read."""
    group = None
    for base in ("/sys/fs/cgroup/memory", "/sys/fs/cgroup"):
        group = f"{base}/attack-{os.getpid()}"
        try:
            os.mkdir(group)
            v1 = base.endswith("memory")
            with open(f"{group}/" + ("memory.limit_in_bytes" if v1 else "memory.max"), "w") as file:
                file.write(str(256 << 20))
            break
        except OSError as e:
            say(f"{group}: {e}")
            group = None
    wrap = ["/bin/sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"] if group else []
    check(bool(group), f"a limit of 256 MiB: {group}")
    flags = ["limits.history_bytes_max=33554432", "limits.outboxes_bytes_max=16777216", "limits.partial_bytes_max=16777216",
             "limits.parked_bytes_max=8388608", "limits.retained_bytes_max=16777216", "limits.channels_max=100000",
             "api.bodies_bytes_max=16777216", "limits.cross_shard_bytes_max=4194304", "server.connections_max=4000"]
    if options.default_limits:
        flags = []
    with serving(options, flags, wrap=wrap) as server:
        end = time.time() + options.seconds
        bad, count = [], {}

        def forever(name, once):
            def run():
                while time.time() < end and server.process.poll() is None:
                    try:
                        once()
                        count[name] = count.get(name, 0) + 1
                    except (OSError, AssertionError, http.client.HTTPException, struct.error, ValueError) as e:
                        key = f"{name}: {type(e).__name__}"
                        count[key] = count.get(key, 0) + 1
                        time.sleep(0.05)
            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            return thread

        healthy = [Client(server) for _ in range(10)]
        for client in healthy:
            client.subscribe("good")
        published = [0]

        def publish():
            server.publish("good", [published[0], "g" * 500])
            published[0] += 1
            time.sleep(0.005)

        def read(client):
            have = 0
            while True:
                event = client.next()
                if isinstance(event, tuple):
                    if time.time() < end + 5:
                        bad.append(event)
                    return
                if not event.startswith(b'{"type":"message"'):
                    bad.append(event[:150])
                    continue
                offset = int(re.match(rb'{"type":"message","channel":"good","offset":(\d+)', event)[1])
                if offset != have + 1:
                    bad.append((offset, have))
                have = offset
                client.have = have

        for client in healthy:
            client.socket.settimeout(None)
            threading.Thread(target=read, args=(client,), daemon=True).start()
        epoch, _ = fill(server, "h.a", 5_000_000, 1000)

        def recoveries():
            clients = [Client(server, receive_buffer=4096) for _ in range(30)]
            for client in clients:
                client.send({"type": "subscribe", "id": 1, "channel": "h.a", "recover": {"epoch": epoch, "offset": 0}})
            time.sleep(3)
            for client in clients:
                client.close()

        def history():
            clients = [Client(server, receive_buffer=4096) for _ in range(50)]
            for client in clients:
                client.socket.setblocking(False)
                with contextlib.suppress(OSError):
                    for i in range(50):
                        client.socket.send(text_frame(json.dumps({"type": "history", "id": i, "channel": "h.a"})))
            time.sleep(3)
            for client in clients:
                client.close()

        def slow_large():
            clients = [Client(server, receive_buffer=4096) for _ in range(50)]
            for client in clients:
                client.subscribe("large")
            for _ in range(8):
                server.publish("large", "m" * 900_000)
            time.sleep(1)
            for client in clients:
                client.close()

        def partial():
            clients = [Client(server) for _ in range(100)]
            for client in clients:
                client.socket.sendall(text_frame("x" * 60000, 1, fin=False))
            time.sleep(3)
            for client in clients:
                client.close()

        def heads():
            clients = [socket.create_connection(("127.0.0.1", server.public)) for _ in range(300)]
            for client in clients:
                client.sendall(b"GET /ws HTTP/1.1\r\nX: " + b"y" * 8000)
            time.sleep(3)
            for client in clients:
                client.close()

        def many_names():
            at = count.get("names", 0)
            server.batch([{"channel": f"n{at}.{i}", "data": 1} for i in range(10_000)])
            time.sleep(0.5)

        def bodies():
            clients = [socket.create_connection(("127.0.0.1", server.internal)) for _ in range(60)]
            for client in clients:
                client.settimeout(2)
                with contextlib.suppress(OSError):
                    client.sendall(b"POST /api/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000000\r\n\r\n" + b"x" * 2_000_000)
            time.sleep(3)
            for client in clients:
                client.close()

        def large_batches():
            server.batch([{"channel": f"b{i % 7}", "data": "w" * 1000} for i in range(3500)])

        def history_fill():
            at = count.get("fill", 0)
            server.batch([{"channel": f"h.{at % 50}", "data": "w" * 1000} for i in range(3000)])
            time.sleep(0.2)

        threads = [forever(name, once) for name, once in (
            ("publish", publish), ("recoveries", recoveries), ("history", history), ("slow", slow_large), ("partial", partial),
            ("heads", heads), ("names", many_names), ("bodies", bodies), ("batches", large_batches), ("fill", history_fill))]
        peak, told = 0, time.time()
        while time.time() < end and server.process.poll() is None:
            peak = max(peak, server.rss())
            if time.time() > told + 10:
                told = time.time()
                with contextlib.suppress(OSError, AssertionError, http.client.HTTPException):
                    stats = server.stats()
                    totals = stats["totals"]
                    held = {name: totals[name] >> 10 for name in totals if name.endswith("_bytes")}
                    held["api"] = (stats["api"]["body_bytes"] + stats["api"]["bytes_under_way"]) >> 10
                    say(f"RSS {server.rss() >> 20} MiB; KiB {held}, channels {totals['channels']}, connections {totals['connections']}, "
                        f"handshakes {totals['handshakes']}")
            time.sleep(0.1)
        say(f"RSS at most {peak / 2**20:.0f} MiB")
        for thread in threads:
            thread.join(30)
        if server.process.poll() is None:
            time.sleep(3)
            have = [getattr(client, "have", 0) for client in healthy]
            check(not bad and min(have) >= published[0], f"healthy clients: {min(have)} of {published[0]}, {bad[:3]}")
            say(f"closes {server.closes()}, longest turn {server.totals()['turn_cpu_max_us'] / 1000:.1f} ms CPU")
        say(str(count))
    if group:
        for _ in range(20):
            with contextlib.suppress(OSError):
                os.rmdir(group)
                break
            time.sleep(0.2)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=", ".join(ATTACKS))
    parser.add_argument("--io", default="io_uring", choices=["io_uring", "epoll"])
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--binary", default="target/release/ringfeed")
    parser.add_argument("--readers", type=int, default=10_000, help="for `fallen`")
    parser.add_argument("--names", type=int, default=1_000_000, help="for `names`")
    parser.add_argument("--seconds", type=int, default=120, help="for `limit_256`")
    parser.add_argument("--default-limits", action="store_true", help="for `limit_256`: leave limits at their defaults")
    options = parser.parse_args()
    unknown = [name for name in options.attacks if name not in ATTACKS]
    if unknown:
        parser.error(f"no attack is called {', '.join(unknown)}; there are {', '.join(ATTACKS)}")
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for name in options.attacks or ATTACKS:
        print(f"{name} ({options.io}, {options.shards} shards): {ATTACKS[name].__doc__.splitlines()[0]}", flush=True)
        ATTACKS[name](options)
    for text in FAILED:
        print(f"FAILED {text}")
    sys.exit(1 if FAILED else 0)


if __name__ == "__main__":
    main()
