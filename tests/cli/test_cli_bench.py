"""``workerserver bench``: what it measures and prints, and its exit statuses."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from support.hostile import Answer, always, peer, reply
from support.parking import untraced
from support.served import Serve, Served
from support.wire import PATIENCE

from workerserver.cli import bench, main

TIME = r"[0-9.]+ (us|ms|s)"
ROW = rf"( +{TIME}){{5}}"


@pytest.fixture
def path(ours_unix: Served) -> str:
    assert isinstance(ours_unix.address, str)
    return ours_unix.address


def printed(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> list[str]:
    assert main(["bench", *words]) == status
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def complained(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    status = main(["bench", *words])
    out, err = capsys.readouterr()
    assert out == ""
    return status, err


def figures(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads("\n".join(printed(capsys, "--json", *words, status=status)))
    return found


def test_a_closed_loop(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, answered, statuses, failed, empty, head, row = printed(
        capsys, path, "--requests", "100", "--connections", "4"
    )
    assert first == f"POST /handler/ping at {path}, 4 connections"
    assert re.fullmatch(r"100 requests in [0-9.]+ s", second)
    assert re.fullmatch(r"answered: 100, [0-9]+ per second, [0-9]+ (?:bytes|kB) received", answered)
    assert (statuses, failed, empty) == ("statuses: 100 x 200", "failed: none", "")
    assert head.split() == ["p50", "p90", "p99", "p99.9", "max"]
    assert re.fullmatch(f"latency{ROW}", row)


def test_a_schedule(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, path, "--rate", "500", "--duration", "0.1s")
    assert lines[0] == f"POST /handler/ping at {path}, 500 per second, 1 connection"
    assert lines[2].startswith("answered: 50, ")
    for name, row in zip(("response", "service", "client late"), lines[-3:], strict=True):
        assert re.fullmatch(f"{name}{ROW}", row)


def test_fresh_connections(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, path, "--requests=20", "--fresh")
    assert lines[0].endswith(", a new connection each")
    lines = printed(capsys, path, "--requests=20", "--fresh", "--connections=2")
    assert lines[0].endswith(", a new connection each, 2 at a time")
    assert lines[3] == "statuses: 20 x 200"


def test_json(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(capsys, path, "--requests", "30", "--rate", "500", "--connections", "2")
    assert list(found) == [
        "schema_version", "address", "rank", "host", "path", "connections", "rate", "fresh",
        "interrupted", "sent", "answered", "failed", "statuses", "seconds",
        "answered_per_second", "received_bytes", "response_ns", "service_ns", "late_ns",
    ]  # fmt: skip
    assert (found["address"], found["rank"], found["host"]) == (path, None, None)
    assert (found["path"], found["connections"], found["rate"]) == ("/handler/ping", 2, 500.0)
    assert (found["sent"], found["answered"], found["failed"]) == (30, 30, {})
    assert (found["statuses"], found["interrupted"]) == ({"200": 30}, False)
    times = found["response_ns"]
    assert list(times) == ["count", "min", "mean", "p50", "p90", "p99", "p99.9", "max"]
    assert times["count"] == 30
    assert 0 < times["min"] <= times["p50"] <= times["p99.9"] <= times["max"]
    assert figures(capsys, path, "--requests", "3")["late_ns"] is None


def test_a_run_is_bounded_unless_told_otherwise(
    path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "REQUESTS", 40)
    assert figures(capsys, path)["sent"] == 40
    assert figures(capsys, path, "--requests", "50")["sent"] == 50
    assert figures(capsys, path, "--rate", "400", "--duration", "0.2")["sent"] == 80
    monkeypatch.setattr(bench, "SECONDS", 0.1)
    assert figures(capsys, path, "--rate", "100")["sent"] == 10


def test_a_handler_with_parameters(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("dump_traceback?mode=gil&format=json", "dump_traceback?mode=nogil"):
        found = figures(capsys, path, name, "--requests", "3")
        assert (found["path"], found["answered"]) == (f"/handler/{name}", 3)


def test_over_tcp(ours_tcp: Served, capsys: pytest.CaptureFixture[str]) -> None:
    port = ours_tcp.address[1]
    for target in (f"127.0.0.1:{port}", f"http://localhost:{port}"):
        assert figures(capsys, target, "--requests", "5")["answered"] == 5


def test_the_token_comes_from_the_environment(
    serve: Serve, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = str(serve("unix", token="s3cret").address)
    status, err = complained(capsys, address, "dump_traceback")
    assert status == 2
    assert "HTTP 401" in err
    monkeypatch.setenv("WORKERSERVER_TOKEN", "s3cret")
    found = figures(capsys, address, "dump_traceback", "--requests", "5")
    assert found["answered"] == 5


def test_failures_are_shown_and_told(short_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def answer(connection: socket.socket, number: int) -> bool:
        # The first request is not measured.
        if number % 5 == 4:
            return True
        connection.sendall(reply(status=b"503 Busy" if number % 5 == 3 else b"200 OK"))
        return False

    with peer(answer, short_path) as served:
        lines = printed(capsys, str(served.address), "--requests", "10", status=1)
        found = figures(capsys, str(served.address), "--requests", "10", status=1)
    assert lines[2].startswith("answered: 6, ")
    assert lines[3:5] == [
        "statuses: 6 x 200, 2 x 503",
        "failed: 2 x closed early, 2 x status 503",
    ]
    assert found["answered"] == found["response_ns"]["count"]
    assert sum(found["failed"].values()) == 10 - found["answered"] > 0


def after_the_first(rest: Answer) -> Answer:
    return lambda connection, number: (rest if number else always(reply()))(connection, number)


def test_without_an_answer_there_are_no_times(
    short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with peer(after_the_first(lambda connection, number: True), short_path) as served:
        lines = printed(capsys, str(served.address), "--requests", "3", status=1)
        assert lines[-1] == "failed: 3 x closed early"
    with peer(always(b"garbage garbage\r\n\r\n"), None) as served:
        target = "{}:{}".format(*served.address)
        status, err = complained(capsys, target, "--requests", "3")
    assert status == 2
    assert err.startswith(f"workerserver: {target}: not an HTTP answer: ")


def test_a_request_that_takes_too_long(
    short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = threading.Event()
    hang = after_the_first(lambda connection, number: gate.wait(PATIENCE))
    with peer(hang, short_path) as served:
        words = (str(served.address), "--requests", "2", "--timeout", "0.1")
        try:
            assert figures(capsys, *words, status=1)["failed"] == {"timeout": 2}
        finally:
            gate.set()


def test_what_can_not_be_asked_is_not_measured(
    path: str, short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, err = complained(capsys, path, "nosuch")
    assert status == 2
    assert err.startswith(f"workerserver: {path}: HTTP 404 Not Found: ")
    missing = str(short_path / "missing.sock")
    assert complained(capsys, missing) == (3, f"workerserver: {missing}: no such socket\n")
    status, err = complained(capsys, "no-such-host.invalid:80")
    assert status == 2
    assert err.startswith("workerserver: no-such-host.invalid:80: ")


def test_one_worker_only(
    serve: Serve, short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve("unix")
    serve("unix")
    status, err = complained(capsys, str(short_path))
    assert status == 64
    assert "stands for 2" in err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["x y"], "not a target"),
        (["/x", ""], "names no handler"),
        (["/x", "ping?a=b c"], "visible ASCII"),
        (["/x", "--connections", "5000"], "connections: 5000"),
        (["/x", "--rate", "1e8"], "rate: 1e"),
        (["/" + "x" * 200], "address"),
        ([], "TARGET is missing"),
        (["/x", "ping", "pong"], "one argument too many: pong"),
    ],
)
def test_wrong_use(words: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, err = complained(capsys, *words)
    assert status == 64
    assert reason in err


@pytest.mark.parametrize(
    "words",
    [
        ["/x", "--requests", "0"],
        ["/x", "--requests", "1", "--duration", "1"],
        ["/x", "--duration", "-1s"],
        ["/x", "--rate", "fast"],
        ["/x", "--rate", "nan"],
        ["/x", "--connections", "-1"],
    ],
)
def test_wrong_options(words: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["bench", *words])
    assert left.value.code == 64


@untraced
@pytest.mark.parametrize("words", [[], ["--json"]])
def test_ctrl_c_prints_what_was_measured(short_path: Path, words: list[str]) -> None:
    gate, reached = threading.Event(), threading.Event()

    def answer(connection: socket.socket, number: int) -> None:
        if number == 8:  # after one request that is not measured, and seven that are
            reached.set()
            gate.wait(PATIENCE)
        connection.sendall(reply())

    with peer(answer, short_path) as served:
        command = [sys.executable, "-m", "workerserver", "bench", str(served.address), *words]
        with subprocess.Popen(
            [*command, "--duration", "60s", "--timeout", "60"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert reached.wait(PATIENCE)
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=30)
            finally:
                process.kill()
                gate.set()
    assert (process.returncode, err) == (130, "")
    if words:
        assert (json.loads(out)["answered"], json.loads(out)["interrupted"]) == (7, True)
    else:
        assert re.search(r"^7 requests in [0-9.]+ s, interrupted$", out, re.MULTILINE)
        assert re.search(f"^latency{ROW}$", out, re.MULTILINE)


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0.00 us"),
        (1, "0.00 us"),
        (9_876, "9.88 us"),
        (99_940, "99.9 us"),
        (123_456, "123 us"),
        (999_499, "999 us"),
        (999_500, "1.00 ms"),
        (1_500_000, "1.50 ms"),
        (999_500_000, "1.00 s"),
        (75_000_000_000, "75.0 s"),
    ],
)
def test_times_have_three_digits(ns: int, text: str) -> None:
    assert bench._time(ns) == text
