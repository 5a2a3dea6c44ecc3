"""The command line's targets and its client, against peers good and hostile."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path

import pytest
from support.jobs.peers import answering, http, make_socket, peer

from workerserver.cli.client import Answer, read_token, request
from workerserver.cli.errors import TargetError, UsageError
from workerserver.cli.targets import Target, parse_target, parse_targets
from workerserver.cli.text import escape, escape_line, seconds

# --- targets ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port", "name"),
    [
        ("node7:8000", "node7", 8000, "node7:8000"),
        ("127.0.0.1:1", "127.0.0.1", 1, "127.0.0.1:1"),
        ("[::1]:65535", "::1", 65535, "[::1]:65535"),
        ("http://node7:8000", "node7", 8000, "node7:8000"),
        ("http://[fe80::1%eth0]:80/", "fe80::1%eth0", 80, "[fe80::1%eth0]:80"),
    ],
)
def test_tcp_targets(text: str, host: str, port: int, name: str) -> None:
    assert parse_target(text) == [Target(name, host=host, port=port)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "host:",
        "host:x",
        "host:0",
        "host:65536",
        "host:99999999999",
        "::1:80",
        "[::1]",
        "http://host",
        "http://host:80/handler/",
        "https://host:80",
        "unix:",
        "*.sock",
        "no/such/*.sock",
        ".",
    ],
)
def test_what_is_no_target(text: str, folder: Path) -> None:
    with pytest.raises(UsageError) as caught:
        parse_target(text)
    assert text in str(caught.value)


def test_socket_targets(folder: Path) -> None:
    for name in ("rank10.sock", "rank9.sock", "a[0].sock", "key=value"):
        make_socket(folder / name)
    (folder / "notes.txt").touch()
    assert parse_target("rank9.sock") == [Target("rank9.sock", "rank9.sock")]
    assert parse_target("unix:rank9.sock") == [Target("rank9.sock", "rank9.sock")]
    assert parse_target("./gone.sock") == [Target("./gone.sock", "./gone.sock")]
    assert [target.name for target in parse_target("rank*")] == ["rank9.sock", "rank10.sock"]
    assert [target.name for target in parse_target("a[0].sock")] == ["a[0].sock"]
    everything = parse_target(str(folder))
    assert [Path(target.name).name for target in everything] == [
        "a[0].sock",
        "key=value",
        "rank9.sock",
        "rank10.sock",
    ]
    twice = parse_targets(["rank9.sock", "rank*", "h:1", "http://h:1"])
    assert [target.name for target in twice] == ["rank9.sock", "rank10.sock", "h:1"]


# --- text -------------------------------------------------------------------------------------


def test_escape_leaves_nothing_that_drives_a_terminal() -> None:
    text = "a\tb\nc\x1b[2J\x07\r\x9b\x7f\u202e\u2028é\U0001f600"
    shown = "a\tb\nc\\x1b[2J\\x07\\r\\x9b\\x7f\\u202e\\u2028é\U0001f600"
    assert escape(text) == shown
    assert escape_line(text) == shown.replace("\t", "\\t").replace("\n", "\\n")
    assert escape("plain") == "plain"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (0.04, "0.0s"),
        (59.9, "59s"),
        (61, "1m01s"),
        (3600, "1h00m"),
        (86400 * 40 + 3700, "40d01h"),
    ],
)
def test_seconds(value: float | None, shown: str) -> None:
    assert seconds(value) == shown


# --- the client against peers that misbehave --------------------------------------------------


def ask(path: Path, timeout: float = 30.0, limit: int = 1000) -> Answer:
    return request(Target("t", str(path)), "GET", "/", timeout=timeout, limit=limit)


def test_a_request_as_it_is_on_the_wire(folder: Path) -> None:
    seen: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        seen.append(connection.recv(65536))
        connection.sendall(http(b"yes", kind="text/html"))

    with peer(folder / "p", serve):
        answer = request(Target("t", "p"), "POST", "/x?y=z", timeout=30, limit=3, token="s3cret")
    assert answer == Answer(200, "OK", "text/html", b"yes", os.getpid())
    head = seen[0].decode().lower().split("\r\n")
    assert head[0] == "post /x?y=z http/1.1"
    assert "host: localhost" in head
    assert "authorization: bearer s3cret" in head
    assert "content-length: 0" in head
    assert "connection: close" in head


MISBEHAVIOUR = {
    "closes": (b"", "connection closed without an answer"),
    "no HTTP": (b"hello\r\n\r\n", "not an HTTP answer"),
    "garbage": (bytes(range(256)) * 10, "not an HTTP answer"),
    "long line": (b"HTTP/1.1 200 " + b"x" * 70000 + b"\r\n\r\n", "not an HTTP answer"),
    "many headers": (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n", "not an HTTP answer"),
    "cut short": (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "7 bytes"),
    "cut chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc", "Incomplete"),
    "announced too large": (b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n", "1000 bytes"),
    "too large": (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 5000, "1000 bytes"),
    "too large in chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"5\r\nabcde\r\n" * 300,
        "1000 bytes",
    ),
}


@pytest.mark.parametrize("name", MISBEHAVIOUR)
def test_a_bad_answer_is_an_error_that_says_so(folder: Path, name: str) -> None:
    sent, said = MISBEHAVIOUR[name]
    with peer(folder / "p", answering(sent)), pytest.raises(TargetError) as caught:
        ask(folder / "p")
    assert said in caught.value.reason
    assert str(caught.value).startswith("t: ")


def test_an_answer_of_just_the_limit(folder: Path) -> None:
    with peer(folder / "p", answering(http(b"x" * 1000))):
        assert len(ask(folder / "p").body) == 1000
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n" + b"x" * 1000
    with peer(folder / "q", answering(chunked + b"\r\n0\r\n\r\n")):
        assert len(ask(folder / "q").body) == 1000


@pytest.mark.parametrize("drip", [b"", b"HTTP/1.1 200 OK\r\n", http(b"x" * 900)[:-800]])
def test_the_deadline_holds_against_a_peer_that_drips(folder: Path, drip: bytes) -> None:
    released = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(drip)
        while not released.wait(0.02):
            connection.sendall(b"x")

    with peer(folder / "p", serve):
        try:
            with pytest.raises(TargetError, match=r"no answer within 0\.3 s"):
                ask(folder / "p", timeout=0.3)
        finally:
            released.set()


def test_the_deadline_holds_when_nobody_accepts(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind("full")
        listener.listen(1)
        for _ in range(3):  # fill the backlog
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect("full")
        with pytest.raises(TargetError, match=r"no answer within 0\.3 s"):
            ask(folder / "full", timeout=0.3)


def test_targets_that_cannot_be_reached(folder: Path) -> None:
    make_socket(folder / "stale")
    (folder / "file").touch()
    for name, reason in {
        "gone": "no such socket",
        "stale": "nobody listens there",
        "file": "refused",
        "x" * 200: "too long",
    }.items():
        with pytest.raises(TargetError, match=reason):
            ask(folder / name)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(TargetError, match="nobody listens there"):
        request(Target("t", host="127.0.0.1", port=port), "GET", "/", timeout=30, limit=10)
    for host in ("a..b", "x" * 300):
        with pytest.raises(TargetError):
            request(Target("t", host=host, port=1), "GET", "/", timeout=30, limit=10)


def test_token(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_token() is None
    (folder / "token").write_text("  from-file\n")
    monkeypatch.setenv("WORKERSERVER_TOKEN_FILE", "token")
    assert read_token() == "from-file"
    monkeypatch.setenv("WORKERSERVER_TOKEN", "from-variable")
    assert read_token() == "from-variable"
    monkeypatch.setenv("WORKERSERVER_TOKEN", "two\nlines")
    with pytest.raises(UsageError, match="token"):
        read_token()
    monkeypatch.delenv("WORKERSERVER_TOKEN")
    monkeypatch.setenv("WORKERSERVER_TOKEN_FILE", "missing")
    with pytest.raises(UsageError, match="missing"):
        read_token()
