"""Many visits, some at a time. A visit that hangs does not delay the others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

__all__ = ["PATIENCE_SECONDS", "Lanes", "descriptors_left"]

#: A visit that takes longer mostly waits, so another one may begin beside it.
PATIENCE_SECONDS = 0.5
#: Descriptors kept for other uses, for example for connections that are still closing.
RESERVED_DESCRIPTORS = 64


def descriptors_left() -> int:
    """The number of descriptors that this process may still open, less a reserve; at least 1."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        soft = 1 << 16
    used = 0
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            used = len(os.listdir(folder))
            break
    # If few are left, the reserve is a third of them. So the last ones are never taken.
    left = soft - used
    return max(left - min(RESERVED_DESCRIPTORS, left // 3 + 1), 1)


#: A job is made when its turn comes.
Job = Callable[[], Coroutine[Any, Any, None]]


class Lanes:
    """Runs jobs: at most *most* at a time, and at most *working* younger than PATIENCE_SECONDS.

    Each lane is a task that does one job after the other: a task for each job would add a tenth to
    the cost of a job.

    Invariants: a lane is in ``_old`` if its job is older than PATIENCE_SECONDS, else in ``_young``.
    ``_young`` is in the order in which the jobs began. The timer runs while jobs may be left.
    """

    def __init__(self, jobs: Iterable[Job], working: int, most: int) -> None:
        self._jobs = iter(jobs)
        self._added: deque[Job] = deque()
        self._expects = False
        self._working = working
        self._most = most
        self._loop = asyncio.get_running_loop()
        self._young: dict[asyncio.Task[None], float] = {}
        self._old: set[asyncio.Task[None]] = set()
        self._exhausted = False
        self._timer: asyncio.TimerHandle | None = None
        self._done: asyncio.Future[None] = self._loop.create_future()

    def add(self, job: Job) -> None:
        """One more job, while :meth:`run` runs."""
        if self._done.done():
            return
        self._added.append(job)
        self._exhausted = False
        self._open()

    async def run(self, adding: Awaitable[None] | None = None) -> None:
        """Return when all jobs have ended, and *adding*, which may add some, too.

        If a job or *adding* raises, all others are cancelled, and this raises the first exception.
        If this is cancelled, they are cancelled too.
        """
        source = None if adding is None else asyncio.ensure_future(adding)
        if source is not None:
            self._expects = True
            source.add_done_callback(self._added_all)
        self._open()
        try:
            await self._done
        finally:
            self._exhausted = True
            if self._timer is not None:
                self._timer.cancel()
            tasks: list[asyncio.Future[None]] = [*self._young, *self._old]
            if source is not None:
                tasks.append(source)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _added_all(self, source: asyncio.Future[None]) -> None:
        self._expects = False
        if not source.cancelled() and (error := source.exception()) is not None:
            self._fail(error)
        self._open()

    def _next(self) -> Job | None:
        job = next(self._jobs, None)
        return self._added.popleft() if job is None and self._added else job

    def _open(self) -> None:
        """Open as many lanes as allowed. A timer calls again when a lane may have become old."""
        young, old = self._young, self._old
        while (
            not self._exhausted
            and len(young) < self._working
            and len(young) + len(old) < self._most
        ):
            job = self._next()
            if job is None:
                self._exhausted = True
                break
            task = self._loop.create_task(self._lane(job))
            young[task] = self._loop.time()
            task.add_done_callback(self._ended)
        if not self._exhausted:
            if self._timer is None:
                self._timer = self._loop.call_later(PATIENCE_SECONDS, self._age)
        elif not (young or old or self._expects or self._done.done()):
            self._done.set_result(None)

    async def _lane(self, job: Job | None) -> None:
        task = asyncio.current_task(self._loop)
        assert task is not None
        young = self._young
        while job is not None:
            await job()
            if young.pop(task, None) is None:
                # The lane became old, so other lanes were opened beside it.
                self._old.discard(task)
                if self._exhausted or len(young) >= self._working:
                    return
            job = self._next()
            young[task] = self._loop.time()
        self._exhausted = True

    def _age(self) -> None:
        self._timer = None
        grown = self._loop.time() - PATIENCE_SECONDS
        for task, started in list(self._young.items()):
            if started > grown:
                break
            del self._young[task]
            self._old.add(task)
        self._open()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._young.pop(task, None)
        self._old.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)
            return
        self._open()

    def _fail(self, error: BaseException) -> None:
        self._exhausted = True
        if not self._done.done():
            self._done.set_exception(error)
