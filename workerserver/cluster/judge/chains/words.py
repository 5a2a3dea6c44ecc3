"""Deadlocks and debts in English; :mod:`sentences` has the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from workerserver.cluster.judge.chains.facts import Circle, Deadlock, Knot
from workerserver.cluster.model import Frame

__all__ = ["FILE_LOCK", "WHOLE_JOB", "at", "deadlock", "debt"]

#: What the operation of a rank is called that waits for a file lock; its group is the lock's path.
FILE_LOCK = "file lock"
#: The group of a call that takes all ranks of the job.
WHOLE_JOB = "the job"
#: Of a deadlock, threads or ranks.
MAX_STEPS = 6

Names = Callable[[Sequence[int]], str]


def at(frame: Frame) -> str:
    """``compute(), hang.py:12``"""
    name = frame.file.replace("\\", "/").rpartition("/")[2] or frame.file
    function = frame.function if frame.function.startswith("<") else f"{frame.function}()"
    return f"{function}, {name}:{'?' if frame.line is None else frame.line}"


def deadlock(claim: Deadlock | Knot, names: Names) -> str:
    """What stands behind "deadlock in rank 3: "."""
    if isinstance(claim, Knot):
        steps = [_step(step, names) for step in claim.steps[:MAX_STEPS]]
        return ", and ".join(steps) + _more(len(claim.steps))
    first, *rest = claim.threads
    if not rest:
        other = first.stands is not None and first.stands != first.took
        place = f" in {at(first.stands)}" if other and first.stands is not None else ""
        return f"{_who(first)} holds a lock{_took(first)} and waits for it itself{place}"
    start = f"{_who(first)} holds a lock{_took(first)} and " if first.held is not None else ""
    start = start or f"{_who(first)} "
    text = start + _waits(first, rest[0], first.held is not None)
    for each, after in pairwise(rest[:MAX_STEPS]):
        text += f", which {_waits(each, after, True)}"
    last = rest[-1]
    if len(rest) > 1 or last.joined or first.joined:
        ends = f"joins {_who(first)}" if last.joined else f"waits for the lock of {_who(first)}"
        text += f"{_more(len(claim.threads))}, which {ends}"
    return text


def _waits(each: Circle, after: Circle, holds: bool) -> str:
    if each.joined:
        return f"joins {_who(after)}"
    lock = "another" if holds else "a lock"
    return f"waits for {lock}, which {_who(after)} holds{_took(after)}"


def _who(each: Circle) -> str:
    return each.thread if isinstance(each.thread, str) else f"thread {each.thread}"


def _took(each: Circle) -> str:
    return f" ({at(each.took)})" if each.took is not None else ""


def _more(count: int) -> str:
    return f", and {count - MAX_STEPS} more" if count > MAX_STEPS else ""


def _step(step: tuple[Sequence[int], str, str, Sequence[int]], names: Names) -> str:
    ranks, operation, group, absent = step
    verb = "waits" if len(ranks) == 1 else "wait"
    if operation == FILE_LOCK:
        return f"{names(ranks)} {verb} for the file lock on {group}, which {names(absent)} holds"
    return f"{names(ranks)} {verb} in {operation} of {group} for {names(absent)}"


def debt(operation: str, group: str, ranks: Sequence[int], many: bool, names: Names) -> str:
    """What is owed to *ranks*, which wait in *operation*: a send, a receive, a file lock."""
    verb = "waits" if len(ranks) == 1 else "wait"
    if operation == FILE_LOCK:
        hold = "hold" if many else "holds"
        return f"{hold} the file lock on {group}, for which {names(ranks)} {verb}"
    owed = "send" if operation.startswith("recv") else "recv"
    return f"{'owe' if many else 'owes'} a {owed}: {names(ranks)} {verb} in {operation}"
