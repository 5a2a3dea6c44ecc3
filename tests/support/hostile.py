"""Hostile servers on raw sockets, for tests of clients. Each connection has its own thread."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from support.wire import Address

Answer = Callable[[socket.socket, int], object]


def reply(body: bytes = b"pong", *fields: bytes, status: bytes = b"200 OK") -> bytes:
    """A reply with a Content-Length."""
    head = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *fields, b"", b""]
    return b"\r\n".join(head) + body


def always(*pieces: bytes) -> Answer:
    """Answers every request with *pieces*, each sent by itself."""

    def answer(connection: socket.socket, number: int) -> None:
        for piece in pieces:
            connection.sendall(piece)

    return answer


class Peer:
    """Calls *answer(connection, number)* for each request, once the request (without *bodies*: its
    head) has come. *number* counts from 0 over all connections. A true result or an error ends the
    connection. ``accepted`` counts connections."""

    def __init__(self, listener: socket.socket, answer: Answer, bodies: bool = True) -> None:
        self.accepted = 0
        self.requests = 0
        self._listener = listener
        self._answer = answer
        self._bodies = bodies
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        self.address: Address = listener.getsockname()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            with self._lock:
                self._open.add(connection)
                thread = threading.Thread(target=self._serve, args=(connection,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while self._read(connection):
                with self._lock:
                    number = self.requests
                    self.requests += 1
                if self._answer(connection, number):
                    break
        with self._lock:
            self._open.discard(connection)
            connection.close()

    def _read(self, connection: socket.socket) -> bool:
        """Read one request of a client that waits for each reply before the next request."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = connection.recv(65536)
            data += piece
            if not piece:
                return False
        length = re.search(rb"Content-Length: ([0-9]+)", data)
        missing = int(length[1]) if length and self._bodies else 0
        missing -= len(data.partition(b"\r\n\r\n")[2])
        while missing > 0:
            piece = connection.recv(1 << 20)
            missing -= len(piece)
            if not piece:
                return False
        return True

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(30)
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)


@contextlib.contextmanager
def peer(
    answer: Answer, at: Path | socket.socket | None = None, *, bodies: bool = True
) -> Iterator[Peer]:
    """A :class:`Peer` on a socket in the folder *at*, or on the listener *at*, or on TCP."""
    if isinstance(at, socket.socket):
        listener = at
    elif at is None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(at / "peer.sock"))
        listener.listen(128)
    made = Peer(listener, answer, bodies)
    try:
        yield made
    finally:
        made.close()
