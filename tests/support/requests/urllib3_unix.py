"""urllib3 on a Unix socket."""

from __future__ import annotations

import socket
from typing import Any

from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool


class UnixConnection(HTTPConnection):
    """A urllib3 connection to the socket file that the pool names."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def _new_conn(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(20)
        sock.connect(self._path)
        return sock


class UnixPool(HTTPConnectionPool):
    """A urllib3 pool of such connections."""

    def __init__(self, path: str, maxsize: int = 1) -> None:
        super().__init__("localhost", maxsize=maxsize)
        self._path = path

    def _new_conn(self) -> Any:
        self.num_connections += 1
        return UnixConnection(self._path)
