"""One HTTP request to one worker, with a deadline for the whole of it and a bounded answer.

Only the standard library: the command line has to run where a plain install runs, and it asks
stock torch workers too.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from workerserver.cli.errors import TargetError, UsageError
from workerserver.cli.targets import Target
from workerserver.process.credentials import token_from_environment

__all__ = ["Answer", "ask_all", "read_token", "request"]

T = TypeVar("T")

#: Targets asked at one time.
PARALLEL = 32
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer. *peer_pid* is the listening process on a Unix socket, where known."""

    status: int
    reason: str
    content_type: str
    body: bytes
    peer_pid: int | None = None

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def status_line(self) -> str:
        return f"HTTP {self.status} {self.reason}".rstrip()


def read_token() -> str | None:
    """The bearer token from WORKERSERVER_TOKEN or WORKERSERVER_TOKEN_FILE, or None.

    UsageError if it can't be had or can't be part of a header field.
    """
    try:
        token = token_from_environment()
    except ValueError as error:
        raise UsageError(str(error)) from None
    if not token:
        return None
    if not all("!" <= c <= "~" for c in token):
        raise UsageError("the token holds characters that can't be sent")
    return token


def request(
    target: Target,
    method: str,
    path: str,
    *,
    timeout: float,
    limit: int,
    token: str | None = None,
) -> Answer:
    """Send one request and read the whole answer.

    *timeout* (seconds) spans everything from the look-up of the name to the last byte; *limit* is
    in bytes of body. TargetError says why there is no answer.
    """
    deadline = time.monotonic() + timeout
    headers = {"Connection": "close", "Accept": "*/*"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    connection = _Connection(target, deadline)
    try:
        connection.request(method, path, headers=headers)
        with connection.getresponse() as response:
            return Answer(
                response.status,
                response.reason,
                response.headers.get("Content-Type", ""),
                _read(response, limit),
                connection.peer_pid,
            )
    except TimeoutError:
        raise TargetError(target.name, f"no answer within {timeout:g} s") from None
    except http.client.HTTPException as error:
        raise TargetError(target.name, f"not an HTTP answer: {_describe(error)}") from None
    except (OSError, ValueError) as error:
        raise TargetError(target.name, _describe(error)) from None
    finally:
        connection.close()


def ask_all(
    targets: Sequence[Target], ask: Callable[[Target], T], parallel: int = PARALLEL
) -> Iterator[T]:
    """*ask* of every target, some at a time, in the order of *targets*.

    *ask* has to be bounded in time. The threads are daemons, so Ctrl-C doesn't wait for them.
    """
    queue = iter(enumerate(targets))
    results: list[T | BaseException | None] = [None] * len(targets)
    done = [threading.Event() for _ in targets]
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                index, target = next(queue, (-1, None))
            if target is None:
                return
            try:
                results[index] = ask(target)
            except BaseException as error:
                results[index] = error
            done[index].set()

    for _ in range(min(parallel, len(targets))):
        threading.Thread(target=work, daemon=True).start()
    for index, event in enumerate(done):
        event.wait()
        result: Any = results[index]
        results[index] = None  # an answer can be large: the caller alone decides how long it lives
        if isinstance(result, BaseException):
            raise result
        yield result


class _Connection(http.client.HTTPConnection):
    """http.client over either kind of target; every socket call runs against one deadline."""

    def __init__(self, target: Target, deadline: float) -> None:
        super().__init__(target.host, target.port)
        self._target = target
        self._deadline = deadline
        self.peer_pid: int | None = None

    def connect(self) -> None:
        target = self._target
        if target.path is not None:
            self.sock = _connect(socket.AF_UNIX, target.path, self._deadline)
            self.peer_pid = _peer_pid(self.sock)
            return
        failure: OSError = OSError(f"no address for {target.host}")
        for family, address in _resolve(target.host, target.port, self._deadline):
            try:
                self.sock = _connect(family, address, self._deadline)
                return
            except OSError as error:
                failure = error
        raise failure


class _DeadlineSocket(socket.socket):
    """A socket whose every send and receive gets what is left of one deadline.

    A timeout per call would let a peer that sends a byte now and then hold us for ever.
    """

    deadline: float = 0.0

    def sendall(self, data: Any, flags: int = 0) -> None:
        self._arm()
        super().sendall(data, flags)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        self._arm()
        return super().recv_into(buffer, nbytes, flags)

    def _arm(self) -> None:
        self.settimeout(_left(self.deadline))


def _connect(family: int, address: Any, deadline: float) -> _DeadlineSocket:
    sock = _DeadlineSocket(family, socket.SOCK_STREAM)
    try:
        sock.deadline = deadline
        while True:
            sock.settimeout(_left(deadline))
            try:
                sock.connect(address)
                return sock
            except BlockingIOError:
                # A Unix listener whose backlog is full refuses at once instead of queueing us.
                time.sleep(min(0.02, _left(deadline)))
    except BaseException:
        sock.close()
        raise


def _resolve(host: str, port: int, deadline: float) -> list[tuple[int, Any]]:
    """getaddrinfo has no timeout of its own, so it gets a thread that we can leave behind."""
    found: list[tuple[int, Any]] = []
    failure: list[OSError] = []

    def look_up() -> None:
        try:
            for family, _, _, _, address in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM):
                found.append((family, address))
        except OSError as error:
            failure.append(error)
        except UnicodeError:
            failure.append(OSError(f"{host!r} can't be a host name"))

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(_left(deadline))
    if thread.is_alive():
        raise TimeoutError
    if failure:
        raise failure[0]
    return found


def _read(response: http.client.HTTPResponse, limit: int) -> bytes:
    too_large = f"answer larger than {limit} bytes"
    if (response.length or 0) > limit:
        raise ValueError(too_large)
    parts: list[bytes] = []
    total = 0
    while part := response.read(min(_CHUNK, limit + 1 - total)):
        parts.append(part)
        total += len(part)
        if total > limit:
            raise ValueError(too_large)
    if response.length:  # read(n) returns what came before a premature end without a word
        raise ValueError(f"connection closed with {response.length} bytes of the answer missing")
    return b"".join(parts)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _peer_pid(sock: socket.socket) -> int | None:
    """The pid that called listen() (unix(7)); None where the platform or namespace hides it."""
    with contextlib.suppress(OSError, AttributeError):
        form = struct.Struct("3i")
        pid, _, _ = form.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, form.size))
        return pid if pid > 0 else None
    return None


def _describe(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such socket"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused: nobody listens there"
    if isinstance(error, http.client.RemoteDisconnected):
        return "connection closed without an answer"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    if isinstance(error, http.client.HTTPException):
        return f"{type(error).__name__} {error}".strip()
    return str(error) or type(error).__name__
