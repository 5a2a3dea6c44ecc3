"""As much of torch's TCPStore as a reader of it may use, with entries from the test."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

__all__ = ["fake_store", "read", "serve_one"]


def serve_one(act: Callable[[socket.socket], None]) -> contextlib.AbstractContextManager[str]:
    """One connection gets *act*; gives the address."""

    @contextlib.contextmanager
    def serving() -> Iterator[str]:
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def run() -> None:
                with contextlib.suppress(OSError):
                    connection, _ = listener.accept()
                    with connection:
                        act(connection)

            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            yield f"127.0.0.1:{listener.getsockname()[1]}"
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)
            assert not thread.is_alive()

    return serving()


def read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError
        data += part
    return data


def fake_store(entries: dict[bytes, bytes]) -> Callable[[socket.socket], None]:
    """As much of torch's server as a reader may use; anything else ends the connection."""

    def key(connection: socket.socket) -> bytes:
        (size,) = struct.unpack("<Q", read(connection, 8))
        return read(connection, size)

    def act(connection: socket.socket) -> None:
        if read(connection, 5) != b"\0" + struct.pack("<I", 0x3C85F7CE):
            return
        while True:
            request = read(connection, 1)
            if request == b"\5":
                (count,) = struct.unpack("<Q", read(connection, 8))
                keys = [key(connection) for _ in range(count)]
                ready = all(one in entries for one in keys)
                connection.sendall(b"\0" if ready else b"\1")
            elif request == b"\3":
                value = entries[key(connection)]
                connection.sendall(struct.pack("<Q", len(value)) + value)
            else:
                return

    return act
