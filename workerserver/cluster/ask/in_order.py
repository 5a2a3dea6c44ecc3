"""Many visits for callers without an event loop: results in order, each as soon as possible."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from workerserver.cluster.ask.client import Client, Visit
from workerserver.cluster.ask.collectors import behind_collectors
from workerserver.cluster.model import Failure, Worker

__all__ = ["in_order"]

T = TypeVar("T")


def in_order(
    workers: Sequence[Worker], talk: Callable[[Visit], Awaitable[T]], **options: Any
) -> Iterator[tuple[Worker, T | Failure]]:
    """The result of *talk* for each worker, in the order of *workers*; *options* are the Client's.

    Each collector is replaced by its workers. The questions run in a separate thread. So a slow
    caller takes no time from the deadlines. Closing the iterator ends all questions, and so does
    Ctrl-C in the caller's thread.
    """
    return _Asking(workers, talk, options).results()


class _Asking:
    """A thread with an event loop. The thread puts the list of workers into ``_queue``, then a pair
    (worker, result) for each result. An exception in the queue is the last entry."""

    def __init__(
        self, workers: Sequence[Worker], talk: Callable[[Visit], Awaitable[Any]], options: Any
    ) -> None:
        self._workers = workers
        self._talk = talk
        self._options = options
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._closed = False
        self._stop: Callable[[], object] | None = None
        self._thread = threading.Thread(target=self._run, name="asking", daemon=True)

    def results(self) -> Iterator[tuple[Worker, Any]]:
        self._thread.start()
        try:
            early: dict[Worker, Any] = {}
            for worker in self._next():
                while worker not in early:
                    other, result = self._next()
                    early[other] = result
                # Popped, because a result can be large: only the caller should keep it alive.
                yield worker, early.pop(worker)
        finally:
            self._closed = True
            if self._stop is not None:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nothing runs
                    self._stop()
            self._thread.join()

    def _next(self) -> Any:
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def _run(self) -> None:
        import uvloop

        try:
            uvloop.run(self._ask())
        except BaseException as error:
            self._queue.put(error)

    async def _ask(self) -> None:
        loop = asyncio.get_running_loop()
        async with Client(**self._options) as client:
            self._stop = partial(loop.call_soon_threadsafe, client.stop)
            if self._closed:  # close() came before there was a client to stop
                client.stop()
            everyone = list(dict.fromkeys(await behind_collectors(self._workers, client)))
            self._queue.put(everyone)
            await client.visit(
                everyone, self._talk, lambda worker, result: self._queue.put((worker, result))
            )
