"""Workers on raw sockets that answer what a test wants, for tests of clients."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path


def make_socket(path: Path) -> Path:
    """A socket's file that nobody listens at."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    return path


@contextlib.contextmanager
def peer(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[Path]:
    """A listener that does *serve* with each connection."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)

    def loop() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                serve(connection)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield path
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(30)


def answering(*answers: bytes) -> Callable[[socket.socket], None]:
    """Answers each request with the next of *answers*, the last one for ever."""
    left = list(answers)

    def serve(connection: socket.socket) -> None:
        seen = b""
        while b"\r\n\r\n" not in seen:
            seen += connection.recv(65536)
        connection.sendall(left.pop(0) if len(left) > 1 else left[0])

    return serve


def http(body: bytes, status: str = "200 OK", kind: str = "text/plain") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
