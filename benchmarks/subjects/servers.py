"""The servers that are measured, each in a process group of its own.

``ours`` is our native transport, ``ours-uvloop`` our other transport, ``torch`` torch's C++
``_WorkerServer``. ``uvicorn`` (uvloop, httptools) and ``granian`` run a small ASGI application.
``epoll`` is a bare epoll loop in C that gives every request the same answer: the physical limit. A
subject is stopped (SIGSTOP) except when it is its turn.
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
#: The time that a stopped server gets to run again.
SETTLE_SECONDS = 0.02
#: The longest wait for a server's start. On a busy machine, the import of torch can take 10 s.
PATIENCE_SECONDS = 120.0
#: Each socket's path is used once: not every server removes its file or replaces an old one.
numbers = itertools.count()
NEEDS = {"torch": "torch", "uvicorn": "uvicorn", "granian": "granian"}


class Missing(Exception):
    """A subject that can't run here; the text says why."""


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
        """A POST to /handler/*name*. *name* may end in a query."""
        head = f"POST /handler/{name} HTTP/1.1\r\nHost: localhost\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Let the server run during the block only."""
        if self.process.poll() is not None:
            raise RuntimeError(f"{self.kind} ended by itself ({self.process.returncode})")
        self.signal(signal.SIGCONT)
        time.sleep(SETTLE_SECONDS)
        try:
            yield
        finally:
            self.signal(signal.SIGSTOP)

    def pids(self) -> list[int]:
        """The pids of the server's process group. A DataLoader's workers belong to the group."""
        found = []
        for entry in os.listdir("/proc"):
            with contextlib.suppress(ValueError, ProcessLookupError):
                if os.getpgid(int(entry)) == self.pid:
                    found.append(int(entry))
        return found

    def place(self, cpus: set[int]) -> None:
        """Keep all threads of the group on *cpus*."""
        for pid in self.pids():
            with contextlib.suppress(FileNotFoundError):
                for thread in os.listdir(f"/proc/{pid}/task"):
                    with contextlib.suppress(ProcessLookupError):
                        os.sched_setaffinity(int(thread), cpus)

    def cpu_seconds(self) -> float:
        """Processor time of the server's own process, user and system, in seconds."""
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
    """A server of *kind* on a Unix socket in *folder*, or on a free port. It is ready and stopped.

    *load* runs in the server's process. *body*: a handler ``body`` answers with that many bytes,
    and a handler ``upload`` reads a request's body. *flight*: the number of entries in torch's
    flight recorder. Raises Missing.
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
    """The process of *command*, which serves at *path*, and the JSON in its first line of output.
    After that line the process is stopped. RuntimeError with the last output if it ends before."""
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
                process.wait(PATIENCE_SECONDS)
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
    """The servers of *kinds*; *stack* ends them. *missing* gets the reason for a missing kind."""
    servers = {}
    for kind in kinds:
        try:
            servers[kind] = stack.enter_context(served(kind, load=load, folder=folder, tcp=tcp))
        except (Missing, RuntimeError) as error:
            missing[kind] = str(error)
    return servers
