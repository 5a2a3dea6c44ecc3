"""A collector: one process for each host that answers for all workers of that host.

The commands on a large job then have one connection and one answer for each host. Workers need no
port of their own: the collector reaches them through their Unix sockets. A collector is a
:class:`WorkerServer` with two handlers of its own. It never imports torch. docs/diagnose.md says
how a collector is started. :mod:`workerserver.cluster.ask.collector_format` describes its answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from typing import Annotated, Literal, get_args

from workerserver.cluster.ask.bodies import MAX_RANKS
from workerserver.cluster.ask.client import Client
from workerserver.cluster.ask.collector_format import (
    FAILURE_FIELD,
    MAX_RELAYED_BYTES,
    MAX_SECONDS,
    MAX_WORKER_BYTES,
    MIN_SECONDS,
    encode,
)
from workerserver.cluster.ask.collectors import first_answers
from workerserver.cluster.ask.exchange import Answer, Question
from workerserver.cluster.ask.folded import encode as folded
from workerserver.cluster.ask.questions import Memory
from workerserver.cluster.ask.survey import EVERYTHING, Part
from workerserver.cluster.errors import ClusterError
from workerserver.cluster.find.discovery import Options, discover
from workerserver.cluster.model import MAX_HOST_WORKERS, Failure, Worker
from workerserver.handlers import ping, stacks
from workerserver.http.registry import Registry
from workerserver.types import InvalidParameter, Range, Response

__all__ = ["Collector"]

#: An answer is in memory whole, until its caller has taken it. So of the requests that allow more
#: than LARGE_BYTES, as profiles do, MAX_LARGE_REQUESTS have a place at one time, until their answer
#: is sent; the others wait for their turn.
LARGE_BYTES = 1 << 20
MAX_LARGE_REQUESTS = 8
#: All workers' parts of one answer.
MAX_ANSWER_BYTES = MAX_WORKER_BYTES * MAX_HOST_WORKERS
#: In each handler.
MAX_REQUESTS = 256
#: The time that a caller may ask for.
Seconds = Annotated[float, Range(MIN_SECONDS, MAX_SECONDS)]

PARTS: tuple[Part, ...] = get_args(Part)


class Collector:
    """The handlers ``collect`` and ``ask``, in a registry of their own.

    *targets* are read again for each question, because workers come and go. *ranks* are the host's
    ranks, where they are known: sockets of other ranks are left alone, and a rank without a socket
    is reported. *token* goes to the workers. A Unix socket that belongs to neither this user nor
    root is no worker's.
    """

    def __init__(
        self, targets: Sequence[str], ranks: Sequence[int] = (), token: str | None = None
    ) -> None:
        self.targets = targets
        self.ranks = ranks
        self.registry = Registry()
        self._token = token
        self._large = asyncio.Semaphore(MAX_LARGE_REQUESTS)
        ping.register(self.registry)
        stacks.register(self.registry)
        self.registry.register("collect", self.collect, limit=MAX_REQUESTS, permission="read")
        self.registry.register("ask", self.ask, limit=MAX_REQUESTS)

    def workers(self) -> list[Worker]:
        """This host's workers now."""
        found: dict[str, Worker] = {}
        for target in self.targets:
            # No socket: no worker has begun yet, or all have ended.
            with contextlib.suppress(ClusterError):
                for worker in discover(Options([target], environment={})):
                    found.setdefault(worker.address, worker)
        there = [worker for worker in found.values() if self._is_ours(worker)]
        known = {worker.rank for worker in there}
        there += (Worker("", False, rank) for rank in self.ranks if rank not in known)
        return there[:MAX_HOST_WORKERS]

    def _is_ours(self, worker: Worker) -> bool:
        if worker.rank is not None and (
            worker.rank >= MAX_RANKS or (self.ranks and worker.rank not in self.ranks)
        ):
            return False
        try:
            return not worker.unix or os.stat(worker.address).st_uid in (0, os.geteuid())
        except OSError:
            return True  # gone since: the question to it will fail, and say so

    async def collect(
        self,
        want: str = ",".join(EVERYTHING),
        deadline: Seconds = 8.0,
        limit: Annotated[int, Range(0, MAX_ANSWER_BYTES)] = MAX_ANSWER_BYTES,
        version: Annotated[int, Range(1, 2)] = 1,
    ) -> Response:
        """What all workers answer to the small questions, each within *deadline* seconds. *limit*:
        bytes that the caller accepts. *version*: 2 for workers that say the same in groups."""
        asked = [part for part in PARTS if part in want.split(",")]
        if sorted(asked) != sorted(want.split(",")):
            raise InvalidParameter("want", f"some of {', '.join(PARTS)}, with commas between")
        workers = self.workers()
        async with self._client(deadline) as client:
            states = await first_answers(workers, client, asked, Memory(), stock=False)
        # A socket's name may not tell the rank that its worker does.
        ranks = {state.rank for state in states if state.responded}
        told = [each for each in states if each.worker.address or each.rank not in ranks]
        body = folded.encode(told, limit) if version == 2 else encode(told, limit)
        return Response(body, content_type="application/json")

    async def ask(
        self,
        worker: str,
        target: str,
        method: Literal["GET", "POST"] = "POST",
        limit: Annotated[int, Range(0, MAX_RELAYED_BYTES)] = MAX_RELAYED_BYTES,
        deadline: Seconds = 8.0,
    ) -> Response:
        """One worker's answer to *target*, unchanged. If there is none, the header
        X-Collector-Failure says why. Only workers of this host are asked."""
        if not target.startswith(("/handler/", "/healthz")) or not _plain(target):
            raise InvalidParameter("target", "the path of a handler, or /healthz")
        known = {each.address: each for each in self.workers()}
        if not worker or worker not in known:
            text = "the collector knows no such worker on its host"
            return Response(text, 404, headers={FAILURE_FIELD: "unreachable"})
        question = Question("ask", target, method, limit, any_status=True)
        until = asyncio.get_running_loop().time() + deadline
        async with contextlib.AsyncExitStack() as stack:
            place = stack.enter_context(contextlib.ExitStack())
            if limit > LARGE_BYTES:
                try:
                    await asyncio.wait_for(self._large.acquire(), deadline)
                except asyncio.TimeoutError:
                    return _failure(Failure("timeout", "the collector of its host was busy"))
                place.callback(self._large.release)
            left = max(until - asyncio.get_running_loop().time(), MIN_SECONDS)
            client = await stack.enter_async_context(self._client(left))
            (answer,) = (await client.ask([known[worker]], question)).values()
            response = _failure(answer) if isinstance(answer, Failure) else _passed_on(answer)
            response.sent = place.pop_all().close
        return response

    def _client(self, deadline: float) -> Client:
        return Client(deadline=deadline, token=self._token)


def _plain(target: str) -> bool:
    """Whether *target* can stand in a request's first line as it is."""
    return target.isascii() and target.isprintable() and " " not in target


def _failure(failure: Failure) -> Response:
    status = 504 if failure.reason == "timeout" else 502
    return Response(failure.text, status, headers={FAILURE_FIELD: failure.reason})


def _passed_on(answer: Answer) -> Response:
    kept = {name: text for name, text in answer.fields.items() if name.startswith("x-")}
    return Response(answer.body, answer.status, answer.content_type or "text/plain", kept)
