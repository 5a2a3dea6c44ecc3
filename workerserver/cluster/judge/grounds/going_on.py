"""What shows that ranks go on. Only this may earn a job the status 0.

Processor time and bytes that are written are no evidence: a rank that waits for its GPU spins. Nor
is another line within one function of the user's: a loop that polls has many lines.
"""

from __future__ import annotations

from collections.abc import Sequence

from workerserver.cluster.judge.facts import GoesOn
from workerserver.cluster.judge.flight import Group
from workerserver.cluster.judge.grounds.components import components
from workerserver.cluster.judge.job import Job
from workerserver.cluster.read.progress import PATIENCE, Sign

__all__ = ["belong_together", "overdue", "signs"]

#: A step older than this, and than so many usual ones, is overdue.
OVERDUE_SECONDS = 5.0
OVERDUE_STEPS = 3.0
#: What was issued so soon after the start of the round came before its answer.
ROUND_SECONDS = 0.5


def signs(job: Job) -> tuple[GoesOn, ...]:
    """The strongest sign of each rank that goes on, ranks with the same sign together."""
    found: dict[Sign, list[int]] = {}
    recent = _recent_operations(job)
    for rank in job.ranks:
        sign = _sign(job, rank, recent)
        if sign is not None:
            found.setdefault(sign, []).append(rank)
    return tuple(GoesOn(sign, tuple(ranks)) for sign, ranks in sorted(found.items()))


def _sign(job: Job, rank: int, recent: set[int]) -> Sign | None:
    progress = job.progressed(rank)
    if progress.went_on:
        return progress.sign
    age, usual = job.step_age(rank), job.usual_step(rank)
    if age is not None and usual is not None:
        return "recent_step" if age < PATIENCE * usual and age < 1e7 else None
    if rank in recent:
        return "recent_operation"
    if progress.went_on is None and job.came_elsewhere(rank):
        return "stack"
    return None


def _recent_operations(job: Job) -> set[int]:
    """Ranks whose newest collective is younger than usual pauses last, by this machine's clock and
    by what the rounds have seen."""
    found: set[int] = set()
    for group in job.analysis.groups:
        usual = job.usual_pauses(group)
        for part in group.parts:
            newest = part.record.last_issued
            if newest is None:
                continue
            for rank in part.ranks:
                created = part.created(newest, rank)
                if created is None or rank not in job.now.states:
                    continue
                age = job.now.time - created / 1e9
                if not -ROUND_SECONDS <= age < 3.2e7:  # clocks that differ tell nothing
                    continue
                if job.before is not None and job.progressed(rank).went_on is False:
                    age = max(age, job.window)
                if age < PATIENCE * usual[rank]:
                    found.add(rank)
    return found


def overdue(job: Job, rank: int) -> bool:
    """It counts steps, and has made none for too long."""
    age, usual = job.step_age(rank), job.usual_step(rank)
    if age is None or job.progressed(rank).went_on:
        return False
    return age >= max(OVERDUE_SECONDS, OVERDUE_STEPS * (usual or 0.0))


def belong_together(job: Job) -> list[tuple[int, ...]]:
    """The ranks that answered, in the components that process groups and waits join."""
    joined: list[Sequence[int]] = [group.ranks for group in job.analysis.groups if _used(group)]
    joined += [(*wait.waiting, *wait.absent, *wait.silent) for wait in job.analysis.waits]
    return components(job.ranks, joined)


def _used(group: Group) -> bool:
    return any(part.record.collectives or part.record.p2p for part in group.parts)
