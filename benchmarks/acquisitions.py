"""GIL acquisitions for each request, counted: ``python -m benchmarks.acquisitions [--json]``.

gdb counts every call of CPython's ``take_gil()`` in the threads of a server whose main thread is in
a busy loop, while requests come on one keep-alive connection, each after the reply to the one
before. Exit status 3, and a line on stderr, where gdb can't (not installed, not permitted, or a
CPython without the symbol).
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

HERE = Path(__file__).parent
REQUESTS = 40
PAUSE = 0.01  # seconds between two requests: the loop is back at rest
SUBJECTS = {
    "ours": ("ping", "inline", "dump_traceback?mode=gil", "dump_traceback?mode=nogil"),
    "ours-uvloop": ("ping", "inline", "dump_traceback?mode=gil"),
    "torch": ("ping", "dump_traceback"),
}


class CantCount(Exception):
    """Why not."""


class Connection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(self.path)

    def ask(self, name: str) -> None:
        self.request("POST", f"/handler/{name}")
        reply = self.getresponse()
        reply.read()
        if reply.status != 200:
            raise RuntimeError(f"{name}: {reply.status}")


def line(stream: IO[str], start: str) -> str:
    """The next line that begins with *start*, without it."""
    for text in stream:
        if text.startswith(start):
            return text.removeprefix(start)
    raise CantCount(f"gdb ended without {start!r}")


@contextlib.contextmanager
def counted(pid: int) -> Iterator[IO[str]]:
    """gdb on *pid*, counting; what it prints."""
    gdb = shutil.which("gdb")
    if gdb is None:
        raise CantCount("gdb is not installed")
    script = str(HERE / "gdb_take_gil.py")
    command = [gdb, "-q", "-batch", "-nx", "-p", str(pid), "-x", script]
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line(process.stdout, "counting")
            yield process.stdout
        finally:
            process.kill()


def measure(kind: str) -> dict[str, float]:
    """By handler: calls of take_gil() for each request, in all threads but the main one."""
    found = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        path = os.path.join(folder, "s")
        server = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.serve", kind, path, "python"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                # The watch's own turns would be counted with the requests'.
                env={**os.environ, "WORKERSERVER_GIL_WATCH": "0"},
            )
        )
        stack.callback(server.kill)
        assert server.stdout is not None
        if server.stdout.readline() != "ready\n":
            raise RuntimeError(f"{kind} did not start")
        out = stack.enter_context(counted(server.pid))
        for name in SUBJECTS[kind]:
            connection = stack.enter_context(contextlib.closing(Connection(path)))
            for number in range(2):  # the first round is the connection's, and is not counted
                for _ in range(REQUESTS if number else 3):
                    connection.ask(name)
                    time.sleep(PAUSE)
                os.kill(server.pid, signal.SIGUSR1)
                counts = json.loads(line(out, "counts "))
            counts.pop(str(server.pid), None)
            found[name] = sum(counts.values()) / REQUESTS
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("kinds", nargs="*", default=list(SUBJECTS))
    options = parser.parse_args()
    try:
        found = {kind: measure(kind) for kind in options.kinds}
    except CantCount as reason:
        print(f"GIL acquisitions can't be counted: {reason}", file=sys.stderr)
        sys.exit(3)
    if options.json:
        print(json.dumps(found))
        return
    print("{:12} {:28} {}".format("server", "handler", "GIL acquisitions per request"))
    for kind, handlers in found.items():
        for name, number in handlers.items():
            print(f"{kind:12} {name:28} {number:g}")


if __name__ == "__main__":
    main()
