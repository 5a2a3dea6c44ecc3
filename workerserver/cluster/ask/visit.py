"""All questions to one worker: in one lane of a client, over one connection if need be."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import TYPE_CHECKING, Any

from workerserver.cluster.ask.collector_format import relay_failure, relayed
from workerserver.cluster.ask.connection import Connection, connect
from workerserver.cluster.ask.engine.at_once import INTERRUPTED, Early, in_seconds
from workerserver.cluster.ask.exchange import GREETING, Answer, Progress, Question
from workerserver.cluster.ask.token.proof import Meeting, Proof
from workerserver.cluster.failures import Failed
from workerserver.cluster.model import Worker

if TYPE_CHECKING:
    from workerserver.cluster.ask.client import Client

__all__ = ["Visit", "go_on", "is_over"]


class Visit:
    """All questions to one worker. They share one deadline and one connection."""

    __slots__ = (
        "_asking",
        "_connecting",
        "_connection",
        "_cut",
        "_early",
        "_expired",
        "_loop",
        "_pid",
        "_progress",
        "_seconds",
        "client",
        "received",
        "until",
        "worker",
    )

    def __init__(
        self,
        client: Client,
        worker: Worker,
        loop: asyncio.AbstractEventLoop,
        early: Early | None = None,
    ) -> None:
        self.worker = worker
        self.received = 0
        self.client = client
        self._connection: Connection | None = None
        self._loop = loop
        self._seconds = client.deadline
        if client.patience:
            self._seconds = client.patience.get(worker.via or worker, client.deadline)
        self._early: list[tuple[Question, Answer | Failed]] | None = None
        self._expired: str | None = None
        self._pid: int | None = None
        if early is None:
            self.until = loop.time() + self._seconds
        else:
            self._early = early.answers
            self._expired = early.expired
            self._pid = early.pid
            self.until = early.until
            self.received = early.received
            client.bytes_received += early.received
        self._cut = False
        self._asking: asyncio.Task[Any] | None = None
        self._connecting = False
        self._progress: Progress

    async def ask(self, question: Question, patience: float | None = None) -> Any:
        """The question's result; Failed says why there is none.

        After the deadline every question fails at once. *patience*: seconds after which the
        question fails unless a part of the answer has come. Later questions may still be asked.
        """
        early = self._early
        while early and early[0][0] is not question and any(one is question for one, _ in early):
            del early[0]  # an answer that made others needless
        if early and early[0][0] is question:
            self.client.questions += 1
            outcome = early.pop(0)[1]
            if isinstance(outcome, Failed):
                raise outcome
            return self.client.result(question, outcome)
        if self._expired is not None:
            raise Failed("timeout", self._no_time())
        if early is not None:
            self._early = None
            await _in_a_lane()
        self._asking = asyncio.current_task(self._loop)
        self.client.questions += 1
        self._progress = Progress()
        self._cut = False
        timer = None if patience is None else self._loop.call_later(patience, self._give_up)
        try:
            answer = await self._ask(question)
        except asyncio.CancelledError:
            if self._expired is None and not self._cut:
                raise
            asking: Any = self._asking
            if hasattr(asking, "uncancel"):
                asking.uncancel()
            if self._expired is not None:
                raise Failed("timeout", self._stage()) from None
            await self.close()  # the answer may still come
            self._connection = None
            raise Failed("timeout", f"{self._progress} in {patience:g} s") from None
        finally:
            if timer is not None:
                timer.cancel()
            self._asking = None
            self.received += self._progress.received
            self.client.bytes_received += self._progress.received
        return self.client.result(question, answer)

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.until - self._loop.time()

    @property
    def peer_pid(self) -> int | None:
        """The pid that listens on the worker's Unix socket, if the platform tells it."""
        if self._connection is None or self.worker.via is not None:
            return self._pid
        return self._connection.peer_pid

    @property
    def may_send_token(self) -> bool:
        """Whether the token may be sent on the connection as it is."""
        return self._connection is not None and self._connection.terms.bare

    def overdue(self) -> None:
        """End the visit, because its time is over."""
        self.expire(in_seconds(self._seconds, self.client.deadline))

    def expire(self, why: str) -> None:
        """End the question under way, with the reason *why*."""
        if self._expired is None:
            self._expired = why
            if self._asking is not None:
                self._asking.cancel()

    def _give_up(self) -> None:
        """End the question under way, but not the visit, unless an answer is on its way."""
        if self._asking is not None and self._expired is None and not self._progress.received:
            self._cut = True
            self._asking.cancel()

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def _ask(self, question: Question) -> Answer:
        door = self.worker.via
        if door is None:
            return await self._send(self.worker, question)
        answer = await self._send(door, relayed(question, self.worker, self.left))
        failed = relay_failure(answer)
        if failed is not None:
            raise failed
        return answer

    async def _send(self, door: Worker, question: Question) -> Answer:
        """Put *question* to *door*: the worker itself, or the collector of its host."""
        host = "localhost" if door.unix else door.address
        connection = self._connection
        if connection is not None and connection.usable:
            try:
                return await self._put(connection, host, question)
            except Failed as failed:
                # A server may close a connection at any time after an answer.
                if failed.failure.reason != "unreachable":
                    raise
        return await self._put(await self._connect(), host, question)

    async def _put(self, connection: Connection, host: str, question: Question) -> Answer:
        """Put *question*, with what shows that we know the token."""
        proof = connection.proof
        if proof is not None and not proof.met:
            await self._meet(connection, proof, host)
            proof = connection.proof
        client = self.client
        shown = None if proof is None else proof.request(question.method, question.path)
        request = client.request(host, question, shown, proof is None and connection.terms.bare)
        answer = await connection.ask(request, question.limit, self._progress)
        info = answer.fields.get("authentication-info", "")
        if proof is None or proof.answered(answer.status, answer.body, info):
            return answer
        connection.usable = False
        if answer.status != 401:
            raise client.unproven(answer)
        client.trust_proxy(connection)
        return await self._put(await self._connect(), host, question)

    async def _meet(self, connection: Connection, proof: Proof, host: str) -> None:
        """Have the worker prove that it knows the token, before it is asked anything."""
        client = self.client
        greeting = client.request(host, GREETING, proof.greeting(), False)
        progress = Progress()
        answer = await connection.ask(greeting, GREETING.limit, progress)
        self.received += progress.received
        client.bytes_received += progress.received
        how: Meeting = "unknown"
        if answer.status == 401:
            how = proof.meet(answer.fields.get("www-authenticate", ""))
        if how != "proven":
            connection.proof = None
            if not connection.terms.bare or how != "unknown":
                connection.usable = False
                if connection.terms.why_not and how == "unknown":
                    raise Failed("refused", connection.terms.why_not)
                raise client.unmet(answer, how)
        elif self.worker.via is None and _is_another(self.worker, proof.rank):
            connection.usable = False
            found = self.worker.rank
            raise Failed("lied", f"found as rank {found}, proves that it is rank {proof.rank}")

    async def _connect(self) -> Connection:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None
        self._connecting = True
        door = self.worker.via or self.worker
        self._connection = await connect(door, self.client, self._loop, self.until)
        self._connecting = False
        return self._connection

    def _no_time(self) -> str:
        """Why the visit asks no further question."""
        if self._expired == INTERRUPTED:
            return "interrupted before it was asked"
        return f"not asked: the questions before it took all of the {self._seconds:g} s"

    def _stage(self) -> str:
        """What was still missing when the visit was ended."""
        if self._expired == INTERRUPTED:
            return "interrupted before it answered"
        if self._connecting:
            return f"no connection {self._expired}"
        return f"{self._progress} {self._expired}"


@types.coroutine
def _in_a_lane() -> Generator[None, None, None]:
    """Wait until a task goes on with this coroutine: what follows needs one."""
    yield


def is_over(visit: Coroutine[Any, Any, None]) -> bool:
    """Begin *visit* without a task. Whether it has ended: all that it asks has been answered."""
    try:
        visit.send(None)
    except StopIteration:
        return True
    return False


@types.coroutine
def go_on(visit: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
    """Go on with a *visit* that has begun, and that ``await`` therefore refuses."""
    step: Callable[[], Any] = partial(visit.send, None)
    while True:
        try:
            waited = step()
        except StopIteration:
            return
        try:
            step = partial(visit.send, (yield waited))
        except BaseException as error:
            step = partial(visit.throw, error)


def _is_another(worker: Worker, rank: int | None) -> bool:
    """Whether what proves to be *rank* is not the worker that discovery found."""
    found = None if worker.assumed or worker.collector else worker.rank
    return None not in (found, rank) and found != rank
