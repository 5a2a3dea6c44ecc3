"""The relay's client: torch's own server, and peers that answer badly."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import termios
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.waiting import wait_until

from workerserver.native._bridge import Fetched, RelayError, fetch, needs_gil
from workerserver.process._pulse import threads_can_start

OK = b"HTTP/1.1 200 OK\r\n"


@contextlib.contextmanager
def peer(path: Path, answer: Callable[[socket.socket], None]) -> Iterator[bytes]:
    """A peer that takes one connection, reads one request and has *answer* answer it."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)

    def serve() -> None:
        with contextlib.suppress(OSError):  # shut down by us, or closed by the relay
            connection, _ = listener.accept()
            with connection:
                request = b""
                while not request.endswith(b"\r\n\r\n"):
                    request += connection.recv(65536)
                answer(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield os.fsencode(path)
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def parts(pieces: Sequence[bytes]) -> Callable[[socket.socket], None]:
    """Sends *pieces* one by one, each once the one before it was read, and closes."""

    def answer(connection: socket.socket) -> None:
        for piece in pieces:
            connection.sendall(piece)
            wait_until(lambda: unread(connection) == 0)

    return answer


def unread(connection: socket.socket) -> int:
    """Bytes that were sent and not read yet."""
    return int(struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0" * 4))[0])


def ask(path: Path, *pieces: bytes, timeout: float = 10.0) -> Fetched:
    with peer(path, parts(pieces)) as where:
        return fetch(where, b"/handler/x", timeout)


@pytest.fixture
def path(no_leaks: None, short_path: Path) -> Path:
    return short_path / "s"


# --- replies that are right -------------------------------------------------------------------

RIGHT = [
    pytest.param(
        OK + b"Content-Length: 4\r\nContent-Type: text/plain\r\n\r\npong",
        (200, b"text/plain", b"pong"),
        id="plain",
    ),
    pytest.param(
        b"HTTP/1.0 503 \r\nCONTENT-type:\t a/b; c=d \t\r\ncontent-LENGTH:0\r\n\r\n",
        (503, b"a/b; c=d", b""),
        id="odd but right",
    ),
    pytest.param(b"HTTP/1.1 404\r\n\r\n\r\n\r\n", (404, b"", b"\r\n\r\n"), id="to the end"),
    pytest.param(
        OK + b"X: \x80\xff\r\nContent-Length: 3\r\n\r\n\0\r\n", (200, b"", b"\0\r\n"), id="bytes"
    ),
]


@pytest.mark.parametrize(("reply", "wanted"), RIGHT)
def test_reply_at_once(path: Path, reply: bytes, wanted: tuple[int, bytes, bytes]) -> None:
    found = ask(path, reply)
    assert found[:3] == wanted
    assert found.started <= found.ended


@pytest.mark.parametrize(("reply", "wanted"), RIGHT)
def test_reply_split_at_every_byte(
    path: Path, reply: bytes, wanted: tuple[int, bytes, bytes]
) -> None:
    assert ask(path, *(reply[at : at + 1] for at in range(len(reply))))[:3] == wanted
    for at in range(1, len(reply)):
        assert ask(path.with_name(str(at)), reply[:at], reply[at:])[:3] == wanted


@pytest.mark.parametrize("told", [True, False])
def test_large_reply(path: Path, told: bool) -> None:
    body = os.urandom(1 << 20) * 9
    head = OK + (b"Content-Length: %d\r\n" % len(body) if told else b"") + b"\r\n"
    assert ask(path, head, body).body == body


def test_reply_that_was_told_needs_no_end(path: Path) -> None:
    """A forked child may keep the peer's connection open."""
    done = threading.Event()

    def answer(connection: socket.socket) -> None:
        connection.sendall(OK + b"Content-Length: 2\r\n\r\nhi")
        done.wait(20)

    with peer(path, answer) as where:
        assert fetch(where, b"/x").body == b"hi"
        done.set()


def test_request(path: Path) -> None:
    """The relay sends one request without a body, on a connection of its own."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    with listener:
        with pytest.raises(RelayError, match="in time"):
            fetch(os.fsencode(path), b"/handler/a?b=c&d", 0.01)
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(65536) == (
                b"POST /handler/a?b=c&d HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n"
                b"Connection: close\r\n\r\n"
            )
            assert connection.recv(1) == b""


# --- replies that are not ---------------------------------------------------------------------

SIXTEEN = 16 << 10
WRONG = [
    (b"", "before its reply was complete"),
    (OK, "before its reply was complete"),
    (OK + b"Content-Length: 5\r\n\r\nfour", "before its reply was complete"),
    (OK + b"Content-Length: 3\r\n\r\nfour", "longer than it said"),
    (OK + b"Content-Length: 0\r\n\r\n" + OK, "longer than it said"),
    (OK + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nfour", "two content lengths"),
    (OK + b"Content-Length: 4, 4\r\n\r\nfour", "is no number"),
    (OK + b"Content-Length: +4\r\n\r\nfour", "is no number"),
    (OK + b"Content-Length: \r\n\r\n", "is no number"),
    (OK + b"Content-Length: 268435457\r\n\r\n", "larger than 256 MiB"),
    (OK + b"Content-Length: " + b"9" * 400 + b"\r\n\r\n", "larger than 256 MiB"),
    (OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "transfer encoding"),
    (OK + b"Content-Encoding: gzip\r\n\r\n", "content encoding"),
    (OK + b"Content-Type: a/b\r\nContent-Type: a/b\r\n\r\n", "two content types"),
    (OK + b"X: " + b"y" * SIXTEEN + b"\r\n\r\n", "larger than 16 KiB"),
    (OK + b"X: y\r\n" * 3000 + b"\r\n", "larger than 16 KiB"),
    (b"y" * (SIXTEEN + 1), "larger than 16 KiB"),
    (OK + b" folded: line\r\n\r\n", "is no header"),
    (OK + b"X : y\r\n\r\n", "is no header"),
    (OK + b": y\r\n\r\n", "is no header"),
    (OK + b"X\r\n\r\n", "is no header"),
    (OK + b"X: a\x00b\r\n\r\n", "is no header"),
    (OK + b"X: a\nY: b\r\n\r\n", "is no header"),
    (OK + b"X\xe9: a\r\n\r\n", "is no header"),
    (OK + b"X: a\rb\r\n\r\n", "bare CR"),
    (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"\r\n", "could be passed on"),
    (b"HTTP/1.1 204 No Content\r\n\r\n", "could be passed on"),
    (b"HTTP/1.1 304 Not Modified\r\n\r\n", "could be passed on"),
    (b"HTTP/1.1 777 Odd\r\n\r\n", "could be passed on"),
    (b"HTTP/1.1 2000 OK\r\n\r\n", "no status line"),
    (b"HTTP/1.1 20 OK\r\n\r\n", "no status line"),
    (b"HTTP/1.1 2x0 OK\r\n\r\n", "no status line"),
    (b"HTTP/1.1  200 OK\r\n\r\n", "no status line"),
    (b"HTTP/2.0 200 OK\r\n\r\n", "no status line"),
    (b"http/1.1 200 OK\r\n\r\n", "no status line"),
    (b"HTTP/1.1 200 O\x7fK\r\n\r\n", "no status line"),
    (b"\r\n\r\n", "no status line"),
    (b"garbage\r\n\r\n", "no status line"),
]


@pytest.mark.parametrize(("reply", "reason"), WRONG)
def test_odd_reply_fails(path: Path, reply: bytes, reason: str) -> None:
    with pytest.raises(RelayError, match=reason) as caught:
        ask(path, reply)
    assert caught.value.errno == 0
    # The reply does not pass in two halves either.
    with pytest.raises(RelayError, match=reason):
        ask(path.with_name("t"), *filter(None, (reply[:17], reply[17:])))


def test_reply_without_end_is_bounded(path: Path) -> None:
    """A body of no told size: 256 MiB and no more."""
    piece = b"y" * (1 << 20)

    def answer(connection: socket.socket) -> None:
        connection.sendall(OK + b"\r\n")
        while True:
            connection.sendall(piece)

    with peer(path, answer) as where, pytest.raises(RelayError, match="larger than 256 MiB"):
        fetch(where, b"/x", 60.0)


def test_silent_peer(path: Path) -> None:
    done = threading.Event()

    def answer(connection: socket.socket) -> None:
        done.wait(20)

    with peer(path, answer) as where:
        with pytest.raises(RelayError, match="in time"):
            fetch(where, b"/x", 0.05)
        done.set()


def test_reset(path: Path) -> None:
    """A peer that closes with bytes of ours unread."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def close() -> None:
            listener.accept()[0].close()

        thread = threading.Thread(target=close)
        thread.start()
        with pytest.raises(RelayError) as caught:
            fetch(os.fsencode(path), b"/x")
        thread.join()
    assert caught.value.errno in (errno.ECONNRESET, errno.EPIPE)


# --- requests that are never sent -------------------------------------------------------------


def test_nobody_there(path: Path) -> None:
    with pytest.raises(RelayError, match="takes no connection") as caught:
        fetch(os.fsencode(path), b"/x")
    assert caught.value.errno == errno.ENOENT


def test_full_backlog_fails_at_once(path: Path) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
        waiting.connect(str(path))
        with pytest.raises(RelayError, match="takes no connection") as caught:
            fetch(os.fsencode(path), b"/x", 60.0)
    assert caught.value.errno == errno.EAGAIN


@pytest.mark.parametrize(
    "target",
    [b"", b"x", b"*", b"/a b", b"/a\r\nX: y", b"/a\0", b"/a\x7f", b"/\xc3\xa9", b"/" * 8193],
)
def test_target_that_no_request_can_hold(path: Path, target: bytes) -> None:
    with pytest.raises(RelayError, match="request target") as caught:
        fetch(os.fsencode(path), target)
    assert caught.value.errno == errno.EINVAL


def test_path_that_no_address_can_hold(no_leaks: None) -> None:
    for path in (b"", b"/" + b"x" * 107):
        with pytest.raises(RelayError, match="fits no socket address"):
            fetch(path, b"/x")
    with pytest.raises(ValueError, match="NUL"):
        fetch(b"/a\0b", b"/x")


@pytest.mark.parametrize(
    ("query", "waits"),
    [
        (b"", True),
        (b"includestacktraces=true", True),
        (b"includestacktraces=false", False),
        (b"onlyactive=true&includestacktraces=false", False),
        (b"includestacktraces=false&onlyactive=true", False),
        (b"includestacktraces=false&includestacktraces=false", False),
        (b"includestacktraces=false&includestacktraces=true", True),
        (b"includestacktraces=true&includestacktraces=false", True),
        (b"includestacktraces=false&includestacktraces", True),
        (b"includestacktraces=false&%69ncludestacktraces=true", True),
        (b"includestacktraces=false;includestacktraces=true", True),
        (b"includestacktraces=falsey", True),
        (b"xincludestacktraces=false", True),
        (b"includestacktraces=fals", True),
        (b"&&", True),
    ],
)
def test_what_would_wait_for_the_gil(query: bytes, waits: bool) -> None:
    assert needs_gil(b"dump_nccl_trace_pickle", query) is waits
    assert needs_gil(b"dump_nccl_trace_json", query) is False


def test_threads_can_start() -> None:
    before = len(os.listdir("/proc/self/task"))
    assert threads_can_start(0)
    assert threads_can_start(20)
    assert not threads_can_start(-1)
    wait_until(lambda: len(os.listdir("/proc/self/task")) <= before)


# --- torch's own server -----------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")
def test_torchs_own_server(no_leaks: None, short_path: Path) -> None:
    from torch._C._distributed_c10d import _WorkerServer

    path = short_path / "s"
    server = _WorkerServer(str(path))
    where = os.fsencode(path)
    try:
        assert fetch(where, b"/handler/ping")[:3] == (200, b"text/plain", b"pong")
        trace = fetch(where, b"/handler/fr_trace_json?whatever=1")
        assert (trace.status, trace.content_type) == (200, b"application/json")
        assert fetch(where, b"/handler/nobody").status == 404
        assert fetch(where, b"/" + b"x" * 8191)[0] in (404, 414)
        # Through a descriptor of the file, when the file is gone.
        file = os.open(path, os.O_PATH | os.O_CLOEXEC)
        os.unlink(path)
        try:
            assert fetch(b"/proc/self/fd/%d" % file, b"/handler/ping").body == b"pong"
        finally:
            os.close(file)
    finally:
        server.shutdown()
