"""A black box, read from its file and never trusted."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from workerserver.blackbox.format import (
    HEADER_BYTES,
    MAX_BYTES,
    BoxError,
    Contents,
    LaneName,
    Record,
    header,
    parse,
)

__all__ = ["Box", "BoxError", "Moment", "read_box", "read_bytes", "read_newest"]


class Moment(NamedTuple):
    """One record, decoded. *time*: seconds since the epoch, by the clock of its host."""

    time: float
    value: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Box:
    """What one process left. Records that can't be decoded are left out and counted in *torn*.

    *identity*: who it was. *states*: figures, the oldest first; *stacks*: samples, the oldest
    first. *ends*: why it ended, the first reason first; *last*: the stacks at that moment.
    *keeper*: what the process that copied the box knows; None: it is the box itself. *recorder*:
    what the flight recorders held when nothing went on, or at an exception. *counters*: torch's
    wait counters, as they were last.
    """

    path: str
    pid: int
    identity: dict[str, Any]
    states: tuple[Moment, ...]
    steps: Moment | None
    stacks: tuple[Moment, ...]
    ends: tuple[Moment, ...]
    last: Moment | None
    keeper: Moment | None
    recorder: Moment | None
    counters: Moment | None
    torn: int
    short: int

    @property
    def rank(self) -> int | None:
        return self.number("rank")

    def number(self, name: str) -> int | None:
        """As it was known last: under mp.spawn the rank comes late."""
        for place in (self.health, self.identity):
            value = place.get(name)
            if type(value) is int and 0 <= value < 1 << 31:
                return value
        return None

    @property
    def health(self) -> dict[str, Any]:
        """The newest body of ``/healthz``."""
        if self.states:
            health = self.states[-1].value.get("health")
            if isinstance(health, dict):
                return health
        return {}

    @property
    def copied(self) -> float | None:
        """When its keeper copied it, in seconds since the epoch; None if none did, or told so."""
        told = None if self.keeper is None else self.keeper.value.get("copied")
        return told if isinstance(told, int | float) else None

    @property
    def time(self) -> float | None:
        """When the process last wrote something."""
        newest = [
            moment.time
            for moment in (self.steps, self.last, *self.states, *self.stacks, *self.ends)
            if moment is not None
        ]
        return max(newest, default=None)


def read_bytes(path: str, owner: int | None = None) -> bytes:
    """The file's bytes, MAX_BYTES at most. OSError, or BoxError if it can be no black box of this
    user, of *owner*, or of the superuser: a link, a FIFO, somebody else's file."""
    descriptor = _open(path, owner)
    try:
        parts = []
        left = MAX_BYTES
        while left > 0 and (part := os.read(descriptor, left)):
            parts.append(part)
            left -= len(part)
    finally:
        os.close(descriptor)
    return b"".join(parts)


def _open(path: str, owner: int | None) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        if os.path.islink(path):
            raise BoxError("it is a symbolic link") from None
        raise BoxError(f"it can't be opened: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BoxError("it is no file")
        if status.st_uid not in (0, os.geteuid(), owner):
            raise BoxError(f"it belongs to another user ({status.st_uid})")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_box(path: str, owner: int | None = None) -> Box:
    """The box in the file *path*. BoxError says in one line why it can't be read."""
    try:
        return decode(parse(read_bytes(path, owner)), path)
    except OSError as error:
        raise BoxError(f"it can't be read: {error.strerror}") from None


def read_newest(path: str, lanes: Sequence[LaneName]) -> Box:
    """The same with *lanes* alone: the other ones are not even read, and look empty. BoxError."""
    try:
        descriptor = _open(path, None)
        try:
            head = os.pread(descriptor, HEADER_BYTES, 0)
            contents = header(head)
            data = bytearray(contents.size)  # of what is not written, the kernel gives no memory
            data[: len(head)] = head
            for name in lanes:
                lane = contents.lanes[name]
                part = os.pread(descriptor, lane.slots * lane.slot_bytes, lane.offset)
                data[lane.offset : lane.offset + len(part)] = part
        finally:
            os.close(descriptor)
    except OSError as error:
        raise BoxError(f"it can't be read: {error.strerror}") from None
    return decode(parse(data), path)


def decode(contents: Contents, path: str) -> Box:
    torn = contents.torn

    def moments(lane: LaneName) -> tuple[Moment, ...]:
        nonlocal torn
        decoded = [_moment(record) for record in contents.records[lane]]
        found = tuple(moment for moment in decoded if moment is not None)
        torn += len(decoded) - len(found)
        return found

    def newest(lane: LaneName) -> Moment | None:
        return next(reversed(moments(lane)), None)

    identity = newest("identity")
    return Box(
        path=path,
        pid=contents.pid,
        identity=identity.value if identity is not None else {},
        states=moments("state"),
        steps=newest("steps"),
        stacks=moments("stacks"),
        ends=moments("end"),
        last=newest("last"),
        keeper=newest("keeper"),
        recorder=newest("recorder"),
        counters=newest("counters"),
        torn=torn,
        short=contents.short,
    )


def _moment(record: Record) -> Moment | None:
    try:
        value = json.loads(record.payload)
    except (ValueError, RecursionError):
        return None
    return Moment(record.wall_ns / 1e9, value) if isinstance(value, dict) else None
