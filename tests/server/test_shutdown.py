"""``shutdown()`` returns in time whatever handlers and clients do, and the process can end."""

from __future__ import annotations

import json
import os
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.lifecycle import run_isolated, talking

# A shutdown that hangs is killed after this long; the timeouts given to it are far below.
HANG = 60.0
SLACK = 10.0
HANDLERS = ["sleeping", "waiting", "stubborn", "blocking", "inline"]
BUSY = "a handler keeps the server's loop busy: leaving its thread behind"


def scene(
    tmp_path: Path, name: str, *arguments: str, code: int = 0
) -> tuple[list[dict[str, Any]], str]:
    done = run_isolated("server/shutdown_scene.py", name, str(tmp_path), *arguments, seconds=HANG)
    assert done.returncode == code, done.stderr
    assert os.listdir(tmp_path) == []
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.mark.parametrize("handler", HANDLERS)
def test_with_a_handler_in_flight(tmp_path: Path, handler: str) -> None:
    """Then a new server starts on the same path and port, and the process ends normally."""
    (first, again), stderr = scene(tmp_path, "in_flight", handler)
    assert first["took"] < 2 + 2 + SLACK
    assert first["removed"]
    assert not first["tcp_alive"]
    assert again == {"again": [200, "pong"], "tcp_again": [200, "pong"]}
    assert (BUSY in stderr) == (handler in ("blocking", "inline"))
    assert "Traceback" not in stderr


@pytest.mark.parametrize("handler", HANDLERS)
def test_exit_without_shutdown(tmp_path: Path, handler: str) -> None:
    (said,), stderr = scene(tmp_path, "exit_in_flight", handler)
    assert said["entered"]
    assert "Traceback" not in stderr


@pytest.mark.parametrize("handler", ["sleeping", "waiting", "stubborn"])
def test_sys_exit_in_the_middle_of_requests(tmp_path: Path, handler: str) -> None:
    (said,), stderr = scene(tmp_path, "sys_exit", handler, code=7)
    assert said == {"entered": 3}
    assert "Traceback" not in stderr


@pytest.mark.parametrize("handler", ["sleeping", "stubborn", "blocking"])
def test_training_that_fails_ends_as_it_would(tmp_path: Path, handler: str) -> None:
    said, stderr = scene(tmp_path, "unhandled", handler, code=1)
    assert said == []
    assert stderr.count("Traceback") == 1
    assert "ValueError: training failed" in stderr


def test_with_every_thread_asleep_and_a_backlog(tmp_path: Path) -> None:
    (said,), stderr = scene(tmp_path, "backlog")
    assert said["took"] < 2 + SLACK
    assert stderr == ""


@pytest.mark.parametrize("kind", ["inline", "async", "thread"])
def test_from_inside_a_handler(tmp_path: Path, kind: str) -> None:
    (said, again), stderr = scene(tmp_path, "from_handler", kind)
    assert said == {
        "status": 200,
        "body": "ended",
        "other": ["HTTP/1.1 200 OK", "cancelled"],
        "removed": True,
    }
    assert again == {"again": 200}
    assert stderr == ""


def test_no_loop_is_left_when_the_interpreter_ends(tmp_path: Path) -> None:
    """The loop would wake in a dead interpreter: SIGSEGV in a training process that has ended."""
    done = run_isolated("process/exit_while_closing.py", str(tmp_path), seconds=HANG)
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")


def test_right_after_the_start(tmp_path: Path) -> None:
    """Where torch's server deadlocks."""
    said, stderr = scene(tmp_path, "at_once")
    assert said == [{"left": [], "threads": 1}]
    assert stderr == ""


def test_with_half_open_requests(tmp_path: Path) -> None:
    (said,), stderr = scene(tmp_path, "half_open")
    assert said["took"] < 4 + SLACK
    assert said["ended"] == said["clients"] == 16
    assert stderr == ""


def test_beside_a_server_whose_handler_blocks_the_loop(tmp_path: Path) -> None:
    (said,), stderr = scene(tmp_path, "blocked_neighbour")
    assert said["refused"], "a server that was shut down must refuse, whatever its loop does"
    assert said["ended"], "and what it had accepted must end when the loop comes back"
    assert said["other"] == [200, "pong"]
    assert stderr.splitlines() == [BUSY, BUSY]


def test_a_handler_cannot_end_the_loop(tmp_path: Path) -> None:
    (said,), stderr = scene(tmp_path, "loop_survives")
    names = [200, '["callback","stop","task"]']
    assert said["answers"] == [
        [200, "started"],
        names,
        [200, "started"],
        names,
        [200, "stopped"],
        names,
    ]
    assert not said["alive"]
    assert stderr.count("a handler's task raised out of the server's loop") == 2


@pytest.mark.torch
@pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")
@pytest.mark.parametrize("kind", ["ours", "torch"])
def test_python_handler_asleep(tmp_path: Path, kind: str) -> None:
    """shutdown() of torch's C++ server waits for the handler, for ever; ours returns."""
    with talking("server/shutdown_kind.py", kind, str(tmp_path / "s.sock")) as talker:
        assert talker.hear() == "in flight"
        if kind == "torch":
            with pytest.raises(subprocess.TimeoutExpired):
                talker.process.wait(8)
        else:
            assert talker.hear() == "returned"
            assert talker.end() == (0, "")
