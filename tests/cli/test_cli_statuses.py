"""The exit statuses, which are the same for every command."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.jobs.workers import SUMMARY, Canned, good, http

from workerserver.cli import main
from workerserver.cli.commands import NAMES

#: How a command on jobs begins.
ON_JOBS = {
    "diagnose": ("diagnose", "--rounds", "1"),
    "stacks": ("stacks",),
    "fr": ("fr",),
    "ping": ("ping", "--count", "1"),
    "profile": ("profile", "-o", "trace.json"),
    "record": ("record", "-o", "job.html", "--duration", "0.1"),
    "watch": ("watch", "--folder", "kept", "--count", "1"),
    "top": ("top", "--count", "1"),
    "ls": ("ls",),
    "call": ("call", "ping"),
}
on_jobs = pytest.mark.parametrize("command", ON_JOBS)


@pytest.mark.parametrize("command", NAMES)
def test_wrong_use_is_64(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--no-such-option"])
    assert end.value.code == 64
    mistake, advice = capfd.readouterr().err.splitlines()  # the usage would hide the mistake
    assert mistake.startswith(f"workerserver {command}: no such option: --no-such-option")
    assert f"workerserver help {command}" in advice


def test_no_command_is_64(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["nonsense"]) == 64


@on_jobs
def test_no_job_is_3(command: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*ON_JOBS[command], "--job", "nobody's"]) == 3
    written = capfd.readouterr()
    assert written.out == ""
    assert len(written.err.splitlines()) == 1
    assert "no job nobody's of this user" in written.err
    assert main([*ON_JOBS[command], f"{folder}/*.sock"]) == 3
    assert "no socket there" in capfd.readouterr().err


@on_jobs
def test_a_job_that_has_ended_is_3(command: str, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind("rank0.sock")
    assert main([*ON_JOBS[command], "rank0.sock"]) == 3
    assert main([*ON_JOBS[command], "./never.sock"]) == 3


@on_jobs
def test_a_place_that_is_none_is_64(
    command: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for words in (("no target",), ("--hosts", "nowhere"), ("--dns", "x"), ("--slurm",)):
        assert main([*ON_JOBS[command], *words]) == 64, words
        written = capfd.readouterr()
        assert (written.out, len(written.err.splitlines())) == ("", 1)


@on_jobs
def test_nothing_of_what_was_asked_is_2(command: str, folder: Path) -> None:
    """Somebody listens, and gives no answer that can be used."""
    answers: dict[str, Any] = {"/healthz": http(b"", "500 No")}
    worker = Canned(answers, folder / "rank0.sock")
    try:
        assert main([*ON_JOBS[command], "rank0.sock"]) == 2
    finally:
        worker.close()


@on_jobs
def test_a_part_is_1(command: str, folder: Path, start: Callable[..., Canned]) -> None:
    if command in ("diagnose", "watch", "fr"):
        pytest.skip("1 means suspects there")
    start(folder / "rank0.sock")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind("rank1.sock")
    assert main([*ON_JOBS[command], "rank0.sock"]) == 0
    assert main([*ON_JOBS[command], "*.sock"]) == 1


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Callable[[Path], Canned]:
    def serve(path: Path) -> Canned:
        trace = http({"traceEvents": [], "baseTimeNanoseconds": 0})
        recorded = http(
            {
                **dict.fromkeys(("time", "missed", "unstable", "cut", "cost_seconds"), 0),
                "version": 1, "mode": "wall", "hz": 100, "seconds": 0.1, "samples": 10,
                "functions": [["a.py", "f", 1]], "threads": [["MainThread", 1, 1]],
                "nodes": [[-1, 0, 0, 0], [0, 0, 10, 0]],
            }
        )  # fmt: skip
        worker = Canned(
            {
                **good(0),
                SUMMARY: http(b"", "404 Not Found"),
                "/handler/": http(["ping"]),
                "/handler/ping": http(b"pong"),
                "/handler/torch_profile?duration=1": trace,
                "/handler/sample_stacks?duration=0.100&hz=100&mode=wall": recorded,
            },
            path,
        )
        request.addfinalizer(worker.close)
        return worker

    return serve


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
@on_jobs
def test_an_unreadable_folder_is_64(command: str, folder: Path) -> None:
    """For a real user, who may not read it."""
    with tempfile.TemporaryDirectory(prefix="ws-", dir="/tmp") as place:
        hidden = Path(place, "job")
        hidden.mkdir(0o700)
        os.chmod(place, 0o755)
        code = (
            "import os, sys\n"
            "from workerserver.cli import main\n"
            "for name in ('diagnose', 'stacks', 'fr', 'ping', 'profile', 'record', 'watch',\n"
            "             'top', 'ls', 'call'):\n"
            "    __import__(f'workerserver.cli.{name}')\n"
            "os.setgroups([])\n"
            "os.setgid(65534)\n"
            "os.setuid(65534)\n"
            "sys.exit(main(sys.argv[1:]))\n"
        )
        for target in (hidden, hidden / "*.sock"):
            done = subprocess.run(
                [sys.executable, "-c", code, *ON_JOBS[command], str(target)],
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )
            (line,) = done.stderr.splitlines()
            how = "it belongs to root: sudo -u root workerserver ..."
            assert line == f"workerserver: {target}: permission denied; {how}"
            assert (done.returncode, done.stdout) == (64, "")


@pytest.mark.parametrize("status", [0, 2, 3, 64, 130])
def test_run_ends_as_the_program_does(status: int, folder: Path) -> None:
    (folder / "program.py").write_text(f"import sys; sys.exit({status})\n")
    words = [sys.executable, "-m", "workerserver", "run", "--socket", "s.sock", "program.py"]
    assert subprocess.run(words, stderr=subprocess.DEVNULL, check=False).returncode == status
