"""The servers that are compared: what each needs, how it is started, what loadgen says to it.

Every server is started here, on one core, with a configuration of its own in a directory of its own,
on free ports.
"""

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from fetch import Missing, check_runs, first_line, npm_install, unpacked
from network import end_with_parent

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
START_SECONDS = 15
STOP_SECONDS = 10
# Descriptors of a server that are not connections.
FILES_SPARE = 64


class Failed(Exception):
    """A server did not start, or ended."""


def spawn(prefix, command, cores, directory, out):
    """A process group of its own on some cores, that ends with this process."""

    def prepare():
        end_with_parent()
        os.sched_setaffinity(0, cores)

    return subprocess.Popen(
        [*prefix, *map(str, command)],
        cwd=directory,
        start_new_session=True,
        preexec_fn=prepare,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
    )


def stop(process):
    """Ends a process group."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sent)
        except ProcessLookupError:
            pass
        try:
            process.wait(STOP_SECONDS)
            return
        except subprocess.TimeoutExpired:
            continue


def free_ports(count):
    """The first of so many free ports in a row, below those that the kernel gives to clients."""
    for _ in range(200):
        first = random.randrange(12_000, 30_000)
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
    raise Failed("no free ports between 12000 and 30000")


def listens(pid, port):
    """Whether somebody listens on the port in the process's network namespace."""
    try:
        lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    except OSError:
        return False
    ends = (line.split() for line in lines)
    return any(end[3] == "0A" and int(end[1].split(":")[1], 16) == port for end in ends)


class Place:
    """Where one server runs once: directory, address, core."""

    def __init__(self, directory, network, core):
        self.directory = directory
        self.network = network
        self.core = core
        self.host = network.host
        self.port = free_ports(3)
        self.log = Path(directory, "log")
        self.process = None

    def spawn(self, command, directory=None):
        with open(self.log, "wb") as out:
            self.process = spawn(
                self.network.server_prefix, command, {self.core}, directory or self.directory, out
            )
        return self.process

    def wait(self, *ports):
        deadline = time.monotonic() + START_SECONDS
        while not all(listens(self.process.pid, port) for port in ports):
            self.check()
            if time.monotonic() > deadline:
                raise Failed(f"does not listen after {START_SECONDS} s{self.last_words()}")
            time.sleep(0.02)

    def check(self):
        """Raises Failed where the server has ended."""
        code = self.process.poll()
        if code is not None:
            how = (
                f"was killed by {signal.Signals(-code).name}"
                if code < 0
                else f"ended with status {code}"
            )
            raise Failed(how + self.last_words())

    def last_words(self):
        try:
            lines = self.log.read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return f": {lines[-1][-200:]}" if lines else ""


class Server:
    """`start` returns the processes whose CPU time counts, and loadgen's flags."""

    title = ""

    def prepare(self, cache):
        pass

    def start(self, place):
        raise NotImplementedError

    def version(self):
        return ""

    def connections_max(self, files):
        """With so many descriptors allowed."""
        return files - FILES_SPARE


class Ringfeed(Server):
    """Publishes and subscribes over WebSocket in `raw.v1`: plain payloads, as others send them."""

    def __init__(self, title, binary, config, io="io_uring"):
        self.title, self.binary, self.config, self.io = title, Path(binary), Path(config), io

    def prepare(self, cache):
        for path in (self.binary, self.config):
            if not path.is_file():
                raise Missing(f"there is no {path}")

    def start(self, place):
        settings = {
            "server.listen": f"{place.host}:{place.port}",
            "api.listen": f"127.0.0.1:{place.port + 1}",
            "server.pin": "false",
            "server.io": self.io,
        }
        if not place.network.is_loopback:
            settings["auth.anonymous"] = "true"
        flags = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        process = place.spawn(
            [self.binary.resolve(), "serve", "--config", self.config.resolve(), *flags]
        )
        place.wait(place.port)
        address = f"ws://{place.host}:{place.port}/ws"
        return [process.pid], [
            "--url",
            f"{address}?protocol=raw.v1",
            "--subscribe-frame",
            '{"action":"subscribe","channel":"{channel}"}',
            "--publish-url",
            address,
            "--publish-frame",
            '{"type":"publish","channel":"{channel}","data":{payload}}',
        ]

    def version(self):
        digest = hashlib.sha256(self.binary.read_bytes()).hexdigest()[:12]
        return f"{self.title}: {first_line(self.binary, '--version')}, sha256 {digest}"

    def connections_max(self, files):
        # io_uring's direct descriptors are not bound by RLIMIT_NOFILE, but by connections_max.
        return 110_000 if self.io == "io_uring" else files - FILES_SPARE


PLAIN = ["--subscribe-frame", "S {channel}", "--publish-frame", "P {channel} {payload}"]


class Bun(Server):
    title = "uWebSockets (Bun)"

    def prepare(self, cache):
        npm_install(cache, "bun")
        self.binary = cache / "node_modules" / ".bin" / "bun"
        if not first_line(self.binary, "--version"):
            # npm may be set not to run what packages bring.
            subprocess.run(["node", "node_modules/bun/install.js"], cwd=cache, capture_output=True)
        if not first_line(self.binary, "--version"):
            raise Missing(
                f"{self.binary} does not run; remove {cache / 'node_modules'} and try again"
            )

    def start(self, place):
        process = place.spawn([self.binary, "run", HERE / "bun.ts", place.port, place.host])
        place.wait(place.port)
        return [process.pid], ["--url", f"ws://{place.host}:{place.port}/", *PLAIN]

    def version(self):
        return f"Bun {first_line(self.binary, '--version')}"


class Ws(Server):
    title = "ws"

    def prepare(self, cache):
        npm_install(cache, "ws")
        self.cache = cache

    def start(self, place):
        process = place.spawn(["node", HERE / "ws.mjs", place.port, place.host], self.cache)
        place.wait(place.port)
        return [process.pid], ["--url", f"ws://{place.host}:{place.port}/", *PLAIN]

    def version(self):
        package = json.loads((self.cache / "node_modules" / "ws" / "package.json").read_text())
        return f"ws {package['version']} on Node {first_line('node', '--version')}"


class Nchan(Server):
    title = "Nchan"
    # Debian's nginx makes a folder in it whatever its configuration says.
    STATE = Path("/var/lib/nginx")

    def prepare(self, cache):
        modules = "/usr/lib/nginx/modules/ngx_nchan_module.so"
        if shutil.which("nginx") and Path(modules).exists():
            self.binary, self.module = shutil.which("nginx"), modules
        else:
            where = unpacked(cache, "nginx", "libnginx-mod-nchan")
            self.binary, self.module = where / "usr/sbin/nginx", f"{where}{modules}"
        if not self.STATE.exists() and os.geteuid() != 0:
            raise Missing(
                f"nginx wants {self.STATE}, which only root can show it: run this as root, or"
                " install nginx and libnginx-mod-nchan"
            )
        check_runs(self.binary, "-v")

    def start(self, place):
        files = files_limit()
        configure(
            "nginx.conf",
            place,
            {"MODULE": self.module, "NOFILE": files, "CONNECTIONS": files - FILES_SPARE},
        )
        command = [self.binary, "-p", place.directory, "-c", "nginx.conf"]
        if not self.STATE.exists():
            # It sees one that nobody else sees, and that goes with it.
            show = f'mount -t tmpfs tmpfs {self.STATE.parent} && mkdir {self.STATE} && exec "$@"'
            command = ["unshare", "--mount", "sh", "-c", show, "sh", *command]
        process = place.spawn(command)
        place.wait(place.port)
        return self.workers(process, place), [
            "--url",
            f"ws://{place.host}:{place.port}/sub/{{channels}}",
            "--publish-tcp",
            f"{place.host}:{place.port}",
            "--publish-frame",
            (
                "POST /pub/{channel} HTTP/1.1\\r\\nHost: x\\r\\nContent-Length:"
                " {size}\\r\\n\\r\\n{payload}"
            ),
        ]

    def workers(self, process, place):
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            place.check()
            for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
                if b"worker process" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return [int(pid)]
            time.sleep(0.02)
        raise Failed("has no worker process")

    def version(self):
        return f"{first_line(self.binary, '-v')} with Nchan"


class Nats(Server):
    title = "NATS"

    def prepare(self, cache):
        self.binary = (
            shutil.which("nats-server") or unpacked(cache, "nats-server") / "usr/sbin/nats-server"
        )
        check_runs(self.binary, "--version")

    def start(self, place):
        files = files_limit()
        configure(
            "nats.conf", place, {"CLIENTPORT": place.port + 2, "CONNECTIONS": files - FILES_SPARE}
        )
        process = place.spawn(["env", "GOMAXPROCS=1", self.binary, "-c", "nats.conf"])
        place.wait(place.port, place.port + 2)
        hello = 'CONNECT {"verbose":false,"pedantic":false}\\r\\n'
        return [process.pid], [
            "--url",
            f"ws://{place.host}:{place.port}/",
            "--hello-frame",
            hello,
            "--subscribe-frame",
            "SUB {channel} {channel}\\r\\n",
            "--publish-tcp",
            f"{place.host}:{place.port + 2}",
            "--publish-hello",
            hello,
            "--publish-frame",
            "PUB {channel} {size}\\r\\n{payload}\\r\\n",
        ]

    def version(self):
        return first_line(self.binary, "--version")


class Floor(Server):
    """Sends the same bytes to as many sockets, its own at both ends, and does nothing else."""

    title = "the floor"

    def __init__(self, binary):
        self.binary = Path(binary)

    def prepare(self, cache):
        if not self.binary.is_file():
            raise Missing(f"there is no {self.binary}")


# In the order of tables. `ringfeed-before` is what --binary-before names.
NAMES = (
    "floor",
    "ringfeed",
    "ringfeed-epoll",
    "ringfeed-before",
    "uwebsockets",
    "nats",
    "nchan",
    "ws",
)


def made(name, binaries, config, config_before):
    """The server of that name. `binaries`: paths by `ringfeed`, `before`, `floor`."""
    return {
        "floor": lambda: Floor(binaries["floor"]),
        "ringfeed": lambda: Ringfeed("ringfeed", binaries["ringfeed"], config),
        "ringfeed-epoll": lambda: Ringfeed(
            "ringfeed over epoll", binaries["ringfeed"], config, "epoll"
        ),
        "ringfeed-before": lambda: Ringfeed("ringfeed before", binaries["before"], config_before),
        "uwebsockets": Bun,
        "nats": Nats,
        "nchan": Nchan,
        "ws": Ws,
    }[name]()


def configure(name, place, words):
    """Writes a configuration into the place's directory, with the words in capitals filled in."""
    text = (HERE / name).read_text()
    for word, value in {**words, "PORT": place.port, "HOST": place.host}.items():
        text = text.replace(f"@{word}@", str(value))
    Path(place.directory, name).write_text(text)


def files_limit():
    """Descriptors that a process may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
