"""Whether a rank that has not come may only be late: it pauses, and will go on.

A pause that ends and one that never does look alike while they last. So the judge waits for longer
than pauses usually are: for many usual steps, but not for ever.
"""

from __future__ import annotations

import math

from workerserver.cluster.judge.flight import Wait
from workerserver.cluster.judge.job import MIN_PAUSES, Job

__all__ = ["LATE_MOST_SECONDS", "late_for", "patience", "usual_step"]

#: A pause may be as long as so many usual steps, and longer than those that the job has made...
LATE_STEPS = 40.0
#: ... and always as long as this ...
LATE_LEAST_SECONDS = 5.0
#: ... but no longer than this.
LATE_MOST_SECONDS = 120.0
#: By so much may another host's clock differ from this one's without a sign of that.
CLOCK_SECONDS = 5.0


def late_for(job: Job, rank: int, wait: Wait | None) -> float:
    """For how many seconds *rank* has not come, at least: by its own heartbeat, by the clocks of
    those that wait for it, and by what the rounds have seen."""
    seconds = job.still_for(rank)
    if wait is None or not _is_new(job, rank):  # a first step takes long: it says nothing
        seconds = max(seconds, (job.step_age(rank) or 0.0) - job.longest_step(rank))
    held = job.gil(rank)
    if held is not None:
        seconds = max(seconds, held[1] or 0.0)
    if wait is None:
        return seconds
    seconds = max(seconds, job.seen_for(wait))
    told = job.told_age(wait)
    if told is None:  # with one look only, nothing speaks for a pause
        return math.inf if job.before is None else seconds
    ages = [age for each in wait.waiting if (age := job.step_age(each)) is not None]
    if ages:  # each of them has waited since its last heartbeat at most
        return max(seconds, min(told, min(ages)))
    here = all(_is_here(job, each) for each in wait.waiting)
    return max(seconds, told if here else told - CLOCK_SECONDS)


def _is_new(job: Job, rank: int) -> bool:
    """It makes heartbeats, and too few of them to tell how long a step takes."""
    return job.step_age(rank) is not None and job.usual_step(rank) is None


def _is_here(job: Job, rank: int) -> bool:
    """On this host: its clock is this one's."""
    worker = job.now.states[rank].worker
    return worker.unix and worker.via is None


def patience(job: Job, rank: int, wait: Wait | None) -> float:
    """So many seconds a pause may last."""
    least = max(LATE_LEAST_SECONDS, MIN_PAUSES * (job.rhythm or 0.0), 2 * job.longest_pause)
    return min(max(LATE_STEPS * usual_step(job, rank, wait), least), LATE_MOST_SECONDS)


def usual_step(job: Job, rank: int, wait: Wait | None) -> float:
    """How long a step takes, as far as it is told; else 0. An average counts the job's start, too;
    so recorded operations, if there are enough of them, may tell of less."""
    ranks = [rank, *(wait.waiting if wait is not None else job.ranks)]
    steps = sorted(step for each in ranks if (step := job.usual_step(each)) is not None)
    rhythm = job.rhythm
    if not steps:
        return rhythm or 0.0
    middle = steps[len(steps) // 2]
    return middle if rhythm is None else min(middle, rhythm)
