"""The gaps that requests cause in a trainer, which runs Python without pause and times itself."""

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

__all__ = ["FLOOR", "PAUSE_SECONDS", "Gaps", "Watched", "watched"]

#: The pause before each request.
PAUSE_SECONDS = 0.02
#: Milliseconds. A shorter gap counts as 0.
FLOOR = 0.02


class Gaps(NamedTuple):
    """Times in milliseconds, each a median over some requests."""

    longest: float
    """The longest time between a request and its reply in which the main thread could not run.
    Time in which other processes had the processors is not counted."""
    total: float
    """The sum of these times."""
    reply: float
    """The time until the reply."""


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
        """The gaps in the main thread during *requests* requests to *handler*, one after the other.
        *check* sees each reply."""

        def ask() -> None:
            with Connection(self.server.path) as connection:
                check(connection.ask(handler))

        return self._gaps(ask, requests)

    def quiet(self, windows: int, milliseconds: float) -> Gaps:
        """The gaps in the main thread without any request, in windows of *milliseconds* each."""
        return self._gaps(lambda: time.sleep(milliseconds / 1000), windows)

    def _gaps(self, act: Callable[[], None], times: int) -> Gaps:
        windows = []
        self.do("watch")
        for _ in range(times):
            time.sleep(PAUSE_SECONDS)
            start = time.perf_counter_ns()
            act()
            windows.append((start, time.perf_counter_ns()))
        time.sleep(PAUSE_SECONDS)  # the last gap may go on after the reply
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
    """A Watched process, ready and stopped. Raises Missing."""
    available(kind)
    path = str(folder / f"watched-{kind}")
    command = [sys.executable, "-m", "benchmarks.watched.program", kind, path, *arguments]
    with launched(kind, path, command, subprocess.PIPE) as (server, _):
        yield Watched(server)
