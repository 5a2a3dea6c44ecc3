"""A server where the system refuses something: it serves otherwise, or says why it can't."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import pytest
from support.lifecycle import run_isolated

from workerserver.cli.errors import UsageError
from workerserver.cli.run import default_socket
from workerserver.cluster.errors import ClusterError
from workerserver.cluster.find.discovery import Options, discover
from workerserver.process.run_folder import run_folder, run_folders
from workerserver.server import WorkerServer

NOBODY = 65534
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user too")
filters = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="call numbers",
)


def refused(folder: Path, what: str, error: str) -> dict[str, Any]:
    done = run_isolated("server/poor_kernel.py", str(folder), what, error)
    if done.returncode == 77:
        pytest.skip("no seccomp filters here")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["left"] == []
    return found


# --- the kernel -----------------------------------------------------------------------------------


@filters
@pytest.mark.parametrize("error", ["EPERM", "ENOSYS"])
def test_without_timerfd(short_path: Path, error: str) -> None:
    """uvloop's transport instead, with one warning; not if somebody asked for the native one."""
    found = refused(short_path, "timerfd", error)
    served = {"transport": "uvloop", "pong": "pong"}
    assert found["found"][:2] == [served, served]
    assert found["found"][2]["error"] == f"Error binding to {short_path}/s"
    (line,) = found["logged"]
    assert line.startswith("the native I/O thread can't run here (")


@filters
@pytest.mark.parametrize("what", ["eventfd", "epoll"])
def test_without_what_uvloop_needs(short_path: Path, what: str) -> None:
    found = refused(short_path, what, "EPERM")
    for each in found["found"]:
        assert each["error"] == f"Error binding to {short_path}/s"
        assert "not permitted" in each["cause"]


@filters
def test_without_threads(short_path: Path) -> None:
    """As at RLIMIT_NPROC: the documented error, with the reason."""
    found = refused(short_path, "thread", "EAGAIN")
    for each in found["found"]:
        assert each["error"] == f"Error binding to {short_path}/s"
        assert "no thread can be started" in each["cause"]


# --- the folder of "workerserver run" -------------------------------------------------------------


@pytest.fixture
def tempdir(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(short_path))
    return short_path


@root
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_another_user_was_first(tempdir: Path, kind: str) -> None:
    usual = Path(run_folder())
    if kind == "folder":
        usual.mkdir()
    else:
        usual.touch()
    os.chown(usual, NOBODY, NOBODY)
    for name in ("x", "0"):  # nor does that user choose the folder that is made instead
        stranger = Path(f"{usual}-{name}")
        stranger.mkdir()
        os.chown(stranger, NOBODY, NOBODY)
    with pytest.raises(ClusterError, match="belongs to another user"):
        discover(Options(targets=[], environment={}))
    path = Path(default_socket())
    status = path.parent.stat()
    assert (status.st_uid, status.st_mode & 0o777) == (os.geteuid(), 0o700)
    assert path.parent.parent == tempdir
    assert path.parent != usual
    assert Path(default_socket()).parent == path.parent  # the other ranks' too
    assert run_folders() == [str(path.parent)]
    with WorkerServer(str(path)):
        found = discover(Options(targets=[], environment={}))
        assert [worker.address for worker in found] == [str(path)]


def test_a_folder_of_ones_own_that_others_may_enter(tempdir: Path) -> None:
    usual = Path(run_folder())
    usual.mkdir()
    usual.chmod(0o755)
    with pytest.raises(UsageError, match="open to other users"):
        default_socket()
    usual.rmdir()
    usual.touch()
    with pytest.raises(UsageError, match="not a folder"):
        default_socket()
