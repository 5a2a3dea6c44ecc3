"""A raw-socket HTTP client for tests: it sends any bytes and trusts no reply."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterable
from types import TracebackType
from typing import NamedTuple

import pytest

Address = str | tuple[str, int]


class TlsAddress(tuple[str, int]):
    """Host and port of a server whose certificate the client doesn't check."""


#: Seconds until a read that should have come counts as a hang.
PATIENCE = 20.0

STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-9][0-9]{2}) ([\x20-\x7e]*)")
FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?([\x20-\x7e\x80-\xff]*)")


class Reply(NamedTuple):
    """One reply: ``headers`` are lower-case names and values in wire order."""

    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The value of the only field called *name*, None without one."""
        values = [value for key, value in self.headers if key == name.lower()]
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0] if values else None

    @property
    def text(self) -> str:
        return self.body.decode()


def message(
    method: str,
    target: str,
    body: bytes | None = None,
    headers: Iterable[tuple[str, str]] = (),
    *,
    version: str = "1.1",
    host: str | None = "localhost",
) -> bytes:
    """One request, with a Content-Length if there is a *body*, and a Host if *host* is not None."""
    lines = [f"{method} {target} HTTP/{version}"]
    if host is not None:
        lines.append(f"Host: {host}")
    lines += [f"{name}: {value}" for name, value in headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def post(name: str, body: bytes = b"", headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """``POST /handler/NAME``; *name* may carry a query."""
    return message("POST", f"/handler/{name}", body, headers)


def parse_reply(data: bytes, head_only: bool = False) -> tuple[Reply, bytes] | None:
    """The first reply in *data* and what follows it, None if it is not complete.

    AssertionError unless it is well formed and says how long it is.
    """
    head, separator, rest = data.partition(b"\r\n\r\n")
    if not separator:
        return None
    status_line, *lines = head.split(b"\r\n")
    match = STATUS_LINE.fullmatch(status_line)
    assert match, f"bad status line {status_line!r}"
    fields = [FIELD.fullmatch(line) for line in lines]
    assert all(fields), f"bad header field in {head!r}"
    headers = [(f[1].decode().lower(), f[2].decode("latin-1").strip()) for f in fields if f]
    status = int(match[1])
    reply = Reply(status, match[2].decode(), headers, b"")
    length = reply.header("content-length")
    if status < 200 or status in (204, 304):
        assert length is None
        return reply, rest
    assert length is not None, f"no length in {head!r}"
    if head_only:
        return reply, rest
    if len(rest) < int(length):
        return None
    return reply._replace(body=rest[: int(length)]), rest[int(length) :]


class Client:
    """One connection, a context manager. Reads raise TimeoutError after PATIENCE seconds."""

    def __init__(self, address: Address, timeout: float = PATIENCE) -> None:
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.socket.settimeout(timeout)
            try:
                self.socket.connect(address)
            except OSError:
                self.socket.close()
                raise
        else:
            self.socket = socket.create_connection(address, timeout)
        if isinstance(address, TlsAddress):
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            self.socket = context.wrap_socket(self.socket)
        self._data = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def half_close(self) -> None:
        if isinstance(self.socket, ssl.SSLSocket):
            pytest.skip("TLS has no half of a connection that goes on")
        self.socket.shutdown(socket.SHUT_WR)

    def reply(self, head_only: bool = False) -> Reply:
        """The next reply; EOFError if the connection ends instead."""
        chunks: list[bytes] = []
        missing = 0  # bytes of a known body: large ones are not parsed again for each piece
        while True:
            if missing <= 0:
                self._data += b"".join(chunks)
                chunks.clear()
                found = parse_reply(self._data, head_only)
                if found is not None:
                    reply, self._data = found
                    return reply
                length = re.search(rb"\r\nContent-Length: ([0-9]+)\r\n", self._data, re.IGNORECASE)
                head = self._data.find(b"\r\n\r\n")
                missing = (
                    int(length[1]) - (len(self._data) - head - 4) if length and head > 0 else 0
                )
            piece = self.socket.recv(1 << 20)
            if not piece:
                raise EOFError(f"connection ended after {self._data[:200]!r}")
            chunks.append(piece)
            missing -= len(piece)

    def ask(self, data: bytes, head_only: bool = False) -> Reply:
        self.send(data)
        return self.reply(head_only)

    def rest(self) -> bytes:
        """All bytes until the server ends the connection."""
        while True:
            piece = self.socket.recv(1 << 20)
            if not piece:
                data, self._data = self._data, b""
                return data
            self._data += piece

    def silent(self, seconds: float = 0.2) -> bool:
        """Whether nothing comes for *seconds*, neither bytes nor an end."""
        before = self.socket.gettimeout()
        self.socket.settimeout(seconds)
        try:
            piece = self.socket.recv(1 << 16)
        except TimeoutError:
            return not self._data
        finally:
            self.socket.settimeout(before)
        self._data += piece
        return False


def ask(address: Address, data: bytes, head_only: bool = False) -> Reply:
    """The reply to *data* on a connection of its own."""
    with Client(address) as client:
        return client.ask(data, head_only)
