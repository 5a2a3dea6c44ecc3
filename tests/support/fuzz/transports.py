"""Target: the native transport and uvloop's give the same bytes for the same bytes."""

from __future__ import annotations

import contextlib
import re
import socket
import tempfile
import time
from functools import cache

from workerserver.http.limits import Limits
from workerserver.http.registry import Registry
from workerserver.server import WorkerServer
from workerserver.types import Request, Response

__all__ = ["one_exchange"]

#: Seconds until a reply that does not come, or an end that does not, counts as missing.
PATIENCE = 30
PAUSE = 0.0002
#: A page's length may change from one moment to the next: HEAD /healthz shows nothing else of it.
TRIES = 20
DATE = re.compile(rb"\r\nDate: [^\r]*")
#: Comes or does not come, depending on whether the body has come with the head.
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
#: What a page says that changes from one moment to the next.
MOVING = (b'"uptime_s":', b"# HELP ")
LIMITS = Limits(gil_share=1, head_timeout=60, body_timeout=60, max_body=4096, max_head=2048)


def echo(request: Request) -> Response:
    return Response(request.body)


class Pair:
    """Two servers with the same handlers, on Unix sockets."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ws-fuzz-")
        registry = Registry()
        registry.register("echo", echo, inline=True)
        registry.register("thread", echo)
        self.servers = [
            WorkerServer(
                f"{self._folder.name}/{kind}", registry=registry, limits=LIMITS, transport=kind
            )
            for kind in ("native", "uvloop")
        ]
        self.paths = [f"{self._folder.name}/{kind}" for kind in ("native", "uvloop")]

    def close(self) -> None:
        for server in self.servers:
            server.shutdown()
        self._folder.cleanup()
        pair.cache_clear()


@cache
def pair() -> Pair:
    return Pair()


def replies(path: str, pieces: list[bytes]) -> bytes:
    """All that the server sends, until it closes: the client has ended its side."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(path)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for number, piece in enumerate(pieces):
                if number:
                    time.sleep(PAUSE)
                client.sendall(piece)
            client.shutdown(socket.SHUT_WR)
        got = bytearray()
        with contextlib.suppress(ConnectionResetError):
            while part := client.recv(1 << 16):
                got += part
        return bytes(got)


def plain(data: bytes) -> bytes:
    data = DATE.sub(b"", data).replace(INTERIM, b"")
    if any(word in data for word in MOVING):
        data = re.sub(rb"[0-9.]+|null", b"0", data.split(b"# HELP ")[0])
    return data


def one_exchange(raw: bytes) -> None:
    """The first byte: into how many pieces the rest is cut, each sent by itself."""
    if len(raw) < 2:
        return
    data = raw[1:]
    step = max(1, len(data) // (1 + raw[0] % 4))
    pieces = [data[at : at + step] for at in range(0, len(data), step)]
    for _ in range(TRIES):
        native, uvloop = (plain(replies(path, pieces)) for path in pair().paths)
        if native == uvloop:
            return
    raise AssertionError(f"\n  native {native!r}\n  uvloop {uvloop!r}")
