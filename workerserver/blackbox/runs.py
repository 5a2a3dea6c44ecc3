"""The black boxes in a folder, put together to runs of jobs.

A run of a job has a folder on each host. Folders belong together if their boxes tell the same job,
and were written at the same time at some time. Clocks of hosts may differ: then the times of the
files decide, which the folder's own clock has set.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from workerserver.blackbox.format import BoxError
from workerserver.blackbox.place import LEFT, RUN, SUFFIX
from workerserver.blackbox.read import Box, read_box

__all__ = ["Problem", "Run", "holds_boxes", "runs_in"]

#: Boxes that are read; more are no job's.
MAX_BOXES = 1 << 16
#: When a process began is known to a second: so is when its machine started.
BEGAN_SECONDS = 1.0
#: A clock that is corrected may move by so much within the runs that are kept.
STEADY_SECONDS = 60.0
_RANK = re.compile(r"rank(?:(\d{1,9})|-unknown)-\d{1,10}\.box\Z")


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that can't be read as a box. *rank*: from its name."""

    path: str
    rank: int | None
    text: str


@dataclass(slots=True)
class Run:
    """One run of one job. *boxes*: by rank; of a rank that several processes had, the newest one.
    *older*: the others. *clocks_differ_s*: of its hosts, if it is known by the files' times alone
    that they belong together. *began*, *ended*: by the clock of the host that is known first."""

    job: str
    restart: int | None
    world_size: int | None
    began: float
    ended: float
    boxes: list[Box] = field(default_factory=list)
    older: list[Box] = field(default_factory=list)
    clocks_differ_s: float | None = None

    @property
    def missing(self) -> list[int]:
        """Ranks of the job without a box."""
        known = {box.rank for box in self.boxes}
        return [rank for rank in range(self.world_size or 0) if rank not in known]


def holds_boxes(folder: str) -> bool:
    """Whether *folder* is one of black boxes: of runs, of one run, or the boxes' own on a tmpfs."""
    try:
        with os.scandir(folder) as entries:
            return any(
                entry.name.endswith((SUFFIX, LEFT))
                or (RUN.match(entry.name) and entry.is_dir(follow_symlinks=False))
                for entry in entries
            )
    except OSError:
        return False


def runs_in(folders: Sequence[str]) -> tuple[list[Run], list[Problem]]:
    """The runs of which *folders* have boxes, the newest first, and what could not be read. OSError
    if a folder can't be read."""
    boxes: list[Box] = []
    problems: list[Problem] = []
    for path, owner in _files(folders):
        if len(boxes) + len(problems) >= MAX_BOXES:
            problems.append(Problem(path, None, f"only {MAX_BOXES} boxes are read"))
            break
        try:
            box = read_box(path, owner)
            _check(box)
        except BoxError as error:
            match = _RANK.match(os.path.basename(path))
            problems.append(
                Problem(path, int(match[1]) if match is not None and match[1] else None, str(error))
            )
        else:
            boxes.append(box)
    return _grouped(boxes), problems


def _files(folders: Sequence[str]) -> Iterable[tuple[str, int]]:
    """Each box's path, and who owns the folder that was named."""
    for top in folders:
        owner = os.stat(top).st_uid
        with os.scandir(top) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            if entry.name.endswith((SUFFIX, LEFT)):
                yield entry.path, owner
            elif RUN.match(entry.name) and entry.is_dir(follow_symlinks=False):
                try:
                    names = sorted(os.listdir(entry.path))
                except OSError:
                    continue
                yield from ((os.path.join(entry.path, n), owner) for n in names if _RANK.match(n))


def _check(box: Box) -> None:
    """BoxError if the box doesn't tell whose it is."""
    if not box.identity:
        raise BoxError("it does not tell whose it is")


def _began(box: Box) -> float:
    started = box.identity.get("started")
    if isinstance(started, int | float) and 0 < started < 1e12:
        return float(started)
    return box.time or 0.0


def _grouped(boxes: Sequence[Box]) -> list[Run]:
    """Into runs, the newest one first."""
    runs: list[Run] = []
    current: dict[tuple[str, int | None], Run] = {}
    times = _by_files(boxes)
    for box in sorted(boxes, key=_began):
        key = (str(box.identity.get("job"))[:128], box.number("restart"))
        began, ended = _began(box), box.time or _began(box)
        run = current.get(key)
        if run is None or began > run.ended + BEGAN_SECONDS:
            same = [each for each in runs if (each.job, each.restart) == key]
            run = _on_other_hosts(box, same, times)
            if run is None:
                run = current[key] = Run(*key, None, began, ended)
                runs.append(run)
        else:
            run.ended = max(run.ended, ended)
        size = box.number("world_size")
        if size is not None and size <= MAX_BOXES:
            run.world_size = max(run.world_size or 0, size)
        run.boxes.append(box)
    for run in runs:
        _one_of_each_rank(run)
    return sorted(runs, key=lambda run: run.began, reverse=True)


class _Times(NamedTuple):
    """Of a box, by the clock of the folder that it was copied to. *shift*: how far that clock is
    ahead of the host's."""

    began: float
    ended: float
    shift: float


def _by_files(boxes: Sequence[Box]) -> dict[str, _Times]:
    """By the box's path. Nothing of a host whose clock would have jumped: these files were copied
    once more, without their times."""
    found: dict[object, dict[str, _Times]] = {}
    for box in boxes:
        if box.copied is not None:
            with contextlib.suppress(OSError):
                shift = os.stat(box.path).st_mtime - box.copied
                times = _Times(_began(box) + shift, (box.time or _began(box)) + shift, shift)
                found.setdefault(box.identity.get("host"), {})[box.path] = times
    steady = {}
    for each in found.values():
        shifts = [times.shift for times in each.values()]
        if max(shifts) - min(shifts) <= STEADY_SECONDS:
            steady.update(each)
    return steady


def _on_other_hosts(box: Box, runs: Sequence[Run], times: Mapping[str, _Times]) -> Run | None:
    """The run of which *box* has another rank, on a host whose clock differs."""
    mine = times.get(box.path)
    if mine is None or box.rank is None:
        return None
    for run in reversed(runs):
        theirs = [times[each.path] for each in run.boxes if each.path in times]
        if (
            box.number("world_size") == run.world_size
            and box.rank not in [each.rank for each in run.boxes]
            and len(theirs) == len(run.boxes)
            and mine.began <= max(each.ended for each in theirs) + BEGAN_SECONDS
            and min(each.began for each in theirs) <= mine.ended + BEGAN_SECONDS
        ):
            differ = max(abs(mine.shift - each.shift) for each in theirs)
            run.clocks_differ_s = max(run.clocks_differ_s or 0.0, differ)
            return run
    return None


def _one_of_each_rank(run: Run) -> None:
    newest: dict[object, Box] = {}
    for box in run.boxes:  # in the order of their beginning
        key: object = box.rank if box.rank is not None else (box.path,)
        known = newest.get(key)
        if known is not None and _same_process(known, box):
            newest[key] = max(known, box, key=_told)  # the box itself, and a copy of it
            continue
        if known is not None:
            run.older.append(known)
        newest[key] = box
    unknown = 1 << 31
    run.boxes = sorted(
        newest.values(), key=lambda box: (unknown if box.rank is None else box.rank, box.path)
    )


def _same_process(one: Box, other: Box) -> bool:
    names = ("ticks", "host", "boot")
    return one.pid == other.pid and all(
        one.identity.get(name) == other.identity.get(name) for name in names
    )


def _told(box: Box) -> tuple[bool, float]:
    """How much a box tells of its process: a copy that knows the end, then the newest one."""
    keeper = {} if box.keeper is None else box.keeper.value
    return keeper.get("ended") is not None, box.time or 0.0
