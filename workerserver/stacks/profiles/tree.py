"""A job's profile as one flame graph: each call with its time in all ranks, and the rank set."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import add

from workerserver.stacks.profiles.job import Group, Job, label, median
from workerserver.stacks.profiles.recorded import Function

__all__ = ["Call", "grow"]


@dataclass(slots=True)
class Call:
    """One call, with all that it called. Times in microseconds, summed over the ranks.

    *ranks* are those that were met in it. *median* is that of all members; *most* is the largest
    time of one member, and *most_of* names the member. If one rank is compared with the others,
    *here* is its time and *others* the median of the others.
    """

    name: str
    function: Function | None = None
    children: dict[str | int, Call] = field(default_factory=dict)
    own: float = 0.0
    total: float = 0.0
    on: float = 0.0
    ranks: str = ""
    median: float = 0.0
    most: float = 0.0
    most_of: str = ""
    here: float = 0.0
    others: float = 0.0

    def walk(self) -> Iterator[tuple[int, Call]]:
        """Depth and call, a caller before the called, the longest first."""
        waiting = [(0, self)]
        while waiting:
            depth, call = waiting.pop()
            yield depth, call
            below = sorted(call.children.values(), key=lambda each: each.total)
            waiting += [(depth + 1, each) for each in below]


def grow(job: Job, rank: int | None = None) -> Call:
    """The flame graph of *job*; with *rank*, that rank is compared with the others."""
    root = Call("all ranks")
    groups: dict[Group, Call] = {}
    made: dict[tuple[Group, int], Call] = {}
    for group, stack in job.times:
        if group not in groups:
            above = root
            for name in group.labels:
                above = above.children.setdefault(name, Call(name))
            groups[group] = above
        call = groups[group]
        below: list[int] = []
        while stack >= 0 and (group, stack) not in made:
            below.append(stack)
            stack = job.stacks.nodes[stack][0]
        if stack >= 0:
            call = made[group, stack]
        for each in reversed(below):
            number = job.stacks.nodes[each][1]
            function = job.stacks.functions[number]
            call = call.children.setdefault(number, Call(label(function), function))
            made[group, each] = call
    place = None if rank is None else job.place_of(rank)
    _sum(job, root, {id(_at(made, groups, key)): key for key in job.times}, place)
    return root


def _at(
    made: dict[tuple[Group, int], Call], groups: dict[Group, Call], key: tuple[Group, int]
) -> Call:
    return made[key] if key[1] >= 0 else groups[key[0]]


def _sum(job: Job, root: Call, keys: dict[int, tuple[Group, int]], place: int | None) -> None:
    """Fill in all times. A call's vector, with a time for each member, is dropped once its caller
    has it: with all of them, thousands of ranks would take gigabytes."""
    count = len(job.members)
    vectors: dict[int, array[float]] = {}
    waiting: list[tuple[Call, bool]] = [(root, False)]
    while waiting:
        call, done = waiting.pop()
        if not done:
            waiting.append((call, True))
            waiting += [(child, False) for child in call.children.values()]
            continue
        vector = array("d", bytes(8 * count))
        key = keys.get(id(call))
        if key is not None:
            for who, on, off in job.times[key].each():
                vector[who] = on + off
                call.on += on
            call.own = sum(vector)
        for child in call.children.values():
            vector = array("d", map(add, vector, vectors.pop(id(child))))
            call.on += child.on
        vectors[id(call)] = vector
        _tell(job, call, vector, place)


def _tell(job: Job, call: Call, vector: array[float], place: int | None) -> None:
    call.total = sum(vector)
    met = [who for who, time in enumerate(vector) if time]
    call.ranks = job.names(met)
    call.median = median([vector[who] for who in met], len(vector))
    if met:
        who = max(met, key=vector.__getitem__)
        call.most, call.most_of = vector[who], job.names([who])
    if place is not None:
        call.here = vector[place]
        some = [time for who, time in enumerate(vector) if time and who != place]
        call.others = median(some, len(vector) - 1)
