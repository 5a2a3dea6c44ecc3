"""``workerserver call`` and ``ls``: targets, answers good and hostile, exit statuses.

The workers are processes of their own; those that misbehave are raw sockets here.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from workerserver.cli import call, ls, main
from workerserver.cli.client import Answer, read_token, request
from workerserver.cli.errors import TargetError, UsageError
from workerserver.cli.targets import Target, parse_target, parse_targets
from workerserver.cli.text import escape, escape_line, seconds

OURS = ("TORCH_WORKER_SERVER_SOCKET", "WORKERSERVER_", "RANK", "LOCAL_RANK", "WORLD_SIZE")
IDLE = "print('on', flush=True)\ninput()\n"
TORCH = """
from torch._C._distributed_c10d import _WorkerServer
import sys
server = _WorkerServer(sys.argv[1])
print("on", flush=True)
sys.stdin.read()
server.shutdown()
"""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(OURS):
            monkeypatch.delenv(name)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, its path short enough for any socket."""
    with tempfile.TemporaryDirectory(prefix="ws-", dir="/tmp") as name:
        monkeypatch.chdir(name)
        yield Path(os.path.realpath(name))


@contextlib.contextmanager
def worker(kind: str, path: Path, **more: str) -> Iterator[int]:
    """A worker process that serves on *path*; gives its pid."""
    if kind == "torch":
        pytest.importorskip("torch")
        command = [sys.executable, "-c", TORCH, str(path)]
    else:
        (path.parent / "idle.py").write_text(IDLE)
        run = ["run", "--socket", str(path), str(path.parent / "idle.py")]
        command = [sys.executable, "-m", "workerserver", *run]
    with subprocess.Popen(
        command,
        env={**os.environ, **more},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"on\n", process.communicate()[1]
            yield process.pid
            process.communicate(b"\n", timeout=60)
        finally:
            process.kill()


def command(*words: str, stdin: str = "") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "workerserver", *words],
        input=stdin.encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )


@contextlib.contextmanager
def peer(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[Path]:
    """A listener that does *serve* with each connection."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)

    def loop() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                serve(connection)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield path
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(30)


def answering(*answers: bytes) -> Callable[[socket.socket], None]:
    """Answers each request with the next of *answers*, the last one for ever."""
    left = list(answers)

    def serve(connection: socket.socket) -> None:
        seen = b""
        while b"\r\n\r\n" not in seen:
            seen += connection.recv(65536)
        connection.sendall(left.pop(0) if len(left) > 1 else left[0])

    return serve


def http(body: bytes, status: str = "200 OK", kind: str = "text/plain") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


# --- targets ----------------------------------------------------------------------------------


def make_socket(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    return path


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


# --- what is shown ----------------------------------------------------------------------------


def stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n")


def written(out: io.TextIOWrapper) -> bytes:
    out.flush()
    assert isinstance(out.buffer, io.BytesIO)
    return out.buffer.getvalue()


def result(body: bytes, kind: str = "text/plain", status: int = 200) -> call.Result:
    return call.Result("t", Answer(status, "Said So", kind, body))


def test_a_terminal_gets_no_control_characters() -> None:
    out, err = stream(), stream()
    results = [result(b"a\x1b[2Jb\n\xff"), result(b"bad\x1b]0;x\x07", status=500)]
    assert call.render(results, out, err, raw=False, headers=False) == 1
    assert written(out) == b"a\\x1b[2Jb\n\\xff\n"
    assert written(err) == b"workerserver: t: HTTP 500 Said So\nbad\\x1b]0;x\\x07\n"


def test_a_terminal_gets_no_binary_answer() -> None:
    out, err = stream(), stream()
    results = [result(b"\x80\x04}", "application/octet-stream")]
    assert call.render(results, out, err, raw=False, headers=False) == 1
    assert written(out) == b""
    assert b"binary (3 bytes, application/octet-stream): use -o FILE" in written(err)


def test_a_real_terminal(folder: Path) -> None:
    shown = {}
    for options in ((), ("--raw",)):
        with peer(folder / "p", answering(http(b"\x1b[2Jx\n"))):
            ours, theirs = os.openpty()
            with open(ours, "rb", buffering=0) as terminal:
                words = [sys.executable, "-m", "workerserver", "call", "x", "./p", *options]
                assert subprocess.run(words, stdout=theirs, check=False, timeout=60).returncode == 0
                shown[options] = terminal.read(100)
                os.close(theirs)
        (folder / "p").unlink()
    assert shown == {(): b"\\x1b[2Jx\r\n", ("--raw",): b"\x1b[2Jx\r\n"}


def test_raw_is_raw() -> None:
    out, err = stream(), stream()
    body = bytes(range(256))
    results = [result(body, "application/octet-stream"), call.Result("u\n", error="gone\n")]
    assert call.render(results, out, err, raw=True, headers=True) == 1
    assert written(out) == b"== t\n" + body + b"\n== u\\n\n"
    assert written(err) == b"workerserver: u\\n: gone\\n\n"


def test_json_holds_every_answer() -> None:
    out = stream()
    results = [result("é".encode()), result(b"\xff", status=404), call.Result("u", error="gone")]
    assert call.render_json(results, out) == 1
    first, second, third = json.loads(written(out))
    assert first == {
        "target": "t",
        "status": 200,
        "content_type": "text/plain",
        "body": "é",
        "error": None,
    }
    assert (second["status"], second["body"], second["body_base64"]) == (404, None, "/w==")
    assert (third["status"], third["error"]) == (None, "gone")


# --- ls against workers that say odd things ---------------------------------------------------

NAMES = http(b'["ping"]', kind="application/json")
HEALTHY = b'{"status":"ok","pid":7,"rank":3,"uptime_s":75.5,"step":12,"step_age_s":0.5}'


def row(folder: Path, health: bytes, names: bytes = NAMES) -> ls.Worker:
    with peer(folder / "p", answering(health, names)):
        worker = ls.ask_worker(Target("p", str(folder / "p")), timeout=30)
    (folder / "p").unlink()
    return worker


def test_rows(folder: Path) -> None:
    assert row(folder, http(HEALTHY)) == ls.Worker("p", "ok", None, 3, 7, 75.5, 12, 0.5, ("ping",))
    stalled = row(folder, http(HEALTHY.replace(b"ok", b"stalled"), "503 Service Unavailable"))
    assert (stalled.status, stalled.error) == ("stalled", None)
    torch = row(folder, http(b"", "404 Not Found"))
    assert torch == ls.Worker("p", "torch", pid=os.getpid(), handlers=("ping",))
    odd = row(folder, http(b'{"status":"ok","pid":true,"rank":[],"uptime_s":NaN,"step":"x"}'))
    assert odd == ls.Worker("p", "ok", pid=os.getpid(), handlers=("ping",))


@pytest.mark.parametrize(
    ("health", "names", "error"),
    [
        (http(b"no json"), NAMES, "GET /healthz gives HTTP 200 OK"),
        (http(b"[" * 100_000), NAMES, "GET /healthz gives HTTP 200 OK"),
        (http(b'{"status":"\\u001b[2J"}'), NAMES, "GET /healthz gives HTTP 200 OK"),
        (http(b"", "401 Unauthorized"), NAMES, "GET /healthz gives HTTP 401 Unauthorized"),
        (http(HEALTHY), http(b"{}"), "GET /handler/ gives no list of names"),
        (http(HEALTHY), http(b"[1]"), "GET /handler/ gives no list of names"),
        (http(HEALTHY), http(b"", "403 Forbidden"), "HTTP 403 Forbidden"),
    ],
)
def test_rows_of_what_is_no_worker(folder: Path, health: bytes, names: bytes, error: str) -> None:
    worker = row(folder, health, names)
    assert (worker.status, worker.error) == ("error", error)


def test_the_table() -> None:
    out = stream()
    workers = [
        ls.Worker("a.sock", "ok", None, 0, 41, 75.5, 12, 0.5, ("ping", "x")),
        ls.Worker("b\x1b.sock", "unreachable", "no such\nsocket"),
    ]
    ls.render(workers, out)
    assert written(out).decode().splitlines() == [
        "TARGET      STATUS                        RANK  PID  UPTIME  STEP  STEP AGE  HANDLERS",
        "a.sock      ok                            0     41   1m15s   12    0.5s      2",
        "b\\x1b.sock  unreachable: no such\\nsocket  -     -    -       -     -         -",
    ]


def test_one_silent_worker_does_not_hold_up_the_others(folder: Path) -> None:
    released = threading.Event()

    def silent(connection: socket.socket) -> None:
        released.wait(60)

    with contextlib.ExitStack() as stack:
        for name in ("1", "3"):
            serve = answering(http(HEALTHY), NAMES)
            stack.enter_context(peer(folder / f"{name}.sock", serve))
        stack.enter_context(peer(folder / "2.sock", silent))
        stack.callback(released.set)
        listing = command("ls", "--json", "--timeout", "0.5", ".", "gone/x.sock")
    assert listing.returncode == 1
    workers = json.loads(listing.stdout)
    assert [worker["status"] for worker in workers] == ["ok", "unreachable", "ok", "unreachable"]
    assert [worker["error"] for worker in workers] == [
        None,
        "no answer within 0.5 s",
        None,
        "no such socket",
    ]


# --- whole commands, against ours and torch's -------------------------------------------------


@pytest.fixture(scope="module", params=["ours", pytest.param("torch", marks=pytest.mark.torch)])
def live(request: pytest.FixtureRequest) -> Iterator[tuple[str, Path, int]]:
    """A running worker: its kind, its socket and its pid."""
    with tempfile.TemporaryDirectory(prefix="ws-", dir="/tmp") as name:
        path = Path(name) / "a=b.sock"
        with worker(request.param, path) as pid:
            yield request.param, path, pid


def test_call(live: tuple[str, Path, int], folder: Path) -> None:
    _, path, _ = live
    done = command("call", "ping", str(path))
    assert (done.returncode, done.stdout, done.stderr) == (0, b"pong", b"")
    done = command("call", "dump_traceback", "--timeout", "20", str(path), "-o", "out.txt")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert "hread 0x" in (folder / "out.txt").read_text()


def test_call_of_an_unknown_handler(live: tuple[str, Path, int], folder: Path) -> None:
    _, path, _ = live
    for output in ([], ["-o", "out.txt"]):
        done = command("call", "no such", "key=a&b=é", "empty=", str(path), *output)
        assert (done.returncode, done.stdout) == (1, b"")
        first, second = done.stderr.decode().splitlines()
        assert first == f"workerserver: {path}: HTTP 404 Not Found"
        assert "Failed to find handler no such" in second
    assert not (folder / "out.txt").exists()


def test_ls(live: tuple[str, Path, int], folder: Path) -> None:
    kind, path, pid = live
    done = command("ls", str(path))
    assert (done.returncode, done.stderr) == (0, b"")
    header, line = done.stdout.decode().splitlines()
    assert header.split() == [word for title in ls.HEADER for word in title.split()]
    cells = line.split()
    assert cells[:4] == [str(path), "torch" if kind == "torch" else "ok", "-", str(pid)]
    done = command("ls", str(path), "--json", "--max-step-age", "5")
    (worker,) = json.loads(done.stdout)
    assert worker["status"] == ("torch" if kind == "torch" else "stalled")
    assert worker["pid"] == pid
    assert {"ping", "dump_traceback"} <= set(worker["handlers"])


def test_call_of_many(live: tuple[str, Path, int], folder: Path) -> None:
    _, path, _ = live
    (folder / "1.sock").symlink_to(path)
    (folder / "2.sock").symlink_to(path)
    make_socket(folder / "0.sock")
    done = command("call", "ping", "*.sock")
    assert done.returncode == 1
    assert done.stdout == b"== 0.sock\n== 1.sock\npong\n== 2.sock\npong\n"
    assert done.stderr == b"workerserver: 0.sock: connection refused: nobody listens there\n"
    done = command("call", "ping", "*.sock", "--json", "-o", "all.json")
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")
    answers = json.loads((folder / "all.json").read_text())
    assert [answer["body"] for answer in answers] == [None, "pong", "pong"]
    assert command("call", "ping", "*.sock", "-o", "x").returncode == 2


def test_call_when_the_output_cannot_be_written(live: tuple[str, Path, int], folder: Path) -> None:
    _, path, _ = live
    done = command("call", "ping", str(path), "-o", "no/such/file")
    assert done.returncode == 1
    assert done.stderr == b"workerserver: no/such/file: No such file or directory\n"
    shell = f"{sys.executable} -m workerserver call dump_traceback '{path}'; echo $? >&2"
    with subprocess.Popen(["sh", "-c", shell], stdout=-1, stderr=-1) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # as `| true` does
        assert process.stderr.read() == b"1\n"


# --- wrong use --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "usage"),
        (["nonsense"], "nonsense"),
        (["call"], "NAME"),
        (["call", "ping"], "TARGET"),
        (["call", "ping", "a.sock", "b.sock"], "a.sock"),
        (["call", "ping", "=x", "./a.sock"], "=x"),
        (["call", "ping", "nowhere"], "nowhere"),
        (["call", "ping", "./a", "--timeout", "-1"], "-1"),
        (["call", "ping", "./a", "--timeout", "nan"], "nan"),
        (["call", "ping", "./a", "--js"], "--js"),
        (["ls"], "TARGET"),
        (["ls", "a*b"], "a*b"),
        (["ls", "./a", "--timeout", "x"], "'x'"),
    ],
)
def test_wrong_use_exits_2(folder: Path, words: list[str], named: str) -> None:
    done = command(*words)
    assert done.returncode == 2
    assert done.stdout == b""
    assert named in done.stderr.decode()
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["-h"], ["call", "--help"], ["ls", "-h"]])
def test_help(words: list[str]) -> None:
    done = command(*words)
    assert done.returncode == 0
    assert done.stdout.startswith(b"usage: workerserver")


def test_main_in_process(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "./gone"]) == 1
    assert "unreachable: no such socket" in capsys.readouterr().out
    assert main(["call", "ping", "./gone"]) == 1
    assert capsys.readouterr().err == "workerserver: ./gone: no such socket\n"
    assert main(["call", "ping", "\x1b"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_neither_torch_nor_the_server_is_imported() -> None:
    code = (
        "import sys, workerserver.cli as c; c.main(['ls', './gone']); "
        "print([m for m in ('torch', 'asyncio', 'uvloop', 'workerserver.server') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == b"[]"


def test_ctrl_c_does_not_wait_for_the_worker(folder: Path) -> None:
    asked, released = threading.Event(), threading.Event()

    def serve(connection: socket.socket) -> None:
        asked.set()
        released.wait(60)

    with peer(folder / "p", serve):
        words = ["call", "ping", "./p", "--timeout", "600"]
        try:
            with subprocess.Popen([sys.executable, "-m", "workerserver", *words]) as process:
                assert asked.wait(60)
                time.sleep(0.1)
                process.send_signal(2)
                assert process.wait(30) == 130
        finally:
            released.set()
