"""Records in the run folder: who writes them, who believes them, and who removes them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.lifecycle import PROGRAMS, environment
from support.waiting import wait_until

from workerserver.job import presence
from workerserver.job.identity import Identity
from workerserver.job.left import read_folder, sweep
from workerserver.job.proc import namespace, stat_of
from workerserver.job.records import Address, Record, write

CODE = """
import os, sys
from workerserver import WorkerServer
servers = [WorkerServer(path) for path in sys.argv[1:]]
tcp = WorkerServer("127.0.0.1", 0)
print(tcp.port, flush=True)
child = os.fork()
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
for line in sys.stdin:
    servers.pop().shutdown()
    print("on", flush=True)
"""


#: Prints what other threads than the main thread import, until a file has gone.
IMPORTS = """
import os, sys, threading, time
from importlib.abc import MetaPathFinder
found = []
class Watch(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if threading.current_thread() is not threading.main_thread():
            found.append(name)
sys.meta_path.insert(0, Watch())
from workerserver import worker_main
end = time.monotonic() + 60
with worker_main():
    while os.path.exists(sys.argv[1]) and time.monotonic() < end:
        time.sleep(0.01)
print(os.path.exists(sys.argv[1]), found)
"""


@pytest.fixture
def run_folder(short_path: Path) -> Path:
    return short_path / f"workerserver-{os.geteuid()}"


@pytest.fixture
def worker(short_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process with two Unix sockets and a TCP port."""
    with subprocess.Popen(
        [sys.executable, "-c", CODE, "a.sock", str(short_path / "b.sock")],
        cwd=short_path,
        env=environment(TMPDIR=str(short_path), RANK="3", WORKERSERVER_JOB="j"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def say(process: subprocess.Popen[str], text: str = "") -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    if text:
        process.stdin.write(text)
        process.stdin.flush()
    return process.stdout.readline().strip()


def recorded(run_folder: Path, addresses: int) -> Record:
    """The record, as soon as it has so many addresses: nobody waits for it but the loop."""

    def found() -> list[Record]:
        every = read_folder(str(run_folder), os.geteuid())
        return [record for record in every if len(record.addresses) == addresses]

    wait_until(found)
    (record,) = found()
    return record


def test_a_worker_leaves_a_record(
    worker: subprocess.Popen[str], short_path: Path, run_folder: Path
) -> None:
    port = say(worker)
    record = recorded(run_folder, 3)
    assert Path(record.path).stat().st_mode & 0o777 == 0o600
    assert [str(path) for path in run_folder.iterdir()] == [record.path]
    stat = stat_of(worker.pid)
    assert stat is not None
    assert (record.pid, record.ticks) == (worker.pid, stat.ticks)
    assert record.pid_namespace == namespace("pid")
    assert (record.identity.job, record.identity.rank) == ("j", 3)
    here = os.path.realpath(short_path)
    assert [each.address for each in record.addresses] == [
        f"{here}/a.sock",
        str(short_path / "b.sock"),
        f"127.0.0.1:{port}",
    ]
    say(worker, "\n")  # the second Unix socket closes; a forked child's end changed nothing
    (record,) = read_folder(str(run_folder), os.geteuid())
    assert len(record.addresses) == 2
    assert worker.stdin is not None
    worker.stdin.close()
    worker.wait(60)
    assert list(run_folder.iterdir()) == []


def test_a_killed_worker_leaves_it(worker: subprocess.Popen[str], run_folder: Path) -> None:
    say(worker)
    recorded(run_folder, 3)
    worker.send_signal(signal.SIGKILL)
    worker.wait(60)
    assert len(list(read_folder(str(run_folder), os.geteuid()))) == 1


def test_a_worker_that_ends_at_once_leaves_none(short_path: Path, run_folder: Path) -> None:
    code = (
        "import sys\n"
        "from workerserver import WorkerServer\n"
        "with WorkerServer(sys.argv[1]):\n"
        "    pass\n"
        "server = WorkerServer(sys.argv[1])\n"  # which the interpreter's end closes
    )
    subprocess.run(
        [sys.executable, "-c", code, str(short_path / "s")],
        env=environment(TMPDIR=str(short_path)),
        check=True,
        timeout=60,
    )
    assert not run_folder.exists() or list(run_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "writer", "more"),
    [
        ("ext4", "workerserver-loop", {}),
        ("nfs4", "workerserver-handler-1", {"where": "workerserver-handler-2"}),
    ],
)
def test_nobody_waits_for_a_disk_that_hangs(
    kind: str, writer: str, more: dict[str, str], short_path: Path
) -> None:
    """The constructor returns, the server answers, shutdown() ends in time. A network file system
    doesn't keep the loop either."""
    done = subprocess.run(
        [sys.executable, str(PROGRAMS / "job" / "slow_disk.py"), str(short_path / "s"), kind],
        env=environment(TMPDIR=str(short_path)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=100,
    )
    expected = {"asked": True, "ping": "pong", "hangs": True, "writers": [writer], "gone": True}
    assert json.loads(done.stdout) == expected | more


def test_a_change_while_the_record_is_written_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a signal handler in the middle of it, which finds the writer at work."""
    present = presence._Presence()
    present.identity = Identity("j", "WORKERSERVER_JOB")
    done: list[str] = []

    def write(folder: str, record: Record) -> str:
        done.append("write")
        present.addresses.clear()
        present.change()
        present.settle()  # must not wait for itself
        assert not present.settled
        return "the path"

    monkeypatch.setattr("workerserver.job.records.write", write)
    monkeypatch.setattr("workerserver.job.records.remove", lambda path: done.append(path))
    present.addresses[1] = Address("/s", True)
    present.change()
    present.settle()
    assert done == ["write", "the path"]
    assert present.settled


def record_of(folder: Path, **more: object) -> Record:
    fields = {"job": "j", "job_from": "WORKERSERVER_JOB", "agent": "1:1", "rank": 0, **more}
    identity = Identity(**fields)  # type: ignore[arg-type]
    return Record(4194305, 7, namespace("pid"), (Address(str(folder / "r.sock"), True),), identity)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"pid": "1"},
        {"ticks": None},
        {"addresses": {}},
        {"addresses": [{"address": 1, "unix": True, "tls": False}]},
        {"job": None},
        {"job": 7},
        {"rank": "0"},
        {"host": 7},
    ],
)
def test_what_is_no_record_is_not_believed(change: dict[str, object], tmp_path: Path) -> None:
    path = Path(write(str(tmp_path), record_of(tmp_path)))
    assert len(list(read_folder(str(tmp_path), os.geteuid()))) == 1
    assert list(read_folder(str(tmp_path), os.geteuid() + 1)) == []  # of another user
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert list(read_folder(str(tmp_path), os.geteuid())) == []
    for text in ("", "[" * 100_000, "null", '{"version": 1}'):
        path.write_text(text)
        assert list(read_folder(str(tmp_path), os.geteuid())) == []
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert list(read_folder(str(tmp_path), os.geteuid())) == []
    path.unlink()
    os.mkfifo(path)
    assert list(read_folder(str(tmp_path), os.geteuid())) == []
    assert list(read_folder(str(tmp_path / "none"), os.geteuid())) == []


ME = f"{os.getpid()}:{getattr(stat_of(os.getpid()), 'ticks', 0)}"


@pytest.mark.parametrize(
    ("fields", "goes"),
    [
        ({}, True),  # its agent has ended
        ({"agent": None}, True),
        ({"agent": ME, "restart": 1}, False),  # one of a job that may live
        ({"agent": ME, "restart": 0}, True),  # of an earlier start
    ],
)
def test_what_ended_jobs_have_left_is_swept(
    fields: dict[str, object], goes: bool, short_path: Path
) -> None:
    path = write(str(short_path), record_of(short_path, **fields))
    for name in ("r.sock", "4194305.sock", "rank1-4194305.sock", f"rank1-{os.getpid()}.sock"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(short_path / name))
    (short_path / "notes.txt").touch()
    sweep([str(short_path)], Identity("j", "WORKERSERVER_JOB", agent=ME, restart=1))
    assert os.path.exists(path) is not goes
    assert (short_path / "r.sock").exists() is not goes
    left = {each.name for each in short_path.iterdir()} - {"r.sock", os.path.basename(path)}
    assert left == {"notes.txt", f"rank1-{os.getpid()}.sock"}


def test_the_sweep_imports_nothing_in_the_loops_thread(short_path: Path, run_folder: Path) -> None:
    """A child that training forks during an import never gets the lock of that import."""
    run_folder.mkdir(mode=0o700)
    left = run_folder / "4194305.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(left))
    told = subprocess.run(
        [sys.executable, "-c", IMPORTS, str(left)],
        env=environment(TMPDIR=str(short_path), TORCH_WORKER_SERVER_SOCKET=str(short_path / "s")),
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert told.stdout == "False []\n"


def test_nobody_who_listens_is_swept(short_path: Path) -> None:
    write(str(short_path), record_of(short_path))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(short_path / "r.sock"))
        sock.listen()
        sock.setblocking(False)
        sweep([str(short_path)], Identity("k", "process"))
        assert (short_path / "r.sock").exists()
        with pytest.raises(BlockingIOError):
            sock.accept()  # nobody has even connected
