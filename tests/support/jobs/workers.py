"""Workers with answers from the test, over real sockets. They need neither the server nor torch."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workerserver.cluster.model import Worker

#: A worker's reaction to a request: bytes to send, or a function that gets the socket.
Answer = bytes | Callable[[socket.socket], None]

HEALTH, DIGEST = "/healthz", "/handler/dump_traceback?format=digest"
STACKS, TEXT = "/handler/dump_traceback?format=json", "/handler/dump_traceback"
SUMMARY, TRACE = "/handler/fr_summary", "/handler/fr_trace_json"


def http(body: bytes | object, status: str = "200 OK", *fields: str) -> bytes:
    """A whole response. A *body* that isn't bytes is sent as JSON."""
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status}", *fields, f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def health(rank: int | None, **more: Any) -> bytes:
    fields = {"status": "ok", "pid": 1, "rank": rank, "uptime_s": 1.5, "step": 3}
    ages = {"step_age_s": 0.1, "gil_wait_s": 0.0, "gil_wait_max_s": 0.0, "gil_unavailable_s": 0.0}
    return http({**fields, **ages, **more})


def digest(word: str = "aa", main: str | None = "bb", mode: str = "gil") -> bytes:
    value = {"version": 1, "digest": word, "main": main, "top": "a.py:1 f", "threads": 1}
    return http(value, "200 OK", f"X-Traceback-Mode: {mode}")


def stacks(
    function: str = "train",
    file: str = "/job/train.py",
    line: int = 12,
    wchan: str | None = None,
) -> bytes:
    frame = {"file": file, "line": line, "function": function, "qualname": function}
    thread = {
        "ident": 1,
        "native_id": 2,
        "name": "MainThread",
        "daemon": False,
        "current": False,
        "state": "S",
        "wchan": wchan,
        "truncated": False,
        "unstable": False,
        "frames": [frame],
    }
    value = {"version": 1, "pid": 1, "mode": "gil", "time": 1.0, "gil_holder": None}
    return http({**value, "truncated": False, "threads": [thread]})


def summary(
    seq: int = 5, pending: bool = False, ranks: str | None = None, recorder: str = "fr"
) -> bytes:
    operation = {"seq": seq, "p2p_seq": 0, "p2p": False, "op": "gloo:all_reduce"}
    group = {"recorder": recorder, "id": 0, "name": "0", "desc": "default_pg", "ranks": ranks}
    last = {"last_issued": operation, "last_retired": None if pending else operation}
    waiting = {"pending": int(pending), "first_pending": operation if pending else None}
    return http({"rank": 0, "version": "2.10", "groups": [{**group, **last, **waiting}]})


def good(rank: int, word: str = "aa") -> dict[str, Answer]:
    """The answers of a healthy worker."""
    return {
        HEALTH: health(rank),
        DIGEST: digest(word),
        STACKS: stacks(),
        SUMMARY: summary(),
        TRACE: http({"version": "2.10"}),
    }


def hang(connection: socket.socket) -> None:
    """Answer nothing and wait until the other side has gone."""
    with contextlib.suppress(OSError):
        connection.recv(1)


class Listening:
    """A listener, at *path* or on a port, and a thread for each connection, which calls
    ``serve()``. ``begin()`` starts it."""

    #: For a thread to end after close().
    SECONDS = 10.0

    def __init__(self, path: Path | None) -> None:
        self.accepted = 0
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_INET if path is None else socket.AF_UNIX)
        self._listener.bind(("127.0.0.1", 0) if path is None else str(path))
        self._listener.listen(128)
        self.unix = path is not None
        self.address = str(path) if path else f"127.0.0.1:{self._listener.getsockname()[1]}"

    def begin(self) -> None:
        self._start(self._accept)

    def serve(self, connection: socket.socket, number: int) -> None:
        """Connection *number*, counted from 0, until it ends."""
        raise AssertionError("each kind has its own")

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.accepted += 1
                self._open.add(connection)
                self._start(self.serve, connection, self.accepted - 1)

    def close(self) -> None:
        for sock in (self._listener, *list(self._open)):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(self.SECONDS)
            assert not thread.is_alive()


class Canned(Listening):
    """Gives ready answers. ``asked`` has the requests in their order.

    *tls*: a key and a certificate.
    """

    def __init__(
        self,
        answers: Mapping[str, Answer],
        path: Path | None = None,
        tls: tuple[str, str] | None = None,
    ) -> None:
        self.answers = dict(answers)
        self.asked: list[tuple[str, str]] = []
        self.heads: list[bytes] = []
        super().__init__(path)
        self._tls: ssl.SSLContext | None = None
        if tls is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(tls[1], tls[0])
        self.begin()

    def worker(self, rank: int | None = None, **more: Any) -> Worker:
        return Worker(self.address, self.unix, rank, tls=self._tls is not None, **more)

    def serve(self, connection: socket.socket, number: int) -> None:
        unread = b""
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(connection)
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
                stack.enter_context(connection)
                self._open.add(connection)
            while True:
                while b"\r\n\r\n" not in unread:
                    part = connection.recv(65536)
                    if not part:
                        return
                    unread += part
                head, _, unread = unread.partition(b"\r\n\r\n")
                method, target, _ = head.partition(b"\r\n")[0].decode().split(" ")
                self.asked.append((method, target))
                self.heads.append(head)
                answer = self.answers.get(target, http(b"nothing here", "404 Not Found"))
                if callable(answer):
                    answer(connection)
                    return
                connection.sendall(answer)


class Start:
    """Starts workers that end with the test."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path) -> None:
        self.stack = stack
        self.folder = folder
        self.count = 0

    def __call__(self, answers: Mapping[str, Answer], kind: str = "tcp") -> Canned:
        self.count += 1
        server = Canned(answers, self.folder / f"{self.count}.s" if kind == "unix" else None)
        self.stack.callback(server.close)
        return server
