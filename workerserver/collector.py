"""A collector: one process for each host that answers for all workers of that host.

Whoever diagnoses a large job then has one connection and one answer for each host, and workers
need no port of their own: the collector reaches them through their Unix sockets. It is a
:class:`WorkerServer` with two handlers of its own, and has nothing of torch in it. docs/diagnose.md
says how one is started; :mod:`workerserver.cluster.host_answers` what they answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Literal, get_args

from workerserver.cluster.client import Client
from workerserver.cluster.collect import EVERYTHING, Part, first_answers
from workerserver.cluster.discovery import Options, discover
from workerserver.cluster.errors import ClusterError
from workerserver.cluster.host_answers import (
    FAILURE_FIELD,
    LONGEST,
    MOST_WORKERS,
    SHORTEST,
    encode,
)
from workerserver.cluster.model import Failure, Worker
from workerserver.cluster.questions import Memory
from workerserver.cluster.wire import Answer, Question
from workerserver.handlers import ping, stacks
from workerserver.registry import Registry
from workerserver.types import InvalidParameter, Range, Response

__all__ = ["Collector"]

#: Bytes of one worker's answer that is passed on.
LIMIT = 64 << 20
#: Requests at one time: a host's ranks may be profiled together, say; and looks at all of them.
ASKED_AT_ONCE = 16
LOOKS_AT_ONCE = 4
#: Seconds that a caller may ask for.
Seconds = Annotated[float, Range(SHORTEST, LONGEST)]

PARTS: tuple[Part, ...] = get_args(Part)


class Collector:
    """The handlers ``collect`` and ``ask``, in a registry of their own.

    *targets* are looked at anew for each question: workers come and go. *ranks*: those that the
    host has to have, where that is known; one without a worker is told of. *token* goes to workers
    on TCP.
    """

    def __init__(
        self, targets: Sequence[str], ranks: Sequence[int] = (), token: str | None = None
    ) -> None:
        self.targets = targets
        self.ranks = ranks
        self.registry = Registry()
        self._token = token
        ping.register(self.registry)
        stacks.register(self.registry)
        self.registry.register("collect", self.collect, limit=LOOKS_AT_ONCE)
        self.registry.register("ask", self.ask, limit=ASKED_AT_ONCE)

    def workers(self) -> list[Worker]:
        """This host's workers now."""
        try:
            found = discover(Options(self.targets, environment={}))[:MOST_WORKERS]
        except ClusterError:
            found = []  # none has begun yet, or all have ended
        known = {worker.rank for worker in found}
        return found + [Worker("", False, rank) for rank in self.ranks if rank not in known]

    async def collect(self, want: str = ",".join(EVERYTHING), deadline: Seconds = 8.0) -> Response:
        """What all workers say to the small questions, each within *deadline* seconds."""
        asked = [part for part in PARTS if part in want.split(",")]
        if sorted(asked) != sorted(want.split(",")):
            raise InvalidParameter("want", f"some of {', '.join(PARTS)}, with commas between")
        workers = await asyncio.to_thread(self.workers)
        async with self._client(deadline) as client:
            states = await first_answers(workers, client, asked, Memory(), stock=False)
        # A socket's name may not tell the rank that its worker does.
        ranks = {state.rank for state in states if state.responded}
        told = [each for each in states if each.worker.address or each.rank not in ranks]
        return Response.json(encode(told))

    async def ask(
        self,
        worker: str,
        target: str,
        method: Literal["GET", "POST"] = "POST",
        limit: Annotated[int, Range(0, LIMIT)] = LIMIT,
        deadline: Seconds = 8.0,
    ) -> Response:
        """One worker's answer to *target* as it is, or with the header X-Collector-Failure why
        there is none. Only a worker of this host is asked."""
        if not target.startswith(("/handler/", "/healthz")) or not _plain(target):
            raise InvalidParameter("target", "the path of a handler, or /healthz")
        known = {each.address: each for each in await asyncio.to_thread(self.workers)}
        if not worker or worker not in known:
            text = "the collector knows no such worker on its host"
            return Response(text, 404, headers={FAILURE_FIELD: "unreachable"})
        question = Question("ask", target, method, limit, any_status=True)
        async with self._client(deadline) as client:
            (answer,) = (await client.ask([known[worker]], question)).values()
        if isinstance(answer, Failure):
            fields = {FAILURE_FIELD: answer.reason}
            return Response(answer.text, 504 if answer.reason == "timeout" else 502, headers=fields)
        return _passed_on(answer)

    def _client(self, deadline: float) -> Client:
        return Client(deadline=deadline, token=self._token)


def _plain(target: str) -> bool:
    """It can stand in a request's first line as it is."""
    return target.isascii() and target.isprintable() and " " not in target


def _passed_on(answer: Answer) -> Response:
    kept = {name: text for name, text in answer.fields.items() if name.startswith("x-")}
    return Response(answer.body, max(answer.status, 200), answer.content_type or "text/plain", kept)
