"""Many ranks' stacks made few: ranks that do the same become one group, the odd ones first.

What a rank does is what its main thread does, and what other threads do that don't merely wait in
their usual place (:mod:`roles`). Files of libraries count by their path inside the library, so
that hosts with other folders fall into the same group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from workerserver.cluster.model import Frame, RankState, Thread
from workerserver.cluster.read.calls import main_thread
from workerserver.cluster.read.progress import Motion, Observation, compare, observe
from workerserver.cluster.read.roles import Role, is_idle, place, roles
from workerserver.cluster.show.tree import Node, render_tree, short_fold, short_frames
from workerserver.cluster.show.tree import tree as tree_of
from workerserver.ranks import fold

__all__ = [
    "Group",
    "Motion",
    "Node",
    "Observation",
    "compare",
    "groups",
    "observe",
    "render_group",
    "render_tree",
    "stacks_of",
    "tree",
]

Stack = tuple[Frame, ...]
Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks that do the same. *count* is the number of workers; those whose rank isn't known are in
    *unranked*, by their addresses.

    *threads* are one member's (that of the lowest rank): first the main thread, then those that do
    something, with their *roles*. *idle*: the others' roles, and the least and the most of each
    that a member has.
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
    """What is told from a worker's threads, without what differs between workers that do the same.
    *shown*: the numbers of the threads to show."""

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
    """The states that have stacks, with them. A worker without its own that gave the same digest
    as another one has that one's; threads never read (a worker that didn't answer) leave it out."""
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
    """Each worker that has stacks is in exactly one group. The smallest groups come first, of equal
    ones that with the lowest rank."""
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
    return (thread.frames, about, kernel)


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
                key = normal(thread.frames, frames)
        elif is_idle(thread, its_role):
            idle[its_role] = idle.get(its_role, 0) + 1
        else:
            # A stack that never held still is another one each time: it must not part the ranks.
            stack = () if thread.unstable else normal(thread.frames, frames)
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
            found = known[frame] = Frame(place(file).file, line, function)
        result.append(found)
    return tuple(result)


def _sortable(stack: Stack) -> list[tuple[str, int, str]]:
    return [(file, -1 if line is None else line, function) for file, line, function in stack]


def tree(states: Iterable[RankState]) -> Node:
    """The main threads of all workers that have stacks as a prefix tree."""
    memo: dict[int, Stack] = {}
    frames: dict[Frame, Frame] = {}
    items: list[tuple[Stack, int | None]] = []
    for state, threads in stacks_of(states):
        stack = memo.get(id(threads))
        if stack is None:
            main = main_thread(threads)
            stack = normal(main.frames, frames)[::-1] if main is not None else ()
            memo[id(threads)] = stack
        items.append((stack, state.rank))
    return tree_of(items)


# ---- as text


def render_group(group: Group) -> list[str]:
    """The group's line, then its threads, newest frame first, runs of library frames as one line.
    As the workers sent it: whoever prints it escapes it."""
    names = short_fold(group.ranks)
    if group.unranked:
        names = ", ".join(filter(None, (names, f"{len(group.unranked)} of unknown rank")))
    lines = [f"{group.count} x {names}"]
    for its_role, thread in zip(group.roles, group.threads, strict=True):
        lines.append(f"  {_title(its_role, thread)}")
        lines += [f"    {line}" for line in short_frames(thread.frames)]
        if not thread.frames:
            kernel = [f"state {thread.state}" if thread.state else "", thread.wchan or ""]
            lines.append("    " + (" ".join(filter(None, kernel)) or "no Python frame"))
    if group.idle:
        idle = [
            f"{name} {low}" if low == high else f"{name} {low}-{high}"
            for name, (low, high) in group.idle.items()
        ]
        lines.append(f"  idle: {', '.join(idle)}")
    return lines


def _title(its_role: Role, thread: Thread) -> str:
    words: list[str] = [its_role]
    if thread.name and its_role not in ("main", "workerserver"):
        words.append(f"({thread.name})")
    if thread.holds_gil:
        words.append("current")
    if thread.unstable:
        words.append("unstable")
    if thread.truncated:
        words.append("cut off")
    return " ".join(words)
