"""Ask many workers, each within a deadline. Each worker's result is an answer or a Failure."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import signal
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from workerserver.cluster.ask.connection import Connection
from workerserver.cluster.ask.engine.at_once import INTERRUPTED, AtOnce, Early, way
from workerserver.cluster.ask.engine.kept import Kept
from workerserver.cluster.ask.engine.lanes import Lanes, descriptors_left
from workerserver.cluster.ask.exchange import Answer, Question, request_parts
from workerserver.cluster.ask.token.certificates import tls_context
from workerserver.cluster.ask.token.proof import Meeting, key_of
from workerserver.cluster.ask.token.trust import Terms, terms
from workerserver.cluster.ask.visit import Visit, go_on, is_over
from workerserver.cluster.failures import (
    Failed,
    lost_proof,
    other_version,
    short,
    unauthorized,
    unproven,
    web_server,
)
from workerserver.cluster.model import Failure, Worker
from workerserver.cluster.resolve import Resolver

__all__ = ["Answer", "Client", "Failed", "Question", "Visit", "ask", "run", "tls_context"]

T = TypeVar("T")

#: What precedes the name of a handler that is not there, in answers of ours and of torch's servers.
NO_HANDLER = " not found: Failed to find handler "

#: Time for all that one worker is asked.
DEADLINE_SECONDS = 10.0
#: Workers that are asked at one time. A worker that answers slowly doesn't count.
CONCURRENCY = 128
#: Requests whose bytes are kept for reuse. A collector gets a different request for each worker.
MAX_KEPT_REQUESTS = 64
#: New objects until Python looks for garbage in cycles. This program makes few cycles.
GARBAGE_OBJECTS = 100_000
#: A visit may end this long after its deadline.
LATE_SECONDS = 0.01


class Client:
    """Asks workers. An async context manager, for one event loop.

    *deadline*: seconds for one worker, from the look-up of its name to the last byte of the last
    answer. *concurrency*: the number of workers that are asked at one time; with *strict*, slow
    workers count too. *tls* has the authorities for https addresses; the default is the system's,
    and then *authority*, whether the operator has named one, is False.

    With a *token*, an answer counts only if its worker knows the token too: the worker proves that,
    and so does the client (token/trust.py). With *send_token* the token goes to each worker as it
    is, but to no Unix socket of a user whom we have no reason to trust, and each answer counts.
    *token_name* tells in messages where the token came from, *which* is its name (Token.name).

    ``patience`` holds shorter deadlines for workers that did not answer before. ``stop()`` ends all
    visits under way; the caller gets the results until then. ``questions`` and ``bytes_received``
    are totals over the client's life.
    """

    def __init__(
        self,
        *,
        deadline: float = DEADLINE_SECONDS,
        concurrency: int = CONCURRENCY,
        strict: bool = False,
        token: str | None = None,
        token_name: str = "the token",
        send_token: bool = False,
        which: str = "",
        tls: ssl.SSLContext | None = None,
        authority: bool | None = None,
    ) -> None:
        self.deadline = deadline
        self.concurrency = concurrency
        self._strict = strict
        self.patience: dict[Worker, float] = {}
        self.questions = 0
        self.bytes_received = 0
        self.resolver = Resolver()
        self.headers = {"User-Agent": "workerserver", "Accept-Encoding": "identity"}
        self.key = None if token is None else key_of(token)
        self._bearer = None if token is None else f"Bearer {token}"
        self._token_name = token_name
        self._send_token = send_token
        self.which = which
        self.stopped = False
        self._tls = tls
        self.authority = tls is not None if authority is None else authority
        self._visits: set[Visit] = set()
        self._at_once: set[AtOnce] = set()
        self._kept: Kept | None = None
        self._behind_proxy: set[Worker] = set()
        # One timer for all visits. A timer for each visit would cost a tenth of a question.
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._loop: asyncio.AbstractEventLoop
        self._requests: dict[tuple[str, str], tuple[bytes, bytes]] = {}

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        self._end_overdue_at(math.inf)

    @property
    def asks_proof(self) -> bool:
        """Whether an answer over TCP counts only if its worker has proven that it knows the token
        (or if its certificate vouches for it)."""
        return self.key is not None and not self._send_token

    def terms(self, worker: Worker, uid: int | None) -> Terms:
        """How the token is shown to *worker*; *uid*: whom its Unix socket belongs to."""
        if worker in self._behind_proxy:
            return Terms(False, True)
        return terms(worker, uid, in_clear=self._send_token, authority=self.authority)

    def trust_proxy(self, connection: Connection) -> None:
        """From now on the proxy at the other end gets the token as it is. Failed if it may not."""
        if not (connection.worker.tls and connection.terms.bare):
            raise Failed("refused", lost_proof(self._token_name))
        self._behind_proxy.add(connection.worker)

    @property
    def tls(self) -> ssl.SSLContext:
        """The context that verifies certificates."""
        if self._tls is None:
            self._tls = tls_context()
        return self._tls

    def stop(self) -> None:
        """End every visit now, keep the results so far, and begin no other visit."""
        self.stopped = True
        for some in list(self._at_once):
            some.stop()
        for visit in list(self._visits):
            visit.expire(INTERRUPTED)

    async def ask(
        self,
        workers: Iterable[Worker],
        question: Question,
        on_answer: Callable[[Worker, Any], None] | None = None,
    ) -> dict[Worker, Any]:
        """The result of *question*, or a Failure, for each worker, in the order of *workers*.

        *on_answer* gets each result as it comes.
        """
        return await self.visit(workers, lambda visit: visit.ask(question), on_answer)

    async def visit(
        self,
        workers: Iterable[Worker],
        talk: Callable[[Visit], Awaitable[T]],
        on_done: Callable[[Worker, T | Failure], None] | None = None,
        first: Callable[[Worker], Sequence[Question]] | None = None,
    ) -> dict[Worker, T | Failure]:
        """As :meth:`ask`, for several questions to each worker. *talk* asks the questions and
        returns the result. If *talk* raises Failed, the result is that failure.

        *first*: questions with which *talk* mostly begins. They are put in one go, to many workers
        at once, before *talk* is called, and a worker may get them twice. So only questions that
        change nothing may be among them.
        """
        # Kept, because get_running_loop() is a system call up to CPython 3.11.
        self._loop = asyncio.get_running_loop()
        never = Failure("timeout", "interrupted before it was asked")
        results: dict[Worker, T | Failure] = dict.fromkeys(workers, never)
        most = max(descriptors_left(), 1)
        working = min(self.concurrency, most)
        ways = {}
        if first is not None and not self._strict and not self.stopped:
            ways = {worker: found for worker in results if (found := way(worker, self))}

        def jobs() -> Iterator[Callable[[], Any]]:
            for worker in list(results):
                if worker not in ways:
                    yield partial(self._visit, worker, talk, results, on_done)

        if first is None or not ways:
            await Lanes(jobs(), working, working if self._strict else most).run()
            return results

        def settle(worker: Worker, early: Early) -> None:
            visit = self._visit(worker, talk, results, on_done, early)
            if not is_over(visit):
                lanes.add(lambda: go_on(visit))

        # Together they take no more descriptors than there are.
        share = max(most // 4, 1)
        lanes = Lanes(jobs(), working, share)
        with contextlib.nullcontext() if self._kept is None else self._kept.used() as kept:
            open_now = 0 if kept is None else kept.count
            room = max(most - share + open_now, 1)
            asking = AtOnce(self, ways, first, settle, working=working, most=room, kept=kept)
            self._at_once.add(asking)
            try:
                await lanes.run(asking.run())
            finally:
                self._at_once.discard(asking)
        return results

    @contextlib.contextmanager
    def one_look(self) -> Iterator[None]:
        """Until the end of the block, connections on which all of *first* (see :meth:`visit`) was
        answered stay open, for the *first* questions of later visits to the same workers."""
        if self._kept is not None:
            yield
            return
        self._kept = Kept()
        try:
            yield
        finally:
            self._kept.close()
            self._kept = None

    def hang_up(self, worker: Worker) -> None:
        """Within :meth:`one_look`: *worker* will hardly be asked more."""
        if self._kept is not None:
            self._kept.drop(worker)

    @property
    def kept(self) -> int:
        """Connections that are open for more questions."""
        return 0 if self._kept is None else self._kept.count

    async def _visit(
        self,
        worker: Worker,
        talk: Callable[[Visit], Awaitable[T]],
        results: dict[Worker, T | Failure],
        on_done: Callable[[Worker, T | Failure], None] | None,
        early: Early | None = None,
    ) -> None:
        if self.stopped and early is None:
            return
        visit = Visit(self, worker, self._loop, early)
        self._visits.add(visit)
        if visit.until < self._timer_at:
            self._end_overdue_at(visit.until)
        try:
            results[worker] = await talk(visit)
        except Failed as failed:
            results[worker] = failed.failure
        except Exception as error:
            results[worker] = _mistake(error).failure
        finally:
            self._visits.discard(visit)
            await visit.close()
        if on_done is not None:
            on_done(worker, results[worker])

    def _end_overdue_at(self, moment: float) -> None:
        """At the loop's time *moment*, end the visits that are past their deadlines."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = moment
        self._timer = None if moment == math.inf else self._loop.call_at(moment, self._end_overdue)

    def _end_overdue(self) -> None:
        now = self._loop.time()
        first = math.inf
        for visit in list(self._visits):
            if visit.until <= now:
                visit.overdue()
            else:
                first = min(first, visit.until)
        self._end_overdue_at(max(first, now + LATE_SECONDS))

    def request(self, host: str, question: Question, proof: str | None, bare: bool) -> bytes:
        """The bytes of a request. *proof*: what shows that we know the token. *bare*: the token
        itself shows it."""
        before, after = self.pieces(host, question)
        shown = self._bearer if bare else proof
        if shown is not None:
            before += f"\r\nAuthorization: {shown}".encode("ascii", "replace")
        return before + after

    def pieces(self, host: str, question: Question) -> tuple[bytes, bytes]:
        """The bytes of a request before and after the place where the token is shown. All except
        the host is built once for all workers."""
        parts = self._requests.get((question.method, question.path))
        if parts is None:
            if len(self._requests) >= MAX_KEPT_REQUESTS:
                self._requests.clear()
            parts = request_parts(question, self.headers)
            self._requests[question.method, question.path] = parts
        return parts[0] + host.encode("ascii", "replace"), parts[1]

    def explain(self, answer: Answer) -> str | None:
        """Why the HTTP error *answer* can't come from a worker; None if it may come from one.

        Our workers and torch's never send an error as HTML. Web servers do.
        """
        if not answer.ok and answer.is_html:
            return web_server(answer.status_line, answer.fields)
        if answer.status == 401:
            return unauthorized(None if self.key is None else self._token_name)
        return None

    def result(self, question: Question, answer: Answer) -> Any:
        """The result of *question* for *answer*. Failed says why *answer* can't be used."""
        if not answer.ok and not question.any_status:
            raise self._refusal(answer)
        if question.parse is None:
            return answer
        try:
            return question.parse(answer)
        except ValueError as error:
            text = short(error)
            if answer.is_html:
                text = web_server(answer.status_line, answer.fields)
            raise Failed("malformed", text) from None
        except Exception as error:
            raise _mistake(error) from error

    def unproven(self, answer: Answer) -> Failed:
        """Why *answer*, which its worker did not prove, does not count."""
        text = self.explain(answer)
        if text is not None:
            return Failed("refused", text)
        if answer.ok:
            return Failed("refused", unproven(self._token_name))
        return Failed("refused", self._refusal(answer).failure.text)

    def unmet(self, answer: Answer, how: Meeting) -> Failed:
        """Why a worker that gives *answer* to the greeting is not asked. *how*: what it said."""
        if answer.status != 401 or answer.is_html or how == "other":
            return self.unproven(answer)
        return Failed("refused", other_version(self._token_name, bare=how == "unknown"))

    def _refusal(self, answer: Answer) -> Failed:
        text = self.explain(answer)
        if text is not None:
            return Failed("refused", text)
        line = answer.body[:200].decode("utf-8", "backslashreplace").strip().partition("\n")[0]
        name = line.partition(NO_HANDLER)[2]
        if name:  # ours and torch's own servers say it twice
            line = f"no handler {name}"
        text = f"{short(answer.status_line)[1:-1]}{f': {line}' if line else ''}"
        return Failed("missing" if answer.status == 404 else "refused", text)


async def ask(
    workers: Iterable[Worker],
    question: Question,
    *,
    deadline: float = DEADLINE_SECONDS,
    concurrency: int = CONCURRENCY,
    on_answer: Callable[[Worker, Any], None] | None = None,
    token: str | None = None,
    tls: ssl.SSLContext | None = None,
) -> dict[Worker, Any]:
    """One question to many workers: see :class:`Client`."""
    async with Client(deadline=deadline, concurrency=concurrency, token=token, tls=tls) as client:
        return await client.ask(workers, question, on_answer)


def run(main: Callable[[Client], Awaitable[T]], **options: Any) -> T:
    """Run ``main(client)`` on a new uvloop loop; *options* are the Client's.

    The first Ctrl-C stops the client, and *main* goes on with the results so far. The second Ctrl-C
    raises KeyboardInterrupt.
    """
    import uvloop

    async def inner() -> T:
        loop = asyncio.get_running_loop()
        async with Client(**options) as client:

            def interrupt() -> None:
                loop.remove_signal_handler(signal.SIGINT)
                client.stop()

            # Only the main thread can set signal handlers.
            with contextlib.suppress(RuntimeError, ValueError):
                loop.add_signal_handler(signal.SIGINT, interrupt)
            try:
                return await main(client)
            finally:
                with contextlib.suppress(RuntimeError, ValueError):
                    loop.remove_signal_handler(signal.SIGINT)

    # Thousands of answers make Python look for garbage again and again, but no answer is garbage.
    # Searches through the imported modules took a fifth of the time. With 16,384 ranks, searches
    # through the answers took half of the time.
    usual = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(GARBAGE_OBJECTS, *usual[1:])
    try:
        return uvloop.run(inner())
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()


def _mistake(error: Exception) -> Failed:
    """The Failure for an answer that makes our own code raise. The other visits go on."""
    return Failed("malformed", f"can't be understood: {type(error).__name__} {short(error)}")
