"""Registration in the job's TCPStore: in the background, patient, quiet, never in the way."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from typing import Any

import pytest
from support.lifecycle import PROGRAMS, environment, run_isolated, talking

from workerserver.registration import FIRST_WAIT_SECONDS, StoreRegistration

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")


def scene(name: str, *arguments: str) -> tuple[dict[str, Any], str]:
    done = run_isolated("server/discovery_scene.py", name, *arguments)
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts, done.stderr


# --- what is registered --------------------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("MASTER_ADDR", "head")
    monkeypatch.setenv("MASTER_PORT", "29500")


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("node-7", "http://node-7:80"),
        ("10.0.0.7", "http://10.0.0.7:80"),
        ("fd00::7", "http://[fd00::7]:80"),
        ("", f"http://{socket.gethostname()}:80"),
        ("::", f"http://{socket.gethostname()}:80"),
        ("0.0.0.0", f"http://{socket.gethostname()}:80"),
    ],
)
def test_url(host: str, url: str) -> None:
    registration = StoreRegistration.from_environment(host, 80)
    assert registration is not None
    assert registration.url == url
    assert (registration.store_host, registration.store_port) == ("head", 29500)
    assert registration.key == "rank5"


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("name", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
@pytest.mark.parametrize("value", [None, "", "x"])
def test_without_a_launcher(name: str, value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    found = StoreRegistration.from_environment("node", 80)
    assert (found is None) == (name != "MASTER_ADDR" or not value)


# --- with real stores ----------------------------------------------------------------------------


@pytest.mark.torch
@needs_torch
def test_registers_where_torchs_frontend_looks() -> None:
    facts, stderr = scene("registers")
    assert facts == {
        "found": ["http://node:5000", "http://node:5001"],
        "keys": ["debug_server/rank0", "debug_server/rank1"],
        "attempts": [1, 1],
    }
    assert stderr == ""


@pytest.mark.torch
@needs_torch
def test_store_that_comes_up_late() -> None:
    facts, stderr = scene("late")
    assert facts == {"early": False, "value": "http://node:1"}
    assert stderr == "", "attempts that fail say nothing"


@pytest.mark.torch
@needs_torch
def test_torch_that_is_imported_late() -> None:
    facts, stderr = scene("torch_comes_late")
    assert facts == {"torch": False, "attempts": 0, "connected": False, "value": "http://node:1"}
    assert stderr == ""


def test_a_slow_import_of_torch_does_not_delay_the_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses grow with attempts at the store alone."""
    registration = StoreRegistration("head", 29500, "rank0", "http://node:1")
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 12:
            registration.stop()

    monkeypatch.setattr(registration._stop, "wait", pause)
    monkeypatch.setattr("workerserver.registration._torch_distributed", lambda: None)
    registration._try()
    assert max(pauses) <= FIRST_WAIT_SECONDS
    assert registration.attempts == 0


@pytest.mark.torch
@needs_torch
def test_no_store_at_all() -> None:
    facts, stderr = scene("no_store")
    assert facts["done"] == [False] * 2
    assert facts["started_in"] < 10
    assert facts["stopped_in"] < 10
    assert "Traceback" not in stderr


@pytest.mark.torch
@needs_torch
def test_exit_while_an_attempt_is_under_way() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        facts, stderr = scene("exit_while_trying", str(silent.getsockname()[1]))
    assert facts == {"threads": 1}
    assert "Traceback" not in stderr


@pytest.mark.torch
@needs_torch
def test_exit_just_before_an_attempt_ends() -> None:
    """A thread that comes back from torch's C++ code while Python ends aborts the process: the
    exit waits a little for it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        with talking("server/discovery_scene.py", "exit_slowly", port) as talker:
            first, _ = silent.accept()  # looks whether somebody is there
            second, _ = silent.accept()  # torch's
            assert json.loads(talker.hear()) == {"threads": 1}
            time.sleep(0.5)
            first.close()
            second.close()
            code, stderr = talker.end()
    assert code == 0, stderr


@pytest.mark.torch
@needs_torch
def test_under_torchrun() -> None:
    """Both ranks of a real job register. Each finds the other one in the store and reaches it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(PROGRAMS / "server/discovery_rank.py")]
    done = subprocess.run(
        command,
        env=environment(WORKERSERVER_TCP="127.0.0.1:0"),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line[:1] == "{"]  # torch 2.10 prints too
    said = sorted(map(json.loads, lines), key=lambda facts: facts["rank"])
    assert [facts["rank"] for facts in said] == [0, 1]
    for facts in said:
        assert facts["ranks"] == [0, 1]
        assert facts["urls"] == said[0]["urls"]
        assert all(url.startswith("http://127.0.0.1:") for url in facts["urls"])
    assert len(set(said[0]["urls"])) == 2
