"""``worker_main``: what it serves, what it lets through, and that failures are really recorded."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.lifecycle import PROGRAMS, alive, ask, environment, run_isolated

import workerserver
from workerserver.control_plane import (
    expand_placeholders,
    parse_host_port,
    serve_from_environment,
    worker_main,
)

PONG = (200, "pong")
SOCKET = "TORCH_WORKER_SERVER_SOCKET"
STRICT = "WORKERSERVER_STRICT"

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (SOCKET, "WORKERSERVER_TCP", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)


def test_names() -> None:
    assert workerserver.worker_main is worker_main
    assert workerserver.TORCH_WORKER_SERVER_SOCKET == "TORCH_WORKER_SERVER_SOCKET"


@pytest.mark.parametrize("form", ["decorator", "with"])
def test_serves_where_the_environment_says(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "s.sock")
    monkeypatch.setenv(SOCKET, path)
    assert run(form, lambda: ask(path)) == PONG
    assert os.listdir(tmp_path) == []
    assert run(form, lambda: ask(path)) == PONG


@pytest.mark.parametrize("form", ["decorator", "with"])
def test_without_environment_only_the_block_runs(form: str) -> None:
    import threading

    assert run(form, lambda: [t.name for t in threading.enumerate()]) == [
        t.name for t in threading.enumerate()
    ]


def run(form: str, body: Callable[[], Any]) -> Any:
    if form == "decorator":
        return worker_main()(body)()
    with worker_main():
        return body()


@pytest.mark.parametrize("form", ["decorator", "with"])
@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt()])
def test_what_the_block_raises_goes_through(
    form: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SOCKET, str(tmp_path / "s.sock"))

    def body() -> None:
        assert alive(str(tmp_path / "s.sock"))
        raise error

    with pytest.raises(type(error)) as caught:
        run(form, body)
    assert caught.value is error
    assert os.listdir(tmp_path) == []


def test_decorated_function_keeps_its_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SOCKET, str(tmp_path / "s.sock"))

    @worker_main()
    def train(steps: int, *more: int, rate: float = 0.1) -> tuple[Any, ...]:
        """Trains."""
        return steps, more, rate

    assert (train.__name__, train.__doc__) == ("train", "Trains.")
    assert train.__wrapped__(1) == (1, (), 0.1)  # type: ignore[attr-defined]
    assert train(1, 2, 3, rate=0.5) == (1, (2, 3), 0.5)
    assert train(2) == (2, (), 0.1)
    with pytest.raises(TypeError):
        train()  # type: ignore[call-arg]


def test_a_path_that_is_taken_fails_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.sock"
    path.write_text("precious")
    monkeypatch.setenv(SOCKET, str(path))
    monkeypatch.setenv(STRICT, "1")
    ran = []
    for form in ("decorator", "with"):
        with pytest.raises(RuntimeError, match="already exists"):
            run(form, lambda: ran.append(1))
    assert ran == []


@pytest.mark.parametrize("form", ["decorator", "with"])
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({SOCKET: "FOLDER/taken"}, "FOLDER/taken already exists"),
        ({SOCKET: "FOLDER/a/b/s.sock"}, "Error binding to FOLDER/a/b/s.sock: "),
        ({SOCKET: "FOLDER/" + "x" * 200}, "a socket path holds at most"),
        ({SOCKET: "FOLDER/{host}.sock"}, "unknown placeholder {host}"),
        ({SOCKET: "FOLDER/{rank}.sock", "LOCAL_RANK": "0"}, "{rank}"),
        ({"WORKERSERVER_TCP": "nonsense"}, "'nonsense' is not HOST:PORT"),
        (
            {"WORKERSERVER_TCP": "0.0.0.0:0", "WORKERSERVER_REQUIRE_TOKEN": "1"},
            "needs WORKERSERVER",
        ),
        ({SOCKET: "FOLDER/s", "WORKERSERVER_TOKEN_FILE": "/nope"}, "/nope: no such file"),
        ({SOCKET: "FOLDER/s", "WORKERSERVER_TRANSPORT": "pigeon"}, "not 'pigeon'"),
        ({SOCKET: "FOLDER/s", "WORKERSERVER_TCP": "1.2.3.4:1"}, "Error binding to 1.2.3.4:1: "),
    ],
)
def test_training_runs_without_a_server(
    form: str,
    settings: dict[str, str],
    reason: str,
    short_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever keeps the server from starting is one line; with STRICT it raises."""
    (short_path / "taken").write_text("precious")
    for name, value in settings.items():
        monkeypatch.setenv(name, value.replace("FOLDER", str(short_path)))
    assert run(form, lambda: "trained") == "trained"
    lines = [record.getMessage() for record in caplog.records]
    (line,) = [each for each in lines if each.startswith("this worker runs without a server: ")]
    assert reason.replace("FOLDER", str(short_path)) in line
    assert "\n" not in line
    assert os.listdir(short_path) == ["taken"]
    monkeypatch.setenv(STRICT, "1")
    with pytest.raises((RuntimeError, ValueError)):
        run(form, lambda: "trained")


def test_a_missing_folder_is_made(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = short_path / "new" / "s.sock"
    monkeypatch.setenv(SOCKET, str(path))
    assert run("with", lambda: ask(str(path))) == PONG
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_without_a_launcher_the_rank_is_0(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a sibling, of whom nobody knows the rank either, has a name of its own."""
    monkeypatch.setenv(SOCKET, str(short_path / "rank{rank}-{local_rank}.sock"))
    first, own = short_path / "rank0-0.sock", f"rank0-0.{os.getpid()}.sock"

    def names() -> list[str]:
        return sorted(each.name for each in short_path.iterdir())

    assert run("with", names) == ["rank0-0.sock"]
    with peer(first):
        assert run("with", names) == sorted(["rank0-0.sock", own])
        assert run("with", lambda: ask(str(short_path / own))) == PONG
        monkeypatch.setenv("RANK", "0")  # a launcher's word: two workers can't both be rank 0
        monkeypatch.setenv("LOCAL_RANK", "0")
        assert run("with", names) == ["rank0-0.sock"]


@contextlib.contextmanager
def peer(path: Path) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        yield


def test_rank_0_says_how_to_ask(
    short_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(SOCKET, str(short_path / "{rank}.sock"))
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        run("with", lambda: None)
    line = (
        f"workerserver: serving on {short_path}/0.sock; if the job hangs: workerserver diagnose\n"
    )
    assert capsys.readouterr().err == line


def test_start_serves_without_a_variable() -> None:
    code = (
        "import sys, workerserver\n"
        "server = workerserver.start()\n"
        "print(server.address, workerserver.start() is server, 'torch' in sys.modules)"
    )
    with tempfile.TemporaryDirectory(prefix="ws-", dir="/tmp") as place:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment(TMPDIR=place),
            capture_output=True,
            text=True,
            check=False,
        )
        run_folder = f"{place}/workerserver-{os.geteuid()}"
        address, same, torch = done.stdout.split()
        assert os.path.dirname(address) == run_folder
        assert (same, torch) == ("True", "False")
        assert os.listdir(run_folder) == []  # no socket and no record is left
        os.chmod(run_folder, 0o770)
        refused = subprocess.run(
            [sys.executable, "-c", "import workerserver; print(workerserver.start())"],
            env=environment(TMPDIR=place),
            capture_output=True,
            text=True,
            check=False,
        )
    assert refused.stdout == "None\n"
    assert refused.stderr.startswith("this worker runs without a server: ")
    assert "is open to other users" in refused.stderr


# --- placeholders --------------------------------------------------------------------------------


def test_placeholders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "12")
    monkeypatch.setenv("LOCAL_RANK", "3")
    text = expand_placeholders("/tmp/{rank}/{local_rank}-{pid}-{rank}.sock")
    assert text == f"/tmp/12/3-{os.getpid()}-12.sock"
    assert expand_placeholders("/tmp/plain}{.sock") == "/tmp/plain}{.sock"


@pytest.mark.parametrize("form", ["decorator", "with"])
@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("{rank}.sock", "RANK"),
        ("{host}.sock", r"\{host\}"),
        ("{}.sock", r"\{\}"),
        ("{rank!r}.sock", r"\{rank!r\}"),
    ],
)
def test_bad_placeholder_fails_before_training(
    form: str, template: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SOCKET, str(tmp_path / template))
    monkeypatch.setenv("LOCAL_RANK", "0")  # so there is a launcher, which should have set RANK
    monkeypatch.setenv(STRICT, "1")
    ran = []
    with pytest.raises(ValueError, match=named):
        run(form, lambda: ran.append(1))
    assert ran == []
    assert os.listdir(tmp_path) == []


def test_placeholders_in_the_served_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SOCKET, str(tmp_path / "{rank}-{pid}"))
    monkeypatch.setenv("RANK", "5")
    with worker_main():
        assert ask(str(tmp_path / f"5-{os.getpid()}")) == PONG


# --- TCP -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        (":25999", ("", 25999)),
        (":::80", ("::", 80)),
        ("[::]:80", ("::", 80)),
        ("[::1]:65535", ("::1", 65535)),
        ("node-1.cluster:1", ("node-1.cluster", 1)),
    ],
)
def test_host_and_port(text: str, wanted: tuple[str, int]) -> None:
    assert parse_host_port(text) == wanted


@pytest.mark.parametrize(
    "text", ["80", "host", "host:", "host:x", "host:-1", "host:65536", "::1:80", "h:1 ", "h:²"]
)
def test_bad_host_and_port_fails_before_training(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKERSERVER_TCP", text)
    monkeypatch.setenv(STRICT, "1")
    ran = []
    with pytest.raises(ValueError, match="HOST:PORT"):
        run("decorator", lambda: ran.append(1))
    assert ran == []


def test_both_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SOCKET, str(tmp_path / "s.sock"))
    monkeypatch.setenv("WORKERSERVER_TCP", "127.0.0.1:0")
    with serve_from_environment() as (unix, tcp):
        assert ask(unix.address) == PONG
        assert ask(("127.0.0.1", tcp.port)) == PONG
    monkeypatch.setenv("WORKERSERVER_TCP", "nonsense")
    monkeypatch.setenv(STRICT, "1")
    with pytest.raises(ValueError, match="HOST:PORT"), serve_from_environment():
        pass
    assert os.listdir(tmp_path) == [], "the first server ends when the second can't start"


# --- torch's record ------------------------------------------------------------------------------


def recorded(path: Path) -> str | None:
    """The message in an error file, as torchrun reads it."""
    if not path.exists():
        return None
    message = json.loads(path.read_text())["message"]
    return str(message["message"] if isinstance(message, dict) else message)


@pytest.mark.torch
@needs_torch
@pytest.mark.parametrize("kind", ["ours", "torch"])
@pytest.mark.parametrize("form", ["decorator", "with"])
def test_failure_is_recorded(kind: str, form: str, tmp_path: Path) -> None:
    """torch's worker_main applies ``record`` only to its own construction: nothing is written."""
    file = tmp_path / "error.json"
    done = run_isolated(
        "server/worker_main_rank.py",
        kind,
        form,
        "raise",
        TORCHELASTIC_ERROR_FILE=str(file),
        RANK="0",
    )
    assert done.returncode == 1
    assert "TrainingFailed: rank 0 lost its way" in done.stderr
    if kind == "torch":
        assert recorded(file) is None
    else:
        assert recorded(file) == "TrainingFailed: rank 0 lost its way"
        extra = json.loads(file.read_text())["message"]["extraInfo"]
        assert "in train" in extra["py_callstack"]


@pytest.mark.torch
@needs_torch
@pytest.mark.parametrize("form", ["decorator", "with"])
@pytest.mark.parametrize("code", ["0", "7"])
def test_exit_codes(form: str, code: str, tmp_path: Path) -> None:
    file = tmp_path / "error.json"
    done = run_isolated(
        "server/worker_main_rank.py",
        "ours",
        form,
        code,
        TORCHELASTIC_ERROR_FILE=str(file),
        RANK="0",
    )
    assert (done.returncode, done.stdout, done.stderr) == (int(code), "", "")
    assert recorded(file) is None


@pytest.mark.torch
@needs_torch
@pytest.mark.parametrize("kind", ["ours", "torch"])
@pytest.mark.parametrize("form", ["decorator", "with"])
def test_torchrun_names_the_exception(kind: str, form: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [
        "--nproc-per-node",
        "2",
        str(PROGRAMS / "server/worker_main_rank.py"),
        kind,
        form,
        "raise",
    ]
    served = {SOCKET: str(tmp_path / "w{rank}.sock")} if kind == "ours" else {}
    done = subprocess.run(
        command,
        env=environment(**served),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1
    assert "ChildFailedError" in done.stderr
    report = done.stderr[done.stderr.index("ChildFailedError") :]
    if kind == "torch":
        assert "lost its way" not in report
        assert "To enable traceback see" in report
    else:
        assert "TrainingFailed: rank" in report
        assert "To enable traceback see" not in report
        assert "serves" in done.stdout
    assert os.listdir(tmp_path) == []


def test_torch_is_not_imported_for_it(tmp_path: Path) -> None:
    """Outside of torchrun a script that doesn't use torch doesn't get it."""
    code = (
        "import sys, workerserver\n"
        "with workerserver.worker_main(): pass\n"
        "workerserver.worker_main()(int)('3')\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(**{SOCKET: str(tmp_path / "s.sock")}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "False\n"
    line = f"workerserver: serving on {tmp_path}/s.sock; if the job hangs: workerserver diagnose\n"
    assert done.stderr == 2 * line
