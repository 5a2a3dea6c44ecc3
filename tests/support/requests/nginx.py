"""nginx as a second judge of raw inputs: the same bytes to a server of its own on a free port. Also
nginx with servers of a test's own, as a proxy in front of workers."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from support.lifecycle import free_port
from support.requests.raw import Raw
from support.waiting import wait_until
from support.wire import Client, parse_reply

__all__ = ["answer_of", "missing", "nginx", "ours", "serving"]

#: One process and no daemon.
CONFIGURATION = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error;
{user}
events {{ worker_connections 256; }}
http {{
    access_log off;
    keepalive_requests 100000;
    large_client_header_buffers 4 64k;
    client_max_body_size 10m;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {servers}
}}
"""
#: Each path has the same answer; nginx reads the body, and forgets it.
HELLO = 'server {{ listen 127.0.0.1:{port}; location / {{ return 200 "hello"; }} }}'


def missing() -> str | None:
    return None if shutil.which("nginx") else "needs nginx (Debian: nginx-light)"


@contextlib.contextmanager
def nginx(folder: Path) -> Iterator[tuple[str, int]]:
    """The address of an nginx that runs in the block."""
    port = free_port()
    with serving(folder, HELLO.format(port=port), port) as address:
        yield address


@contextlib.contextmanager
def serving(folder: Path, servers: str, port: int) -> Iterator[tuple[str, int]]:
    """An nginx with these *servers*, one of which listens on *port*, runs in the block."""
    user = "user root;" if os.geteuid() == 0 else ""
    text = CONFIGURATION.format(folder=folder, servers=servers, user=user)
    path = folder / "nginx.conf"
    path.write_text(text)
    with subprocess.Popen(["nginx", "-e", f"{folder}/error", "-c", path]) as server:
        try:
            address = ("127.0.0.1", port)
            wait_until(lambda: server.poll() is not None or _listens(address))
            assert server.poll() is None, (folder / "error").read_text()
            yield address
        finally:
            server.terminate()


def _listens(address: tuple[str, int]) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(address, 1):
        return True
    return False


def answer_of(address: tuple[str, int], case: Raw) -> str:
    """nginx's replies, and whether it would serve another request: ``200 200 open``, ``400
    closed``, ``waits``."""
    data = b""
    for _ in range(5):  # a reset, because of bytes that nginx didn't read, may destroy the reply
        data, whole = _asked(address, case)
        if whole and (data or case.then == "waits"):
            break
    statuses: list[str] = []
    heads = [answer.to_head for answer in case.answers]
    open_still = True
    while data:
        head_only = len(statuses) < len(heads) and heads[len(statuses)]
        found = parse_reply(data, head_only) if data.startswith(b"HTTP/") else None
        if found is None:
            return " ".join([*statuses, "other"])
        reply, data = found
        if reply.status != 100:
            statuses.append(str(reply.status))
            open_still = reply.header("connection") != "close"
    ends = "waits" if case.then == "waits" else "open" if open_still else "closed"
    return " ".join([*statuses, ends])


def _asked(address: tuple[str, int], case: Raw) -> tuple[bytes, bool]:
    """All that nginx sends, and whether it ended the connection without a reset."""
    with Client(address, timeout=60) as client:
        with contextlib.suppress(OSError):  # it has refused the case already
            client.send(case.data)
            client.half_close()
        try:
            return client.rest(), True
        except ConnectionResetError:
            return b"", False


def ours(case: Raw) -> str:
    """The table's answer in the same words. nginx has one answer for each path: 404 and 405 are no
    matter of syntax, and count as 200."""
    statuses = [str(each.status) for each in case.answers]
    known = ["200" if each in ("404", "405") else each for each in statuses]
    return " ".join([*known, case.then])
