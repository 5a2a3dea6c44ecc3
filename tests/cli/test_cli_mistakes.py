"""What the commands say about wrong addresses, tokens and words, each against a real listener."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.certificates import make_certificate
from support.jobs.peers import make_socket
from support.jobs.workers import HEALTH, SUMMARY, Canned, good
from support.jobs.workers import http as answer
from support.served import Serve
from support.wire import ask, message

from workerserver.cli import main
from workerserver.cli.bench_tls import TlsLoad
from workerserver.cluster.ask.client import tls_context
from workerserver.cluster.failures import not_permitted
from workerserver.cluster.find.here import Here
from workerserver.cluster.model import Worker
from workerserver.server import WorkerServer

Said = Callable[..., str]
STARTS: dict[str, tuple[str, ...]] = {
    "call": ("call", "ping"),
    "ls": ("ls",),
    "ping": ("ping", "--count", "1"),
    "stacks": ("stacks",),
}
every_command = pytest.mark.parametrize("command", STARTS)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """``said(word...)``: all that a failing command wrote, in one line."""

    def run(*words: str) -> str:
        assert main(words) in (1, 2, 3, 64)
        written = capsys.readouterr()
        return " ".join((written.out + written.err).split())

    return run


@contextlib.contextmanager
def accepting(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """A TCP listener that does *serve* with each connection; gives its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def loop() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        serve(connection)

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(30)


# --- other servers -----------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """The test's output is not the place."""


@pytest.fixture
def web_server(folder: Path) -> Iterator[str]:
    """``python -m http.server``."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(30)


@every_command
def test_the_port_of_a_web_server(command: str, web_server: str, said: Said) -> None:
    text = said(*STARTS[command], web_server)
    assert web_server in text
    assert "no worker server (SimpleHTTP/" in text
    status = "501 Unsupported method" if command == "call" else "404 File not found"
    assert f"): HTTP {status}" in text
    assert "DOCTYPE" not in text


def test_the_page_of_a_web_server_is_in_the_json(
    web_server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["call", "ping", web_server, "--json"]) == 2
    (answer,) = json.loads(capsys.readouterr().out)["workers"]
    names = ["address", "rank", "host", "status", "content_type", "body", "error"]
    assert list(answer) == names
    assert (answer["status"], answer["error"]) == (501, None)
    assert "DOCTYPE" in answer["body"]


def test_a_web_server_that_answers_everything(said: Said) -> None:
    """As servers of single-page applications do: 200 and a page, whatever the path."""

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        head = b"HTTP/1.1 200 OK\r\nServer: spa\r\nContent-Type: text/html\r\nContent-Length: 6\r\n"
        connection.sendall(head + b"Connection: close\r\n\r\n<html>")

    with accepting(serve) as address:
        assert "malformed: no worker server (spa): HTTP 200 OK" in said("ping", address)
        assert "GET /handler/ gives no list of names" in said("ls", address)


@every_command
@pytest.mark.parametrize("first", [True, False], ids=["speaks first", "speaks second"])
def test_the_port_of_sshd(command: str, first: bool, said: Said) -> None:
    def serve(connection: socket.socket) -> None:
        if not first:
            connection.recv(65536)
        connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
        connection.recv(65536)

    with accepting(serve) as address:
        text = said(*STARTS[command], address)
    what = "it begins with 'SSH-2.0-OpenSSH_9.6', so this is no worker server"
    assert f"not an HTTP answer: {what}" in text


# --- TLS ---------------------------------------------------------------------------------------


@every_command
def test_https_to_http(command: str, serve: Serve, said: Said) -> None:
    port = serve("tcp").address[1]
    text = said(*STARTS[command], f"https://127.0.0.1:{port}")
    assert f"speaks no TLS: try http://127.0.0.1:{port}" in text
    assert "SSL" not in text


@every_command
def test_http_to_https(command: str, serve: Serve, said: Said) -> None:
    port = serve("tls").address[1]
    text = said(*STARTS[command], f"127.0.0.1:{port}")
    assert f"speaks TLS, try https://127.0.0.1:{port}" in text


def test_http_to_a_tls_server_that_says_so(tmp_path: Path, said: Said) -> None:
    """OpenSSL answers bytes that are no TLS with an alert, if the server sends the alert."""

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"\x15\x03\x01\x00\x02\x02\x46")

    with accepting(serve) as address:
        text = said("call", "ping", address)
        assert text.endswith(f"the port speaks TLS; try https://{address}")


def test_http_to_pythons_own_tls(tmp_path: Path, said: Said) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    key, certificate = make_certificate(tmp_path)
    context.load_cert_chain(certificate, key)

    def serve(connection: socket.socket) -> None:
        context.wrap_socket(connection, server_side=True)

    with accepting(serve) as address:
        assert f"try https://{address}" in said("call", "ping", address)


@pytest.fixture
def secure(tmp_path: Path, no_leaks: None) -> Iterator[tuple[str, str]]:
    """A worker over TLS with a token: its URL and its certificate's file."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    key, certificate = make_certificate(tmp_path)
    context.load_cert_chain(certificate, key)
    with WorkerServer("127.0.0.1", 0, tls=context, token="s3cret") as server:
        yield f"https://localhost:{server.port}", certificate


def test_call_and_ls_over_tls(
    secure: tuple[str, str],
    said: Said,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, certificate = secure
    for words in (("call", "ping", url), ("ls", url)):
        assert "certificate not accepted" in said(*words)
        assert "HTTP 401: it needs a token" in said(*words, "--cacert", certificate)
    monkeypatch.setenv("WORKERSERVER_TOKEN", "s3cret")
    assert main(["call", "ping", url, "--cacert", certificate]) == 0
    assert capsys.readouterr().out == "pong"
    assert main(["ls", url, "--cacert", certificate, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["workers"]
    assert (row["address"], row["status"], row["error"]) == (url, "ok", None)


def test_bench_over_tls(
    secure: tuple[str, str], said: Said, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    url, certificate = secure
    assert "certificate not accepted" in said("bench", url)
    assert "HTTP 401: it needs a token" in said("bench", url, "--cacert", certificate)
    (folder / "token").write_text("s3cret")
    words = ["bench", url, "--cacert", certificate, "--token-file", "token"]
    assert main([*words, "--requests", "20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"POST /handler/ping at {url}, 1 connection"
    assert lines[1].startswith("20 requests in ")
    assert lines[2].startswith("answered: 20, ")
    assert lines[3:5] == ["statuses: 20 x 200", "failed: none"]
    for more in (["--connections", "3"], ["--fresh"], ["--rate", "500", "--connections", "2"]):
        assert main([*words, "--requests", "12", "--json", *more]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["address"], found["sent"], found["answered"]) == (url, 12, 12)
        assert found["service_ns"]["count"] == found["response_ns"]["count"] == 12
        assert found["late_ns"] is None or "--rate" in more
        assert found["received_bytes"] > 12 * len("HTTP/1.1 200 OK")
    assert main([*words[:2], "nope", *words[2:]]) == 2


def test_bench_over_tls_of_a_server_that_ends(
    secure: tuple[str, str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers that are no success, and connections that end, are counted by their reason."""
    url, certificate = secure
    worker = Worker(url.removeprefix("https://"), False, tls=True)
    head = f"POST /handler/nope HTTP/1.1\r\nHost: {worker.address}\r\nContent-Length: 0\r\n"
    fields = "Authorization: Bearer s3cret\r\nConnection: close\r\n\r\n"
    load = TlsLoad(
        worker,
        (head + fields).encode(),
        {"tls": tls_context(certificate)},
        limit=1000,
        connections=1,
        requests=3,
        seconds=0.0,
        rate=0.0,
        fresh=False,
        timeout=10.0,
    )
    result = load.run()
    assert (result.sent, result.answered, result.statuses) == (3, 0, {404: 3})
    assert result.failed == {"status 404": 3}
    assert result.service.count == 0


# --- tokens ------------------------------------------------------------------------------------


@every_command
def test_tokens(
    command: str, serve: Serve, folder: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (*STARTS[command], str(serve("unix", token="s3cret").address))
    needs = "HTTP 401: it needs a token: set WORKERSERVER_TOKEN or WORKERSERVER_TOKEN_FILE"
    assert needs in said(*words)
    monkeypatch.setenv("WORKERSERVER_TOKEN", "wrong")
    assert "HTTP 401: the token in WORKERSERVER_TOKEN was not accepted" in said(*words)
    monkeypatch.delenv("WORKERSERVER_TOKEN")
    (folder / "old").write_text("wrong\n")
    monkeypatch.setenv("WORKERSERVER_TOKEN_FILE", "old")
    assert "HTTP 401: the token in old was not accepted" in said(*words)


# --- sockets -----------------------------------------------------------------------------------


@every_command
def test_sockets_that_are_none(command: str, folder: Path, said: Said) -> None:
    (folder / "plain.txt").touch()
    assert "connection refused: not a socket" in said(*STARTS[command], "plain.txt")
    make_socket(folder / "stale.sock")
    assert "connection refused: nobody listens there" in said(*STARTS[command], "stale.sock")
    for name in ("nothing.sock", "./nothing"):
        assert "no such socket" in said(*STARTS[command], name)


@every_command
def test_another_users_folder(
    command: str, folder: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root, who may run the tests, may read every folder."""

    def refuse(path: str) -> list[str]:
        raise PermissionError(13, "Permission denied", path)

    (folder / "job").mkdir()
    monkeypatch.setattr(os, "listdir", refuse)
    owner = (folder / "job").owner()
    how = f"it belongs to {owner}: sudo -u {owner} workerserver ..."
    expected = f"workerserver: job: permission denied; {how}"
    assert said(*STARTS[command], "job") == expected
    pattern = str(folder / "job" / "*.sock")
    expected = f"workerserver: {pattern}: permission denied; {how}"
    assert said(*STARTS[command], pattern) == expected
    assert main([*STARTS[command], "job"]) == 64


def test_the_owner_of_what_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a socket in a folder that may not be searched, the folder's."""
    hidden = tmp_path / "job" / "rank0.sock"
    hidden.parent.mkdir()
    real = os.stat

    def stat(path: Any, *rest: Any, **more: Any) -> Any:
        if str(path) == str(hidden):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "stat", stat)
    text = not_permitted(str(hidden))
    owner = tmp_path.owner()
    assert text == f"permission denied; it belongs to {owner}: sudo -u {owner} workerserver ..."


# --- jobs ---------------------------------------------------------------------------------------


def test_two_jobs_in_one_folder(folder: Path, said: Said) -> None:
    """Of workers that don't tell their job."""
    with contextlib.ExitStack() as stack:
        for name in ("a", "b"):
            worker = Canned(good(0), folder / f"{name}.sock")
            stack.callback(worker.close)
        text = said("diagnose", "./*.sock", "--rounds", "1")
    assert "says that it is rank 0, and so does ./" in text
    assert ": workers of two jobs? Name one job" in text


def test_the_job_has_ended(folder: Path, said: Said) -> None:
    for rank in range(4):
        make_socket(folder / f"rank{rank}.sock")
    text = said("diagnose", "./rank{rank}.sock")
    assert text == "the job has ended: nobody listens at ./rank0.sock and 3 more"


def test_a_path_that_is_not_there(said: Said) -> None:
    """Nobody knows whether a job has ended there, or whether the path is mistyped."""
    text = said("diagnose", "./rnak0.sock")
    assert text == "no job here, or it has ended: ./rnak0.sock: no such socket"


def test_no_worker_found(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workerserver.cluster.find.discovery.look_here", Here)
    monkeypatch.setattr("workerserver.cluster.find.discovery.others", list)
    text = said("diagnose")
    begin, name, start = text.split("workerserver: ")[1:]
    assert begin.startswith("no worker found: no process of this user has a worker server")
    assert (
        name == "To name one: workerserver diagnose SOCKET, FOLDER, HOST:PORT or --store HOST:PORT "
    )
    assert start == "To start a job with a server: torchrun ... -m workerserver run train.py"


def test_no_recorder(folder: Path, said: Said) -> None:
    worker = Canned({**good(0), SUMMARY: answer(b"", "404 Not Found")}, folder / "rank0.sock")
    try:
        text = said("fr", "./rank0.sock")
    finally:
        worker.close()
    assert "these processes have not loaded torch, so there is no flight recorder" in text
    quiet = Canned({HEALTH: answer(b"", "500 No")}, folder / "rank1.sock")
    try:
        assert "0 of 1 ranks answered" in said("fr", "./rank1.sock")
    finally:
        quiet.close()


def test_a_token_file_that_is_not_there(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKERSERVER_TOKEN_FILE", "/nope")
    text = said("diagnose", "./rank0.sock")
    assert text == "workerserver: WORKERSERVER_TOKEN_FILE /nope: no such file"


def test_a_handler_in_a_browser(serve: Serve) -> None:
    reply = ask(serve("uvloop-tcp").address, message("GET", "/handler/ping"))
    assert (reply.status, dict(reply.headers)["allow"]) == (405, "POST")
    assert reply.text == (
        "Method not allowed; allowed: POST. To call handler ping:"
        " workerserver call ping TARGET, or curl -X POST URL"
    )


# --- words of call -----------------------------------------------------------------------------


def test_the_arguments_of_call_the_wrong_way_round(folder: Path, said: Said) -> None:
    make_socket(folder / "x.sock")
    begin = "workerserver: the target comes last: workerserver call "
    assert said("call", "/x.sock", "ping") == f"{begin}ping /x.sock"
    assert said("call", "x.sock", "dump", "a=b c") == f"{begin}dump 'a=b c' x.sock"
    assert said("call", "h:1", "ping") == f"{begin}ping h:1"
    assert said("call", "ping") == "workerserver: TARGET is missing: workerserver call ping TARGET"
    assert said("call", "", "x.sock") == "workerserver: NAME is empty: which handler?"
    assert "'pong' is not a target: give " in said("call", "ping", "pong")


def test_a_handler_that_there_is_not(serve: Serve, said: Said) -> None:
    address = str(serve("unix").address)
    text = said("call", "pong", address)
    begin, _, names = text.partition("; there are: ")
    assert begin == f"workerserver: {address}: no handler pong"
    assert names.split(", ") == sorted(names.split(", "))
    assert {"dump_traceback", "ping"} <= set(names.split(", "))


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (b'["ping"]', "no handler torch_profile: torch is not loaded in this process"),
        (b'["fr_trace_json"]', "no handler torch_profile; there are: fr_trace_json"),
        (b"[]", "no handler torch_profile: torch is not loaded in this process"),
        (b'["torch_profile"]', "HTTP 404 Not Found nothing to profile"),
        (b"{}", "no worker server: HTTP 404 Not Found"),
    ],
)
def test_what_404_means(names: bytes, text: str, said: Said) -> None:
    def serve(connection: socket.socket) -> None:
        request = connection.recv(65536)
        if request.startswith(b"POST"):
            status, body = b"404 Not Found", b"nothing to profile"
        else:
            status, body = b"200 OK", names
        head = b"HTTP/1.1 %b\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        connection.sendall(head % (status, len(body)) + body)

    with accepting(serve) as address:
        assert said("call", "torch_profile", address) == f"workerserver: {address}: {text}"


# --- where the workers are -----------------------------------------------------------------------


def test_call_and_ls_find_workers_as_the_job_commands_do(
    serve: Serve, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ports = [serve("tcp").address[1] for _ in range(2)]
    (folder / "hosts").write_text("".join(f"127.0.0.1:{port}\n" for port in ports))
    lines = [f"== 127.0.0.1:{port}\npong\n" for port in ports]
    assert main(["call", "ping", "--hosts", "hosts"]) == 0
    assert capsys.readouterr().out == "".join(lines)
    assert main(["call", "ping", "--dns", f"127.0.0.1:{ports[0]}"]) == 0
    assert capsys.readouterr().out == "pong"
    assert main(["ls", "--hosts", "hosts", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["workers"]
    assert [row["address"] for row in rows] == [f"127.0.0.1:{port}" for port in ports]


def test_parameters_and_a_target_beside_a_place(
    serve: Serve, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = serve("tcp").address[1]
    socket_path = Path(str(serve("unix").address))
    (folder / "a=b.sock").symlink_to(socket_path)
    (folder / "hosts").write_text(f"127.0.0.1:{port}\n")
    words = ["call", "dump_traceback", "format=json", "mode=gil"]
    assert main([*words, "--hosts", "hosts"]) == 0
    assert json.loads(capsys.readouterr().out)["mode"] == "gil"
    assert main([*words, "./a=b.sock", "--hosts", "hosts", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)["workers"]
    assert [answer["address"] for answer in answers] == ["./a=b.sock", f"127.0.0.1:{port}"]
    assert main(["call", "ping", "--hosts", "hosts", "./a=b.sock", "-o", "x"]) == 64
    assert "-o holds one answer" in capsys.readouterr().err


def test_a_template_tells_the_ranks(
    serve: Serve, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in (1, 0):
        (folder / f"w{rank}.sock").symlink_to(str(serve("unix").address))
    assert main(["call", "ping", "./w{rank}.sock"]) == 0
    assert capsys.readouterr().out == "== ./w0.sock\npong\n== ./w1.sock\npong\n"
