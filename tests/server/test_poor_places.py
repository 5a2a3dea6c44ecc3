"""A server where the system refuses something: it serves otherwise, or says why it can't."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from support.lifecycle import run_isolated

from workerserver.cluster.find.here import look_here
from workerserver.control_plane import default_socket, serve_from_environment
from workerserver.process.run_folder import run_folder, run_folders
from workerserver.server import WorkerServer

NOBODY = 65534
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user too")
filters = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"),
    reason="call numbers",
)


def refused(folder: Path, what: str, error: str) -> dict[str, Any]:
    done = run_isolated("process/poor_kernel.py", str(folder), what, error)
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


# --- green threads --------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("library", ["gevent", "eventlet"])
def test_green_threads(short_path: Path, library: str, moment: str) -> None:
    """Training runs, with one warning; the constructor raises the documented error."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    done = run_isolated("process/green_scene.py", library, moment, str(short_path))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["trained"], found["left"]) == ("trained", [])
    (line,) = found["logged"]
    assert line.startswith(
        f"this worker runs without a server: threads are greenlets here ({library}"
    )
    for transport in ("native", "uvloop"):
        assert found[transport].startswith(f"Error binding to {short_path}/s: ")
        assert "threads are greenlets here" in found[transport]


@pytest.mark.parametrize(
    ("module", "question"),
    [("gevent.monkey", "is_module_patched"), ("eventlet.patcher", "is_monkey_patched")],
)
def test_green_threads_as_the_libraries_tell(
    short_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    module: str,
    question: str,
) -> None:
    """The same without the libraries: by what each of them answers."""
    green = types.SimpleNamespace(**{question: lambda name: False})
    monkeypatch.setitem(sys.modules, module, green)
    with serve_from_environment(str(short_path / "s")) as servers:
        assert len(servers) == 1
    monkeypatch.setattr(green, question, lambda name: name == "thread")
    with serve_from_environment(str(short_path / "s")) as servers:
        assert servers == []
    with serve_from_environment() as servers:
        assert servers == []
    (record,) = caplog.records
    assert "threads are greenlets here" in record.getMessage()
    with pytest.raises(RuntimeError, match=r"^Error binding to ") as caught:
        WorkerServer(str(short_path / "s"))
    assert "threads are greenlets here" in str(caught.value.__cause__)


# --- the folder of "workerserver run" -------------------------------------------------------------


@pytest.fixture
def tempdir(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(short_path))
    return short_path


def found_in(folder: Path) -> list[str]:
    """The workers there that are found by themselves; the machine may have others."""
    found = [living.worker.address for living in look_here().living]
    return [address for address in found if folder in Path(address).parents]


@root
@pytest.mark.parametrize("kind", ["folder", "file"])
def test_another_user_was_first(tempdir: Path, kind: str) -> None:
    usual = Path(run_folder())
    if kind == "folder":
        usual.mkdir()
    else:
        usual.touch()
    os.chown(usual, NOBODY, NOBODY)
    for name in ("x", "0"):  # and that user can't choose the folder that is made instead
        stranger = Path(f"{usual}-{name}")
        stranger.mkdir()
        os.chown(stranger, NOBODY, NOBODY)
    assert found_in(tempdir) == []
    path = Path(default_socket())
    status = path.parent.stat()
    assert (status.st_uid, status.st_mode & 0o777) == (os.geteuid(), 0o700)
    assert path.parent.parent == tempdir
    assert path.parent != usual
    assert Path(default_socket()).parent == path.parent  # the other ranks' too
    assert run_folders() == [str(path.parent)]
    with WorkerServer(str(path)):
        assert found_in(tempdir) == [str(path)]


def test_a_folder_of_ones_own_that_others_may_enter(tempdir: Path) -> None:
    usual = Path(run_folder())
    usual.mkdir()
    usual.chmod(0o755)
    with pytest.raises(OSError, match="open to other users"):
        default_socket()
    usual.rmdir()
    usual.touch()
    with pytest.raises(OSError, match="not a folder"):
        default_socket()
