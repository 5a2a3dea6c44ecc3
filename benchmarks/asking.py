"""One request at a time from Python, for suites that measure the server and not its latency."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["Connection", "Reply"]


class Reply(NamedTuple):
    headers: Mapping[str, str]
    body: bytes


class Connection(http.client.HTTPConnection):
    """A keep-alive connection to a Unix socket's path, or to (host, port); a context manager."""

    def __init__(self, address: str | tuple[str, int], timeout: float = 30.0) -> None:
        super().__init__("localhost", timeout=timeout)
        self.address = address

    def connect(self) -> None:
        self.sock = socket.socket(
            socket.AF_UNIX if isinstance(self.address, str) else socket.AF_INET
        )
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.address)

    def ask(self, name: str, body: bytes | None = None) -> Reply:
        """The reply of the handler *name*. RuntimeError unless its status is 200."""
        self.request("POST", f"/handler/{name}", body)
        response = self.getresponse()
        content = response.read()
        if response.status != 200:
            raise RuntimeError(f"{name}: {response.status} {content[:200]!r}")
        return Reply(dict(response.headers.items()), content)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
