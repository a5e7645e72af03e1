#!/usr/bin/env python3
"""Tests run.sh as somebody meets it: a feed that ends by itself, by Ctrl-C and by SIGTERM, and a port that is taken.

usage: scripts/demo_test.py        exit: 0 passed, 1 failed
"""

import atexit
import os
import re
import signal
import socket
import subprocess
import sys
import threading

os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
PATIENCE_SECONDS = 120
ENVIRONMENT = dict(
    os.environ, RINGFEED_SERVER__LISTEN="127.0.0.1:0", RINGFEED_API__LISTEN="127.0.0.1:0"
)


def demo(**environment):
    """The demo in a process group of its own, as a terminal would have it."""
    process = subprocess.Popen(
        ["./run.sh", "50"], env=dict(ENVIRONMENT, **environment), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    atexit.register(kill, process)
    return process


def kill(process):
    """Ends the demo, if it has not ended, with all that it has started: the engine has a session of its own."""
    if process.poll() is None:
        for pid in [*descendants(process.pid), process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        process.wait()


def descendants(pid):
    try:
        with open("/proc/%d/task/%d/children" % (pid, pid)) as file:
            children = [int(child) for child in file.read().split()]
    except OSError:
        return []
    return [one for child in children for one in [*descendants(child), child]]


def until(process, pattern):
    """What the process has said up to a line with this pattern."""
    said = ""
    late = threading.Timer(PATIENCE_SECONDS, kill, [process])
    late.start()
    for line in process.stdout:
        said += line
        if re.search(pattern, line):
            late.cancel()
            return said
    late.cancel()
    sys.exit("demo: it ended, or took too long, without %r:\n%s" % (pattern, said))


def end(what, process, status):
    """Everything the process still says; it must end with this status."""
    try:
        said, _ = process.communicate(timeout=PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        sys.exit("demo: %s: it does not end" % what)
    if process.returncode != status:
        sys.exit("demo: %s: it ended with %d, not %d:\n%s" % (what, process.returncode, status, said))
    return said


said = end("by itself", demo(RINGFEED_DEMO_SECONDS="1"), 0)
assert "about 500 deliveries a second" in said and "every subscriber got every message" in said, said

running = demo()
banner = until(running, r"delivered +[1-9]")
assert re.search(r"In a browser: +http://127\.0\.0\.1:[1-9]\d*/ ", banner), banner
os.killpg(running.pid, signal.SIGINT)
assert "drained" in end("Ctrl-C", running, 0)

running = demo()
until(running, r"delivered +[1-9]")
running.terminate()
assert "drained" in end("SIGTERM", running, 0)

with socket.create_server(("127.0.0.1", 0)) as taken:
    address = "127.0.0.1:%d" % taken.getsockname()[1]
    for key in ("RINGFEED_SERVER__LISTEN", "RINGFEED_API__LISTEN"):
        said = end(key, demo(**{key: address}), 1)
        assert "another process listens there" in said and "In a browser" not in said, said

print("demo: passed")
