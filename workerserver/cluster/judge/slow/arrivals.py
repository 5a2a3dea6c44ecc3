"""When each rank came to each operation of a group, and how much of that was its own work.

Ranks are compared by one clock, or each by its own:

* "clock": the ranks of one host, by its clock, when each issued the operation;
* "gpu": how long the operation ran on each rank's GPU, where torch measures it. Who comes last
  waits for nobody, so the operation is shortest there. No clocks are compared;
* "heartbeat": the time from ``heartbeat()`` to the first operation of the step, each by its own
  clock. This is for groups whose ranks are on several hosts.

Operations that did not wait for each other (several gradients on their way at a time) are one
occasion: who is late for the first is late for all. So are the operations of one step.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from workerserver.cluster.judge.flight import Group
from workerserver.cluster.read.recorder import WATCHED, Operation
from workerserver.cluster.read.steps import Pace

__all__ = ["LAST", "Basis", "Occasion", "Series", "Source", "all_series"]

Basis = Literal["clock", "gpu", "heartbeat", "steps"]
"""steps: no operations at all, but the steps of ranks that don't wait for each other; see pace."""

#: Operations of a group that are looked at.
LAST = 500
#: Operations after which a program may begin again with the same ones.
MAX_PERIOD = 64
#: Of the operations, so many have to be the same after a period.
MIN_ALIKE = 0.9
#: Fewer occasions are no steps to speak of: then operations are compared one by one.
MIN_STEPS = 16
#: Of the operations: so many steps are one for each.
ALMOST = 0.8
#: A heartbeat right before the operation tells nothing of the work before it.
MIN_PART = 0.1


class Source(NamedTuple):
    """Of one rank: *host* None is this machine."""

    host: str | None = None
    pace: Pace | None = None


class Occasion(NamedTuple):
    """Of one or more *operations*. *late*: by how much each rank came after the first one, in
    seconds. *own*: the same if what it waited for in other groups is left out. *at*: when, in
    seconds, by the clock of the first rank."""

    operations: int
    at: float
    late: tuple[float, ...]
    own: tuple[float, ...]


@dataclass(slots=True)
class Series:
    """The *occasions* on which *ranks* came to operations of *group*, the oldest first. *name*:
    what operations they are, if they are all alike. *resolution*: seconds that are no difference.
    *among*: of whom *ranks* are compared: all members of the group, or those of one host."""

    group: Group | None
    ranks: tuple[int, ...]
    basis: Basis
    occasions: list[Occasion] = field(default_factory=list)
    name: str = ""
    resolution: float = 0.0
    among: tuple[int, ...] = ()
    queued: bool = False
    """The operations were only put into a queue for a GPU, and ran later."""

    @property
    def operations(self) -> int:
        return sum(each.operations for each in self.occasions)


def all_series(
    groups: Sequence[Group], sources: Mapping[int, Source], last: int = LAST
) -> list[Series]:
    """Of the *last* operations of each group."""
    reader = _Reader(groups, sources, last)
    found = [
        series for number, group in enumerate(groups) for series in reader.of_group(number, group)
    ]
    return [series for series in found if series.occasions]


Event = tuple[int, int]
"""The number of a group and of an operation in it."""


@dataclass(slots=True)
class _Burst:
    operation: Operation
    count: int
    at_ns: int
    late: list[float]
    own: list[float]


class _Reader:
    def __init__(self, groups: Sequence[Group], sources: Mapping[int, Source], last: int) -> None:
        self.groups = groups
        self.sources = sources
        self.last = last
        self.first: list[dict[int, dict[int, Operation]]] = []
        events: dict[int, list[tuple[int, int, int]]] = {}
        for number, group in enumerate(groups):
            rows: dict[int, dict[int, Operation]] = {}
            for rank, record in sorted(group.records.items()):
                rows[rank] = {
                    seq: each[0]
                    for seq, each in record.collectives.items()
                    if each[0].created_ns is not None and each[0].record >= 0
                }
                events.setdefault(rank, []).extend(
                    (operation.created_ns or 0, number, seq)
                    for seq, operation in rows[rank].items()
                )
            self.first.append(rows)
        self.before: dict[int, dict[Event, Event | None]] = {}
        for rank, its in events.items():
            its.sort()
            before = self.before[rank] = {}
            previous: Event | None = None
            for _, number, seq in its:
                before[number, seq] = previous
                previous = (number, seq)
        self.ends: dict[Event, int | None] = {}

    def source(self, rank: int) -> Source:
        return self.sources.get(rank, Source())

    def of_group(self, number: int, group: Group) -> list[Series]:
        members = tuple(rank for rank, known in self.first[number].items() if known)
        if len(members) < 2:
            return []
        gpu = self._on_gpu(number, group, members)
        if gpu is not None:
            return [gpu]
        hosts: dict[str | None, list[int]] = {}
        for rank in members:
            hosts.setdefault(self.source(rank).host, []).append(rank)
        if len(hosts) == 1:
            return [self._by_clock(number, group, members)]
        by_beat = self._since_heartbeat(number, group, members)
        if by_beat is not None:
            return [by_beat]
        return [self._by_clock(number, group, tuple(r)) for r in hosts.values() if len(r) > 1]

    def _shared(self, number: int, members: Sequence[int]) -> list[int]:
        """The last operations that all of *members* have issued."""
        rows = self.first[number]
        shared = set(rows[members[0]]).intersection(*(rows[rank] for rank in members[1:]))
        return sorted(shared)[-self.last :]

    def _created(self, number: int, seq: int, members: Sequence[int]) -> list[int]:
        rows = self.first[number]
        return [rows[rank][seq].created_ns or 0 for rank in members]

    # --- by the clock of their host

    def _by_clock(self, number: int, group: Group, members: tuple[int, ...]) -> Series:
        host = self.source(members[0]).host
        among = [rank for rank in group.ranks if self.source(rank).host == host]
        series = Series(group, members, "clock", among=tuple(among))
        rows = self.first[number]
        bursts: list[_Burst] = []
        base: list[int] | None = None
        end = -1
        for seq in self._shared(number, members):
            came = self._created(number, seq, members)
            operation = rows[members[0]][seq]
            if min(came) >= end:  # all of them have waited for the one before
                base = self._released(number, seq, members, came)
                bursts.append(_Burst(operation, 0, came[0], [], []))
            end = max(came)
            burst = bursts[-1]
            burst.count += 1
            burst.late = _after_the_first(came)
            own = [] if base is None else [a - b for a, b in zip(came, base, strict=True)]
            burst.own = _after_the_first(own)
            series.queued = series.queued or operation.backend in WATCHED
        self._fill(series, [burst for burst in bursts if burst.own])
        return series

    def _released(
        self, number: int, seq: int, members: Sequence[int], came: Sequence[int]
    ) -> list[int] | None:
        """When each rank could begin its work for the operation. None if that isn't known."""
        before = [self.before[rank][number, seq] for rank in members]
        if len(set(before)) == 1:  # they began together
            return [0] * len(members)
        released = []
        for rank, event, now in zip(members, before, came, strict=True):
            end = self._end(event, self.source(rank).host) if event is not None else None
            if end is None or event is None:
                return None
            issued = self.first[event[0]][rank][event[1]].created_ns or 0
            released.append(end if end <= now else issued)  # it did not wait for the end
        return released

    def _end(self, event: Event, host: str | None) -> int | None:
        """When the last rank came to an operation: it can't have ended before."""
        if event not in self.ends:
            number, seq = event
            rows = self.first[number]
            ranks = self.groups[number].ranks
            known = all(
                self.source(rank).host == host and seq in rows.get(rank, {}) for rank in ranks
            )
            self.ends[event] = max(self._created(number, seq, ranks)) if known else None
        return self.ends[event]

    # --- each by its own clock

    def _on_gpu(self, number: int, group: Group, members: tuple[int, ...]) -> Series | None:
        series = Series(group, members, "gpu", among=group.ranks)
        rows = self.first[number]
        bursts = []
        for seq in self._shared(number, members):
            took = [rows[rank][seq].duration_ms for rank in members]
            if len({self.before[rank][number, seq] for rank in members}) > 1:
                continue  # one that waited in another group comes late here
            times = [each for each in took if each is not None]
            if len(times) < len(took):
                continue
            late = [(max(times) - each) / 1e3 for each in times]
            operation = rows[members[0]][seq]
            bursts.append(_Burst(operation, 1, operation.created_ns or 0, late, late))
        self._fill(series, bursts)
        return series if bursts else None

    def _since_heartbeat(
        self, number: int, group: Group, members: tuple[int, ...]
    ) -> Series | None:
        paces = [self.source(rank).pace for rank in members]
        known = [pace for pace in paces if pace is not None and pace.began_ns]
        if len(known) < len(paces):
            return None
        series = Series(group, members, "heartbeat", among=group.ranks)
        series.resolution = max(pace.tick_s for pace in known)
        bursts = []
        longest = []
        for seq in self._shared(number, members):
            came = self._created(number, seq, members)
            parts = self._parts((number, seq), members, known, came)
            if parts:
                late = _after_the_first(parts)
                operation = self.first[number][members[0]][seq]
                bursts.append(_Burst(operation, 1, came[0], late, late))
                longest.append(max(parts))
        if len(bursts) < 2:
            return None
        step = (bursts[-1].at_ns - bursts[0].at_ns) / (len(bursts) - 1)
        if sorted(longest)[len(longest) // 2] < MIN_PART * step:
            return None
        self._fill(series, bursts)
        return series

    def _parts(
        self, event: Event, members: Sequence[int], paces: Sequence[Pace], came: Sequence[int]
    ) -> list[int]:
        """The time from each rank's heartbeat to the operation, if this is the first one of their
        step; else nothing.

        What comes within a tick after a heartbeat may have come before it. Those who came earlier
        tell then which step it is.
        """
        latest = [_step_at(pace, now) for pace, now in zip(paces, came, strict=True)]
        surely = [
            _step_at(pace, now - int(pace.tick_s * 1e9))
            for pace, now in zip(paces, came, strict=True)
        ]
        sure = {
            pace.steps[at]
            for pace, at, other in zip(paces, latest, surely, strict=True)
            if at == other >= 0
        }
        if len(sure) != 1 or min(surely) < 0:
            return []
        (step,) = sure
        parts = []
        for rank, pace, now, *places in zip(members, paces, came, latest, surely, strict=True):
            at = next((place for place in places if pace.steps[place] == step), None)
            if at is None:
                return []
            before = self.before[rank][event]
            if before is not None:
                issued = self.first[before[0]][rank][before[1]].created_ns or 0
                if _step_at(pace, issued - int(pace.tick_s * 1e9)) == at:
                    return []
            parts.append(now - pace.began_ns[at])
        return parts

    # --- what is one occasion

    def _fill(self, series: Series, bursts: list[_Burst]) -> None:
        names = Counter(burst.operation.op for burst in bursts)
        series.name = next(iter(names)) if len(names) == 1 else ""
        keys = self._steps(series.ranks, bursts)
        if keys is None:
            keys = _periods(bursts)
        merged: dict[int, list[_Burst]] = {}
        for key, burst in zip(keys, bursts, strict=True):
            merged.setdefault(key, []).append(burst)
        series.occasions = [
            Occasion(
                sum(burst.count for burst in some),
                some[0].at_ns / 1e9,
                tuple(map(sum, zip(*(burst.late for burst in some), strict=True))),
                tuple(map(sum, zip(*(burst.own for burst in some), strict=True))),
            )
            for some in merged.values()
        ]

    def _steps(self, ranks: Sequence[int], bursts: Sequence[_Burst]) -> list[int] | None:
        """The step that each belongs to, by the heartbeats of the first rank."""
        pace = self.source(ranks[0]).pace
        if pace is None or not pace.began_ns:
            return None
        keys = []
        for number, burst in enumerate(bursts):
            at = _step_at(pace, burst.at_ns - int(pace.tick_s * 1e9))
            keys.append(at if at >= 0 else -1 - number)  # before the oldest one that is kept
        different = len(set(keys))
        # With one operation in each step there is nothing to put together.
        if different < min(MIN_STEPS, len(keys)) or different > ALMOST * len(keys):
            return None
        return keys


def _step_at(pace: Pace, moment_ns: int) -> int:
    """The place in *pace* of the last step that had begun by its heartbeat; -1: none had."""
    return bisect_right(pace.began_ns, moment_ns) - 1


def _after_the_first(times: Sequence[int]) -> list[float]:
    first = min(times, default=0)
    return [(time - first) / 1e9 for time in times]


def _periods(bursts: Sequence[_Burst]) -> list[int]:
    """Numbers that are equal within one pass of a loop, as far as the operations show passes."""
    signs = [(burst.operation.op, burst.operation.inputs.sizes) for burst in bursts]
    count = len(signs)
    for period in range(1, min(MAX_PERIOD, count // MIN_STEPS) + 1):
        alike = sum(a == b for a, b in zip(signs, signs[period:], strict=False))
        if alike >= MIN_ALIKE * (count - period):
            return [(number - count) // period for number in range(count)]
    return list(range(count))
