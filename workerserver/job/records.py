"""A record of each process that serves, in the user's run folder: so the job is found without a
word of where it is.

A record is one JSON object in a file of mode 0600: ``pid``, ``ticks`` and ``pid_namespace`` name
the process, ``addresses`` say where it serves, the rest is its :class:`Identity`. The process
removes the file at its end. The record of a process that was killed stays until a later worker of
the user sweeps it: meanwhile it tells that the rank is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass

from workerserver.job.identity import Identity, short

__all__ = ["VERSION", "Address", "Record", "remove", "write"]

VERSION = 1


@dataclass(frozen=True, slots=True)
class Address:
    """A socket's absolute path, or ``host:port``."""

    address: str
    unix: bool
    tls: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """*path*: the file that it was read from."""

    pid: int
    ticks: int
    pid_namespace: int | None
    addresses: tuple[Address, ...]
    identity: Identity
    path: str = ""


def name_of(pid: int, ticks: int) -> str:
    return f"worker-{pid}-{ticks}.json"


def write(folder: str, record: Record) -> str:
    """Write the record, whole or not at all, and return its path. OSError if that fails."""
    value = {
        "version": VERSION,
        "pid": record.pid,
        "ticks": record.ticks,
        "pid_namespace": record.pid_namespace,
        "addresses": [
            {"address": each.address, "unix": each.unix, "tls": each.tls}
            for each in record.addresses
        ],
        **short(record.identity),
    }
    path = os.path.join(folder, name_of(record.pid, record.ticks))
    part = f"{path}.part"
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(json.dumps(value).encode("ascii"))
        os.replace(part, path)
    except OSError:
        remove(part)
        raise
    return path


def remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
