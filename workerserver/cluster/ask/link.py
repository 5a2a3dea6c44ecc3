"""One connection to a worker: a minimal HTTP/1.1 client on asyncio (uvloop) and httptools.

It was aiohttp at first. Measured with 1,024 workers on one machine: 0.65 ms of processor time for a
connection and two small questions, 0.2 ms here; torch's own collector, on aiohttp too, takes 0.65
for one. An endless answer in chunks of one byte to one worker held up all others for eight
seconds, whatever their deadlines, and a TLS server that doesn't end its side held up the end of
the program. All of this is decided here: no redirects, cookies, proxies or compression, nothing
is read beyond a bound, and closing is aborting.
"""

from __future__ import annotations

import asyncio
import errno
import os
import ssl
from typing import Any, Protocol

import httptools

from workerserver.cluster.addresses import host_port
from workerserver.cluster.ask.wire import Answer, Progress
from workerserver.cluster.errors import ClusterError
from workerserver.cluster.failures import Failed, describe, short
from workerserver.cluster.model import Reason, Worker
from workerserver.cluster.resolve import Resolver

__all__ = ["HEAD_LIMIT", "Link", "connect"]

#: Bytes of a status line and its fields.
HEAD_LIMIT = 32 << 10
#: sizeof(sockaddr_un.sun_path) without the final NUL; libuv cuts what is longer without a word.
PATH_LIMIT = 107

#: An answer in more chunks, of which most are tiny, has no honest sender.
CHUNKS = 1024
CHUNK_SIZE = 256
FIELDS = 128

#: A full backlog of a Unix listener, no descriptor or no port to be had: all of it passes.
_PASSING = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EADDRNOTAVAIL})


class _Stop(Exception):
    """Makes the parser stop; httptools puts an exception of its own around it."""


class Link(asyncio.Protocol):
    """One connection; one question at a time.

    Invariants: between questions ``_waiter`` is None. ``usable`` is False from the moment on at
    which the next answer could no longer be told from the rest of this one. Nothing is kept of an
    answer beyond ``HEAD_LIMIT`` and the question's own limit.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.usable = True
        self.answered = 0
        self._loop = loop
        self._transport: Any = None
        self._lost: asyncio.Future[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        # One answer; a question sets them.
        self._progress: Progress
        self._parser: Any
        self._limit: int
        self._fields: dict[str, str]
        self._reason: bytes
        self._status: int
        self._body: list[bytes]
        self._size: int
        self._chunks: int
        self._until_eof: bool
        self._complete: bool
        self._failed: Failed | None

    async def ask(self, request: bytes, limit: int, progress: Progress) -> Answer:
        """Send *request* and read its answer of at most *limit* bytes of body.

        Failed says why there is none. Whoever cancels this has to close the link.
        """
        self._parser = httptools.HttpResponseParser(self)
        self._limit = limit
        self._fields = {}
        self._reason = b""
        self._body = []
        self._size = self._chunks = self._status = 0
        self._progress = progress
        self._until_eof = self._complete = False
        self._failed = None
        self._waiter = self._loop.create_future()
        self._transport.write(request)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if not self._complete:
                self.usable = False
        self.answered += 1
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        reason = self._reason.decode("latin-1")
        return Answer(self._status, reason, self._fields, body, self._progress.received)

    async def close(self) -> None:
        """Returns when the descriptor is free again."""
        self.usable = False
        if self._transport is None:
            return
        self._transport.abort()
        if self._lost is not None:
            await self._lost

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._lost = self._loop.create_future()

    def data_received(self, data: bytes) -> None:
        if self._waiter is None or self._waiter.done():
            self.usable = False  # nobody asked for it
            self._transport.abort()
            return
        progress = self._progress
        progress.received += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            what = type(error).__name__.removeprefix("HttpParser")
            self._note("malformed", f"not an HTTP answer: {what} {short(error)}")
        progress.head = self._status != 0
        if not progress.head and progress.received > HEAD_LIMIT:
            self._note("too large", f"a head of more than {HEAD_LIMIT} bytes")
        # What the framing of chunks adds is bounded too, however small they are.
        if not self._complete and progress.received > HEAD_LIMIT + 2 * self._limit:
            self._note("too large", f"more than {self._limit} bytes of answer")
        if self._failed is not None:
            self._end(self._failed)
        elif self._complete:
            self._end(None)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        if self._waiter is not None and not self._waiter.done():
            if self._until_eof and exc is None:
                self._complete = True
                self._end(None)
            elif not self._progress.received:
                self._end(Failed("unreachable", "connection closed without an answer"))
            else:
                self._end(Failed("malformed", f"connection closed, {self._progress}"))
            self.usable = False
        if self._lost is not None and not self._lost.done():
            self._lost.set_result(None)

    def _end(self, failed: Failed | None) -> None:
        if failed is not None:
            self.usable = False
            self._body = []
            self._transport.abort()
        if self._waiter is not None and not self._waiter.done():
            if failed is None:
                self._waiter.set_result(None)
            else:
                self._waiter.set_exception(failed)

    # httptools' side: errors are kept, and become the answer where the parser has returned

    def on_status(self, status: bytes) -> None:
        if not self._complete:
            self._reason += status

    def on_message_begin(self) -> None:
        if self._complete:  # a second answer to one question
            self.usable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._complete:
            return
        if len(self._fields) >= FIELDS:
            self._fail("too large", f"a head of more than {FIELDS} fields")
        self._fields[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200 or self._complete:
            return
        self._status = status
        fields = self._fields
        length = fields.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._limit:
            text = f"an answer of {length[:20]} bytes, more than {self._limit}"
            self._fail("too large", text)
        elif fields.get("content-encoding", "identity").lower() != "identity":
            self._fail("malformed", "a compressed answer, which nobody asked for")
        self._until_eof = not length and "transfer-encoding" not in fields
        if not self._parser.should_keep_alive():
            self.usable = False

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if self._chunks > CHUNKS + self._size // CHUNK_SIZE:
            self._fail("malformed", f"{self._size} bytes in {self._chunks} chunks")

    def on_body(self, data: bytes) -> None:
        if self._complete:
            return
        self._size += len(data)
        if self._size > self._limit:
            self._fail("too large", f"more than {self._limit} bytes of answer")
        self._body.append(data)

    def on_message_complete(self) -> None:
        if self._status == 0:  # an interim one (1xx)
            self._fields = {}
            self._reason = b""
        else:
            self._complete = True
            self._until_eof = False

    def _note(self, reason: Reason, text: str) -> None:
        if self._failed is None:
            self._failed = Failed(reason, text)

    def _fail(self, reason: Reason, text: str) -> None:
        """In a callback: what is left in the parser's buffer is not worth our time."""
        self._note(reason, text)
        raise _Stop


class Means(Protocol):
    """What connections are made with."""

    resolver: Resolver

    @property
    def tls(self) -> ssl.SSLContext: ...


async def connect(
    worker: Worker, means: Means, loop: asyncio.AbstractEventLoop, deadline: float
) -> Link:
    """A link to *worker*; Failed if there is none. *deadline* is in the loop's time."""
    if worker.unix:
        path = worker.address
        if len(os.fsencode(path)) > PATH_LIMIT or "\0" in path:
            raise Failed("unreachable", f"no socket's path: longer than {PATH_LIMIT} bytes")
        return await _connect(loop, {"path": path})
    if not worker.address:
        raise Failed("unreachable", "not registered")
    try:
        host, port = host_port(worker.address)
    except ClusterError as error:
        raise Failed("unreachable", str(error)) from None
    addresses = await means.resolver.addresses(host)
    failed: Failed | None = None
    for index, address in enumerate(addresses):
        where: dict[str, Any] = {"host": address, "port": port}
        if worker.tls:
            where.update(ssl=means.tls, server_hostname=host)
        attempt = _connect(loop, where)
        try:
            if index == len(addresses) - 1:
                return await attempt
            share = (deadline - loop.time()) / (len(addresses) - index)
            return await asyncio.wait_for(attempt, max(share, 0.001))
        except asyncio.TimeoutError:
            failed = Failed("timeout", f"no connection to {address}")
        except Failed as error:
            failed = error
    raise failed or Failed("unreachable", f"no address for {host}")


async def _connect(loop: asyncio.AbstractEventLoop, where: dict[str, Any]) -> Link:
    open_link = loop.create_unix_connection if "path" in where else loop.create_connection
    while True:
        try:
            _, link = await open_link(lambda: Link(loop), **where)
            return link
        except ssl.SSLCertVerificationError as error:
            text = f"certificate not accepted: {error.verify_message}"
            raise Failed("unreachable", text) from None
        except OSError as error:  # ssl.SSLError is one
            if error.errno not in _PASSING or isinstance(error, ssl.SSLError):
                raise Failed("unreachable", describe(error)) from None
        await asyncio.sleep(0.02)
