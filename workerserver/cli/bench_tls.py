"""The load of ``bench`` over TLS. loadgen's native loop has none, so this one runs in Python.

It measures what loadgen's Load measures, and takes some ten times as much of the client's time for
each request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from workerserver.cluster.ask.client import Client
from workerserver.cluster.ask.connection import Connection, connect
from workerserver.cluster.ask.exchange import Answer, Progress
from workerserver.cluster.failures import Failed
from workerserver.cluster.model import Worker
from workerserver.loadgen._loadgen import Histogram, Result

__all__ = ["TlsLoad"]


class TlsLoad:
    """As loadgen's Load, to *worker*; *asking* are the Client's options. ``result`` is that of an
    interrupted run, too."""

    def __init__(
        self,
        worker: Worker,
        request: bytes,
        asking: Mapping[str, Any],
        *,
        limit: int,
        connections: int,
        requests: int,
        seconds: float,
        rate: float,
        fresh: bool,
        timeout: float,
    ) -> None:
        self._worker = worker
        self._request = request
        self._asking = asking
        self._limit = limit
        self._connections = connections
        self._requests = requests
        self._seconds = seconds
        self._rate = rate
        self._fresh = fresh
        self._timeout = timeout
        self.result: Result | None = None
        self._begun = 0  # requests that a connection has taken
        self._start = self._last = 0
        self._sent = self._answered = self._received = 0
        self._failed: dict[str, int] = {}
        self._statuses: dict[int, int] = {}
        self._service, self._response, self._late = Histogram(), Histogram(), Histogram()

    def run(self) -> Result:
        import uvloop

        try:
            uvloop.run(self._run())
        finally:
            self.result = Result(
                self._sent,
                self._answered,
                self._failed,
                self._statuses,
                max(self._last - self._start, 0) / 1e9,
                self._received,
                self._service,
                self._response,
                self._late,
            )
        return self.result

    async def _run(self) -> None:
        async with Client(**self._asking) as client:
            self._start = time.monotonic_ns()
            await asyncio.gather(*(self._use(client) for _ in range(self._connections)))

    def _next(self) -> int | None:
        """When the next request is due, by time.monotonic_ns(); None if there is none."""
        due = time.monotonic_ns()
        if self._rate:
            due = self._start + round(self._begun / self._rate * 1e9)
        if self._requests and self._begun >= self._requests:
            return None
        if self._seconds and due - self._start >= self._seconds * 1e9:
            return None
        self._begun += 1
        return due

    async def _use(self, client: Client) -> None:
        """What one connection asks, one request after the other."""
        connection: Connection | None = None
        try:
            while (due := self._next()) is not None:
                was_free = due > time.monotonic_ns()
                while (wait := due - time.monotonic_ns()) > 0:
                    await asyncio.sleep(wait / 1e9)  # uvloop may wake up to 1 ms early
                if connection is not None and (self._fresh or not connection.usable):
                    await connection.close()
                    connection = None
                connection = await self._ask(client, connection, due, was_free=was_free)
        finally:
            if connection is not None:
                await connection.close()

    async def _ask(
        self, client: Client, connection: Connection | None, due: int, *, was_free: bool
    ) -> Connection | None:
        """One request. The connection for the next one; None if that needs another."""
        sent = time.monotonic_ns()
        loop = asyncio.get_running_loop()
        progress = Progress()
        try:
            if connection is None:
                connecting = connect(self._worker, client, loop, loop.time() + self._timeout)
                connection = await asyncio.wait_for(connecting, self._timeout)
                if not self._fresh:  # to connect is not timed
                    sent = time.monotonic_ns()
            self._sent += 1
            answer = await asyncio.wait_for(
                connection.ask(self._request, self._limit, progress), self._timeout
            )
        except (Failed, asyncio.TimeoutError) as error:
            self._sent += connection is None
            why = error.failure.text if isinstance(error, Failed) else "timeout"
            self._failed[why] = self._failed.get(why, 0) + 1
            if connection is not None:
                await connection.close()
            return None
        finally:
            self._received += progress.received
            self._last = time.monotonic_ns()
        self._count(answer, due, sent, was_free)
        return connection

    def _count(self, answer: Answer, due: int, sent: int, was_free: bool) -> None:
        self._statuses[answer.status] = self._statuses.get(answer.status, 0) + 1
        if not answer.ok:
            why = f"status {answer.status}"
            self._failed[why] = self._failed.get(why, 0) + 1
            return
        self._answered += 1
        self._service.record(self._last - sent)
        self._response.record(self._last - (due if self._rate else sent))
        if self._rate and was_free:
            self._late.record(max(sent - due, 0))
