"""The ranks of a job on this host, as the watchdog sees them: who lives, and who makes steps.

Ranks are known by their records in the run folder and by their black boxes. ``/healthz`` tells
their steps, without the GIL; where nobody serves or answers, the box does.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workerserver.blackbox.format import BoxError
from workerserver.blackbox.place import BOX, label_of
from workerserver.blackbox.read import read_newest
from workerserver.job.left import read_folder
from workerserver.job.proc import lives, namespace
from workerserver.job.records import Address, Record
from workerserver.process.run_folder import run_folders

__all__ = ["Rank", "look", "restart_of"]

#: For one answer. A worker answers from its I/O thread, which waits for nobody.
ANSWER_SECONDS = 0.5
MAX_ANSWER_BYTES = 64 << 10
MAX_RANKS = 4096
_STATUS = re.compile(rb"HTTP/1\.[01] 200 ")
_CREDENTIALS = struct.Struct("3i")


@dataclass(slots=True)
class Rank:
    """One process. *record*: its path in the run folder, which the process
    removes at a clean end. *digest*: of its stacks, if it makes no heartbeats."""

    pid: int
    ticks: int
    alive: bool
    rank: int | None = None
    restart: int | None = None
    addresses: tuple[Address, ...] = ()
    record: str = ""
    box: str = ""
    step: int | None = None
    step_age_s: float | None = None
    step_median_s: float | None = None
    digest: str | None = None

    @property
    def key(self) -> tuple[int, int]:
        return self.pid, self.ticks


def restart_of(ranks: Sequence[Rank]) -> int | None:
    return max((each.restart for each in ranks if each.restart is not None), default=None)


def look(boxes: str, agent: str, label: str, token: str | None) -> list[Rank]:
    """The processes that are known now. *agent*: who started the job's workers on this host.
    *label*: which of its jobs it is."""
    found: dict[tuple[int, int], Rank] = {}
    for record in _records(agent, label):
        identity = record.identity
        rank = Rank(record.pid, record.ticks, True, identity.rank, identity.restart)
        rank.addresses, rank.record = record.addresses, record.path
        found[rank.key] = rank
    with contextlib.suppress(OSError):
        for name in os.listdir(boxes):
            match = BOX.match(name)
            if match is not None:
                key = (int(match[1]), int(match[2]))
                found.setdefault(key, Rank(*key, True)).box = os.path.join(boxes, name)
    ranks = list(found.values())[:MAX_RANKS]
    for rank in ranks:
        rank.alive = lives(*rank.key)
        if rank.alive:
            _ask(rank, token)
    return ranks


def _records(agent: str, label: str) -> list[Record]:
    here = namespace("pid")
    return [
        record
        for folder in run_folders()
        for record in read_folder(folder, os.geteuid())
        if record.pid_namespace == here and _is_of(record, agent, label)
    ]


def _is_of(record: Record, agent: str, label: str) -> bool:
    """A shell may start one job after the other, and the records of a job that was killed stay.
    torchrun, which counts the attempts, starts one job only: its name may change with the port of
    an attempt."""
    identity = record.identity
    starter = identity.agent or f"{record.pid}:0"
    if starter != agent:
        return False
    return (
        identity.restart is not None
        or label_of(identity.job, identity.host or "", starter) == label
    )


# ---- what a rank tells


def _ask(rank: Rank, token: str | None) -> None:
    path = next((each.address for each in rank.addresses if each.unix), None)
    told = None if path is None else _answer(path, "GET /healthz", token)
    box = None
    if told is None and rank.box:
        with contextlib.suppress(BoxError):
            box = read_newest(rank.box, ("identity", "state", "stacks"))
            told = dict(box.health) or None  # a second old, or older, if the process is stopped
    if told is None:
        return
    rank.rank = rank.rank if rank.rank is not None else _count(told.get("rank"))
    rank.restart = rank.restart if rank.restart is not None else _count(told.get("restart"))
    rank.step = _count(told.get("step"))
    rank.step_age_s = _seconds(told.get("step_age_s"))
    rank.step_median_s = _seconds(told.get("step_median_s"))
    if rank.step_age_s is not None:
        if box is not None:
            rank.step_age_s += max(0.0, time.time() - box.states[-1].time)
        return
    digest = None
    if box is not None and box.stacks:
        digest = box.stacks[-1].value.get("digest")
    elif path is not None:
        question = "POST /handler/dump_traceback?format=digest&mode=nogil"
        digest = _answer(path, question, token)
    if isinstance(digest, dict):
        rank.digest = str(digest.get("main") or digest.get("digest"))[:200]


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _seconds(value: Any) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12:
        return float(value)
    return None


def _answer(path: str, question: str, token: str | None) -> dict[str, Any] | None:
    """What the worker on the Unix socket *path* answers; None if it doesn't. The token is shown to
    a process of our own user only."""
    head = [f"{question} HTTP/1.1", "Host: localhost", "Connection: close", "Content-Length: 0"]
    if token is not None:
        head.append(f"Authorization: Bearer {token}")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(ANSWER_SECONDS)
            sock.connect(path)
            if _owner(sock) not in (0, os.geteuid()):
                return None
            sock.sendall("\r\n".join([*head, "", ""]).encode("utf-8"))
            return _parsed(_read(sock))
    except (OSError, ValueError, RecursionError):
        return None


def _owner(sock: socket.socket) -> int:
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(data)[1])


def _read(sock: socket.socket) -> bytes:
    parts: list[bytes] = []
    left = MAX_ANSWER_BYTES
    while left > 0 and (part := sock.recv(min(left, 16 << 10))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _parsed(answer: bytes) -> dict[str, Any] | None:
    head, _, body = answer.partition(b"\r\n\r\n")
    if _STATUS.match(head) is None:
        return None
    value = json.loads(body)
    return value if isinstance(value, dict) else None
