"""The status of a verdict: the one place where it is decided, from what has been found.

0  something shows of every component of ranks that it goes on, and no wait is past its limit
1  an accusation was admitted (:mod:`admission`)
2  anything else, with what is known
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from workerserver.cluster.judge.chains.facts import Deadlock
from workerserver.cluster.judge.facts import (
    Accusation,
    Doubt,
    Endless,
    Everywhere,
    GoesOn,
    Hindrance,
    NoEvidence,
    NoSign,
    Outside,
    Overdue,
    Ranks,
    Standing,
    Unproven,
)
from workerserver.cluster.judge.flight import Wait
from workerserver.cluster.judge.grounds.admission import RECORDED, is_elsewhere
from workerserver.cluster.judge.grounds.children import is_open
from workerserver.cluster.judge.grounds.crowd import (
    STACKS_ALONE_SECONDS,
    is_free,
    is_stuck,
)
from workerserver.cluster.judge.grounds.going_on import belong_together, overdue, signs
from workerserver.cluster.judge.grounds.lateness import LATE_MOST_SECONDS, late_for, patience
from workerserver.cluster.judge.job import Job
from workerserver.cluster.judge.suspicions import Suspicions
from workerserver.cluster.model import Frame
from workerserver.cluster.read.progress import PATIENCE

__all__ = ["MORE_SECONDS", "Conclusion", "Status", "conclude"]

#: When a look at a job that stands still may tell more, where nothing tells it better...
MORE_SECONDS = 10.0
#: ... and the soonest that is worth while.
SOON_SECONDS = 1.0
#: What has stood still for so long does so for good, as far as a few looks can tell.
LONG_SECONDS = 5.0
#: A wait of so many usual steps needs no second look.
SURE_STEPS = 10.0
#: Places that are told of a job that stands still.
MAX_PLACES = 6

Status = Literal[0, 1, 2, 3]
"""0: healthy. 1: suspects. 2: could not tell; the sentence says why. 3: the job has ended; nobody
is judged then (:func:`~workerserver.cluster.judge.verdict.over`)."""


@dataclass(frozen=True, slots=True)
class Conclusion:
    """*parts*: the components of the ranks that answered. *again_s*: after so many seconds another
    look may tell more; None if it is certain that it doesn't."""

    status: Status
    progress: tuple[GoesOn, ...]
    parts: tuple[tuple[int, ...], ...]
    doubts: tuple[Doubt, ...] = ()
    again_s: float | None = None
    sure: bool = False
    """It rests on one round, and another round would change nothing."""


def conclude(job: Job, suspicions: Suspicions) -> Conclusion:
    parts = tuple(belong_together(job)) if job.ranks else ()
    if suspicions.accused:
        accused = suspicions.accused.values()
        more = _may_be_more(job, suspicions)
        sure = not more and all(_is_sure(job, suspicions, each) for each in accused)
        again = _next(_left(job, rank, *why) for rank, why in suspicions.refused.items())
        again = (again or MORE_SECONDS) if more else None
        return Conclusion(1, (), parts, again_s=again, sure=sure)
    progress = signs(job)
    going = {rank for each in progress for rank in each.ranks}
    doubts = list(suspicions.doubts)
    if parts and not any(going.isdisjoint(part) for part in parts):
        doubts = [each for each in doubts if not isinstance(each, Outside)]
    if _stands(job):  # where everybody stands is said
        doubts = [each for each in doubts if not isinstance(each, Everywhere)]
    doubts += _hanging(job, suspicions, doubts)
    if job.ranks:
        doubts += _without_sign(job, progress, parts, doubts)
    again = _next(
        seconds for each in doubts if _may_end(each) for seconds in _ends(job, suspicions, each)
    )
    return Conclusion(2 if doubts else 0, progress, parts, tuple(doubts), again)


def _may_be_more(job: Job, suspicions: Suspicions) -> bool:
    """A rank that isn't accused yet, because it may only be late, is missing from an operation that
    hangs: a longer look may accuse it too."""
    return any(
        wait in suspicions.hanging
        and rank not in suspicions.accused
        and (why in ("late", "early") or (rank in job.blocked and is_free(job, rank)))
        for rank, (why, wait) in suspicions.refused.items()
    )


def _next(seconds: Iterable[float]) -> float | None:
    """The first of *seconds*, as people say it; None if there is none."""
    first = min(seconds, default=None)
    return None if first is None else max(math.ceil(10 * first) / 10, SOON_SECONDS)


def _ends(job: Job, suspicions: Suspicions, doubt: Doubt) -> Iterator[float]:
    """When *doubt* may end, in seconds from now."""
    if isinstance(doubt, Unproven):
        for rank in doubt.ranks:
            yield _left(job, rank, *suspicions.refused.get(rank, (doubt.why, None)))
    elif isinstance(doubt, Standing):
        yield LONG_SECONDS - doubt.seconds
    elif isinstance(doubt, Outside):
        yield STACKS_ALONE_SECONDS - min(map(job.still_for, doubt.ranks))
    else:
        yield MORE_SECONDS


def _left(job: Job, rank: int, why: Hindrance, wait: Wait | None) -> float:
    """How long a rank that isn't accused for the reason *why* may go on so."""
    if why == "late":
        return patience(job, rank, wait) - late_for(job, rank, wait)
    if why == "asleep":
        return LATE_MOST_SECONDS - late_for(job, rank, wait)
    age, usual = job.step_age(rank), job.usual_step(rank)
    if why == "early" and age is not None and usual is not None:
        return PATIENCE * usual - age
    return MORE_SECONDS


def _may_end(doubt: Doubt) -> bool:
    """A longer look may end it."""
    if isinstance(doubt, Unproven):
        return doubt.why not in ("waits", "majority", "missing")
    if isinstance(doubt, Standing):
        return doubt.seconds < LONG_SECONDS
    return isinstance(doubt, NoEvidence | NoSign | Outside | Overdue)


def _is_sure(job: Job, suspicions: Suspicions, accusation: Accusation) -> bool:
    """Whoever is accused has been missing for long, and surely waits for nobody."""
    if isinstance(accusation.claim, Deadlock):
        return accusation.claim.sure
    if accusation.reason in RECORDED:
        return bool(suspicions.hanging) and all(_is_old(job, each) for each in suspicions.hanging)
    rank = accusation.rank
    waits = [wait for wait in suspicions.hanging if wait.seq == accusation.seq]
    if rank in job.now.gone or not waits or not all(_is_old(job, wait) for wait in waits):
        return False
    age, usual = job.step_age(rank), job.usual_step(rank)
    if age is not None and age < SURE_STEPS * (usual or 1.0):
        return False
    if job.gil(rank) is not None:
        return True
    blocked = job.blocked[rank]  # one look doesn't tell a thread that wants the GIL from a lock
    known = blocked.thread.waits if blocked.thread is not None else None
    if job.before is None and known is not None and (known.joined or known.holder):
        return False  # a circle through these threads is a deadlock, if another look shows it too
    if job.before is None and (blocked.kind in ("sleep", "io", "library") or blocked.on_child):
        return False  # nor a loop that writes, polls, or starts one child after the other
    if is_open(job, rank):
        return False  # nor whether a child works
    return is_elsewhere(job, rank) and not blocked.unsure


def _is_old(job: Job, wait: Wait) -> bool:
    age = job.age(wait)
    usual = [step for rank in wait.waiting[:8] if (step := job.usual_step(rank)) is not None]
    least = max(job.pace(wait), *usual, 0.5) if usual else max(job.pace(wait), 0.5)
    return age is not None and age >= SURE_STEPS * least


def _hanging(job: Job, suspicions: Suspicions, doubts: Sequence[Doubt]) -> Iterator[Doubt]:
    """Waits past their limits of which nothing is said yet."""
    said = {id(each.operation) for each in doubts if isinstance(each, Endless)}
    said |= {id(each.wait) for each in doubts if isinstance(each, Unproven)}
    if said:
        return
    for wait in suspicions.hanging:
        entered = job.entered(wait)
        if id(entered) not in said:
            yield Endless(entered, wait.group.complete and not wait.silent, wait.absent)
            return


def _without_sign(
    job: Job,
    progress: Sequence[GoesOn],
    parts: Sequence[Sequence[int]],
    doubts: Sequence[Doubt],
) -> Iterator[Doubt]:
    going = {rank for each in progress for rank in each.ranks}
    late = [rank for rank in job.ranks if rank not in going and overdue(job, rank)]
    if late and going:
        ages = [age for rank in late if (age := job.step_age(rank)) is not None]
        usual = [step for rank in late if (step := job.usual_step(rank)) is not None]
        yield Overdue(late, max(ages), max(usual, default=None))
        return
    silent = [rank for part in parts if going.isdisjoint(part) for rank in part]
    if not silent:
        return
    if going:
        yield NoSign(silent)
    elif not doubts or all(isinstance(each, Unproven) for each in doubts):
        if _stands(job):
            yield Standing(_since(job), tuple(_places(job)))
        elif not doubts and (moving := _moving(job)):
            yield from moving
        elif not doubts or (job.before is None and not job.of_dumps):
            yield NoEvidence(0 if job.of_dumps else len(job.rounds))


def _moving(job: Job) -> list[Unproven]:
    """Of a job in which nothing else is known: those that move, by where they are, if all others
    wait for ranks."""
    alike: dict[tuple[Frame, str], list[int]] = {}
    for rank in job.ranks:
        blocked = job.blocked[rank]
        if blocked.on_ranks and is_stuck(job, rank):
            continue
        if blocked.on_ranks or blocked.location is None or job.same_stack(rank) is not False:
            return []
        alike.setdefault((blocked.location, blocked.call), []).append(rank)
    if sum(map(len, alike.values())) == len(job.ranks):
        return []
    return [
        Unproven(tuple(ranks), "changes", None, location, call)
        for (location, call), ranks in alike.items()
    ]


def _stands(job: Job) -> bool:
    return job.before is not None and all(job.same_stack(rank) for rank in job.ranks)


def _since(job: Job) -> float:
    """For how long, at least, nothing has moved."""
    return min((job.still_for(rank) for rank in job.ranks), default=0.0)


def _places(job: Job) -> Iterator[tuple[Ranks, str, Frame | None]]:
    """Where the ranks are, those that stand apart first."""
    alike: dict[tuple[str, Frame | None], list[int]] = {}
    for rank in job.ranks:
        blocked = job.blocked[rank]
        call = blocked.told or blocked.call
        alike.setdefault((call, blocked.location), []).append(rank)
    ordered = sorted(alike.items(), key=lambda each: (len(each[1]), each[1]))
    for (call, location), ranks in ordered[:MAX_PLACES]:
        yield tuple(ranks), call, location
