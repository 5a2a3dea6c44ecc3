"""pyspy_dump with the real py-spy, and its bounds with real programs that misbehave."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.waiting import wait_until

from workerserver.handlers import pyspy
from workerserver.http.registry import Registry

needs_pyspy = pytest.mark.skipif(pyspy.find_program() is None, reason="py-spy is not installed")


def program(folder: Path, text: str) -> None:
    """Put an executable called py-spy, a shell script of *text*, into *folder*."""
    path = folder / "py-spy"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def only_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that comes first on PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


@needs_pyspy
def test_real_dump_or_real_complaint() -> None:
    """The stacks, if py-spy may trace this process. Otherwise the text on what to permit."""
    response = pyspy.pyspy_dump()
    text = response.body.decode()
    assert response.content_type == "text/plain"
    if response.status == 200:
        assert f"Process {os.getpid()}" in text
        assert "test_real_dump_or_real_complaint (" in text
    else:
        assert response.status == 500
        assert "SYS_PTRACE" in text


@needs_pyspy
def test_subprocesses_are_dumped_and_pyspy_is_none_of_them() -> None:
    """As a child of the process that it dumps, py-spy finds itself among the children and fails."""
    sleeper = [sys.executable, "-c", "import sys, time\nprint(flush=True)\ntime.sleep(100)"]
    with subprocess.Popen(sleeper, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            response = pyspy.pyspy_dump(subprocesses="1")
        finally:
            child.kill()
    text = response.body.decode()
    if response.status == 500:
        assert "SYS_PTRACE" in text
    else:
        assert f"Process {os.getpid()}" in text
        assert f"Process {child.pid}" in text
        assert "\0" not in text


@needs_pyspy
def test_contradiction_is_answered_in_pyspys_own_words() -> None:
    response = pyspy.pyspy_dump(native="1", nonblocking="1")
    assert response.status == 500
    assert "--nonblocking" in response.body.decode()


def test_an_orphan_tells_its_status_and_its_words(only_path: Path) -> None:
    program(only_path, 'echo "$PPID"; echo bad >&2; exit 3')
    outcome = pyspy.run_orphan([str(only_path / "py-spy"), "dump"])
    assert (outcome.status, outcome.stderr, outcome.killed) == (3, b"bad\n", "")
    assert int(outcome.stdout) != os.getpid()
    assert pyspy.pyspy_dump(subprocesses="1").status == 500


def test_an_orphan_that_hangs_or_floods_is_killed(only_path: Path) -> None:
    program(only_path, "echo $$; exec sleep 100")
    outcome = pyspy.run_orphan([str(only_path / "py-spy")], timeout=2)
    assert (outcome.status, outcome.killed) == (None, "no end after 2 s")
    wait_until(lambda: not Path(f"/proc/{int(outcome.stdout)}").exists())
    program(only_path, "exec cat /dev/zero")
    outcome = pyspy.run_orphan([str(only_path / "py-spy")], limit=1000)
    assert (len(outcome.stdout), outcome.killed) == (1000, "more than 1000 bytes of output")
    missing = pyspy.run_orphan([str(only_path / "none")])
    assert missing.status == 127


def test_any_value_turns_an_option_on(only_path: Path) -> None:
    program(only_path, 'echo "$@"')
    pid = os.getpid()
    assert pyspy.pyspy_dump().body == f"dump --pid {pid}\n".encode()
    assert (
        pyspy.pyspy_dump(native="false", subprocesses="0", nonblocking="x").body
        == f"dump --pid {pid} --native --subprocesses --nonblocking\n".encode()
    )
    assert pyspy.pyspy_dump(subprocesses="1").body == f"dump --pid {pid} --subprocesses\n".encode()


def test_missing_program_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    response = pyspy.pyspy_dump()
    assert response.status == 500
    assert b"pip install py-spy" in response.body


def test_found_beside_the_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "true")
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert pyspy.find_program() == str(tmp_path / "py-spy")


def test_refused_permission_says_what_to_permit(only_path: Path) -> None:
    program(only_path, "echo half; echo 'Error: Permission denied (os error 13)' >&2; exit 1")
    response = pyspy.pyspy_dump()
    assert response.status == 500
    assert response.body.startswith(b"half\nError: Permission denied (os error 13)\n")
    assert b"SYS_PTRACE" in response.body


def test_silent_failure_gives_its_status(only_path: Path) -> None:
    program(only_path, "exit 7")
    response = pyspy.pyspy_dump()
    assert (response.status, response.body) == (500, b"py-spy failed with exit status 7\n")


def test_program_that_cannot_run(only_path: Path) -> None:
    path = only_path / "py-spy"
    path.write_bytes(b"\x7fELF nonsense")
    path.chmod(0o755)
    response = pyspy.pyspy_dump()
    assert response.status == 500
    assert b"can't be run" in response.body


def test_program_without_end_is_killed(only_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleep = shutil.which("sleep")
    outcome = pyspy.run_bounded(["sh", "-c", f"echo begun; exec {sleep} 1000"], timeout=2)
    assert outcome.status is None
    assert (outcome.stdout, outcome.killed) == (b"begun\n", "no end after 2 s")
    # A py-spy that closes its output and goes on does not get more time either.
    outcome = pyspy.run_bounded(["sh", "-c", f"exec >&- 2>&-; exec {sleep} 1000"], timeout=2)
    assert outcome.killed == "no end after 2 s"


def test_killed_program_is_500(only_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(only_path, "echo begun; exec sleep 1000")
    monkeypatch.setattr(pyspy.run_bounded, "__defaults__", (2, pyspy.MAX_OUTPUT_BYTES))
    response = pyspy.pyspy_dump()
    assert response.status == 500
    assert response.body == b"begun\npy-spy was killed: no end after 2 s\n"


@pytest.mark.parametrize("redirect", ["", " >&2"])
def test_output_is_bounded(redirect: str) -> None:
    outcome = pyspy.run_bounded(["sh", "-c", f"exec cat /dev/zero{redirect}"], limit=100_000)
    assert outcome.killed == "more than 100000 bytes of output"
    assert len(outcome.stdout) + len(outcome.stderr) == 100_000


def test_child_gets_no_input_and_no_descriptor_of_ours() -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    try:
        outcome = pyspy.run_bounded(["sh", "-c", "cat; ls /proc/self/fd"])
    finally:
        os.close(reading)
        os.close(writing)
    assert outcome.status == 0
    # 0, 1, 2, and the folder that ls opens to read it.
    assert outcome.stdout.split() == [b"0", b"1", b"2", b"3"]


def test_registered_with_one_place_and_without_torch() -> None:
    registry = Registry()
    pyspy.register(registry)
    handler = registry.find("pyspy_dump")
    assert (handler.limit, handler.requires, handler.kind) == (1, None, "thread")
    assert handler.validator.validate([("native", "1")]) == {"native": "1"}
