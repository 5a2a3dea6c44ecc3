"""The servers that are measured, each in a process group of its own.

``ours`` is the native transport, ``ours-uvloop`` the other one, ``torch`` is torch's C++
``_WorkerServer``, ``uvicorn`` (uvloop, httptools) and ``granian`` run one small ASGI application,
and ``epoll`` is a bare epoll loop in C that answers everything with the same bytes: the physical
limit. A subject is stopped (SIGSTOP) while it isn't its turn.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["KINDS", "Missing", "Server", "available", "compiled", "launched", "served", "start"]

HERE = Path(__file__).parents[1]
KINDS = ("ours", "ours-uvloop", "torch", "uvicorn", "granian", "epoll")
#: Seconds that a server has to get going after it was stopped.
SETTLE = 0.02
#: Seconds until a started server is ready; torch alone can take ten on a busy machine.
PATIENCE = 120.0
#: Sockets' paths are used once: not every server removes its file, or takes one that is there.
numbers = itertools.count()
NEEDS = {"torch": "torch", "uvicorn": "uvicorn", "granian": "granian"}


class Missing(Exception):
    """A subject that can't be had here; says why."""


def available(kind: str) -> None:
    """Raise Missing if *kind* can't be started here."""
    module = NEEDS.get(kind)
    if module is not None and importlib.util.find_spec(module) is None:
        raise Missing(f"{module} is not installed")
    if kind == "epoll" and (sys.platform != "linux" or compiler() is None):
        raise Missing("needs Linux and a C compiler")


def compiler() -> str | None:
    return shutil.which(os.environ.get("CC", "cc"))


def compiled(name: str, folder: Path) -> str:
    """The program of *name*.c, a path in benchmarks/; Missing without a compiler."""
    program = folder / Path(name).name
    if compiler() is None:
        raise Missing("needs a C compiler")
    if not program.exists():
        source = str(HERE / f"{name}.c")
        command = [compiler() or "cc", "-O2", "-Wall", "-o", str(program), source]
        subprocess.run(command, check=True)
    return str(program)


@dataclass
class Server:
    """A served process. *port* is None on a Unix socket."""

    kind: str
    process: subprocess.Popen[str]
    path: str
    port: int | None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def address(self) -> str | tuple[str, int]:
        return self.path if self.port is None else ("127.0.0.1", self.port)

    def request(self, name: str, body: bytes = b"") -> bytes:
        """POST /handler/*name*, which may end in a query."""
        head = f"POST /handler/{name} HTTP/1.1\r\nHost: localhost\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run inside, and only there."""
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.kind} ended by itself ({self.process.returncode})")
        self.signal(signal.SIGCONT)
        time.sleep(SETTLE)
        try:
            yield
        finally:
            self.signal(signal.SIGSTOP)

    def pids(self) -> list[int]:
        """Of all processes of its group: a DataLoader's workers belong to it."""
        found = []
        for entry in os.listdir("/proc"):
            with contextlib.suppress(ValueError, ProcessLookupError):
                if os.getpgid(int(entry)) == self.pid:
                    found.append(int(entry))
        return found

    def place(self, cpus: set[int]) -> None:
        """Keep all its threads on *cpus*."""
        for pid in self.pids():
            with contextlib.suppress(FileNotFoundError):
                for thread in os.listdir(f"/proc/{pid}/task"):
                    with contextlib.suppress(ProcessLookupError):
                        os.sched_setaffinity(int(thread), cpus)

    def cpu_seconds(self) -> float:
        """Processor time that its own process has used, user and system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def served(
    kind: str,
    *,
    load: str = "idle",
    folder: Path,
    tcp: bool = False,
    body: int = 0,
    flight: int = 0,
) -> Iterator[Server]:
    """A server of *kind* on a Unix socket in *folder*, or on a free port; stopped when it is ready.

    Beside it runs *load*. *body*: a handler ``body`` answers with that many bytes, ``upload`` reads
    what it is sent. *flight*: torch's flight recorder holds that many entries. Raises Missing.
    """
    available(kind)
    path = str(folder / f"{kind}-{next(numbers)}")
    if kind == "epoll":
        command = [compiled("subjects/epoll_server", folder), "127.0.0.1" if tcp else path]
    else:
        command = [sys.executable, "-m", "benchmarks.subjects.serve", kind, path, "--load", load]
        command += ["--body", str(body), "--flight", str(flight)]
        command += ["--tcp"] if tcp else []
    with launched(kind, path, command) as (server, said):
        server.port = said["port"]
        yield server


@contextlib.contextmanager
def launched(
    kind: str, path: str, command: Sequence[str], stdin: int = subprocess.DEVNULL
) -> Iterator[tuple[Server, Any]]:
    """The process of *command*, which serves at *path*, and the JSON of its first line. It is
    stopped from then on. RuntimeError with the last that it said, if it ends before."""
    with (
        open(f"{path}.err", "w+") as errors,
        subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
            cwd=HERE.parent,
        ) as process,
    ):
        server = Server(kind, process, path, None)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                process.wait(PATIENCE)
                errors.seek(0)
                last = (errors.read().strip().splitlines() or ["no message"])[-1]
                raise RuntimeError(f"{kind} did not start: {last[:500]}")
            server.signal(signal.SIGSTOP)
            yield server, json.loads(line)
        finally:
            server.signal(signal.SIGKILL)


def start(
    stack: contextlib.ExitStack,
    kinds: Iterable[str],
    missing: dict[str, str],
    *,
    folder: Path,
    load: str = "idle",
    tcp: bool = False,
) -> dict[str, Server]:
    """The servers of *kinds*, which end with *stack*; why one is not there goes into *missing*."""
    servers = {}
    for kind in kinds:
        try:
            servers[kind] = stack.enter_context(served(kind, load=load, folder=folder, tcp=tcp))
        except (Missing, RuntimeError) as error:
            missing[kind] = str(error)
    return servers
