"""The requests of real clients are recognised at their last byte, and no earlier."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from support.requests.judged import ROUTES, guarded, seen
from support.requests.recognised import TABLE, check
from support.requests.urllib3_unix import UnixPool

from workerserver import cli
from workerserver.native._bridge import Look

REPLY = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\npong"


class Recorder:
    """Answers requests with a pong, and keeps the requests. The last reply ends the connection."""

    def __init__(self, listener: socket.socket) -> None:
        self.heard: list[bytes] = []
        self._listener = listener
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # the listener was shut down
            while True:
                sock, _ = self._listener.accept()
                with sock:
                    self._answer(sock)

    def _answer(self, sock: socket.socket) -> None:
        sock.settimeout(20)
        data = b""
        while piece := sock.recv(65536):
            data += piece
            if TABLE.look(data) != "incomplete":
                self.heard.append(data)
                data = b""
                sock.sendall(REPLY)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()


@pytest.fixture
def unix(short_path: Path) -> Iterator[tuple[str, Recorder]]:
    path = str(short_path / "worker.sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    recorder = Recorder(listener)
    yield path, recorder
    recorder.close()


@pytest.fixture
def tcp() -> Iterator[tuple[str, Recorder]]:
    listener = socket.create_server(("127.0.0.1", 0))
    recorder = Recorder(listener)
    yield f"127.0.0.1:{listener.getsockname()[1]}", recorder
    recorder.close()


def judged(recorder: Recorder, *actions: int, keep_alive: bool = True) -> None:
    """Each request was plain, led to the action expected, and passes on TCP where it came so."""
    assert len(recorder.heard) == len(actions)
    on_tcp, _ = guarded()
    for data, action in zip(recorder.heard, actions, strict=True):
        assert check(data) == "i" * len(data) + "r", data
        assert seen(data, ROUTES).action == action
        assert seen(data).keep_alive == keep_alive
        assert seen(data, on_tcp).allowed


CURL = [
    (["/"], 1),
    (["/handler/?a=b"], 2),
    (["/handler/ping", "-X", "POST"], 3),
    (["/handler/ping", "-d", ""], 3),
    (["/handler/dump_traceback?format=json&mode=nogil", "-X", "POST"], 5),
    (["/healthz?max_step_age=60", "-H", "Authorization: Bearer x", "--compressed"], 4),
]


@pytest.mark.curl
@pytest.mark.parametrize(("options", "action"), CURL)
def test_curl(
    unix: tuple[str, Recorder], tcp: tuple[str, Recorder], options: list[str], action: int
) -> None:
    program = shutil.which("curl")
    if program is None:
        pytest.skip("there is no curl")
    path, *more = options
    for where in (
        ["--unix-socket", unix[0], f"http://localhost{path}"],
        [f"http://{tcp[0]}{path}"],
    ):
        done = subprocess.run(
            [program, "-q", "-sS", "--max-time", "20", *more, *where],
            capture_output=True,
            check=True,
            env={key: value for key, value in os.environ.items() if "proxy" not in key.lower()},
        )
        assert done.stdout == b"pong"
    judged(unix[1], action)
    judged(tcp[1], action)


def test_http_client(tcp: tuple[str, Recorder]) -> None:
    connection = http.client.HTTPConnection(tcp[0], timeout=20)
    for method, path in (("GET", "/healthz"), ("POST", "/handler/ping")):
        connection.request(method, path)
        assert connection.getresponse().read() == b"pong"
    connection.close()
    judged(tcp[1], 4, 3)


def test_urllib(tcp: tuple[str, Recorder]) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{tcp[0]}/", timeout=20) as reply:
        assert reply.read() == b"pong"
    with opener.open(f"http://{tcp[0]}/handler/ping", data=b"", timeout=20) as reply:
        assert reply.read() == b"pong"
    judged(tcp[1], 1, 3, keep_alive=False)


def test_urllib3(unix: tuple[str, Recorder], tcp: tuple[str, Recorder]) -> None:
    with UnixPool(unix[0]) as pool:
        assert pool.request("POST", "/handler/ping").data == b"pong"
        assert pool.request("GET", "/").data == b"pong"
    judged(unix[1], 3, 1)
    with urllib3.PoolManager() as manager:
        assert manager.request("POST", f"http://{tcp[0]}/handler/ping").data == b"pong"
    judged(tcp[1], 3)


def test_requests(tcp: tuple[str, Recorder]) -> None:
    with requests.Session() as session:
        session.trust_env = False
        age = session.get(f"http://{tcp[0]}/healthz", params={"max_step_age": 2.5}, timeout=20)
        ping = session.post(f"http://{tcp[0]}/handler/ping", timeout=20)
        dump = session.post(
            f"http://{tcp[0]}/handler/dump_traceback",
            params={"mode": "nogil", "format": "digest"},
            timeout=20,
        )
    assert {age.text, ping.text, dump.text} == {"pong"}
    judged(tcp[1], 4, 3, 5)


def test_aiohttp(unix: tuple[str, Recorder], tcp: tuple[str, Recorder]) -> None:
    """As torch's own debug frontend asks."""
    aiohttp = pytest.importorskip("aiohttp")

    async def ask(connector: Any, base: str) -> None:
        async with aiohttp.ClientSession(base, connector=connector) as session:
            async with session.post("/handler/fr_trace_json") as reply:
                assert await reply.text() == "pong"
            async with session.get("/handler/") as reply:
                assert await reply.text() == "pong"

    async def both() -> None:
        await ask(aiohttp.UnixConnector(path=unix[0]), "http://localhost")
        await ask(None, f"http://{tcp[0]}")

    asyncio.run(both())
    judged(unix[1], 6, 2)
    judged(tcp[1], 6, 2)


def test_our_own_command_line(unix: tuple[str, Recorder], tcp: tuple[str, Recorder]) -> None:
    for where in (unix[0], tcp[0]):
        assert cli.main(["call", "ping", where]) == 0
    judged(unix[1], 3)
    judged(tcp[1], 3)


# --- requests of clients that are not installed here ----------------------------------------------


def lines(*parts: str) -> bytes:
    return "\r\n".join([*parts, "", ""]).encode()


AGENT = "User-Agent: Go-http-client/1.1"
ACCEPT = (
    "Accept: application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
WRITTEN: dict[str, tuple[bytes, Callable[[Look], bool]]] = {
    "kube-probe": (
        lines(
            "GET /healthz?max_step_age=300 HTTP/1.1",
            "Host: 10.0.0.1:8080",
            "User-Agent: kube-probe/1.30",
            "Accept: */*",
            "Connection: close",
        ),
        lambda look: look.max_step_age == 300 and not look.keep_alive,
    ),
    "Go, GET": (
        lines("GET / HTTP/1.1", "Host: 10.0.0.1:8080", AGENT, "Accept-Encoding: gzip"),
        lambda look: look.action == 1,
    ),
    "Go, POST": (
        lines(
            "POST /handler/ping HTTP/1.1",
            "Host: [fd00::1]:8080",
            AGENT,
            "Content-Length: 0",
            "Content-Type: text/plain",
            "Accept-Encoding: gzip",
        ),
        lambda look: look.action == 3,
    ),
    "Prometheus": (
        lines(
            "GET /metrics HTTP/1.1",
            "Host: 10.0.0.1:8080",
            "User-Agent: Prometheus/3.0.1",
            ACCEPT,
            "Accept-Encoding: gzip",
            "X-Prometheus-Scrape-Timeout-Seconds: 10",
        ),
        lambda look: look.path == b"/metrics" and look.action is None,
    ),
    "wrk": (lines("GET / HTTP/1.1", "Host: localhost"), lambda look: look.action == 1),
    "wget": (
        lines(
            "GET / HTTP/1.1",
            "Host: localhost:8080",
            "User-Agent: Wget/1.21.3",
            "Accept: */*",
            "Accept-Encoding: identity",
            "Connection: Keep-Alive",
        ),
        lambda look: look.action == 1 and look.keep_alive,
    ),
    "cpp-httplib": (  # torch's own
        lines(
            "POST /handler/ping HTTP/1.1",
            "Accept: */*",
            "Accept-Encoding: gzip, deflate",
            "Connection: close",
            "Content-Length: 0",
            "Host: localhost",
            "User-Agent: cpp-httplib/0.20.0",
        ),
        lambda look: look.action == 3 and not look.keep_alive,
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_written(name: str) -> None:
    data, right = WRITTEN[name]
    assert check(data) == "i" * len(data) + "r"
    assert right(seen(data, ROUTES))
    assert seen(data, guarded()[0]).allowed
