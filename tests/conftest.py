"""Fixtures: servers on every kind of transport, and a check that they leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import uvloop
from support.served import OURS, PLAIN, UVLOOP, Connect, Kind, Ours, Plain, Serve, Served
from support.waiting import becomes
from support.wire import Client

from workerserver.handlers import register_builtins
from workerserver.http.registry import Registry

if TYPE_CHECKING:
    from support.jobs.workers import Start
    from support.native import Rig


# Each verdict is checked against the rules that hold for all verdicts.
os.environ["WORKERSERVER_CHECK"] = "1"
# On a busy machine one example may take long. The suite asks the same examples each time, so that a
# commit fails for what it has changed; "make long" looks for new ones.
LONG = os.environ.get("WORKERSERVER_HYPOTHESIS") == "long"
hypothesis.settings.register_profile("suite", deadline=None, database=None, derandomize=not LONG)
hypothesis.settings.load_profile("suite")

# The programs of the corpus can't even be read without torch.
collect_ignore_glob = [] if find_spec("torch") else ["faults/test_*.py"]

LAUNCHERS = ("TORCH_WORKER_SERVER_SOCKET", "RANK", "LOCAL_RANK", "WORLD_SIZE")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the real jobs with planted faults, except quick ones, and jobs on Slurm, unless the
    command line asks for them: they take minutes."""
    asked = config.option.markexpr or ""

    def wanted(item: pytest.Item) -> bool:
        if item.get_closest_marker("slurm"):
            return "slurm" in asked
        quick = item.get_closest_marker("quick")
        return "faults" in asked or not item.get_closest_marker("faults") or bool(quick)

    left_out = [item for item in items if not wanted(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = list(filter(wanted, items))


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """Let SIGINT reach children, even if the tests run in the background of a shell: there a shell
    makes its jobs ignore SIGINT."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def clean_access(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove tokens, addresses, sockets and ranks that the caller's environment has."""
    for name in list(os.environ):
        if name.startswith("WORKERSERVER_") or name in LAUNCHERS:
            monkeypatch.delenv(name)
    # torch's own server would stay in this process for good: its threads would look like leaks.
    monkeypatch.setenv("WORKERSERVER_TORCH_FALLBACK", "0")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path is short enough for any socket. The path of tmp_path can be too long."""
    with tempfile.TemporaryDirectory(prefix="ws-") as name:
        yield Path(name)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, its path short enough for any socket."""
    with tempfile.TemporaryDirectory(prefix="ws-", dir="/tmp") as name:
        monkeypatch.chdir(name)
        yield Path(os.path.realpath(name))


def _resources() -> Counter[str]:
    """Open sockets, pipes and event queues by kind, and this package's threads by name."""
    found: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            kind = os.readlink(f"/proc/self/fd/{fd}").partition(":")[0]
            if kind in ("socket", "pipe", "anon_inode"):
                found[kind] += 1
    found["threads"] = sum(t.name.startswith("workerserver") for t in threading.enumerate())
    return found


@pytest.fixture(scope="session")
def first_loop() -> None:
    """Make a loop early: with a process's first loop libuv opens a pipe, and keeps it open."""
    uvloop.new_event_loop().close()


@pytest.fixture
def no_leaks(first_loop: None) -> Iterator[None]:
    """Fails if the test leaves new descriptors or threads behind."""
    before = _resources()
    yield
    becomes(lambda: not _resources() - before)
    assert not _resources() - before


@pytest.fixture
def registry() -> Registry:
    """A registry for one test, with the built-in handlers."""
    registry = Registry()
    register_builtins(registry)
    return registry


@pytest.fixture
def serve(no_leaks: None, short_path: Path, registry: Registry) -> Iterator[Serve]:
    """``serve(kind, limits=..., token=...)``: a running server, closed after the test."""
    with contextlib.ExitStack() as stack:

        def start(kind: Kind, **options: Any) -> Served:
            make = Plain if kind in PLAIN else Ours
            served = make(kind, short_path, registry, **options)
            stack.callback(served.close)
            return served

        yield start


@pytest.fixture(params=["uvloop-unix", "uvloop-tcp", "asyncio-unix"])
def rig(request: pytest.FixtureRequest, no_leaks: None) -> Iterator[Rig]:
    """A hub of the native I/O thread on every kind of loop and socket, and its listener."""
    from support.native import Rig  # Linux only

    rig = Rig(request.param)
    yield rig
    rig.close()


@pytest.fixture
def connect(no_leaks: None) -> Iterator[Connect]:
    """``connect(address)``: a Client, closed after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda address: stack.enter_context(Client(address))


@pytest.fixture
def ours_unix(serve: Serve) -> Served:
    return serve("unix")


@pytest.fixture
def ours_tcp(serve: Serve) -> Served:
    return serve("tcp")


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """An event for handlers to wait for. It is set when the test ends, so that no thread stays."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture(params=OURS)
def server(request: pytest.FixtureRequest, serve: Serve) -> Served:
    """A WorkerServer on a Unix socket, and on TCP."""
    return serve(request.param)


@pytest.fixture(params=(*OURS, UVLOOP[0], PLAIN[1], "tls"))
def kind(request: pytest.FixtureRequest) -> Kind:
    """Every kind of transport that the protocol has to support: the native one over Unix sockets
    and TCP, uvloop's over Unix sockets and TLS, asyncio's own over TCP."""
    value: Kind = request.param
    return value


@pytest.fixture
def served(kind: Kind, serve: Serve) -> Served:
    """A server on every kind of transport."""
    return serve(kind)


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as exits:
        yield exits


@pytest.fixture
def start(stack: contextlib.ExitStack, short_path: Path) -> Start:
    """``start(...)``: a worker that gives canned answers (support/jobs/workers.py)."""
    from support.jobs.workers import Start

    return Start(stack, short_path)
