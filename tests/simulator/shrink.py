"""A failing job made smaller, as long as it fails in the same way."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Iterator
from functools import partial

from .adapter import judge
from .job.program import Job, Op
from .job.truth import Played, play
from .judged import violations
from .told.answers import tell

__all__ = ["failing_kinds", "shrink"]

Fails = Callable[[Played], set[str]]


def failing_kinds(played: Played) -> set[str]:
    """The properties that today's judge violates on it."""
    return {violation.kind for violation in violations(played, judge(played))}


def shrink(job: Job, fails: Fails = failing_kinds, tries: int = 2000) -> Job:
    """The smallest job found that still violates one of the properties that *job* violates."""
    most = 2 * play(job).machine.count + 1000
    wanted = _kinds(job, fails, most)
    if not wanted:
        return job
    progress = True
    while progress and tries > 0:
        progress = False
        for smaller in _smaller(job):
            tries -= 1
            if _kinds(smaller, fails, most) & wanted:
                job, progress = smaller, True
                break
            if tries <= 0:
                break
    return job


def _copy(job: Job) -> Job:
    copy: Job = pickle.loads(pickle.dumps(job))
    return copy


def _kinds(job: Job, fails: Fails, most: int) -> set[str]:
    try:
        return fails(play(job, tell, most))
    except (AssertionError, IndexError, KeyError, StopIteration, ValueError):
        return set()  # it makes no sense any more


def _smaller(job: Job) -> Iterator[Job]:
    """One rank, one step or one thread fewer; one line of the program fewer in all ranks."""
    for rank in range(job.world - 1, -1, -1):
        if job.world > 2 and all(plant.rank != rank for plant in job.plants):
            with contextlib.suppress(ValueError):
                yield _without_rank(job, rank)
    yield _changed(job, _a_step_fewer)
    for name in {strand.name for plan in job.ranks for strand in plan.strands}:
        if name in ("main", "trainer"):
            continue
        smaller = _copy(job)
        for plan in smaller.ranks:
            plan.strands = [strand for strand in plan.strands if strand.name != name]
        yield smaller
    strands = [strand for plan in job.ranks for strand in plan.strands]
    for place in sorted({op.place for strand in strands for op in strand.ops}):
        yield _changed(job, partial(_without_place, place))


def _without_place(place: tuple[str, int], ops: list[Op]) -> list[Op]:
    return [op for op in ops if op.place != place]


def _changed(job: Job, change: Callable[[list[Op]], list[Op]]) -> Job:
    """The loop goes on with as many operations as before it ended, where there are as many."""
    smaller = _copy(job)
    for plan in smaller.ranks:
        for strand in plan.strands:
            loop = strand.loop
            if loop is None:
                strand.ops = change(strand.ops)
            else:
                head, tail = change(strand.ops[:loop]), change(strand.ops[loop:])
                strand.ops, strand.loop = head + tail, len(head) if tail else None
    return smaller


def _a_step_fewer(ops: list[Op]) -> list[Op]:
    beats = [index for index, op in enumerate(ops) if op.kind == "beat"]
    if len(beats) < 2:
        return ops
    start, end = beats[:2]
    if any(op.planted for op in ops[start:end]):
        return ops
    return ops[:start] + ops[end:]


def _without_rank(job: Job, gone: int) -> Job:
    """Nothing that others send to it or receive from it may be left: ValueError."""

    def renamed(rank: int) -> int:
        return rank - (rank > gone)

    smaller = _copy(job)
    smaller.world -= 1
    del smaller.ranks[gone]
    for group in smaller.groups:
        group.ranks = tuple(renamed(rank) for rank in group.ranks if rank != gone)
    ops: dict[int, Op] = {}
    for plan in smaller.ranks:
        plan.rank = renamed(plan.rank)
        for strand in plan.strands:
            ops.update({id(each): each for op in strand.ops for each in (op, *op.parts)})
    for op in ops.values():
        if op.peer == gone:
            raise ValueError("its peers are left")
        if op.peer >= 0:
            op.peer = renamed(op.peer)
    for plant in smaller.plants:
        plant.rank = renamed(plant.rank)
    return smaller
