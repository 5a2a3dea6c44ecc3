"""What is known of a suspect itself, beside what it is accused of."""

from __future__ import annotations

from collections.abc import Iterator

from workerserver.cluster.judge.chains.facts import Told
from workerserver.cluster.judge.facts import (
    ActingThread,
    Evidence,
    FailedQuestion,
    GilHeld,
    InKernel,
    LastHeartbeat,
    Moved,
)
from workerserver.cluster.judge.grounds.children import looked_at
from workerserver.cluster.judge.job import Job
from workerserver.cluster.model import Thread
from workerserver.cluster.read.owners import is_library

__all__ = ["evidence"]

#: Of the acting thread, frames in the user's code.
MAX_FRAMES = 4


def evidence(job: Job, rank: int) -> Iterator[Evidence]:
    state = job.now.states.get(rank)
    if state is None:
        return
    thread = job.blocked[rank].thread
    if thread is not None:
        yield _acting_thread(thread)
        if thread.wchan and thread.wchan != "0":
            yield InKernel(thread.wchan)
        if job.blocked[rank].told:
            yield Told(job.blocked[rank].told)
        yield from looked_at(job, rank)
    same = job.same_stack(rank)
    if same is not None:
        yield Moved(same, job.window)
    held = job.gil(rank)
    if held is not None:
        holder, seconds = held
        newest = holder.frames[0] if holder is not None and holder.frames else None
        name = holder.name if holder is not None else None
        yield GilHeld(seconds, holder is not None, name, newest)
    health = state.health
    if health is not None and health.step is not None:
        steps = job.step_range
        differ = steps is not None and steps[0] != steps[1]
        yield LastHeartbeat(health.step, health.step_age_s, steps if differ else None)
    for question in sorted(state.failures):
        failure = state.failures[question]
        yield FailedQuestion(question, failure.reason, failure.text)


def _acting_thread(thread: Thread) -> ActingThread:
    frames = thread.frames
    own = [frame for frame in frames if not is_library(frame)]
    more = max(len(own) - MAX_FRAMES, 0)
    name = None if thread.main else thread.name or str(thread.native_id or thread.ident or "")
    newest = frames[0] if frames else None
    return ActingThread(tuple(own[:MAX_FRAMES]), more, newest, name)
