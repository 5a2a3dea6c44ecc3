"""How often a request takes the GIL: gdb counts every call of CPython's ``take_gil()``.

The server's main thread is in a busy loop. Requests come on one keep-alive connection, each after
the reply to the last one. The busy thread's own calls are not counted.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from benchmarks.asking import Connection
from benchmarks.context import Context
from benchmarks.report.model import Bars, Report, Table
from benchmarks.subjects.servers import Missing, Server, served

QUESTION = "How many times does a request take the GIL?"

HERE = Path(__file__).parents[1]
REQUESTS = 40
#: torch's server takes at most 30 requests on one connection.
PER_CONNECTION = 20
PAUSE_SECONDS = 0.01  # between two requests, so that the loop is at rest again
SUBJECTS = {
    "ours": ("ping", "inline", "dump_traceback?mode=gil", "dump_traceback?mode=nogil"),
    "ours-uvloop": ("ping", "inline", "dump_traceback?mode=gil"),
    "torch": ("ping", "dump_traceback"),
    "uvicorn": ("ping", "dump_traceback"),
    "granian": ("ping", "dump_traceback"),
}


class CantCount(Exception):
    """gdb is not installed or not permitted, or CPython lacks the symbol; the text says which."""


def line(stream: IO[str], start: str) -> str:
    """The rest of the next line that begins with *start*."""
    for text in stream:
        if text.startswith(start):
            return text.removeprefix(start)
    raise CantCount(f"gdb ended without {start!r}: not permitted, or CPython has no take_gil")


@contextlib.contextmanager
def counted(pid: int) -> Iterator[IO[str]]:
    """The output of a gdb that counts in the process *pid*."""
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


@contextlib.contextmanager
def without_watch() -> Iterator[None]:
    """Switch the GIL watch off: gdb would count its turns as if they were the requests'."""
    before = os.environ.get("WORKERSERVER_GIL_WATCH")
    os.environ["WORKERSERVER_GIL_WATCH"] = "0"
    try:
        yield
    finally:
        del os.environ["WORKERSERVER_GIL_WATCH"]
        if before is not None:
            os.environ["WORKERSERVER_GIL_WATCH"] = before


def count(server: Server, out: IO[str], name: str, number: int) -> float:
    """Calls per request, over *number* requests, in all threads except the main thread."""
    total = 0
    while number > 0:
        batch = min(number, PER_CONNECTION)
        number -= batch
        with Connection(server.address) as connection:
            for turn in range(2):  # the first turn opens the connection and is not counted
                for _ in range(batch if turn else 3):
                    connection.ask(name)
                    time.sleep(PAUSE_SECONDS)
                os.kill(server.pid, signal.SIGUSR1)
                counts = json.loads(line(out, "counts "))
        counts.pop(str(server.pid), None)
        total += sum(counts.values())
    return total


def measure(
    kind: str, folder: Path, requests: int = REQUESTS, handlers: Sequence[str] | None = None
) -> dict[str, float]:
    """Calls of take_gil() per request, by handler. Raises CantCount and Missing."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(without_watch())
        server = stack.enter_context(served(kind, load="python", folder=folder))
        stack.enter_context(server.awake())
        out = stack.enter_context(counted(server.pid))
        return {
            name: count(server, out, name, requests) / requests
            for name in handlers or SUBJECTS[kind]
        }


def run(context: Context) -> Report:
    found: dict[str, dict[str, float]] = {}
    missing: dict[str, str] = {}
    requests = REQUESTS // 4 if context.quick else REQUESTS
    for kind in SUBJECTS:
        context.say(kind)
        try:
            found[kind] = measure(kind, context.folder, requests)
        except CantCount as reason:
            missing["gdb"] = str(reason)
            found.clear()
            break
        except (Missing, RuntimeError) as reason:
            missing[kind] = str(reason)
    names = list(dict.fromkeys(name for handlers in SUBJECTS.values() for name in handlers))
    rows = [(name, *(found[kind].get(name) for kind in found)) for name in names]
    table = Table(
        "GIL acquisitions for each request, beside a busy Python loop",
        ("handler", *found),
        rows if found else (),
        (
            f"Calls of take_gil() in all threads but the busy one, by gdb, over {requests} requests"
            f" {PAUSE_SECONDS * 1000:g} ms apart on keep-alive connections.",
            "'inline' is a Python handler that our server runs on its loop. With uvicorn and "
            "granian, a dump is faulthandler's.",
        ),
    )
    plots = [
        Bars(
            "acquisitions",
            "GIL acquisitions for each request",
            "calls of take_gil()",
            names,
            {kind: [handlers.get(name) for name in names] for kind, handlers in found.items()},
        )
    ]
    return Report("acquisitions", QUESTION, (table,), plots if found else (), missing=missing)
