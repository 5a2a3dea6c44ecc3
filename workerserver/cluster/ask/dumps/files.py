"""The files that torch leaves when a job hangs: one for each rank, a prefix and the rank's number.

``TORCH_FR_DUMP_TEMP_FILE`` (before: ``TORCH_NCCL_DEBUG_INFO_TEMP_FILE``) is the prefix. torch
writes pickles; JSON comes from whoever saves ``fr_trace_json`` or ``dump_nccl_trace_json``.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workerserver.cluster.failures import short
from workerserver.cluster.read.dumps.plain import MAX_BYTES, DumpError, load

__all__ = ["Dump", "Unread", "find_dumps", "read_dumps"]

#: Of one job.
MAX_FILES = 65_536
#: What stands before the rank, the rank, and what stands behind it.
NAME = re.compile(r"(.*?)([0-9]{1,7})(\.[A-Za-z]{1,8})?\Z", re.DOTALL)
#: What the watchdog writes into a folder of black boxes.
VERDICTS = "verdict-"
#: The dump's format that is read: torch counts the first number up when a field changes its
#: meaning. torch 2.10 to 2.15 write 2.10 and later ones of 2.
FORMAT = "2."
RANK = "{rank}"


@dataclass(frozen=True, slots=True, eq=False)
class Dump:
    """What *rank*'s recorder held. *time*: when the file was written, in seconds since the epoch:
    its modification time."""

    path: str
    rank: int
    time: float
    trace: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Unread:
    """A file that counts for nothing, and why. *rank*: from its name."""

    path: str
    rank: int | None
    text: str


def find_dumps(target: str) -> dict[str, list[str]] | None:
    """The files that *target* names, by what their names have in common: it is a file, a folder of
    them, a prefix, or a pattern or template (``{rank}``) of them. None if it is something else.
    OSError if a folder can't be read."""
    if os.path.isfile(target):
        return {target: [target]} if _is_dump(target) else None
    if os.path.isdir(target):
        with os.scandir(target) as entries:
            paths = [
                entry.path
                for entry in entries
                if NAME.match(entry.name)
                and not entry.name.startswith(VERDICTS)
                and entry.is_file()
            ]
    elif RANK in target:
        start, _, end = target.partition(RANK)
        paths = glob.glob(f"{glob.escape(start)}[0-9]*{glob.escape(end)}")
    elif glob.has_magic(target):
        paths = glob.glob(target)
    elif os.path.lexists(target) or ("/" not in target and ":" in target):
        return None
    else:
        paths = glob.glob(f"{glob.escape(target)}[0-9]*")
        matches = [match for match in map(NAME.match, paths) if match and match[1] == target]
        bare = [match[0] for match in matches if match[3] is None]  # as torch names them
        paths = bare or [match[0] for match in matches]
    alike: dict[str, list[str]] = {}
    for path in sorted(paths)[:MAX_FILES]:
        match = NAME.match(path)
        if match is not None and _is_dump(path):
            alike.setdefault(f"{match[1]}{RANK}{match[3] or ''}", []).append(path)
    return alike or None


def _is_dump(path: str) -> bool:
    """It begins as a pickle or as a JSON object."""
    try:
        start = _read(path, 16)[0]
    except (DumpError, OSError):
        return False
    return (start[:1] == b"\x80" and len(start) > 2) or start.lstrip()[:1] == b"{"


def _read(path: str, most: int) -> tuple[bytes, float]:
    """The first *most* bytes of a regular file, and when it was written last."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise DumpError("not a regular file")
        return file.read(most), about.st_mtime


def _read_dump(path: str) -> Dump | Unread:
    match = NAME.match(os.path.basename(path))
    rank = int(match[2]) if match is not None else None
    try:
        data, time = _read(path, MAX_BYTES + 1)
        trace = _trace(load(data))
    except OSError as error:
        return Unread(path, rank, f"can't be read: {error.strerror}")
    except DumpError as error:
        return Unread(path, rank, str(error))
    if rank is None:
        return Unread(path, None, "its name does not end in a rank")
    return Dump(path, rank, time, trace)


def _trace(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict) or not ({"entries", "pg_config", "pg_status"} & value.keys()):
        raise DumpError("no dump of a flight recorder")
    version = value.get("version")
    if not isinstance(version, str) or not version.startswith(FORMAT):
        raise DumpError(f"a dump of version {short(str(version)[:20])}, and this reads {FORMAT}x")
    return value


def read_dumps(paths: Sequence[str]) -> tuple[list[Dump], list[Unread]]:
    """The newest file of each rank, and what could not be read."""
    found: dict[int, Dump] = {}
    unread: list[Unread] = []
    for path in dict.fromkeys(paths):
        dump = _read_dump(path)
        if isinstance(dump, Unread):
            unread.append(dump)
            continue
        known = found.get(dump.rank)
        if known is not None:
            older, dump = sorted((known, dump), key=lambda each: each.time)
            unread.append(Unread(older.path, older.rank, f"{dump.path} is newer"))
        found[dump.rank] = dump
    return [found[rank] for rank in sorted(found)], unread
