"""Clients that people use: urllib3, requests, curl, http.client and aiohttp."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import io
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from support.requests.urllib3_unix import UnixPool
from support.served import Served
from support.wire import Address

from workerserver import Request

MIB = 1024 * 1024


def digest(request: Request) -> dict[str, Any]:
    """What a client sent: its body's size and hash, its parameters."""
    return {
        "size": len(request.body),
        "hash": hashlib.sha256(request.body).hexdigest(),
        "params": dict(request.params),
    }


@pytest.fixture(autouse=True)
def handlers(registry: Any) -> None:
    registry.register("digest", digest)
    registry.register("large", lambda size: b"x" * int(size))


def of(body: bytes, **params: str) -> dict[str, Any]:
    return {"size": len(body), "hash": hashlib.sha256(body).hexdigest(), "params": params}


# --- urllib3 over a Unix socket -------------------------------------------------------------------


def test_urllib3_over_a_unix_socket(ours_unix: Served) -> None:
    assert isinstance(ours_unix.address, str)
    body = os.urandom(MIB)
    with UnixPool(ours_unix.address) as pool:
        assert pool.request("GET", "/").status == 200
        assert "digest" in pool.request("GET", "/handler/").json()
        assert pool.request("HEAD", "/").data == b""
        for _ in range(50):
            assert pool.request("POST", "/handler/ping").data == b"pong"
        assert pool.request("POST", "/handler/digest?a=1", body=body).json() == of(body, a="1")
        pieces = (body[i : i + 1000] for i in range(0, len(body), 1000))
        reply = pool.request("POST", "/handler/digest", body=pieces, chunked=True)
        assert reply.json() == of(body)
        form = pool.request_encode_body(
            "POST", "/handler/digest?b=q", {"a": "x y&z", "b": "f"}, encode_multipart=False
        )
        assert form.json()["params"] == {"a": "x y&z", "b": "q"}
        assert pool.request("POST", "/handler/nope").status == 404
        assert pool.num_connections == 1, "the connection was kept alive throughout"


def test_urllib3_streams_a_large_reply(ours_unix: Served) -> None:
    assert isinstance(ours_unix.address, str)
    with UnixPool(ours_unix.address) as pool:
        reply = pool.request("POST", f"/handler/large?size={32 * MIB}", preload_content=False)
        assert sum(len(piece) for piece in reply.stream(100_000)) == 32 * MIB
        reply.release_conn()
        assert pool.request("POST", "/handler/ping").data == b"pong"


# --- requests over TCP ----------------------------------------------------------------------------


def url(address: Address, path: str) -> str:
    assert not isinstance(address, str)
    return f"http://{address[0]}:{address[1]}{path}"


def test_requests_over_tcp(ours_tcp: Served) -> None:
    body = os.urandom(5 * MIB)
    with requests.Session() as session:
        session.trust_env = False
        assert session.get(url(ours_tcp.address, "/healthz"), timeout=20).json()["status"] == "ok"
        target = url(ours_tcp.address, "/handler/digest")
        assert session.post(target, data=body, timeout=20).json() == of(body)
        reply = session.post(target, params={"a": "\u00e9 +"}, data={"b": "2"}, timeout=20)
        assert reply.json()["params"] == {"a": "\u00e9 +", "b": "2"}
        reply = session.post(target, data=iter([b"ab", b"c"]), timeout=20)  # chunked
        assert reply.json() == of(b"abc")
        refused = session.get(target, timeout=20)
        assert (refused.status_code, refused.headers["Allow"]) == (405, "POST")
        evil = session.get(target, headers={"Origin": "http://evil.example"}, timeout=20)
        assert evil.status_code == 403


# --- curl -----------------------------------------------------------------------------------------


def curl(served: Served, path: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    """Run curl, on the served socket or port; its exit status has to be 0."""
    program = shutil.which("curl")
    if program is None:
        pytest.skip("there is no curl")
    if isinstance(served.address, str):
        where = ["--unix-socket", served.address, f"http://localhost{path}"]
    else:
        where = [url(served.address, path)]
    return subprocess.run(
        [program, "-q", "--silent", "--show-error", "--max-time", "60", *options, *where],
        capture_output=True,
        timeout=90,
        check=True,
        env={key: value for key, value in os.environ.items() if "proxy" not in key.lower()},
    )


@pytest.mark.curl
def test_curl(server: Served) -> None:
    assert curl(server, "/").stdout.startswith(b"<h1>torch.distributed.WorkerServer</h1>")
    assert curl(server, "/handler/ping", "-X", "POST").stdout == b"pong"
    head = curl(server, "/", "--head").stdout
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Content-Length: 78\r\n" in head
    both = curl(server, "/handler/ping", "--http1.0", "-d", "a=1", "-w", "%{http_code}").stdout
    assert both == b"pong200"
    again = (
        "http://localhost/handler/ping"
        if isinstance(server.address, str)
        else url(server.address, "/handler/ping")
    )
    twice = curl(server, "/handler/ping", "-d", "", again, "-w", "%{num_connects}").stdout
    assert twice == b"pong1pong0", "the second request used the first one's connection"


@pytest.mark.curl
def test_curl_large_body(server: Served, tmp_path: Path) -> None:
    """curl sends Expect: 100-continue before a large body, and waits."""
    body = os.urandom(3 * MIB)
    file = tmp_path / "body"
    file.write_bytes(body)
    raw = ["-H", "Content-Type: application/octet-stream", "-H", "Expect: 100-continue"]
    options = ["--expect100-timeout", "30", "--verbose", *raw]
    done = curl(server, "/handler/digest", "--data-binary", f"@{file}", *options)
    assert done.stdout == _compact(of(body))
    assert b"< HTTP/1.1 100 Continue" in done.stderr
    done = curl(server, "/handler/digest", "-T", str(file), "-X", "POST", *options)
    assert done.stdout == _compact(of(body))
    chunked = ["-H", "Transfer-Encoding: chunked"]
    done = curl(server, "/handler/digest", "-T", str(file), "-X", "POST", *options, *chunked)
    assert done.stdout == _compact(of(body))


@pytest.mark.curl
def test_curl_too_large_a_body(server: Served, tmp_path: Path) -> None:
    """The 413 comes instead of 100, so curl never sends the body."""
    file = tmp_path / "body"
    file.write_bytes(bytes(11 * MIB))
    options = ["-H", "Expect: 100-continue", "--expect100-timeout", "30"]
    wanted = ["-o", os.devnull, "-w", "%{http_code} %{size_upload}"]
    done = curl(server, "/handler/digest", "-T", str(file), "-X", "POST", *options, *wanted)
    assert done.stdout == b"413 0"


def _compact(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


# --- the standard library and aiohttp -------------------------------------------------------------


def test_http_client(ours_tcp: Served) -> None:
    assert not isinstance(ours_tcp.address, str)
    connection = http.client.HTTPConnection(*ours_tcp.address, timeout=20)
    try:
        for path, method, status in (
            ("/", "GET", 200),
            ("/handler/ping", "POST", 200),
            ("/handler/ping", "GET", 405),
            ("/nope", "GET", 404),
            ("/", "HEAD", 200),
        ):
            connection.request(method, path)
            reply = connection.getresponse()
            reply.read()
            assert (reply.status, reply.will_close) == (status, False)
    finally:
        connection.close()


def test_aiohttp_over_a_unix_socket(ours_unix: Served) -> None:
    aiohttp = pytest.importorskip("aiohttp")
    body = os.urandom(2 * MIB)

    async def ask() -> None:
        connector = aiohttp.UnixConnector(path=ours_unix.address)
        async with aiohttp.ClientSession("http://localhost", connector=connector) as session:

            async def ping() -> str:
                async with session.post("/handler/ping") as reply:
                    return str(await reply.text())

            assert set(await asyncio.gather(*(ping() for _ in range(200)))) == {"pong"}
            async with session.post(
                "/handler/digest", data=io.BytesIO(body), expect100=True
            ) as reply:
                assert await reply.json() == of(body)
            async with session.get("/handler/ping") as reply:
                assert reply.status == 405

    asyncio.run(ask())


def test_urllib3_retries_after_503(ours_unix: Served) -> None:
    """Retry-After is what urllib3 obeys: the second try gets through."""
    assert isinstance(ours_unix.address, str)
    handler = ours_unix.registry.find("digest")
    places = [handler.acquire() for _ in range(handler.limit)]
    assert all(places)

    class Freeing(urllib3.Retry):
        def sleep(self, response: Any = None) -> None:
            assert response is not None
            assert self.get_retry_after(response) == 1
            for _ in range(handler.limit):
                handler.release()

    with UnixPool(ours_unix.address) as pool:
        retries = Freeing(1, status_forcelist=[503], allowed_methods=None)
        reply = pool.request("POST", "/handler/digest", body=b"abc", retries=retries)
        assert reply.json() == of(b"abc")
