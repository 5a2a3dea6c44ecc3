"""Many ranks' stacks made few: ranks that do the same become one group, the smallest groups first.

What a rank does is what its main thread does, and what its other threads do. A thread that waits in
its usual place does not count (:mod:`roles`). A library's file counts by its path inside the
library, so that two hosts with different folders fall into the same group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from workerserver.cluster.model import NATIVE, Frame, RankState, Thread
from workerserver.cluster.read.owners import code_file
from workerserver.cluster.read.roles import Role, is_idle, main_thread, roles
from workerserver.ranks import fold

__all__ = ["Group", "groups", "normal", "stacks_of"]

Stack = tuple[Frame, ...]
Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks that do the same. *count* is the number of workers. *unranked* has the addresses of
    workers whose rank isn't known.

    *threads* are those of the member with the lowest rank: first the main thread, then the threads
    that do something. *roles* has the role of each. *idle* has the roles of all other threads, and
    how many of each a member has: the least and the most.
    """

    ranks: list[int]
    count: int
    threads: tuple[Thread, ...]
    roles: tuple[Role, ...]
    idle: Mapping[Role, tuple[int, int]]
    unranked: list[str]

    @property
    def folded(self) -> str:
        return fold(self.ranks)


@dataclass(slots=True)
class _Doing:
    """What a worker's threads tell. Workers that do the same have equal keys. *shown*: the numbers
    of the threads to show."""

    key: Key
    shown: tuple[int, ...]
    roles: tuple[Role, ...]
    idle: dict[Role, int]


@dataclass(slots=True)
class _Members:
    first: _Doing
    threads: Sequence[Thread]
    lowest: tuple[int, str]
    ranks: list[int] = field(default_factory=list)
    unranked: list[str] = field(default_factory=list)
    idle: dict[Role, tuple[int, int]] = field(default_factory=dict)


def stacks_of(states: Iterable[RankState]) -> list[tuple[RankState, Sequence[Thread]]]:
    """The states that have stacks, each with its stacks. A worker that gave only a digest has the
    stacks of a worker with the same digest. A worker without either is left out."""
    states = list(states)
    known = {
        (state.digest, state.mode, state.kind): state.threads
        for state in states
        if state.threads and state.digest is not None
    }
    found: list[tuple[RankState, Sequence[Thread]]] = []
    for state in states:
        threads = state.threads
        if not threads and state.digest is not None:
            threads = known.get((state.digest, state.mode, state.kind), ())
        if threads:
            found.append((state, threads))
    return found


def groups(states: Iterable[RankState]) -> list[Group]:
    """Each worker that has stacks is in exactly one group. The smallest groups come first. Of two
    equal groups, the one with the lower rank comes first."""
    shared: dict[int, _Doing] = {}
    alike: dict[Key, _Doing] = {}
    frames: dict[Frame, Frame] = {}
    found: dict[Key, _Members] = {}
    for state, threads in stacks_of(states):
        doing = shared.get(id(threads))  # workers may share the object; the states keep it alive
        if doing is None:
            marks = tuple(map(_marks, threads))
            doing = alike.get(marks)
            if doing is None:
                doing = alike[marks] = _doing(threads, frames)
            shared[id(threads)] = doing
        order = (1 << 62 if state.rank is None else state.rank, state.worker.address)
        members = found.get(doing.key)
        if members is None:
            members = found[doing.key] = _Members(doing, threads, order)
            members.idle.update((name, (count, count)) for name, count in doing.idle.items())
        else:
            if order < members.lowest:
                members.first, members.threads, members.lowest = doing, threads, order
            _widen(members.idle, doing.idle)
        if state.rank is None:
            members.unranked.append(state.worker.address)
        else:
            members.ranks.append(state.rank)
    ordered = sorted(
        found.values(), key=lambda each: (len(each.ranks) + len(each.unranked), each.lowest)
    )
    return [
        Group(
            sorted(set(each.ranks)),
            len(each.ranks) + len(each.unranked),
            tuple(each.threads[index] for index in each.first.shown),
            each.first.roles,
            dict(sorted(each.idle.items())),
            sorted(each.unranked),
        )
        for each in ordered
    ]


def _widen(ranges: dict[Role, tuple[int, int]], counts: Mapping[Role, int]) -> None:
    for name in ranges.keys() | counts.keys():
        count = counts.get(name, 0)
        low, high = ranges.get(name, (0, count))
        ranges[name] = (min(low, count), max(high, count))


def _marks(thread: Thread) -> Key:
    """All that _doing() looks at."""
    kernel = None if thread.main and thread.frames else (thread.state, thread.wchan)
    about = (thread.name, thread.main, thread.holds_gil, thread.unstable, thread.truncated)
    return (thread.shown, about, kernel)


def _doing(threads: Sequence[Thread], frames: dict[Frame, Frame]) -> _Doing:
    main = main_thread(threads)
    key: Key = ("no main thread",)
    shown: list[int] = []
    names: list[Role] = []
    idle: dict[Role, int] = {}
    # As in the digests, how many threads share a stack says nothing: pools start them by chance.
    active: dict[tuple[Role, Stack], int] = {}
    for index, (its_role, thread) in enumerate(zip(roles(threads), threads, strict=True)):
        if thread is main:
            shown, names = [index], ["main"]
            key = ("no frames", thread.state, thread.wchan)
            if thread.frames:
                key = normal(thread.shown, frames)
        elif is_idle(thread, its_role):
            idle[its_role] = idle.get(its_role, 0) + 1
        else:
            # This stack changed each time it was read, so it tells nothing about the ranks.
            stack = () if thread.unstable else normal(thread.shown, frames)
            active.setdefault((its_role, stack), index)
    for each in sorted(active, key=lambda each: (each[0], _sortable(each[1]))):
        shown.append(active[each])
        names.append(each[0])
    return _Doing((key, frozenset(active)), tuple(shown), tuple(names), idle)


def normal(frames: Stack, known: dict[Frame, Frame]) -> Stack:
    """*frames* with the libraries' files as they are called on every machine."""
    result = []
    for frame in frames:
        found = known.get(frame)
        if found is None:
            file, line, function = frame
            # A native file has no name that is the same on every machine, but for its last part.
            native = file.startswith(NATIVE) and NATIVE + file.rpartition("/")[2]
            found = known[frame] = Frame(native or code_file(file).file, line, function)
        result.append(found)
    return tuple(result)


def _sortable(stack: Stack) -> list[tuple[str, int, str]]:
    return [(file, -1 if line is None else line, function) for file, line, function in stack]
