"""Ask many workers, each within its deadline; every one ends in an answer or a Failure."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import signal
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from workerserver.cluster.ask.collector_format import relay_failure, relayed
from workerserver.cluster.ask.fanout import descriptors_left, fan_out
from workerserver.cluster.ask.link import Link, connect
from workerserver.cluster.ask.wire import Answer, Progress, Question
from workerserver.cluster.errors import ClusterError
from workerserver.cluster.failures import Failed, short
from workerserver.cluster.model import Failure, Worker
from workerserver.cluster.resolve import Resolver

__all__ = ["Answer", "Client", "Failed", "Question", "Visit", "ask", "run", "tls_context"]

T = TypeVar("T")

#: Seconds for one worker, everything included.
DEADLINE = 10.0
#: Workers that are being asked at one time; those that let us wait don't count.
CONCURRENCY = 128
#: Requests of which the bytes are kept: through a collector each worker has its own.
MOST_REQUESTS = 64
#: New objects until the collector looks for garbage in cycles, of which we make little.
GARBAGE = 100_000
#: Seconds by which a visit may end late.
LATE = 0.01


class Client:
    """Asks workers; for one event loop, an async context manager.

    *deadline* (seconds) is for one worker, from the look-up of its name to the last byte of the
    last answer; *concurrency*: so many are asked at one time. *token* goes to every worker.
    *tls* is what https addresses are verified with, by default the system's authorities.
    *patience* has shorter deadlines, of workers that were silent before. ``stop()`` ends what is
    under way: what came until then is returned.
    ``questions`` and ``bytes_received`` count on.
    """

    def __init__(
        self,
        *,
        deadline: float = DEADLINE,
        concurrency: int = CONCURRENCY,
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.deadline = deadline
        self.concurrency = concurrency
        self.patience: dict[Worker, float] = {}
        self.questions = 0
        self.bytes_received = 0
        self.resolver = Resolver()
        self.headers = {"User-Agent": "workerserver", "Accept-Encoding": "identity"}
        if token is not None:
            self.headers["Authorization"] = f"Bearer {token}"
        self.stopped = False
        self._tls = tls
        self._visits: set[Visit] = set()
        # One timer for all visits: each one of its own would be a tenth of what a question costs.
        self._timer: asyncio.TimerHandle | None = None
        self._looks_at = math.inf
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
        self._look_at(math.inf)

    @property
    def tls(self) -> ssl.SSLContext:
        """What certificates are verified with."""
        if self._tls is None:
            self._tls = tls_context()
        return self._tls

    def stop(self) -> None:
        """Every visit ends now, with what it has; nobody else is asked any more."""
        self.stopped = True
        for visit in list(self._visits):
            visit.expire("interrupted")

    async def ask(
        self,
        workers: Iterable[Worker],
        question: Question,
        on_answer: Callable[[Worker, Any], None] | None = None,
    ) -> dict[Worker, Any]:
        """The result of *question*, or a Failure, for each worker, in the order of *workers*.

        *on_answer* gets each as it comes.
        """
        return await self.visit(workers, lambda visit: visit.ask(question), on_answer)

    async def visit(
        self,
        workers: Iterable[Worker],
        talk: Callable[[Visit], Awaitable[T]],
        on_done: Callable[[Worker, T | Failure], None] | None = None,
    ) -> dict[Worker, T | Failure]:
        """As :meth:`ask`, for several questions to each: *talk* asks them, and its result counts.

        A Failed that *talk* lets through is the worker's result.
        """
        # To ask for it is a system call, up to CPython 3.11.
        self._loop = asyncio.get_running_loop()
        never = Failure("timeout", "interrupted before it was asked")
        results: dict[Worker, T | Failure] = dict.fromkeys(workers, never)
        most = max(descriptors_left(), 1)

        def jobs() -> Iterator[Callable[[], Any]]:
            for worker in list(results):
                yield partial(self._visit, worker, talk, results, on_done)

        await fan_out(jobs(), working=min(self.concurrency, most), most=most)
        return results

    async def _visit(
        self,
        worker: Worker,
        talk: Callable[[Visit], Awaitable[T]],
        results: dict[Worker, T | Failure],
        on_done: Callable[[Worker, T | Failure], None] | None,
    ) -> None:
        if self.stopped:
            return
        visit = Visit(self, worker, self._loop)
        self._visits.add(visit)
        if visit.until < self._looks_at:
            self._look_at(visit.until)
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

    def _look_at(self, moment: float) -> None:
        """Look for visits that are over at the loop's time *moment*."""
        if self._timer is not None:
            self._timer.cancel()
        self._looks_at = moment
        self._timer = None if moment == math.inf else self._loop.call_at(moment, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        first = math.inf
        for visit in list(self._visits):
            if visit.until <= now:
                visit.overdue()
            else:
                first = min(first, visit.until)
        self._look_at(max(first, now + LATE))

    def request(self, host: str, question: Question) -> bytes:
        """The bytes of a request; all but the host is made once, of what is asked of many."""
        parts = self._requests.get((question.method, question.path))
        if parts is None:
            if len(self._requests) >= MOST_REQUESTS:
                self._requests.clear()
            # A POST without a length makes torch's server wait for the connection's end.
            length = "" if question.method == "GET" else "Content-Length: 0\r\n"
            fields = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
            before = f"{question.method} {question.path} HTTP/1.1\r\nHost: "
            after = f"\r\n{fields}{length}\r\n"
            parts = (before.encode("ascii"), after.encode("ascii"))
            self._requests[question.method, question.path] = parts
        return host.encode("ascii", "replace").join(parts)


class Visit:
    """The questions to one worker, which share a deadline and a connection."""

    __slots__ = (
        "_asking",
        "_client",
        "_connecting",
        "_expired",
        "_link",
        "_loop",
        "_progress",
        "_seconds",
        "received",
        "until",
        "worker",
    )

    def __init__(self, client: Client, worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        self.worker = worker
        self.received = 0
        self._client = client
        self._link: Link | None = None
        self._loop = loop
        self._seconds = client.deadline
        if client.patience:
            self._seconds = client.patience.get(worker.via or worker, client.deadline)
        self.until = loop.time() + self._seconds
        self._expired: str | None = None
        self._asking: asyncio.Task[Any] | None = None
        self._connecting = False
        self._progress: Progress

    async def ask(self, question: Question) -> Any:
        """The question's result; Failed says why there is none.

        After the deadline every question fails at once.
        """
        if self._expired is not None:
            raise Failed("timeout", f"not asked any more: no end {self._expired}")
        self._asking = asyncio.current_task(self._loop)
        self._client.questions += 1
        self._progress = Progress()
        try:
            answer = await self._ask(question)
        except asyncio.CancelledError:
            if self._expired is None:
                raise
            if hasattr(self._asking, "uncancel"):
                self._asking.uncancel()
            raise Failed("timeout", self._stage()) from None
        finally:
            self._asking = None
            self.received += self._progress.received
            self._client.bytes_received += self._progress.received
        return _result(question, answer)

    @property
    def left(self) -> float:
        """Seconds until its deadline."""
        return self.until - self._loop.time()

    def overdue(self) -> None:
        """Its time is over."""
        deadline = self._client.deadline
        again = f", nor in {self._seconds:g} s when asked again" if self._seconds < deadline else ""
        self.expire(f"in {deadline:g} s{again}")

    def expire(self, why: str) -> None:
        """End the question under way."""
        if self._expired is None:
            self._expired = why
            if self._asking is not None:
                self._asking.cancel()

    async def close(self) -> None:
        if self._link is not None:
            await self._link.close()

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
        request = self._client.request(host, question)
        link = self._link
        if link is not None and link.usable:
            try:
                return await link.ask(request, question.limit, self._progress)
            except Failed as failed:
                # A server may close a connection that it has answered on at any time.
                if failed.failure.reason != "unreachable":
                    raise
        return await (await self._connect()).ask(request, question.limit, self._progress)

    async def _connect(self) -> Link:
        if self._link is not None:
            await self._link.close()
            self._link = None
        self._connecting = True
        door = self.worker.via or self.worker
        self._link = await connect(door, self._client, self._loop, self.until)
        self._connecting = False
        return self._link

    def _stage(self) -> str:
        """What was missing when the time was over."""
        if self._expired == "interrupted":
            return "interrupted before it answered"
        if self._connecting:
            return f"no connection {self._expired}"
        return f"{self._progress} {self._expired}"


async def ask(
    workers: Iterable[Worker],
    question: Question,
    *,
    deadline: float = DEADLINE,
    concurrency: int = CONCURRENCY,
    on_answer: Callable[[Worker, Any], None] | None = None,
    token: str | None = None,
    tls: ssl.SSLContext | None = None,
) -> dict[Worker, Any]:
    """One question to many workers: see :class:`Client`."""
    async with Client(deadline=deadline, concurrency=concurrency, token=token, tls=tls) as client:
        return await client.ask(workers, question, on_answer)


def tls_context(ca_file: str | None = None) -> ssl.SSLContext:
    """Certificates are verified, against the system's authorities or those in *ca_file*."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:  # ssl.SSLError is one
        raise ClusterError(f"{ca_file}: no certificates: {error.strerror or error}") from None


def run(main: Callable[[Client], Awaitable[T]], **options: Any) -> T:
    """``main(client)`` on a uvloop of its own; *options* are the Client's.

    The first Ctrl-C stops the client, so *main* goes on with what there is; the second is a
    KeyboardInterrupt.
    """
    import uvloop

    async def inner() -> T:
        loop = asyncio.get_running_loop()
        async with Client(**options) as client:

            def interrupt() -> None:
                loop.remove_signal_handler(signal.SIGINT)
                client.stop()

            # Outside of the main thread signals are somebody else's.
            with contextlib.suppress(RuntimeError, ValueError):
                loop.add_signal_handler(signal.SIGINT, interrupt)
            try:
                return await main(client)
            finally:
                with contextlib.suppress(RuntimeError, ValueError):
                    loop.remove_signal_handler(signal.SIGINT)

    # Thousands of answers, none of which is garbage, make the collector look through all that was
    # imported, again and again: a fifth of the time. And through all answers: half of the time
    # with 16,384 ranks.
    usual = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(GARBAGE, *usual[1:])
    try:
        return uvloop.run(inner())
    finally:
        gc.set_threshold(*usual)
        gc.unfreeze()


def _result(question: Question, answer: Answer) -> Any:
    if not answer.ok and not question.any_status:
        text = answer.body[:200].decode("utf-8", "backslashreplace").strip().partition("\n")[0]
        what = f"{short(answer.status_line)[1:-1]}{f': {text}' if text else ''}"
        raise Failed("missing" if answer.status == 404 else "refused", what)
    if question.parse is None:
        return answer
    try:
        return question.parse(answer)
    except ValueError as error:
        raise Failed("malformed", short(error)) from None
    except Exception as error:
        raise _mistake(error) from error


def _mistake(error: Exception) -> Failed:
    """Ours, but one worker's answer shows it: the rest goes on."""
    return Failed("malformed", f"can't be understood: {type(error).__name__} {short(error)}")
