"""The gaps that requests tear into a trainer: it runs Python without a pause and watches itself."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.asking import Connection, Reply
from benchmarks.report.stats import median
from benchmarks.subjects.servers import Server, available, launched

__all__ = ["FLOOR", "PAUSE", "Gaps", "Watched", "watched"]

#: Seconds before each request.
PAUSE = 0.02
#: Milliseconds: what is shorter is no gap, and found as 0.
FLOOR = 0.02


class Gaps(NamedTuple):
    """Milliseconds, each a median over some requests."""

    longest: float
    """The longest time that the main thread was kept from running, from a request to its reply. Not
    counted: that it was ready and other processes had the processors."""
    total: float
    """All those times together."""
    reply: float
    """Until the reply was there."""


class Watched:
    """A process of benchmarks.watched.program."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def _heard(self) -> Any:
        assert self.server.process.stdout is not None
        line = self.server.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.server.kind} ended ({self.server.process.wait(10)})")
        return json.loads(line)

    def do(self, command: str) -> Any:
        assert self.server.process.stdin is not None
        self.server.process.stdin.write(command + "\n")
        self.server.process.stdin.flush()
        return self._heard()

    def gaps(self, handler: str, requests: int, check: Callable[[Reply], None]) -> Gaps:
        """What *requests* to *handler*, one after the other, do to the main thread. *check* sees
        each reply."""

        def ask() -> None:
            with Connection(self.server.path) as connection:
                check(connection.ask(handler))

        return self._gaps(ask, requests)

    def quiet(self, windows: int, milliseconds: float) -> Gaps:
        """What the machine alone does to the main thread in windows of that length."""
        return self._gaps(lambda: time.sleep(milliseconds / 1000), windows)

    def _gaps(self, act: Callable[[], None], times: int) -> Gaps:
        windows = []
        self.do("watch")
        for _ in range(times):
            time.sleep(PAUSE)
            start = time.perf_counter_ns()
            act()
            windows.append((start, time.perf_counter_ns()))
        time.sleep(PAUSE)  # what follows the reply is a part of the last gap
        os.kill(self.server.pid, signal.SIGUSR1)
        found = self._heard()
        within = [
            [
                max(0, end - begin - starved) / 1e6
                for begin, end, starved in found
                if begin < last and end > first
            ]
            for first, last in windows
        ]
        return Gaps(
            median([max(each, default=0.0) for each in within]),
            median([sum(each) for each in within]),
            median([(last - first) / 1e6 for first, last in windows]),
        )


@contextlib.contextmanager
def watched(kind: str, folder: Path, *arguments: str) -> Iterator[Watched]:
    """Stopped when it is ready. Raises Missing."""
    available(kind)
    path = str(folder / f"watched-{kind}")
    command = [sys.executable, "-m", "benchmarks.watched.program", kind, path, *arguments]
    with launched(kind, path, command, subprocess.PIPE) as (server, _):
        yield Watched(server)
