"""What /proc tells of processes: when they began, what they were started with, what they listen on.

Read by servers of themselves and of their launcher, and by the operator's side of all processes of
the user. A process that ends meanwhile, or that may not be looked at, has no values.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

__all__ = [
    "Listening",
    "Stat",
    "born",
    "environment_of",
    "is_elsewhere",
    "listening",
    "namespace",
    "of_all",
    "of_user",
    "own_pid_in",
    "root_of",
    "sockets_of",
    "stat_of",
    "thread_names",
    "user_of",
    "words_of",
]

#: Of one process. More is cut, and the last variable may then be lost.
MAX_ENVIRONMENT_BYTES = 1 << 20
#: Of /proc/PID/stat, which has 52 numbers and a name.
MAX_STAT_BYTES = 4096
PART_BYTES = 16 << 10
#: The flag of a socket that accepts connections (SO_ACCEPTCON), and the state LISTEN of tcp(7).
_ACCEPTS = 1 << 16
_LISTEN = "0A"


class Stat(NamedTuple):
    """*ticks*: when the process began, in clock ticks since the machine's start (proc(5)). With
    the pid they name a process for good, because pids are used again."""

    parent: int
    ticks: int


def _read(path: str, most: int) -> bytes:
    """The first *most* bytes of a file of /proc, which does not tell its size. OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = [os.read(descriptor, min(most, PART_BYTES))]
        left = most - len(parts[-1])
        while parts[-1] and left > 0:
            parts.append(os.read(descriptor, min(left, PART_BYTES)))
            left -= len(parts[-1])
        return b"".join(parts)
    finally:
        os.close(descriptor)


def stat_of(pid: int | str) -> Stat | None:
    """None if there is no such process, or if it has ended and only its parent knows it."""
    try:
        fields = _read(f"/proc/{pid}/stat", MAX_STAT_BYTES).rpartition(b")")[2].split()
    except OSError:
        return None
    if len(fields) < 20 or fields[0] in (b"Z", b"X"):
        return None
    return Stat(int(fields[1]), int(fields[19]))


def lives(pid: int | str, ticks: int) -> bool:
    """Whether the process that began at *ticks* still runs, and no other one with its pid."""
    stat = stat_of(pid)
    return stat is not None and stat.ticks == ticks


@lru_cache(maxsize=1)
def _boot_time() -> int | None:
    """In seconds since the epoch, as ``btime`` in /proc/stat has it. The kernel writes a line for
    each processor, and a number for each interrupt, before it comes to that: milliseconds on a
    large machine."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return None if clock is None else int(time.time() - time.clock_gettime(clock))


def born(ticks: int) -> float | None:
    """*ticks* as seconds since the epoch."""
    boot = _boot_time()
    return None if boot is None else round(boot + ticks / os.sysconf("SC_CLK_TCK"), 2)


def environment_of(pid: int | str) -> Mapping[str, str]:
    """What the process was started with; empty if that may not be read."""
    try:
        data = _read(f"/proc/{pid}/environ", MAX_ENVIRONMENT_BYTES)
    except OSError:
        return {}
    parts = os.fsdecode(data).split("\0")
    return dict(part.split("=", 1) for part in parts if "=" in part)


def words_of(pid: int) -> list[str]:
    """The words of its command line."""
    try:
        data = _read(f"/proc/{pid}/cmdline", MAX_ENVIRONMENT_BYTES)
    except OSError:
        return []
    return [os.fsdecode(word) for word in data.split(b"\0")[:-1]]


def of_user(user: int) -> Iterator[int]:
    """The pids of the *user*'s processes."""
    return (pid for owner, pid in of_all() if owner == user)


def of_all() -> Iterator[tuple[int, int]]:
    """Of each process its user and its pid."""
    for name in os.listdir("/proc"):
        owner = user_of(name) if name.isdecimal() else None
        if owner is not None:
            yield owner, int(name)


def user_of(pid: int | str) -> int | None:
    """Whose process it is; None if there is none."""
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def namespace(kind: str, pid: int | str = "self") -> int | None:
    """The number of its namespace of that *kind*: mnt, net, pid."""
    try:
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino
    except OSError:
        return None


def is_elsewhere(kind: str, pid: int) -> bool:
    """Whether the process is in another namespace of that *kind* than we are."""
    theirs = namespace(kind, pid)
    return theirs is not None and theirs != namespace(kind)


def root_of(pid: int) -> str:
    """A prefix for paths as the process sees them: "" where we see the same files."""
    return f"/proc/{pid}/root" if is_elsewhere("mnt", pid) else ""


def own_pid_in(pid: int) -> int:
    """Its pid as the process itself knows it, in the innermost pid namespace."""
    with (
        contextlib.suppress(OSError, ValueError),
        open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file,
    ):
        for line in file:
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return pid


def thread_names(pid: int) -> set[str]:
    """The names of its threads, as the kernel knows them."""
    found: set[str] = set()
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with (
                contextlib.suppress(OSError),
                open(f"/proc/{pid}/task/{task}/comm", encoding="utf-8", errors="replace") as file,
            ):
                found.add(file.read().rstrip("\n"))
    return found


class Listening(NamedTuple):
    """What accepts connections in one network namespace: the inodes of the sockets, by the path as
    it was bound, and by the TCP port."""

    paths: Mapping[str, set[int]]
    ports: Mapping[int, set[int]]


def listening(pid: int | str = "self") -> Listening:
    """In the namespace of *pid*."""
    paths: dict[str, set[int]] = {}
    ports: dict[int, set[int]] = {}
    with (
        contextlib.suppress(OSError),
        open(f"/proc/{pid}/net/unix", encoding="utf-8", errors="surrogateescape") as file,
    ):
        next(file, None)  # the titles of the columns
        for line in file:
            fields = line.rstrip("\n").split(maxsplit=7)
            if len(fields) == 8 and int(fields[3], 16) & _ACCEPTS:
                paths.setdefault(fields[7], set()).add(int(fields[6]))
    for name in ("tcp", "tcp6"):
        with (
            contextlib.suppress(OSError),
            # utf-8 has been imported long ago: no import by a thread of ours while training forks.
            open(f"/proc/{pid}/net/{name}", encoding="utf-8", errors="replace") as file,
        ):
            for line in file:
                fields = line.split()
                if len(fields) > 9 and fields[3] == _LISTEN:
                    port = int(fields[1].rpartition(":")[2], 16)
                    ports.setdefault(port, set()).add(int(fields[9]))
    return Listening(paths, ports)


def sockets_of(pid: int) -> set[int]:
    """The inodes of the sockets that the process has open."""
    found: set[int] = set()
    with contextlib.suppress(OSError):
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError, ValueError):
                link = os.readlink(f"/proc/{pid}/fd/{descriptor}")
                if link.startswith("socket:["):
                    found.add(int(link[8:-1]))
    return found
