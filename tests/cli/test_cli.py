"""``workerserver call`` and ``ls``: what is shown, whole commands, exit statuses.

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
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.jobs.peers import answering, http, make_socket, peer

from workerserver.cli import call, ls, main
from workerserver.cluster.ask.exchange import Answer
from workerserver.cluster.model import Worker

IDLE = "print('on', flush=True)\ninput()\n"
TORCH = """
from torch._C._distributed_c10d import _WorkerServer
import sys
server = _WorkerServer(sys.argv[1])
print("on", flush=True)
sys.stdin.read()
server.shutdown()
"""


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


# --- what is shown ----------------------------------------------------------------------------


def stream() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n")


def written(out: io.TextIOWrapper) -> bytes:
    out.flush()
    assert isinstance(out.buffer, io.BytesIO)
    return out.buffer.getvalue()


def result(body: bytes, kind: str = "text/plain", status: int = 200) -> call.Result:
    return call.Result(
        Worker("t", unix=True), Answer(status, "Said So", {"content-type": kind}, body, 0)
    )


def test_a_terminal_gets_no_control_characters() -> None:
    out, err = stream(), stream()
    results = [result(b"a\x1b[2Jb\n\xff"), result(b"bad\x1b]0;x\x07", status=500)]
    assert call.render(results, out, err, raw=False, headers=False) == 1
    assert written(out) == b"a\\x1b[2Jb\n\\xff\n"
    assert written(err) == b"workerserver: t: HTTP 500 Said So\nbad\\x1b]0;x\\x07\n"


def test_a_terminal_gets_no_binary_answer() -> None:
    out, err = stream(), stream()
    results = [result(b"\x80\x04}", "application/octet-stream")]
    assert call.render(results, out, err, raw=False, headers=False) == 2
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
    results = [
        result(body, "application/octet-stream"),
        call.Result(Worker("u\n", unix=True), error="gone\n"),
    ]
    assert call.render(results, out, err, raw=True, headers=True) == 1
    assert written(out) == b"== t\n" + body + b"\n== u\\n\n"
    assert written(err) == b"workerserver: u\\n: gone\\n\n"


def test_json_holds_every_answer() -> None:
    out = stream()
    gone = Worker("u:1", False, 3, "node7", tls=True)
    results = [
        result("é".encode()), result(b"\xff", status=404), call.Result(gone, error="gone")
    ]  # fmt: skip
    assert call.render_json(results, out) == 1
    fields = json.loads(written(out))
    assert fields["schema_version"] == 1
    first, second, third = fields["workers"]
    assert first == {
        "address": "t",
        "rank": None,
        "host": None,
        "status": 200,
        "content_type": "text/plain",
        "body": "é",
        "error": None,
    }
    assert (second["status"], second["body"], second["body_base64"]) == (404, None, "/w==")
    assert (third["status"], third["error"]) == (None, "gone")
    assert (third["address"], third["rank"], third["host"]) == ("https://u:1", 3, "node7")


# --- ls against workers that say odd things ---------------------------------------------------

NAMES = http(b'["ping"]', kind="application/json")
HEALTHY = b'{"status":"ok","pid":7,"rank":3,"uptime_s":75.5,"step":12,"step_age_s":0.5}'


def row(folder: Path, health: bytes, names: bytes = NAMES) -> ls.Row:
    with peer(folder / "p", answering(health, names)):
        (found,) = ls.rows([Worker("p", unix=True)], deadline=30)
    (folder / "p").unlink()
    return found


def test_rows(folder: Path) -> None:
    name = ("p", "p", None)
    assert row(folder, http(HEALTHY)) == ls.Row(*name, "ok", None, 3, 7, 75.5, 12, 0.5, ("ping",))
    stalled = row(folder, http(HEALTHY.replace(b"ok", b"stalled"), "503 Service Unavailable"))
    assert (stalled.status, stalled.error) == ("stalled", None)
    torch = row(folder, http(b"", "404 Not Found"))
    assert torch == ls.Row(*name, "torch", pid=os.getpid(), handlers=("ping",))
    odd = row(folder, http(b'{"status":"ok","pid":true,"rank":[],"uptime_s":NaN,"step":"x"}'))
    assert odd == ls.Row(*name, "ok", pid=os.getpid(), handlers=("ping",))


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
        ls.Row("a.sock", "a.sock", None, "ok", None, 0, 41, 75.5, 12, 0.5, ("ping", "x")),
        ls.Row("b\x1b.sock", "b\x1b.sock", None, "unreachable", "no such\nsocket"),
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
    workers = json.loads(listing.stdout)["workers"]
    assert [worker["status"] for worker in workers] == ["ok", "unreachable", "ok", "unreachable"]
    assert [worker["error"] for worker in workers] == [
        None,
        "no answer in 0.5 s",
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
        assert (done.returncode, done.stdout) == (2, b"")
        (line,) = done.stderr.decode().splitlines()
        begin, _, names = line.partition("; there are: ")
        assert begin == f"workerserver: {path}: no handler no such"
        assert {"ping", "dump_traceback"} <= set(names.split(", "))
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
    (worker,) = json.loads(done.stdout)["workers"]
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
    answers = json.loads((folder / "all.json").read_text())["workers"]
    assert [answer["body"] for answer in answers] == [None, "pong", "pong"]
    assert command("call", "ping", "*.sock", "-o", "x").returncode == 64


def test_call_when_the_output_cannot_be_written(live: tuple[str, Path, int], folder: Path) -> None:
    _, path, _ = live
    done = command("call", "ping", str(path), "-o", "no/such/file")
    assert done.returncode == 74
    assert done.stderr == b"workerserver: no/such/file: No such file or directory\n"
    shell = f"{sys.executable} -m workerserver call dump_traceback '{path}'; echo $? >&2"
    with subprocess.Popen(["sh", "-c", shell], stdout=-1, stderr=-1) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # as `| true` does
        assert process.stderr.read() == b"0\n"  # the reader has its own exit status


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
        (["ls", "./a", "--timeout", "x"], "'x'"),
    ],
)
def test_wrong_use_exits_64(folder: Path, words: list[str], named: str) -> None:
    done = command(*words)
    assert done.returncode == 64
    assert done.stdout == b""
    assert named in done.stderr.decode()
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["-h"], ["call", "--help"], ["ls", "-h"]])
def test_help(words: list[str]) -> None:
    done = command(*words)
    assert done.returncode == 0
    assert done.stdout.startswith(b"usage: workerserver")


def test_main_in_process(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "./gone"]) == 3
    assert "unreachable: no such socket" in capsys.readouterr().out
    assert main(["call", "ping", "./gone"]) == 3
    assert capsys.readouterr().err == "workerserver: ./gone: no such socket\n"
    assert main(["call", "ping", "\x1b"]) == 64
    assert "\x1b" not in capsys.readouterr().err


def test_neither_torch_nor_the_server_is_imported() -> None:
    code = (
        "import sys, workerserver.cli as c; c.main(['ls', './gone']); "
        "print([m for m in ('torch', 'rich', 'aiohttp', 'workerserver.server') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == b"[]"


def test_ctrl_c_does_not_wait_for_the_worker(folder: Path) -> None:
    asked, released = threading.Event(), threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        asked.set()
        released.wait(60)

    with peer(folder / "p", serve):
        words = ["call", "ping", "./p", "--timeout", "600"]
        try:
            with subprocess.Popen([sys.executable, "-m", "workerserver", *words]) as process:
                assert asked.wait(60)
                process.send_signal(2)
                assert process.wait(30) == 130
        finally:
            released.set()
