"""Who may ask: token, browsers, Host on TCP, exposure, and the peer's user on a Unix socket."""

from __future__ import annotations

import hmac
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.requests.hosts import HOSTS
from support.served import Connect, Kind, Serve, Served
from support.wire import Client, ask, message, post

from workerserver import WorkerServer
from workerserver._parser import RequestParser
from workerserver.http.access import AccessPolicy, standard_rules
from workerserver.process.credentials import token_from_environment
from workerserver.types import Forbidden

TOKEN = "s3cret-t\u00f6ken"
BEARER = ("Authorization", f"Bearer {TOKEN}".encode().decode("latin-1"))
KINDS: tuple[Kind, ...] = ("unix", "tcp", "asyncio-unix", "asyncio-tcp")


# --- token ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_token(serve: Serve, connect: Connect, kind: Kind) -> None:
    served = serve(kind, token=TOKEN)
    client = connect(served.address)
    assert client.ask(post("ping", b"", [BEARER])).body == b"pong"
    lower = (BEARER[0].upper(), BEARER[1].replace("Bearer", "bEARER"))
    assert client.ask(post("ping", b"", [lower])).body == b"pong"
    for value in (
        None,
        "Bearer",
        "Bearer ",
        "Bearer wrong",
        BEARER[1] + "x",
        BEARER[1][:-1],
        BEARER[1].removeprefix("Bearer "),
        BEARER[1].replace("Bearer", "Basic"),
    ):
        fields = [] if value is None else [("Authorization", value)]
        for request in (post("ping", b"", fields), message("GET", "/", None, fields)):
            reply = client.ask(request)
            assert (reply.status, reply.header("WWW-Authenticate")) == (401, "Bearer")
            assert TOKEN not in reply.text
    # Without a token, no client learns the names of the handlers.
    assert client.ask(post("nope")).status == 401


def test_token_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    seen = []

    def compare(given: bytes, token: bytes) -> bool:
        seen.append((given, token))
        return given == token

    monkeypatch.setattr(hmac, "compare_digest", compare)
    served = serve("uvloop-tcp", token="abc")  # natively: tests/native/test_recognise.py
    for given in ("abd", "x", "abc"):
        ask(served.address, post("ping", b"", [("Authorization", f"Bearer {given}")]))
    assert seen == [(b"abd", b"abc"), (b"x", b"abc"), (b"abc", b"abc")]


def test_token_from_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert token_from_environment() is None
    file = tmp_path / "token"
    file.write_text("from-file \nsecond line\n")
    monkeypatch.setenv("WORKERSERVER_TOKEN_FILE", str(file))
    assert token_from_environment() == "from-file"
    monkeypatch.setenv("WORKERSERVER_TOKEN", "from-environment")
    assert token_from_environment() == "from-environment"


@pytest.mark.parametrize("content", [None, b"", b"\n", b"  \n", b"\nsecond line", b"\xff\xfe\n"])
def test_token_file_that_holds_none(
    monkeypatch: pytest.MonkeyPatch, short_path: Path, content: bytes | None
) -> None:
    """If somebody asked for protection, no server is better than a server without protection."""
    file = short_path / "token"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("WORKERSERVER_TOKEN_FILE", str(file))
    with pytest.raises(ValueError, match="WORKERSERVER_TOKEN_FILE"):
        token_from_environment()
    with pytest.raises(ValueError, match="WORKERSERVER_TOKEN_FILE"):
        WorkerServer(str(short_path / "worker.sock"))
    assert not (short_path / "worker.sock").exists()


def test_empty_token_does_not_hide_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("from-file")
    monkeypatch.setenv("WORKERSERVER_TOKEN", "")
    assert token_from_environment() is None
    monkeypatch.setenv("WORKERSERVER_TOKEN_FILE", str(file))
    assert token_from_environment() == "from-file"


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_server_takes_its_token_from_the_environment(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: Kind
) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n", encoding="utf-8")
    monkeypatch.setenv("WORKERSERVER_TOKEN_FILE", str(file))
    served = serve(kind)
    assert ask(served.address, post("ping")).status == 401
    assert ask(served.address, post("ping", b"", [BEARER])).body == b"pong"


# --- browsers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("Origin", "http://evil.example", 403),
        ("Origin", "http://localhost", 403),
        ("ORIGIN", "null", 403),
        ("Sec-Fetch-Site", "cross-site", 403),
        ("sec-fetch-site", " Cross-Site ", 403),
        ("Sec-Fetch-Site", "none", 200),
        ("Sec-Fetch-Site", "same-origin", 200),
        ("X-Origin", "http://evil.example", 200),
    ],
)
def test_web_pages(served: Served, connect: Connect, field: str, value: str, status: int) -> None:
    ran = []
    served.registry.register("act", lambda: ran.append(1), inline=True)
    client = connect(served.address)
    assert client.ask(post("act", b"", [(field, value)])).status == status
    assert len(ran) == (status == 200)
    assert client.ask(message("GET", "/", None, [(field, value)])).status == status


@pytest.mark.parametrize(("host", "good"), HOSTS)
def test_host_on_tcp(ours_tcp: Served, connect: Connect, host: str, good: bool) -> None:
    client = connect(ours_tcp.address)
    for _ in range(2):
        reply = client.ask(message("GET", "/", host=host))
        assert reply.status == (200 if good else 403)
        assert client.ask(message("GET", "/", host="127.0.0.1")).status == 200


def test_host_in_the_target_counts(ours_tcp: Served) -> None:
    """RFC 9112, 3.2.2: an absolute target's host replaces the Host field."""
    assert ask(ours_tcp.address, message("GET", "http://evil.example/")).status == 403
    good = message("GET", "http://localhost/", host="evil.example")
    assert ask(ours_tcp.address, good).status == 200


def test_host_on_a_unix_socket(ours_unix: Served) -> None:
    """No DNS name leads to a Unix socket, so clients may send any Host there."""
    for host in ("evil.example", "worker"):
        assert ask(ours_unix.address, message("GET", "/", host=host)).status == 200


def test_empty_host(served: Served) -> None:
    """An http URI has an authority, so its Host field is never empty (RFC 9110, 4.2.1 and 7.2)."""
    for host in ("", " \t"):
        with Client(served.address) as client:
            reply = client.ask(message("GET", "/", host=host))
            assert (reply.status, reply.text) == (400, "Malformed request: bad Host field")
            assert client.rest() == b""


def _request(host: str) -> object:
    parser = RequestParser()
    parser.receive_data(message("GET", "/", host=host))
    return parser.next_request()


def test_names_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Node7.cluster")
    hosts = ("Service.local", "*.Pods.local", "end.")
    policy = AccessPolicy(standard_rules(unix=False, hosts=hosts))
    for host in (
        "node7.cluster", "NODE7", "service.LOCAL:1", "a.pods.local", "A.b.pods.LOCAL.:80", "end",
        "end.",
    ):  # fmt: skip
        policy.check(_request(host))  # type: ignore[arg-type]
    for host in (
        "node70", "node7x.cluster", "cluster", "x.node7.cluster", "service", "pods.local",
        ".pods.local", "xpods.local", "a.pods.local.evil", "node7.cluster.internal:80",
        "node7.evil.example",
    ):  # fmt: skip
        with pytest.raises(Forbidden, match="WORKERSERVER_HOSTS"):
            policy.check(_request(host))  # type: ignore[arg-type]
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    with pytest.raises(Forbidden):
        AccessPolicy(standard_rules(unix=False)).check(_request("localhost.evil.example"))  # type: ignore[arg-type]


def test_hosts_from_environment(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKERSERVER_HOSTS", " node7-ib0 ,, *.cluster.internal,")
    for kind in ("tcp", "uvloop-tcp", "tls"):
        address = serve(kind).address
        for host in (
            "NODE7-ib0:80",
            "node7.cluster.internal",
            "a.b.cluster.internal.",
            "localhost",
        ):
            assert ask(address, message("GET", "/", host=host)).status == 200
        for host in ("cluster.internal", "node7-ib0.evil.example", "node7.cluster.internal.evil"):
            reply = ask(address, message("GET", "/", host=host))
            assert reply.status == 403
            assert "WORKERSERVER_HOSTS" in reply.text


@pytest.mark.parametrize(
    "text", ["*", "*.", "a.*", "*a.b", "node7:80", "http://node7", "a b", "a..b", ".a", "\xe4"]
)
def test_hosts_that_are_none(monkeypatch: pytest.MonkeyPatch, no_leaks: None, text: str) -> None:
    monkeypatch.setenv("WORKERSERVER_HOSTS", f"node7, {text}")
    with pytest.raises(ValueError, match=r"^WORKERSERVER_HOSTS: .* is no host name"):
        WorkerServer("127.0.0.1", 0)


# --- before the body ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "uvloop-tcp", "tls"])
def test_refused_before_the_body(serve: Serve, kind: Kind) -> None:
    """No byte of the body has come, and none is waited for; nor is any asked for with 100."""
    served = serve(kind, token=TOKEN)
    wrong = ("Authorization", "Bearer wrong")
    length, chunked = ("Content-Length", str(10 << 20)), ("Transfer-Encoding", "chunked")
    for fields in ([length], [chunked], [wrong, length], [length, ("Expect", "100-continue")]):
        with Client(served.address) as client:
            reply = client.ask(message("POST", "/handler/ping", None, fields))
            assert (reply.status, reply.header("Connection")) == (401, "close")
            assert client.rest() == b""
    with Client(served.address) as client:
        reply = client.ask(
            message("POST", "/handler/ping", None, [BEARER, ("Origin", "x"), length])
        )
        assert (reply.status, reply.header("Connection")) == (403, "close")
    # The answer is the same if the body comes with the head. A body with a token is read.
    with Client(served.address) as client:
        reply = client.ask(post("ping", b"x=1"))
        assert (reply.status, reply.header("Connection")) == (401, "close")
    with Client(served.address) as client:
        assert client.ask(post("ping", b"x=1", [BEARER])).body == b"pong"


def test_two_authorizations(serve: Serve, kind: Kind) -> None:
    """Neither the first nor the last counts (RFC 9110, 5.3)."""
    served = serve(kind, token=TOKEN)
    wrong = ("authorization", "Bearer wrong")
    for fields in ([BEARER, wrong], [wrong, BEARER], [BEARER, BEARER]):
        with Client(served.address) as client:
            reply = client.ask(post("ping", b"", fields))
            assert reply.status == 400
            assert "Authorization" in reply.text


# --- exposure -------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["", "::", "0.0.0.0"])
def test_required_token(monkeypatch: pytest.MonkeyPatch, no_leaks: None, host: str) -> None:
    monkeypatch.setenv("WORKERSERVER_REQUIRE_TOKEN", "1")
    with pytest.raises(RuntimeError, match=f"^Error binding to {host}:0$") as caught:
        WorkerServer(host, 0)
    assert "WORKERSERVER_TOKEN" in str(caught.value.__cause__)
    WorkerServer(host, 0, token="x").shutdown()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_required_token_on_loopback(
    monkeypatch: pytest.MonkeyPatch, no_leaks: None, host: str
) -> None:
    monkeypatch.setenv("WORKERSERVER_REQUIRE_TOKEN", "1")
    with WorkerServer(host, 0) as server:
        assert ask((host, server.port), post("ping")).body == b"pong"  # localhost may be ::1


@pytest.mark.parametrize(
    ("host", "token", "warns"),
    [("", None, True), ("0.0.0.0", None, True), ("", "x", False), ("127.0.0.1", None, False)],
)
def test_exposure_is_warned_about(
    caplog: pytest.LogCaptureFixture, no_leaks: None, host: str, token: str | None, warns: bool
) -> None:
    with caplog.at_level(logging.WARNING, "workerserver"), WorkerServer(host, 0, token=token):
        pass
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == warns
    assert all("without a token" in record.getMessage() for record in warnings)


# --- the peer's user ------------------------------------------------------------------------------

OTHER_USER = """
import os, socket, sys
os.setgid(65534)
os.setuid(65534)
sock = socket.socket(socket.AF_UNIX)
sock.settimeout(20)
try:
    sock.connect(sys.argv[1])
except PermissionError:
    print("no way in")
    raise SystemExit
sock.sendall(b"POST /handler/ping HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
data = b""
while piece := sock.recv(65536):
    data += piece
print(data.decode())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("kind", ["unix", "asyncio-unix"])
def test_other_user(serve: Serve, short_path: Path, kind: Kind) -> None:
    """The socket file keeps other users out, and if it doesn't, their credentials do."""
    served = serve(kind)
    assert isinstance(served.address, str)
    program = short_path / "other_user.py"
    program.write_text(OTHER_USER)

    def as_other() -> str:
        command = [sys.executable, str(program), str(served.address)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=True
        ).stdout

    short_path.chmod(0o755)
    if kind == "unix":
        assert as_other() == "no way in\n"
    os.chmod(served.address, 0o777)
    reply = as_other()
    assert reply.startswith("HTTP/1.1 403 Forbidden\n")
    assert "own user only" in reply
    assert reply.count("HTTP/1.1") == 1
    assert ask(served.address, post("ping")).body == b"pong"
