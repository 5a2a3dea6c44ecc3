"""Servers beside strangers: silent clients, clients that read nothing, the GIL held.

Each scene has a server of its own, and what it does to it. Then an honest client pings, for at most
PATIENCE_SECONDS. "Free for training" is how many descriptors the process could still open.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import time
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.asking import Connection
from benchmarks.context import Context
from benchmarks.report.model import Report, Table
from benchmarks.subjects.servers import Missing, Server, served

QUESTION = "Is an honest client answered beside strangers, and what is left to training?"

KINDS = ("ours", "ours-uvloop", "torch")
PATIENCE_SECONDS = 8.0
DESCRIPTORS = 256
TRUNCATED = b"POST /handler/ping HT"


class Seen(NamedTuple):
    """*milliseconds*: of the ping; None without an answer in time."""

    milliseconds: float | None
    free: int
    threads: int


Scene = Callable[[Server, contextlib.ExitStack], None]


def connected(server: Server, stack: contextlib.ExitStack) -> socket.socket | None:
    client = stack.enter_context(
        socket.socket(socket.AF_UNIX if isinstance(server.address, str) else socket.AF_INET)
    )
    client.settimeout(1.0)
    try:
        client.connect(server.address)
    except OSError:
        return None
    return client


def silent(number: int, first: bytes) -> Scene:
    """*number* clients that send *first*, and nothing more."""

    def scene(server: Server, stack: contextlib.ExitStack) -> None:
        for _ in range(number):
            client = connected(server, stack)
            if client is not None and first:
                with contextlib.suppress(OSError):
                    client.sendall(first)

    return scene


def reading_nothing(server: Server, stack: contextlib.ExitStack) -> None:
    """Twenty clients that ask for dumps, and read no byte of them."""
    for _ in range(20):
        client = connected(server, stack)
        if client is not None:
            with contextlib.suppress(OSError):
                client.sendall(server.request("dump_traceback") * 200)


def nothing(server: Server, stack: contextlib.ExitStack) -> None:
    pass


#: The load of the server's process, and the scene.
SCENES: dict[str, tuple[str, Scene]] = {
    "nobody": ("idle", nothing),
    "40 clients in the middle of a request": ("idle", silent(40, TRUNCATED)),
    "300 silent clients, 256 descriptors": ("idle", silent(300, b"")),
    "20 clients that read none of 200 dumps": ("idle", reading_nothing),
    "the GIL held by C": ("gil-c", nothing),
}


def ping(server: Server) -> float | None:
    began = time.monotonic()
    try:
        with Connection(server.address, PATIENCE_SECONDS) as connection:
            connection.ask("ping")
    except (OSError, RuntimeError, EOFError):
        return None
    return (time.monotonic() - began) * 1000


def seen(kind: str, load: str, scene: Scene, context: Context, tcp: bool) -> Seen:
    with (
        served(kind, load=load, folder=context.folder, tcp=tcp) as server,
        contextlib.ExitStack() as stack,
        server.awake(),
    ):
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
        scene(server, stack)
        time.sleep(0.5)  # so that the server has taken all of it
        answered = ping(server)
        free = DESCRIPTORS - len(os.listdir(f"/proc/{server.pid}/fd"))
        return Seen(answered, free, len(os.listdir(f"/proc/{server.pid}/task")))


def run(context: Context) -> Report:
    rows: list[list[str | int | float | None]] = []
    missing: dict[str, str] = {}
    for name, (load, scene) in SCENES.items():
        for kind in KINDS:
            if kind in missing:
                continue
            for tcp in (False, True):
                try:
                    found = seen(kind, load, scene, context, tcp)
                except Missing as reason:
                    missing[kind] = str(reason)
                    break
                took = found.milliseconds
                rows.append([
                    name, kind, "TCP" if tcp else "Unix",
                    "no answer" if took is None else round(took, 1), found.free, found.threads,
                ])  # fmt: skip
        context.say(name)
    columns = ["beside", "server", "socket", "ping ms", "free for training", "threads"]
    notes = [
        f"A ping on a new connection; no answer: none in {PATIENCE_SECONDS:g} s. The soft limit of "
        f"descriptors is {DESCRIPTORS} in each scene. No token.",
    ]
    return Report(
        "strangers", QUESTION, (Table("Strangers", columns, rows, notes),), (), (), {}, missing
    )
