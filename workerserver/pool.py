"""A small bounded pool of daemon threads for handlers that may block.

``concurrent.futures`` won't do: its threads are joined at interpreter exit, so one handler that
sleeps for ever would keep the training process from ending. These are daemon threads, started
when there is work, gone when there has been none for a while.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

__all__ = ["DaemonPool"]

Job = Callable[[], None]


class DaemonPool:
    """``submit()`` from one thread (the loop's); jobs run in at most *threads* others.

    A job must not raise. ``close()`` lets idle threads end and never waits for a busy one.
    """

    def __init__(self, threads: int = 32, backlog: int = 64, idle: float = 10.0) -> None:
        self._limit = threads
        self._idle_seconds = idle
        self._jobs: queue.Queue[Job | None] = queue.Queue(backlog)
        self._lock = threading.Lock()
        self._threads = 0
        self._free = 0
        self._closed = False
        self._started = 0
        self._here = threading.local()

    @property
    def threads(self) -> int:
        """Threads alive now."""
        return self._threads

    def inside(self) -> bool:
        """Whether the calling thread is one of the pool's."""
        return getattr(self._here, "inside", False)

    def submit(self, job: Job) -> bool:
        """Run *job* soon; False if the pool is closed, its backlog full, or no thread to be had."""
        with self._lock:
            if self._closed:
                return False
            start = self._free <= self._jobs.qsize() and self._threads < self._limit
            try:
                self._jobs.put_nowait(job)  # here, or the last thread ends without having seen it
            except queue.Full:
                return False
            if start:
                self._threads += 1
                self._started += 1
            number = self._started
        if start:
            thread = threading.Thread(
                target=self._work, name=f"workerserver-handler-{number}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:  # no more threads in this process, or it is ending
                with self._lock:
                    self._threads -= 1
                    if self._threads == 0:
                        self._jobs.get_nowait()  # the job, which nobody would ever take
                        return False
        return True

    def _work(self) -> None:
        self._here.inside = True
        while True:
            with self._lock:
                self._free += 1
            try:
                job = self._jobs.get(timeout=self._idle_seconds)
            except queue.Empty:
                job = None
            with self._lock:
                self._free -= 1
                if job is None and (self._closed or self._jobs.empty()):
                    self._threads -= 1
                    return
            if job is not None:
                job()
                del job  # an idle thread must not keep the last request alive

    def close(self) -> None:
        with self._lock:
            self._closed = True
            waiting = self._threads
        for _ in range(waiting):
            try:
                self._jobs.put_nowait(None)
            except queue.Full:
                break
