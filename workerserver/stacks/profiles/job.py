"""The profile of a whole job: the recordings of all ranks, merged.

All times are microseconds of a thread. A sample stands for the time that passed between two
samples of its rank, so ranks that missed some samples count as much as the others.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from workerserver.ranks import fold
from workerserver.stacks.profiles.recorded import Function, Recorded, Thread

__all__ = ["IDLE", "Group", "Job", "Member", "Own", "Stacks", "Times", "label", "median"]

MICROSECONDS = 1_000_000
MAIN = "MainThread"
#: Above the threads that ran in at most this share of their samples. The main thread is no idle
#: thread: what it waits for is what the job waits for.
IDLE = "idle threads"
IDLE_SHARE = 0.01
NO_STACK = -1


class Member(NamedTuple):
    """Whose recording it is. *rank* is None if nobody knows it; *name* is then its address."""

    rank: int | None
    name: str

    @property
    def label(self) -> str:
        return self.name if self.rank is None else str(self.rank)


class Group(NamedTuple):
    """Threads that count together: those of one name, with each number in it as ``N``. *idle*: they
    hardly ran (IDLE_SHARE)."""

    idle: bool
    thread: str

    @property
    def labels(self) -> tuple[str, ...]:
        return (IDLE, self.thread) if self.idle else (self.thread,)


class Stacks:
    """Each stack once, as a number: its caller's stack, and a function."""

    def __init__(self) -> None:
        self.functions: list[Function] = []
        self.nodes: list[tuple[int, int]] = []
        self._functions: dict[Function, int] = {}
        self._nodes: dict[tuple[int, int], int] = {}

    def function(self, function: Function) -> int:
        number = self._functions.setdefault(function, len(self.functions))
        if number == len(self.functions):
            self.functions.append(function)
        return number

    def push(self, caller: int, function: int) -> int:
        """The stack of a call of *function* by the stack *caller* (NO_STACK: by nobody)."""
        key = (caller, function)
        number = self._nodes.setdefault(key, len(self.nodes))
        if number == len(self.nodes):
            self.nodes.append(key)
        return number

    def path(self, stack: int) -> list[int]:
        """The functions of *stack*, the oldest call first."""
        path = []
        while stack != NO_STACK:
            stack, function = self.nodes[stack]
            path.append(function)
        path.reverse()
        return path


@dataclass(slots=True)
class Own:
    """What one member has recorded, in one part or several."""

    seconds: float = 0.0
    samples: int = 0
    missed: int = 0
    unstable: int = 0
    cost_seconds: float = 0.0
    times: dict[tuple[Thread, int], tuple[float, float]] = field(default_factory=dict)
    """By thread and stack: time on a processor, and off it."""

    def add(self, recorded: Recorded, stacks: Stacks) -> None:
        """Count one more part."""
        self.seconds += recorded.seconds
        self.samples += recorded.samples
        self.missed += recorded.missed
        self.unstable += recorded.unstable
        self.cost_seconds += recorded.cost_seconds
        each = recorded.seconds * MICROSECONDS / recorded.samples if recorded.samples else 0.0
        functions = [stacks.function(function) for function in recorded.functions]
        found: list[tuple[Thread, int]] = []
        for parent, function, active, idle in recorded.nodes:
            if parent == -1:
                key = (recorded.threads[function], NO_STACK)
            else:
                thread, above = found[parent]
                key = (thread, stacks.push(above, functions[function]))
            found.append(key)
            if active or idle:
                on, off = self.times.get(key, (0.0, 0.0))
                self.times[key] = (on + active * each, off + idle * each)


class Times:
    """The times of one stack, of those members that were met in it. *who*: places in
    ``Job.members``, ascending."""

    __slots__ = ("off", "on", "who")

    def __init__(self) -> None:
        self.who = array("L")
        self.on = array("d")
        self.off = array("d")

    @property
    def total(self) -> float:
        return sum(self.on) + sum(self.off)

    def of(self, place: int) -> float:
        """The time of the member at *place*."""
        at = bisect_left(self.who, place)
        met = at < len(self.who) and self.who[at] == place
        return self.on[at] + self.off[at] if met else 0.0

    def each(self) -> Iterator[tuple[int, float, float]]:
        return zip(self.who, self.on, self.off, strict=True)


class Job:
    """All members' times, by group of threads and stack."""

    def __init__(self, mode: str, hz: float, time: float = 0.0) -> None:
        self.mode = mode
        self.hz = hz
        self.time = time  # of the start, seconds since the epoch
        self.stacks = Stacks()
        self.members: list[Member] = []
        self.times: dict[tuple[Group, int], Times] = {}
        self.seconds = 0.0  # the longest recording
        self.samples = 0
        self.missed = 0

    def add(self, member: Member, own: Own) -> None:
        """Add the whole recording of *member*. Its stacks are those of ``self.stacks``."""
        place = len(self.members)
        self.members.append(member)
        self.seconds = max(self.seconds, own.seconds)
        self.samples += own.samples
        self.missed += own.missed
        ran = _ran(own)
        groups: dict[Thread, Group] = {}
        mine: dict[tuple[Group, int], tuple[float, float]] = {}
        for (thread, stack), (on, off) in own.times.items():
            group = groups.get(thread)
            if group is None:
                idle = thread not in ran and thread.name != MAIN
                group = groups[thread] = Group(idle, re.sub(r"[0-9]+", "N", thread.name))
            before = mine.get((group, stack), (0.0, 0.0))
            mine[group, stack] = (before[0] + on, before[1] + off)
        for key, (on, off) in mine.items():
            times = self.times.get(key)
            if times is None:
                times = self.times[key] = Times()
            times.who.append(place)
            times.on.append(on)
            times.off.append(off)

    def place_of(self, rank: int) -> int | None:
        """The place of *rank* in ``members``."""
        return next((n for n, each in enumerate(self.members) if each.rank == rank), None)

    def narrowed(self, member: Member, pick: Callable[[Times], float]) -> Job:
        """A job of *member* alone. *pick* gives the time of each stack."""
        made = Job(self.mode, self.hz)
        made.stacks, made.members, made.seconds = self.stacks, [member], self.seconds
        for key, times in self.times.items():
            time = pick(times)
            if time > 0:
                own = made.times[key] = Times()
                own.who.append(0)
                own.on.append(time)
                own.off.append(0.0)
        return made

    def names(self, places: Sequence[int]) -> str:
        """Members as text: ranks folded, then addresses of those without a rank."""
        some = [self.members[place] for place in places]
        ranks = fold(each.rank for each in some if each.rank is not None)
        return ",".join([*([ranks] if ranks else []), *(e.name for e in some if e.rank is None)])

    def against(self, times: Times, place: int) -> tuple[float, float]:
        """The time of the member at *place*, and the median of the others."""
        others = [on + off for who, on, off in times.each() if who != place]
        return times.of(place), median(others, len(self.members) - 1)


def _ran(own: Own) -> set[Thread]:
    """The threads that are not idle."""
    sums: dict[Thread, tuple[float, float]] = {}
    for (thread, _), (on, off) in own.times.items():
        before = sums.get(thread, (0.0, 0.0))
        sums[thread] = (before[0] + on, before[1] + off)
    return {thread for thread, (on, off) in sums.items() if on > IDLE_SHARE * (on + off)}


def median(values: list[float], count: int) -> float:
    """The median of *count* numbers: *values*, none below 0, and zeros."""
    if count < 1:
        return 0.0
    values.sort()
    missing = count - len(values)

    def at(place: int) -> float:
        return values[place - missing] if place >= missing else 0.0

    return (at((count - 1) // 2) + at(count // 2)) / 2


def label(function: Function) -> str:
    """``name (file:line)``, with the last two parts of the file's path."""
    file, name, line = function
    short = "/".join(file.split("/")[-2:])
    where = f"{short}:{line}" if line else short
    return f"{name or '???'} ({where})" if where else name or "???"
