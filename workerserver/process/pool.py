"""A small bounded pool of daemon threads for handlers that may block.

``concurrent.futures`` won't do: the interpreter joins its threads at exit, so one handler that
sleeps for ever would keep the training process from ending. The pool starts a daemon thread when
there is work. The thread ends after it had no work for a while.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workerserver.process._pulse import Meter

__all__ = ["DaemonPool"]

Job = Callable[[], None]
logger = logging.getLogger("workerserver")


class DaemonPool:
    """Runs each job at once, in an idle thread or a new one, or refuses it.

    There is no backlog: behind hung jobs, a job would wait for ever, or run when nobody wants its
    result any more. ``close()`` never waits for a busy thread. Any thread may call any method.
    """

    def __init__(self, threads: int = 64, idle: float = 10.0, meter: Meter | None = None) -> None:
        self._limit = threads
        self._meter = meter
        self._idle_seconds = idle
        # At most one job for each idle thread. submit() puts the job in under the lock, in the same
        # step in which it counts the thread as busy.
        self._handed: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = 0
        self._closed = False
        self._started = 0
        self._here = threading.local()

    @property
    def threads(self) -> int:
        """Threads alive now."""
        return self._threads

    def _count(self, change: int) -> None:
        """Under the lock."""
        self._threads += change
        if self._meter is not None:
            self._meter.threads = self._threads

    def inside(self) -> bool:
        """Whether the calling thread is one of the pool's."""
        return getattr(self._here, "inside", False)

    def submit(self, job: Job) -> bool:
        """Run *job* now. False if the pool is closed or no thread is free and none can start."""
        with self._lock:
            if self._closed:
                return False
            if self._idle > 0:
                self._idle -= 1
                self._handed.put(job)
                return True
            if self._threads >= self._limit:
                return False
            self._count(1)
            self._started += 1
            name = f"workerserver-handler-{self._started}"
        # A Thread keeps its arguments while it runs. So the job is in a list that _work() empties.
        thread = threading.Thread(target=self._work, args=([job],), name=name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no more threads in this process, or it is ending
            with self._lock:
                self._count(-1)
            return False
        return True

    def _work(self, first: list[Job]) -> None:
        self._here.inside = True
        job: Job | None = first.pop()
        while job is not None:
            try:
                job()
            except BaseException:
                logger.exception("a handler's job failed outside the handler")
            job = None  # else an idle thread would keep the last request alive
            with self._lock:
                if self._closed:
                    break
                self._idle += 1
            try:
                job = self._handed.get(timeout=self._idle_seconds)
            except queue.Empty:
                with self._lock:
                    if self._handed.empty():
                        self._idle -= 1
                        break
                    # submit() may have handed over a job just as the wait ended.
                    job = self._handed.get_nowait()
        with self._lock:
            self._count(-1)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for _ in range(self._idle):
                self._handed.put(None)
            self._idle = 0
