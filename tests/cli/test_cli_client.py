"""The commands' targets, their text, and the client against peers good and hostile."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from support.jobs.peers import answering, http, make_socket, peer

from workerserver.cli import ping
from workerserver.cli.errors import UsageError
from workerserver.cli.places import client_options
from workerserver.cli.text import seconds
from workerserver.cli.token import shown_token
from workerserver.cluster.addresses import host_port, is_address, parse_address
from workerserver.cluster.ask.client import Visit
from workerserver.cluster.ask.exchange import Answer, Question
from workerserver.cluster.ask.in_order import in_order
from workerserver.cluster.errors import ClusterError, NotATarget
from workerserver.cluster.find.discovery import Options, discover
from workerserver.cluster.model import Failure, Worker
from workerserver.job.printable import escape, escape_line

# --- targets ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port", "name"),
    [
        ("node7:8000", "node7", 8000, "node7:8000"),
        ("127.0.0.1:1", "127.0.0.1", 1, "127.0.0.1:1"),
        ("[::1]:65535", "::1", 65535, "[::1]:65535"),
        ("http://node7:8000", "node7", 8000, "node7:8000"),
        ("https://node7:8000", "node7", 8000, "node7:8000"),
        ("http://[fe80::1%eth0]:80/", "fe80::1%eth0", 80, "[fe80::1%eth0]:80"),
    ],
)
def test_tcp_targets(text: str, host: str, port: int, name: str) -> None:
    (worker,) = parse_address(text)
    assert worker == Worker(name, False, host=host, tls=text.startswith("https"))
    assert host_port(worker.address) == (host, port)


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
        "https://host",
        "unix:",
        "*.sck",
        "no/such/*.sock",
        ".",
    ],
)
def test_what_is_no_target(text: str, folder: Path) -> None:
    with pytest.raises(ClusterError) as caught:
        parse_address(text)
    assert text in str(caught.value)
    assert is_address(text) is not isinstance(caught.value, NotATarget)


def find(*texts: str) -> list[Worker]:
    return discover(Options(texts, environment={}))


def test_socket_targets(folder: Path) -> None:
    for name in ("rank10.sock", "rank9.sock", "a[0].sock", "key=value"):
        make_socket(folder / name)
    (folder / "notes.txt").touch()
    assert find("rank9.sock") == [Worker("rank9.sock", unix=True)]
    assert find("unix:rank9.sock") == [Worker("rank9.sock", unix=True)]
    assert find("./gone.sock") == [Worker("./gone.sock", unix=True)]
    assert find("gone.sock") == [Worker("gone.sock", unix=True)]
    assert [worker.address for worker in find("rank*")] == ["rank9.sock", "rank10.sock"]
    assert [worker.address for worker in find("a[0].sock")] == ["a[0].sock"]
    everything = find(str(folder))
    assert [Path(worker.address).name for worker in everything] == [
        "a[0].sock",
        "key=value",
        "rank9.sock",
        "rank10.sock",
    ]
    twice = find("rank9.sock", "rank*", "h:1", "http://h:1")
    assert [worker.address for worker in twice] == ["rank9.sock", "rank10.sock", "h:1"]


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


def ask_worker(worker: Worker, question: Question, **options: Any) -> Any:
    async def talk(visit: Visit) -> tuple[Answer, int | None]:
        return await visit.ask(question), visit.peer_pid

    ((asked, outcome),) = in_order([worker], talk, **options)
    assert asked == worker
    return outcome


def ask(path: Path, timeout: float = 30.0, limit: int = 1000) -> Answer:
    """The answer; an AssertionError with the reason if there is none."""
    question = Question("x", "/", "GET", limit=limit, any_status=True)
    outcome = ask_worker(Worker(str(path), unix=True), question, deadline=timeout)
    assert not isinstance(outcome, Failure), outcome.text
    answer: Answer = outcome[0]
    return answer


def reason(path: Path, timeout: float = 30.0, limit: int = 1000) -> str:
    with pytest.raises(AssertionError) as caught:
        ask(path, timeout, limit)
    return str(caught.value).partition("\n")[0]


def test_a_request_as_it_is_on_the_wire(folder: Path) -> None:
    seen: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        seen.append(connection.recv(65536))
        connection.sendall(http(b"yes", kind="text/html"))

    question = Question("x", "/x?y=z", limit=3)
    with peer(folder / "p", serve):
        answer, pid = ask_worker(Worker("p", unix=True), question, deadline=30, token="s3cret")
    assert (answer.status, answer.reason, answer.content_type) == (200, "OK", "text/html")
    assert (answer.body, pid) == (b"yes", os.getpid())
    head = seen[0].decode().lower().split("\r\n")
    assert head[0] == "post /x?y=z http/1.1"
    assert "host: localhost" in head
    assert "authorization: bearer s3cret" in head
    assert "content-length: 0" in head
    assert "accept-encoding: identity" in head


MISBEHAVIOUR = {
    "closes": (b"", "connection closed without an answer"),
    "no HTTP": (b"hello\r\n\r\n", "not an HTTP answer"),
    "garbage": (bytes(range(256)) * 10, "not an HTTP answer"),
    "long line": (b"HTTP/1.1 200 " + b"x" * 70000 + b"\r\n\r\n", "more than 1000 bytes"),
    "many headers": (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n", "more than 128 fields"),
    "cut short": (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "7 bytes"),
    "cut chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc",
        "the answer incomplete",
    ),
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
    with peer(folder / "p", answering(sent)):
        assert said in reason(folder / "p")


def test_an_answer_of_just_the_limit(folder: Path) -> None:
    with peer(folder / "p", answering(http(b"x" * 1000))):
        assert len(ask(folder / "p").body) == 1000
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n" + b"x" * 1000
    with peer(folder / "q", answering(chunked + b"\r\n0\r\n\r\n")):
        assert len(ask(folder / "q").body) == 1000


@pytest.mark.parametrize(
    ("start", "drop", "text"),
    [
        (b"", b"\n", "the head of the answer incomplete in 0.3 s"),
        (b"HTTP/1.1 200 OK\r\n", b"x", "the head of the answer incomplete in 0.3 s"),
        (http(b"x" * 900)[:-800], b"x", "bytes in 0.3 s"),
    ],
)
def test_the_deadline_holds_against_a_peer_that_drips(
    folder: Path, start: bytes, drop: bytes, text: str
) -> None:
    released = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(start)
        while not released.wait(0.02):
            connection.sendall(drop)

    with peer(folder / "p", serve):
        try:
            assert reason(folder / "p", timeout=0.3).endswith(text)
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
        assert reason(folder / "full", timeout=0.3) == "no connection in 0.3 s"


def test_targets_that_cannot_be_reached(folder: Path) -> None:
    make_socket(folder / "stale")
    (folder / "file").touch()
    for name, why in {
        "gone": "no such socket",
        "stale": "nobody listens there",
        "file": "connection refused: not a socket",
        "x" * 200: "too long",
    }.items():
        assert why in reason(folder / name)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    question = Question("x", "/", "GET", limit=10)
    outcome = ask_worker(Worker(f"127.0.0.1:{port}", unix=False), question, deadline=30)
    assert outcome.text == "connection refused: nobody listens there"
    for host in ("a..b", "x" * 300):
        outcome = ask_worker(Worker(f"{host}:1", unix=False), question, deadline=30)
        assert isinstance(outcome, Failure)


def test_token(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown_token().secret is None
    (folder / "token").write_text("  from-file\n")
    monkeypatch.setenv("WORKERSERVER_TOKEN_FILE", "token")
    assert (shown_token().secret, shown_token().name) == ("from-file", "the token in token")
    monkeypatch.setenv("WORKERSERVER_TOKEN", "from-variable")
    assert shown_token().secret == "from-variable"
    assert shown_token().name == "the token in WORKERSERVER_TOKEN"
    monkeypatch.setenv("WORKERSERVER_TOKEN", "two\nlines")
    with pytest.raises(UsageError, match="token"):
        shown_token()
    monkeypatch.delenv("WORKERSERVER_TOKEN")
    monkeypatch.setenv("WORKERSERVER_TOKEN_FILE", "missing")
    with pytest.raises(UsageError, match="missing"):
        shown_token()


def test_a_token_from_a_pipe(folder: Path) -> None:
    """As from ``--token-file <(pass show job)``: it can be read once."""
    os.mkfifo(folder / "pipe")
    writer = threading.Thread(target=(folder / "pipe").write_text, args=("from-pipe\n",))
    writer.start()
    options = ping.make_parser().parse_args(["--token-file", str(folder / "pipe")])
    asked = client_options(options)
    writer.join(60)
    assert (asked["token"], asked["token_name"]) == ("from-pipe", f"the token in {folder}/pipe")
