"""Records that are read: by who looks for jobs, and by a worker that removes what ended jobs left.

Apart from who writes them, because a worker that serves needs only that.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from workerserver.job.identity import Identity
from workerserver.job.proc import listening, lives, namespace, stat_of
from workerserver.job.records import VERSION, Address, Record, remove
from workerserver.process.sockets import remove_stale

__all__ = ["read_folder", "sweep"]

#: The name of a record, with pid and ticks.
_NAME = re.compile(r"worker-([0-9]{1,10})-([0-9]{1,20})\.json\Z")
#: Sockets that ``workerserver run`` and ``start()`` name by themselves.
_SOCKET = re.compile(r"(?:rank[0-9]{1,9}[-.])?([0-9]{1,10})\.sock\Z")
MAX_RECORD_BYTES = 64 << 10
MAX_RECORDS = 1 << 16


def read_folder(folder: str, owner: int) -> Iterator[Record]:
    """The records in *folder* that *owner* has written; nothing for a folder that can't be read."""
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in sorted(filter(_NAME.match, names))[:MAX_RECORDS]:
        record = _read(os.path.join(folder, name), owner)
        if record is not None:
            yield record


def _read(path: str, owner: int) -> Record | None:
    """None for what is no record: any user may have made the folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != owner:
                return None
            value = json.loads(file.read(MAX_RECORD_BYTES))
        return _record(value, path)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _record(value: Any, path: str) -> Record:
    """ValueError, TypeError or KeyError if *value* is no record."""
    if value["version"] != VERSION:
        raise ValueError("of another version")
    addresses = tuple(
        Address(_of(each["address"], str), _of(each["unix"], bool), _of(each["tls"], bool))
        for each in _of(value["addresses"], list)
    )
    known = {field.name: value.get(field.name) for field in fields(Identity)}
    for name, item in known.items():
        texts = name in ("job", "job_from", "agent", "host")
        if item is not None and not isinstance(item, str if texts else int | float):
            raise TypeError(name)
    _of(known["job"], str), _of(known["job_from"], str)
    return Record(
        _of(value["pid"], int),
        _of(value["ticks"], int),
        value.get("pid_namespace"),
        addresses,
        Identity(**known),
        path,
    )


def _of(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def sweep(folders: Sequence[str], mine: Identity) -> None:
    """Remove what ended jobs of this user have left: records and socket files.

    The record of a process that has ended stays while its job may live: it says that a rank is
    gone. That is so while the process that started it lives, unless the workers were started again.
    """
    here = namespace("pid")
    heard = listening().paths  # nobody who listens is disturbed
    for folder in folders:
        for record in read_folder(folder, os.geteuid()):
            ended = record.pid_namespace == here and not lives(record.pid, record.ticks)
            if not ended or not _is_over(record, mine):
                continue
            for each in record.addresses:
                if each.unix and each.address not in heard:
                    remove_stale(each.address)
            remove(record.path)
        for path in _sockets(folder):
            match = _SOCKET.match(os.path.basename(path))
            if match is not None and stat_of(match[1]) is None and path not in heard:
                remove_stale(path)


def _is_over(record: Record, mine: Identity) -> bool:
    agent = record.identity.agent
    if agent is None or not _lives(agent):
        return True
    earlier = record.identity.restart or 0
    return agent == mine.agent and earlier < (mine.restart or 0)


def _lives(process: str) -> bool:
    """Whether the process ``PID:TICKS`` still runs."""
    pid, _, ticks = process.partition(":")
    return pid.isdecimal() and ticks.isdecimal() and lives(pid, int(ticks))


def _sockets(folder: str) -> Iterator[str]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".sock") and not entry.is_symlink():
                yield entry.path
