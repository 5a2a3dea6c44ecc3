"""What the watchdog of a job on this host has reported so far, for this host's collector.

A small file in the folder of the boxes, on the tmpfs. The watchdog replaces it at each look, and
removes it at its end. A reader believes it only while that process lives.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from workerserver.blackbox.format import BoxError
from workerserver.blackbox.place import SHARED_MEMORY, places
from workerserver.blackbox.read import read_bytes
from workerserver.job.proc import lives, stat_of
from workerserver.process.run_folder import may_hang, run_folders

__all__ = ["State", "forget", "living_states", "write"]

STATE = "watchdog.json"
#: Of one user on one host.
MAX_JOBS = 64
#: What a file can raise that is none of ours, or of another version.
UNREADABLE = (
    OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError,
    BoxError,
)  # fmt: skip


@dataclass(slots=True)
class State:
    """*status*: of the verdict on the open incident; 0: no incident is open. *stall*, *gone*:
    incidents of each kind that this watchdog has reported. *looked*: when its last look began, by
    the monotonic clock, in seconds."""

    job: str
    status: int = 0
    stall: int = 0
    gone: int = 0
    looked: float = 0.0


def write(folder: str, state: State) -> None:
    """Whole or not at all. OSError."""
    path = os.path.join(folder, STATE)
    me = stat_of(os.getpid())
    value = {"pid": os.getpid(), "ticks": 0 if me is None else me.ticks, **asdict(state)}
    part = f"{path}.part"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(part)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(part, flags, 0o600), "w", encoding="ascii") as file:
        json.dump(value, file)
    os.replace(part, path)


def forget(folder: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(folder, STATE))


def living_states() -> list[State]:
    """Those of all jobs of this user on this host that have a watchdog now, at most MAX_JOBS."""
    found = []
    for path in _paths():
        with contextlib.suppress(*UNREADABLE):
            value = json.loads(read_bytes(path))
            pid, ticks = int(value.pop("pid")), int(value.pop("ticks"))
            state = State(**value)
            numbers = [state.status, state.stall, state.gone]
            if (
                isinstance(state.job, str)
                and all(type(each) is int and 0 <= each < 1 << 53 for each in numbers)
                and isinstance(state.looked, int | float)
                and 0 <= state.looked < 1e9
                and lives(pid, ticks)
            ):
                found.append(state)
        if len(found) == MAX_JOBS:
            break
    return found


def _paths() -> Iterator[str]:
    for place in places():
        if place != SHARED_MEMORY and may_hang():
            continue
        for folder in run_folders(place):
            with contextlib.suppress(OSError):
                for name in sorted(os.listdir(folder)):
                    if name.startswith("blackbox-"):
                        yield os.path.join(folder, name, STATE)
