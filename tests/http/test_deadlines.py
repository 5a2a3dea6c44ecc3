"""The two deadlines of requests that the loop doesn't claim, in a process that holds its GIL."""

from __future__ import annotations

import ctypes
import os
import shlex
import sys
import time
from pathlib import Path

import pytest
from support.served import Connect, Kind, Serve, Served
from support.waiting import wait_until
from support.wire import ask, post

from workerserver.server import Limits

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the native I/O thread is Linux's")

CLIENT = """
import socket, sys
path, *targets = sys.argv[1:]
for target in targets:
    request = f"POST /handler/{target} HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(path)
        sock.sendall(request.encode())
        reply = b""
        while data := sock.recv(65536):
            reply += data
    print(reply.split(b" ")[1].decode(), flush=True)
"""


def statuses(served: Served, folder: Path, *targets: str) -> list[str]:
    """What another process is answered while this one holds its GIL: system() is called with it,
    and returns when that process has ended."""
    assert isinstance(served.address, str)
    # The I/O thread must run already, because it needs the GIL once at its start.
    assert ask(served.address, post("ping")).body == b"pong"
    words = ["timeout", "100", sys.executable, "-c", CLIENT, served.address, *targets]
    said = folder / "said"
    command = f"{shlex.join(words)} > {shlex.quote(str(said))}"
    assert ctypes.PyDLL(None).system(os.fsencode(command)) == 0
    return said.read_text().split()


def test_what_can_be_answered_is_not_refused(serve: Serve, tmp_path: Path) -> None:
    """Also where the time to be refused is the shorter one."""
    served = serve("unix", limits=Limits(gil_deadline=1000.0, gil_timeout=0.2))
    assert statuses(served, tmp_path, "dump_traceback", "nope") == ["200", "503"]


def test_no_time_at_all(serve: Serve, tmp_path: Path) -> None:
    served = serve("unix", limits=Limits(gil_deadline=0.0, gil_timeout=0.0))
    assert statuses(served, tmp_path, "dump_traceback", "ping", "nope") == ["200", "200", "503"]


@pytest.mark.parametrize("name", ["max_head", "max_headers", "max_bodies", "max_connections"])
@pytest.mark.parametrize("value", [1.5, float("inf"), 1 << 64])
def test_what_is_counted_is_a_whole_number(name: str, value: object) -> None:
    """At the start, and not for each connection."""
    with pytest.raises(ValueError, match=f"Limits: {name} must be a whole number"):
        Limits(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["gil_timeout", "max_connections", "head_timeout"])
@pytest.mark.parametrize("value", [-1, float("nan"), "x"])
def test_limits_are_numbers(name: str, value: object) -> None:
    fields: dict[str, object] = {name: value}
    with pytest.raises(ValueError, match=f"Limits: {name} must be"):
        Limits(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("kind", ["unix", "tcp", "uvloop-tcp", "tls"])
def test_empty_lines_move_no_deadline(
    serve: Serve, connect: Connect, kind: Kind, asked: bool
) -> None:
    """Servers ignore empty lines before a request (RFC 9112, 2.2). A client that sends one now and
    then, and nothing else, is as idle as one that is silent."""
    served = serve(kind, limits=Limits(idle_timeout=0.5, head_timeout=0.5))
    client = connect(served.address)
    if asked:
        assert client.ask(post("ping")).body == b"pong"
    try:
        for _ in range(300):
            client.send(b"\r\n")
            if not client.silent(0.1):
                break
        else:
            pytest.fail("the connection is still open")
    except OSError:
        pass  # closed
    wait_until(lambda: not served.connections)


@pytest.mark.parametrize("kind", ["tcp", "uvloop-tcp"])
def test_an_empty_line_behind_each_request(serve: Serve, connect: Connect, kind: Kind) -> None:
    """As old clients send it behind a body: each request is a sign of life all the same."""
    served = serve(kind, limits=Limits(idle_timeout=5.0))
    client = connect(served.address)
    for _ in range(12):
        assert client.ask(post("ping") + b"\r\n").body == b"pong"
        time.sleep(0.5)
