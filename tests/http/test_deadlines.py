"""The two deadlines of requests that the loop doesn't claim, in a process that holds its GIL."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest
from support.served import Serve, Served

from workerserver.server import Limits

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the native I/O thread is Linux's")

CLIENT = """
import socket, sys, time
path, *targets = sys.argv[1:]
print("ready", flush=True)
time.sleep(0.3)  # the GIL is held by now
for target in targets:
    request = f"POST /handler/{target} HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.sendall(request.encode())
        reply = b""
        while data := sock.recv(65536):
            reply += data
    print(reply.split(b" ")[1].decode(), flush=True)
"""


def statuses(served: Served, *targets: str) -> list[str]:
    """What another process is answered while this one holds its GIL for two seconds."""
    assert isinstance(served.address, str)
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT, served.address, *targets], stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        ctypes.PyDLL(None).usleep(2_000_000)
        said, _ = client.communicate(timeout=30)
    return said.split()


def test_what_can_be_answered_is_not_refused(serve: Serve) -> None:
    """Also where the time to be refused is the shorter one."""
    served = serve("unix", limits=Limits(gil_deadline=3.0, gil_timeout=0.2))
    assert statuses(served, "dump_traceback", "nope") == ["200", "503"]


def test_no_time_at_all(serve: Serve) -> None:
    served = serve("unix", limits=Limits(gil_deadline=0.0, gil_timeout=0.0))
    assert statuses(served, "dump_traceback", "ping", "nope") == ["200", "200", "503"]


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
