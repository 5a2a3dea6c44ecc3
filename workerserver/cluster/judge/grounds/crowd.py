"""Who waits for other ranks, by stacks and records, and who waits for nobody."""

from __future__ import annotations

from collections.abc import Sequence

from workerserver.cluster.judge.facts import Crowd
from workerserver.cluster.judge.grounds.admission import firm, is_elsewhere, may_serve
from workerserver.cluster.judge.grounds.lateness import patience
from workerserver.cluster.judge.job import Job

__all__ = [
    "STACKS_ALONE_SECONDS",
    "crowd_of",
    "is_free",
    "is_seen_to_stand",
    "is_stuck",
    "sleeps_alone",
    "stands_with",
    "surely_waits",
]

#: Stacks alone tell slow from stuck only if nothing has changed for so long.
STACKS_ALONE_SECONDS = 5.0


def is_free(job: Job, rank: int) -> bool:
    """It waits for nobody, whatever it has issued. A loop that polls whether an operation has
    ended sleeps, too: it goes through several lines, or through the same ones on many ranks."""
    blocked = job.blocked[rank]
    if not blocked.on_no_rank:
        return False
    if blocked.kind != "sleep" or not job.pending(rank):
        return True
    return job.same_stack(rank) is not False and not job.victims_at(rank)


def surely_waits(job: Job, rank: int) -> bool:
    """It stands still with an operation under way, and nothing says that it does something
    else: work.wait() and item() leave no frame, and who waits for a GPU spins."""
    blocked = job.blocked[rank]
    if blocked.on_ranks:
        return True
    if is_free(job, rank) or not job.pending(rank):
        return False
    if blocked.kind == "sleep":
        return True
    spins = blocked.kind in ("computing", "unknown") and job.on_device(rank)
    if spins:
        return bool(job.same_stack(rank))
    if job.computes(rank) and blocked.kind != "device":
        return False
    return blocked.guessed or blocked.kind == "device" or blocked.helped


def crowd_of(job: Job) -> Crowd:
    """The ranks that wait for other ranks. If there are none: those that share the commonest
    stack of a job that nothing else tells of."""
    waiting = [rank for rank, blocked in job.blocked.items() if blocked.on_ranks]
    elsewhere = (rank for rank in job.ranks if is_elsewhere(job, rank))
    apart = firm(job, [rank for rank in elsewhere if not may_serve(job, rank)])
    sleeps = any(job.blocked[rank].kind == "sleep" and not sleeps_on(job, rank) for rank in apart)
    rest = [rank for rank in job.ranks if rank not in apart]
    if apart and (waiting or not sleeps) and all(may_wait(job, rank) for rank in rest):
        calls = {job.blocked[rank].call for rank in rest}
        return Crowd(rest, calls.pop() if len(calls) == 1 else None)
    if waiting:
        waiting = [rank for rank in job.ranks if waits_too(job, rank)]
        calls = {job.blocked[rank].call for rank in waiting}
        return Crowd(waiting, calls.pop() if len(calls) == 1 else None)
    device = [rank for rank, blocked in job.blocked.items() if blocked.kind == "device"]
    if device and 2 * len(device) > len(job.ranks):
        calls = {job.blocked[rank].call for rank in device}
        return Crowd(device, calls.pop() if len(calls) == 1 else None)
    if job.before is None:
        return Crowd(())
    alike: dict[object, list[int]] = {}
    for rank, blocked in job.blocked.items():
        if blocked.thread is not None and blocked.known and not blocked.runs:
            alike.setdefault(blocked.thread.frames, []).append(rank)
    ranks = max(alike.values(), key=lambda each: (len(each), -each[0]), default=[])
    if len(ranks) < 2:
        return Crowd(())
    return Crowd(ranks, together=True, location=job.blocked[ranks[0]].location)


def sleeps_on(job: Job, rank: int) -> bool:
    """Its thread has not run between the looks, and its step is long overdue. Who polls for what
    others do wakes up in between."""
    return job.slept(rank) and _overdue(job, rank)


def sleeps_alone(job: Job, rank: int) -> bool:
    """In one sleep since the look before, which nobody else ends."""
    return job.blocked[rank].kind == "sleep" and job.slept_alike(rank)


def may_wait(job: Job, rank: int) -> bool:
    """It stands still where it may wait for other ranks, perhaps through its GPU."""
    blocked = job.blocked[rank]
    if waits_for_device(job, rank):
        return True
    return bool(job.same_stack(rank)) and (blocked.may_wait or blocked.runs)


def waits_for_device(job: Job, rank: int) -> bool:
    """In a call that waits for its GPU, and its step is long overdue. Such a wait may sleep and
    wake up in turns: then only the heartbeat tells that it is one wait, not one of each step."""
    return job.blocked[rank].kind == "device" and _overdue(job, rank)


def is_seen_to_stand(job: Job, rank: int) -> bool:
    """It has been in one wait since the look before, and was not only met there again by chance:
    what it counts has not gone on, or its thread has not run. Where its worker tells neither, the
    place has to do."""
    thread = job.blocked[rank].thread
    if job.progressed(rank).went_on is False or job.slept(rank):
        return True
    tells = thread is not None and (thread.switches is not None or thread.state == "R")
    return not tells


def _overdue(job: Job, rank: int) -> bool:
    """It counts steps, and has made none between the looks, nor for as long as a pause may last."""
    age = job.step_age(rank)
    if age is None or job.progressed(rank).went_on is not False or job.came_elsewhere(rank):
        return False
    return age >= patience(job, rank, None)


def waits_too(job: Job, rank: int) -> bool:
    """It waits for ranks, by its stack or by what its recorder has counted."""
    blocked = job.blocked[rank]
    return blocked.on_ranks or (blocked.guessed and (job.unrecorded(rank) or job.pending(rank)))


def stands_with(job: Job, rank: int, others: Sequence[int]) -> bool:
    """It stands where one of *others* stands, and nothing tells that they do different things
    there: the one may come from a worker that tells more than the other's."""
    here = job.blocked[rank]
    return here.location is not None and any(
        there.location == here.location and (not there.call or there.call == here.call)
        for there in (job.blocked[other] for other in others)
    )


def is_stuck(job: Job, rank: int) -> bool:
    """It has not moved for a while, by its stacks or by its heartbeat, and that is longer than
    its steps take."""
    if waits_for_device(job, rank):
        return True
    if job.before is not None and not job.same_stack(rank):
        return False
    if job.too_early(rank):
        return False
    health = job.now.states[rank].health
    age = health.step_age_s if health is not None else None
    return max(job.still_for(rank), age or 0.0) >= STACKS_ALONE_SECONDS
