"""One connection to a worker: a minimal HTTP/1.1 client on asyncio (uvloop) and httptools.

The first version used aiohttp. With 1,024 workers on one machine, a connection and two small
questions cost 0.65 ms of processor time with aiohttp, and cost 0.2 ms here. torch's own collector,
which uses aiohttp too, takes 0.65 ms for one question. With aiohttp, an endless answer in chunks of
one byte held up all other workers for 8 s, whatever their deadlines were. A TLS server that didn't
end its side held up the end of the program. This client has no redirects, cookies, proxies or
compression. It reads nothing beyond a bound, and closes by aborting.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import struct
from typing import Any, Protocol

import httptools

from workerserver.cluster.addresses import host_port
from workerserver.cluster.ask.exchange import Answer, Progress
from workerserver.cluster.ask.token.proof import Proof
from workerserver.cluster.ask.token.trust import NO_TOKEN, Terms
from workerserver.cluster.errors import NotATarget
from workerserver.cluster.failures import Failed, closed, cut, no_connection, not_http
from workerserver.cluster.model import FailureReason, Worker
from workerserver.cluster.resolve import Resolver
from workerserver.process.sockets import reachable_name

__all__ = ["MAX_HEAD_BYTES", "Connection", "connect"]

#: Bytes of a status line and its fields.
MAX_HEAD_BYTES = 32 << 10

#: An answer in more than MAX_TINY_CHUNKS chunks of less than TINY_CHUNK_BYTES on average is an
#: attack or a mistake.
MAX_TINY_CHUNKS = 1024
TINY_CHUNK_BYTES = 256
MAX_FIELDS = 128

#: Bytes from an answer's beginning that are kept, for the message if the answer is no HTTP.
START_BYTES = 256

#: Errors that pass: the backlog of a Unix listener is full, no descriptor or no port is free.
_PASSING = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EADDRNOTAVAIL})


#: Why a worker is not asked whose entry in the job's store says http.
DOWNGRADED = (
    "its entry in the job's TCPStore says http, but the job speaks https: the entry may be false "
    "(to ask it all the same, name its address)"
)


class _Stop(Exception):
    """Stops the parser. httptools wraps its own exception around this one."""


class Connection(asyncio.Protocol):
    """One connection to *worker*, for one question at a time.

    Invariants: between questions ``_waiter`` is None. ``usable`` is False as soon as the rest of
    one answer could be mistaken for the next answer. A connection keeps no more of an answer than
    ``MAX_HEAD_BYTES`` and the question's own limit.
    """

    def __init__(self, worker: Worker, loop: asyncio.AbstractEventLoop) -> None:
        # The connection
        self.usable = True
        self.answered = 0
        self.terms = NO_TOKEN
        self.proof: Proof | None = None  # where both ends prove the token
        self.worker = worker
        self._loop = loop
        self._transport: Any = None
        self._lost: asyncio.Future[None] | None = None
        self._early = b""  # bytes from before the first question: sshd sends its name first
        # For one answer; each question sets these.
        self._waiter: asyncio.Future[None] | None = None
        self._progress: Progress
        self._parser: Any
        self._limit: int
        self._fields: dict[str, str]
        self._count: int  # of fields, repeated ones too
        self._reason: bytes
        self._status: int
        self._start: bytes
        self._length: int | None
        self._body: list[bytes]
        self._size: int
        self._chunks: int
        self._until_eof: bool
        self._complete: bool
        self._failed: Failed | None

    @property
    def peer_pid(self) -> int | None:
        """The pid that called listen() on a Unix socket (unix(7)). None on TCP, and if the platform
        or a pid namespace hides the pid."""
        pid = self._peer()[0]
        return pid if pid is not None and pid > 0 else None

    @property
    def peer_uid(self) -> int | None:
        """The user that called listen() on a Unix socket. None where the platform hides the user.
        A user that this namespace does not know counts as the kernel's "nobody"."""
        return self._peer()[1]

    def _peer(self) -> tuple[int, int] | tuple[None, None]:
        """Pid and user of the process at the other end of a Unix socket."""
        sock = self._transport.get_extra_info("socket") if self.worker.unix else None
        if sock is None or not hasattr(socket, "SO_PEERCRED"):
            return None, None
        form = struct.Struct("3i")
        try:
            answer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, form.size)
        except OSError:
            return None, None
        pid, uid, _ = form.unpack(answer)
        return pid, uid

    async def ask(self, request: bytes, limit: int, progress: Progress) -> Answer:
        """Send *request* and read its answer, with a body of at most *limit* bytes.

        Failed says why there is no answer. A caller that cancels this call has to close the
        connection.
        """
        if self._early:
            raise not_http(self._early, None, self.worker)
        if self._lost is None or self._lost.done():
            raise closed(self.worker)
        self._parser = httptools.HttpResponseParser(self)
        self._limit = limit
        self._fields = {}
        self._reason = self._start = b""
        self._length = None
        self._body = []
        self._count = self._size = self._chunks = self._status = 0
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
        """Close the connection. Returns when the descriptor is free again."""
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
            self.usable = False  # bytes that no question asked for
            if self._waiter is None and not self.answered:
                self._early = data[:START_BYTES]
            self._transport.abort()
            return
        progress = self._progress
        progress.received += len(data)
        if len(self._start) < START_BYTES:
            self._start += data[:START_BYTES]
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self._failed is None:
                self._failed = not_http(self._start, error, self.worker)
        progress.head = self._status != 0
        if not progress.head and progress.received > MAX_HEAD_BYTES:
            self._note("too large", f"a head of more than {MAX_HEAD_BYTES} bytes")
        # The framing of chunks is bounded too, even if the chunks are tiny.
        if not self._complete and progress.received > MAX_HEAD_BYTES + 2 * self._limit:
            self._note("too large", f"an answer of more than {self._limit} bytes")
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
                self._end(closed(self.worker))
            else:
                has_length = self._status and self._length is not None
                missing = (self._length or 0) - self._size if has_length else None
                self._end(cut(missing, self._progress))
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

    # httptools' side. An error is kept. After the parser has returned, the error ends the question.

    def on_status(self, status: bytes) -> None:
        if not self._complete:
            self._reason += status

    def on_message_begin(self) -> None:
        if self._complete:  # a second answer to one question
            self.usable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._complete:
            return
        self._count += 1
        if self._count > MAX_FIELDS:
            self._fail("too large", f"a head of more than {MAX_FIELDS} fields")
        self._fields[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200 or self._complete:
            return
        self._status = status
        fields = self._fields
        length = fields.get("content-length", "")
        if length.isdecimal():
            self._length = int(length[:20])
            if self._length > self._limit:
                text = f"an answer of {self._length} bytes, more than {self._limit} bytes"
                self._fail("too large", text)
        if fields.get("content-encoding", "identity").lower() != "identity":
            self._fail("malformed", "a compressed answer, which nobody asked for")
        self._until_eof = not length and "transfer-encoding" not in fields
        if not self._parser.should_keep_alive():
            self.usable = False

    def on_chunk_header(self) -> None:
        self._chunks += 1
        if self._chunks > MAX_TINY_CHUNKS + self._size // TINY_CHUNK_BYTES:
            self._fail("malformed", f"{self._size} bytes in {self._chunks} chunks")

    def on_body(self, data: bytes) -> None:
        if self._complete:
            return
        self._size += len(data)
        if self._size > self._limit:
            self._fail("too large", f"an answer of more than {self._limit} bytes")
        self._body.append(data)

    def on_message_complete(self) -> None:
        if self._status == 0:  # an interim answer (1xx)
            self._fields = {}
            self._count = 0
            self._reason = b""
        else:
            self._complete = True
            self._until_eof = False

    def _note(self, reason: FailureReason, text: str) -> None:
        if self._failed is None:
            self._failed = Failed(reason, text)

    def _fail(self, reason: FailureReason, text: str) -> None:
        """Called in a callback of the parser. The parser then skips the rest of its buffer."""
        self._note(reason, text)
        raise _Stop


class Means(Protocol):
    """What a connection is made with."""

    resolver: Resolver

    @property
    def tls(self) -> ssl.SSLContext: ...

    @property
    def key(self) -> bytes | None: ...

    @property
    def which(self) -> str: ...

    @property
    def authority(self) -> bool: ...

    def terms(self, worker: Worker, uid: int | None) -> Terms: ...


async def connect(
    worker: Worker, means: Means, loop: asyncio.AbstractEventLoop, deadline: float
) -> Connection:
    """A connection to *worker*. Failed says why there is none. *deadline* is the loop's time."""
    if worker.unix:
        if "\0" in worker.address:
            raise Failed("unreachable", "the path holds a NUL")
        try:
            with reachable_name(worker.address) as path:  # libuv would cut a longer one silently
                connection = await _connect(worker, loop, {"path": path})
        except OSError as error:  # of the folder
            if error.errno == errno.ENAMETOOLONG:
                raise Failed("unreachable", error.strerror or str(error)) from None
            raise no_connection(error, worker) from None
        # After connect(), and of the connection itself: what a path names may change at any time.
        _agree(connection, worker, means)
        if connection.terms.why_not and not connection.terms.proves:
            await connection.close()
            raise Failed("refused", connection.terms.why_not)
        return connection
    if not worker.address:
        raise Failed("unreachable", "not registered")
    if not worker.tls and (worker.downgraded or (worker.from_store and means.authority)):
        raise Failed("refused", DOWNGRADED)
    try:
        host, port = host_port(worker.address)
    except NotATarget as error:
        raise Failed("unreachable", str(error)) from None
    addresses = await means.resolver.addresses(host)
    failed: Failed | None = None
    for index, address in enumerate(addresses):
        where: dict[str, Any] = {"host": address, "port": port}
        if worker.tls:
            where.update(ssl=means.tls, server_hostname=host)
        attempt = _connect(worker, loop, where)
        try:
            if index == len(addresses) - 1:
                return _agree(await attempt, worker, means)
            share = (deadline - loop.time()) / (len(addresses) - index)
            return _agree(await asyncio.wait_for(attempt, max(share, 0.001)), worker, means)
        except asyncio.TimeoutError:
            failed = Failed("timeout", f"no connection to {address}")
        except Failed as error:
            failed = error
    raise failed or Failed("unreachable", f"no address for {host}")


def _agree(connection: Connection, worker: Worker, means: Means) -> Connection:
    """How the token is shown on a new connection."""
    if means.key is not None:
        connection.terms = means.terms(worker, connection.peer_uid)
        if connection.terms.proves:
            connection.proof = Proof(means.key, means.which)
    return connection


async def _connect(
    worker: Worker, loop: asyncio.AbstractEventLoop, where: dict[str, Any]
) -> Connection:
    create = loop.create_unix_connection if worker.unix else loop.create_connection
    while True:
        try:
            _, connection = await create(lambda: Connection(worker, loop), **where)
            return connection
        except OSError as error:  # ssl.SSLError is one
            if error.errno not in _PASSING or isinstance(error, ssl.SSLError):
                raise no_connection(error, worker) from None
        await asyncio.sleep(0.02)
