"""Whether a rank that waits for threads of its own waits for work that goes on.

Nobody tells which thread puts something into a queue, or has the result of a future. If a single
one works, it acts for the rank (:mod:`acting`). If several do, or if it is known that the waiting
one acts in the other ranks, the rank may only be slow as long as one of them goes on.
"""

from __future__ import annotations

from collections.abc import Sequence

from workerserver.cluster.judge.job import Job
from workerserver.cluster.model import Thread
from workerserver.cluster.read.acting import works
from workerserver.cluster.read.blocked_on import blocked_on
from workerserver.cluster.read.owners import code_file

__all__ = ["one_helps"]

#: Calls that wait for the result of a pool, and the functions that a pool's threads run.
POOLS = ("concurrent.futures.", "multiprocessing.pool.")
WORKERS = frozenset(
    {("concurrent/futures/thread.py", "_worker"), ("multiprocessing/pool.py", "worker")}
)


def one_helps(job: Job, rank: int) -> bool:
    """Its acting thread waits for a thread of its process, and one that it may wait for goes on. Of
    one look alone nobody can tell: then each of them may."""
    blocked, threads = job.blocked[rank], job.now.states[rank].threads
    if blocked.thread is None or blocked.kind not in ("lock", "wait") or blocked.guessed:
        return False
    others = [each for each in threads if each is not blocked.thread and not each.main]
    others = [each for each in others if works(each)]
    pooled = [each for each in others if _is_of_pool(each)]
    if blocked.call.startswith(POOLS) and pooled:
        others = pooled
    else:
        pooled = []
    if job.before is None or rank not in job.before.states:
        return bool(others)
    before = {_name(each): each for each in job.before.states[rank].threads}
    return any(_goes_on(threads, each, before.get(_name(each)), bool(pooled)) for each in others)


def _name(thread: Thread) -> tuple[int | None, int | None]:
    """Stock workers tell no native id."""
    return thread.native_id, thread.ident


def _is_of_pool(thread: Thread) -> bool:
    return any((code_file(each.file).path, each.function) in WORKERS for each in thread.frames)


def _goes_on(threads: Sequence[Thread], now: Thread, then: Thread | None, awaited: bool) -> bool:
    """It has moved since the look before. Whoever only sleeps now and then at one line may look
    around there, as a monitor does: that is work only if its result is *awaited*."""
    if then is None or then.frames != now.frames or "R" in (then.state, now.state):
        return True
    told = then.switches is not None and now.switches is not None
    if not told or then.switches == now.switches:
        return False
    return awaited or blocked_on(threads, now).kind == "io"
