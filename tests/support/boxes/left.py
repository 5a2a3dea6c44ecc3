"""Black boxes that a test's job has left, and the processes that keep them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from support.waiting import wait_until
from workerserver.blackbox.format import BoxError
from workerserver.blackbox.read import Box, read_box

__all__ = [
    "await_box",
    "await_no_keeper",
    "boxes_in",
    "commands",
    "diagnoses_of",
    "is_collector",
    "keepers_of",
    "left_on_tmpfs",
    "parent_of",
]


def boxes_in(folder: Path) -> list[Box]:
    """Every box of every run below *folder*. A box that can't be read fails the test."""
    return [read_box(str(path)) for path in sorted(folder.glob("*/rank*.box"))]


def await_box(folder: Path, pid: int, *, ended: bool = True) -> Box:
    """The box of process *pid*, once it has been copied; with *ended*, since the process ended."""
    found: list[Box] = []

    def there() -> bool:
        found[:] = []
        try:
            paths = list(folder.glob(f"*/rank*-{pid}.box"))
        except FileNotFoundError:  # a run that is one too many was deleted just now
            return False
        for path in paths:
            try:
                box = read_box(str(path))
            except BoxError:  # replaced by a newer one just now
                return False
            if box.keeper is not None and bool(box.keeper.value["ended"]) >= ended:
                found.append(box)
        return bool(found)

    wait_until(there, 100)  # on a busy machine: the keeper has a low priority
    return found[0]


def keepers_of(folder: Path) -> list[int]:
    """The pids of the keepers that copy to *folder*."""
    found = _family(folder)
    return [pid for pid in found if parent_of(pid) not in found and not is_collector(pid)]


def diagnoses_of(folder: Path) -> list[int]:
    """The pids of the diagnoses that the watchdog makes now. The process that is ready for them is
    a fork of the keeper, and forks for each."""
    found = _family(folder)
    ready = [pid for pid in found if parent_of(pid) in found]
    return [pid for pid in ready if parent_of(pid) in ready]


def await_no_keeper(folder: Path) -> None:
    """Until all is copied to *folder* that is left, and the watchdog has told what it tells."""
    wait_until(lambda: not _family(folder), 250)


def _family(folder: Path) -> list[int]:
    """Keepers with their forks, which have the same command line."""
    return [pid for pid, words in commands() if str(folder) in words and _KEEPER in words]


def is_collector(pid: int) -> bool:
    """One that a keeper has started has the command line of the keeper."""
    try:
        return Path(f"/proc/{pid}/comm").read_text() == "ws-collector\n"
    except OSError:
        return False


def parent_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


_KEEPER = "workerserver.blackbox.keeper"


def commands() -> Iterator[tuple[int, list[str]]]:
    """Pid and command line of each process. A keeper forks when it starts: its child may come, and
    itself end, between a list of pids and the look at each. So there are two lists."""
    seen: set[str] = set()
    for _ in range(2):
        for name in set(filter(str.isdecimal, os.listdir("/proc"))) - seen:
            try:
                words = Path(f"/proc/{name}/cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            seen.add(name)
            yield int(name), words.split("\0")


def left_on_tmpfs(pid: int) -> list[str]:
    """Boxes of process *pid* that nobody has taken away."""
    place = Path(f"/dev/shm/workerserver-{os.geteuid()}")
    return [str(path) for path in place.glob(f"blackbox-*/{pid}-*.box*")]
