"""The first questions of many visits, put by the engine in C (:mod:`workerserver.cluster._ask`).

The engine sends the first questions of a worker in one go, and reads plain answers. Whatever is
unusual about a worker, the visit itself goes on with (client.py): so there is one reader of unusual
answers, and one set of limits and texts. TLS, and questions through a collector, are not for the
engine.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from workerserver.cluster.addresses import host_port
from workerserver.cluster.ask.connection import MAX_FIELDS, MAX_HEAD_BYTES
from workerserver.cluster.ask.engine.kept import Kept
from workerserver.cluster.ask.engine.lanes import PATIENCE_SECONDS
from workerserver.cluster.ask.exchange import GREETING, Answer, Progress, Question
from workerserver.cluster.errors import NotATarget
from workerserver.cluster.failures import Failed, closed, cut, no_connection
from workerserver.cluster.model import Worker
from workerserver.cluster.resolve import Resolver
from workerserver.process.sockets import MAX_PATH_BYTES

if TYPE_CHECKING:
    from workerserver.cluster import _ask
else:
    try:
        from workerserver.cluster import _ask
    except ImportError:  # no epoll, or a free-threaded CPython
        _ask = None

__all__ = ["INTERRUPTED", "AtOnce", "Early", "Way", "_ask", "in_seconds", "way"]

#: Workers whose requests are made ahead of their turn.
AHEAD = 256
#: The longest wait for an answer on one connection. Then another connection is tried.
STALL_SECONDS = 1.0
#: The reason of a visit that ended before its deadline.
INTERRUPTED = "interrupted"


class Way(NamedTuple):
    """How the engine reaches a worker: a Unix socket's *path*, or *host* and *port*."""

    path: bytes | None
    host: str = ""
    port: int = 0


class Early:
    """What the engine has learned of a worker. *answers*: to the first questions, in their order; a
    Failed is the last one. *until*: the end of the worker's time, by the loop. *expired*: why the
    visit has ended, if it has. *received*: bytes. *pid*: who listens on a Unix socket."""

    __slots__ = ("answers", "expired", "pid", "received", "until")

    def __init__(self, until: float, received: int, pid: int | None) -> None:
        self.answers: list[tuple[Question, Answer | Failed]] = []
        self.expired: str | None = None
        self.until = until
        self.received = received
        self.pid = pid


class Asker(Protocol):
    """The client, as the engine's driver needs it."""

    deadline: float
    patience: dict[Worker, float]
    resolver: Resolver
    authority: bool

    @property
    def key(self) -> bytes | None: ...

    @property
    def asks_proof(self) -> bool: ...

    @property
    def which(self) -> str: ...

    def request(self, host: str, question: Question, proof: str | None, bare: bool) -> bytes: ...

    def pieces(self, host: str, question: Question) -> tuple[bytes, bytes]: ...


def way(worker: Worker, client: Asker) -> Way | None:
    """How the engine reaches *worker*; None if the visit has to."""
    if _ask is None or worker.via is not None or worker.tls or not worker.address:
        return None
    if worker.unix:
        path = os.fsencode(worker.address)
        return Way(path) if len(path) <= MAX_PATH_BYTES and b"\0" not in path else None
    if worker.downgraded or (worker.from_store and client.authority):
        return None
    try:
        return Way(None, *host_port(worker.address))
    except NotATarget:
        return None


def in_seconds(seconds: float, deadline: float) -> str:
    """Of a worker that has used up its time."""
    again = f", nor in {seconds:g} s when asked again" if seconds < deadline else ""
    return f"in {deadline:g} s{again}"


class AtOnce:
    """Puts *questions* of each worker of *ways*, and calls *settle* with what came of it.

    At most *most* workers are asked at one time, and at most *working* that began within
    PATIENCE_SECONDS. *kept*: where the connections stay when all has been answered, and where those
    of earlier questions are.
    """

    def __init__(
        self,
        client: Asker,
        ways: Mapping[Worker, Way],
        questions: Callable[[Worker], Sequence[Question]],
        settle: Callable[[Worker, Early], None],
        *,
        working: int,
        most: int,
        kept: Kept | None = None,
    ) -> None:
        self._client = client
        self._ways = iter(ways.items())
        self._questions = questions
        self._settle = settle
        self._left = True  # in _ways
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._asked: dict[int, tuple[Worker, Way, Sequence[Question]]] = {}
        self._made: dict[tuple[int, ...], tuple[Sequence[Question], bytes, tuple[int, ...]]] = {}
        self._kept = kept
        self._counter = itertools.count(1) if kept is None else kept.counter
        self._nameless: dict[int, Failed] = {}
        self._look_ups: dict[str, asyncio.Task[None]] = {}
        self._waiting: dict[str, list[int]] = {}
        self._bare = client.key is not None
        self._proves = client.asks_proof
        if kept is not None and kept.fan is not None:
            self._fan = kept.fan
            self._fan.bound(working, most)
            return
        self._fan = _ask.Fan(
            working=working,
            most=most,
            patience=PATIENCE_SECONDS,
            stall=STALL_SECONDS,
            max_head=MAX_HEAD_BYTES,
            max_fields=MAX_FIELDS,
            key=client.key,
            token=client.which.encode("ascii"),
        )
        if kept is not None:
            kept.fan = self._fan

    async def run(self) -> None:
        """Return when each worker is settled, or has been dropped by :meth:`stop`."""
        try:
            self._loop.add_reader(self._fan.fileno(), self._turn)
            self._turn()
            await self._done
        finally:
            self._loop.remove_reader(self._fan.fileno())
            for task in self._look_ups.values():
                task.cancel()
            await asyncio.gather(*self._look_ups.values(), return_exceptions=True)
            if self._kept is None:
                self._fan.close()

    def stop(self) -> None:
        """End the questions under way, and begin no other."""
        if not self._done.done():
            self._left = False
            self._take(self._fan.stop)
            self._finish()

    def _turn(self) -> None:
        if self._done.done():
            return
        while self._left and self._fan.queued < AHEAD:
            self._add()
        if self._take(self._fan.turn):
            # Whose end makes room for others, of whom no event tells.
            self._loop.call_soon(self._turn)
        elif not (self._left or self._fan.queued or self._fan.active):
            self._finish()

    def _finish(self) -> None:
        if not self._done.done():
            self._done.set_result(None)

    def _take(self, turn: Callable[[], tuple[list[_ask.Talk], list[int]]]) -> bool:
        """Take what *turn* gives. Whether some workers have ended."""
        try:
            ended, wanted = turn()
            for number in wanted:
                self._look_up(number)
            for talk in ended:
                worker, _, questions = self._asked.pop(talk.number)
                if talk.kept and self._kept is not None:
                    self._kept.numbers[worker] = talk.number
                self._settle(worker, self._early(worker, questions, talk))
        except Exception as error:
            if not self._done.done():
                self._done.set_exception(error)
            return False
        return bool(ended)

    def _add(self) -> None:
        found = next(self._ways, None)
        if found is None:
            self._left = False
            return
        worker, way = found
        client = self._client
        questions = self._questions(worker)
        seconds = client.deadline
        if client.patience:
            seconds = client.patience.get(worker, seconds)
        if self._kept is not None and worker in self._kept.numbers:
            number = self._kept.numbers.pop(worker)
            request, limits, proven = self._request(worker, questions)
            if self._fan.more(number, request, limits, seconds, proven=proven):
                self._asked[number] = (worker, way, questions)
                return
        request, limits, proven = self._request(worker, questions, GREETING)
        number = next(self._counter)
        self._asked[number] = (worker, way, questions)
        addresses = None if worker.unix else client.resolver.known(way.host)
        self._fan.add(
            number,
            request,
            limits,
            seconds,
            path=way.path,
            addresses=tuple(addresses or ()),
            port=way.port,
            trusting=worker.unix and self._bare,
            keeps=self._kept is not None,
            proven=proven,
            rank=-1 if worker.rank is None or worker.assumed else worker.rank,
        )

    def _request(
        self, worker: Worker, questions: Sequence[Question], *greeting: Question
    ) -> tuple[bytes, tuple[int, ...], tuple[tuple[int, int], ...] | None]:
        """The bytes of *questions*, how large each answer may be, and the places where the proofs
        belong, the first one that of the *greeting*. If nothing has to be proven, there are no
        places, and no greeting."""
        if worker.unix:
            # Most workers are asked the same. Identity will do: what is kept here keeps them alive.
            key = tuple(map(id, questions))
            found = self._made.get(key)
            if found is None:
                found = self._made[key] = (questions, *self._plain("localhost", questions))
            return *found[1:], None
        host = worker.address
        if not self._proves:
            return *self._plain(host, questions), None
        limits = tuple(each.limit for each in questions)
        parts: list[bytes] = []
        places = []
        size = 0
        for question in (*greeting, *questions):
            before, after = self._client.pieces(host, question)
            places.append((size, size + len(before)))
            parts += (before, after)
            size += len(before) + len(after)
        return b"".join(parts), limits, tuple(places)

    def _plain(self, host: str, questions: Sequence[Question]) -> tuple[bytes, tuple[int, ...]]:
        request = self._client.request
        parts = [request(host, each, None, self._bare) for each in questions]
        return b"".join(parts), tuple(each.limit for each in questions)

    # ---- names

    def _look_up(self, number: int) -> None:
        """Find the addresses of a worker whose time has begun."""
        _, way, _ = self._asked[number]
        known = self._client.resolver.known(way.host)
        if known is not None:
            self._fan.name(number, tuple(known), way.port)
            return
        self._waiting.setdefault(way.host, []).append(number)
        if way.host not in self._look_ups:
            self._look_ups[way.host] = self._loop.create_task(self._name(way.host))

    async def _name(self, host: str) -> None:
        failed: Failed | None = None
        addresses: list[str] = []
        try:
            addresses = await self._client.resolver.addresses(host)
        except Failed as error:
            failed = error
        del self._look_ups[host]
        for number in self._waiting.pop(host, ()):
            if number not in self._asked:
                continue
            if failed is not None:
                self._nameless[number] = failed
                self._fan.unnamed(number)
            else:
                self._fan.name(number, tuple(addresses), self._asked[number][1].port)
        self._turn()

    # ---- what came of it

    def _early(self, worker: Worker, questions: Sequence[Question], talk: _ask.Talk) -> Early:
        early = Early(talk.until, talk.received, talk.pid or None)
        answers = early.answers
        for question, answer in zip(questions, talk.answers, strict=False):
            answers.append((question, Answer(*answer)))
        how = talk.how
        if how in ("answered", "strange"):
            return early
        failed: Failed
        if how == "late" or how == "stopped":
            client = self._client
            seconds = client.patience.get(worker, client.deadline)
            early.expired = (
                INTERRUPTED if how == "stopped" else in_seconds(seconds, client.deadline)
            )
            if how == "stopped":
                failed = Failed("timeout", "interrupted before it answered")
            elif talk.stage == "asking":
                progress = Progress(talk.partial, talk.missing >= 0)
                failed = Failed("timeout", f"{progress} {early.expired}")
            else:
                failed = Failed("timeout", f"no connection {early.expired}")
        elif how == "unnamed":
            failed = self._nameless.pop(talk.number)
        elif how == "shut":
            failed = closed(worker)
        elif how == "cut":
            progress = Progress(talk.partial, talk.missing >= 0)
            failed = cut(talk.missing if progress.head else None, progress)
        else:
            failed = no_connection(OSError(talk.error, os.strerror(talk.error)), worker)
        answers.append((questions[talk.at], failed))
        return early
