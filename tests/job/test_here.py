"""Workers that are found by what /proc tells, without a word of where they are."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from support.jobs.scenes import NO_NAMESPACES, SANDBOX, needs_machine
from support.lifecycle import ask, environment, free_port

from workerserver.cli import main
from workerserver.cluster.find.discovery import Options, discover, look_around
from workerserver.cluster.find.here import Here, Living, look_here, of_process_or_launcher
from workerserver.cluster.find.launched import ranks_without_server

SERVE = """
import sys
from workerserver import WorkerServer
from workerserver.job import presence
kind, *places = sys.argv[1:]
servers = [WorkerServer(places[0]) if kind == "unix" else WorkerServer(places[0], 0)]
assert presence.settled(60)  # the record comes some milliseconds after the start
print(servers[0].address, flush=True)
sys.stdin.readline()
"""
#: As torch's own server: a listener on the path of the variable, without a record.
LISTEN = """
import os, socket, subprocess, sys
sock = socket.socket(socket.AF_UNIX)
sock.bind(sys.argv[1])
sock.listen()
children = [subprocess.Popen(["sleep", "1000"]) for _ in range(2)]  # a DataLoader's workers
print("on", flush=True)
sys.stdin.readline()
for child in children:
    child.kill()
    child.wait()
"""


@contextlib.contextmanager
def running(
    code: str, *words: str, before: Sequence[str] = (), **more: str
) -> Iterator[tuple[int, str]]:
    """A process that has printed its first line: its pid, and the line."""
    with subprocess.Popen(
        [*before, sys.executable, "-c", code, *words],
        env=environment(**more),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process.pid, process.stdout.readline().strip()
            process.communicate("\n", timeout=60)
        finally:
            process.kill()


def of_job(name: str) -> list[Living]:
    known = ((each, each.worker.known) for each in look_here().living)
    return [each for each, identity in known if identity is not None and identity.job == name]


def test_a_tcp_worker_is_asked_on_this_machine() -> None:
    name = f"tcp-{os.getpid()}"
    with running(SERVE, "tcp", "0.0.0.0", WORKERSERVER_JOB=name) as (pid, address):
        (found,) = of_job(name)
        port = int(address.rpartition(":")[2])
        assert (found.pid, found.worker.address) == (pid, f"127.0.0.1:{port}")
        assert discover(Options(job=name)) == [found.worker]
        assert main(["ping", "--job", name, "--count", "1"]) == 0
    assert of_job(name) == []


@pytest.mark.parametrize("relative", [False, True])
def test_a_stock_worker_is_known_by_its_variable(relative: bool, short_path: Path) -> None:
    """Its children have the variable too, and are no workers."""
    path = str(short_path / "w.sock")
    name = f"stock-{os.getpid()}"
    given = os.path.relpath(path) if relative else path
    variables = {"TORCH_WORKER_SERVER_SOCKET": given, "RANK": "3", "WORKERSERVER_JOB": name}
    with running(LISTEN, given, **variables) as (pid, _):
        (found,) = of_job(name)
        assert found.pid == pid
        assert os.path.realpath(found.worker.address) == os.path.realpath(path)
        assert found.worker.known is not None
        assert found.worker.known.rank == 3


def test_a_variable_alone_makes_no_worker(short_path: Path) -> None:
    """Another process listens there."""
    path = str(short_path / "w.sock")
    name = f"decoy-{os.getpid()}"
    variables = {"TORCH_WORKER_SERVER_SOCKET": path, "WORKERSERVER_JOB": name}
    with running(LISTEN, path), running("print(1, flush=True); input()", **variables):
        assert of_job(name) == []


def test_a_process_id_is_a_target(short_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"pid-{os.getpid()}"
    launcher = (
        "import subprocess, sys\n"
        "worker = subprocess.Popen([sys.executable, '-c', *sys.argv[1:]], stdin=subprocess.PIPE)\n"
        "sys.stdin.readline()\n"
        "worker.communicate(b'\\n')\n"
    )
    path = str(short_path / "w.sock")
    with running(launcher, SERVE, "unix", path, WORKERSERVER_JOB=name, RANK="0") as (pid, _):
        (found,) = of_job(name)
        for target in (pid, found.pid):
            assert [each.pid for each in of_process_or_launcher(look_here(), target)] == [found.pid]
            assert look_around(Options([str(target)], whole=True)).workers == [found.worker]
            assert main(["call", "ping", str(target)]) == 0
            assert capsys.readouterr().out == "pong"
    assert main(["call", "ping", str(found.pid)]) == 3
    assert f"there is no process {found.pid}" in capsys.readouterr().err
    with running("print(1, flush=True); input()") as (pid, _):
        assert main(["stacks", str(pid)]) == 3
        assert "is no worker with a server" in capsys.readouterr().err


def test_the_store_of_a_job_is_not_taken_for_a_worker(capsys: pytest.CaptureFixture[str]) -> None:
    """It would not answer, and the command would wait for the whole deadline."""
    with socket.create_server(("127.0.0.1", 0)) as store:
        port = store.getsockname()[1]
        rank = {"RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        with running("print(1, flush=True); input()", **rank) as (pid, _):
            for command in (["call", "ping"], ["diagnose"], ["ls"]):
                assert main([*command, f"127.0.0.1:{port}"]) == 64
                said = capsys.readouterr().err
                assert f"127.0.0.1:{port} is no worker but the TCPStore of a job" in said
                assert f"give the pid {pid}, or --store 127.0.0.1:{port}" in said
        store.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has connected
            store.accept()


def test_a_worker_may_serve_where_a_job_could_meet(capsys: pytest.CaptureFixture[str]) -> None:
    """The variables are set, and nobody uses them."""
    code = SERVE.replace("WorkerServer(places[0], 0)", "WorkerServer(places[0], int(places[1]))")
    port = str(free_port())
    rank = {"RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with running(code, "tcp", "127.0.0.1", port, **rank):
        assert main(["call", "ping", f"127.0.0.1:{port}"]) == 0
    assert capsys.readouterr().out.strip() == "pong"


def test_ranks_without_a_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a rank has started, with its environment, is no rank."""
    code = (
        "import subprocess\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        "print(child.pid, flush=True)\n"
        "input()\n"
        "child.kill()\n"
        "child.wait()\n"
    )
    with running(code, RANK="7", WORLD_SIZE="8") as (pid, child):
        ranks = ranks_without_server()
        assert ranks[pid] == 7
        assert int(child) not in ranks
        assert os.getpid() not in ranks
        monkeypatch.setattr("workerserver.cluster.find.discovery.look_here", Here)
        # Other tests may have ranks of their own on this machine.
        monkeypatch.setattr(
            "workerserver.cluster.find.launched.ranks_without_server", lambda: {pid: ranks[pid]}
        )
        assert main(["diagnose"]) == 3
        said = capsys.readouterr().err
        assert f"Process {pid} (rank 7) of a job has no server: if the job is just starting" in said


def test_the_pid_of_what_a_worker_has_started(
    short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The process of a DataLoader is what ``top`` shows, and what a person names."""
    code = SERVE.replace(
        "print(servers[0].address,",
        "import subprocess\nchild = subprocess.Popen(['sleep', '1000'])\nprint(child.pid,",
    )
    code += "child.kill()\nchild.wait()\n"
    with running(code, "unix", str(short_path / "w.sock")) as (pid, child):
        (found,) = of_process_or_launcher(look_here(), int(child))
        assert found.pid == pid
        assert main(["call", "ping", child]) == 0
    assert capsys.readouterr().out.strip() == "pong"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user too")
def test_another_users_job(
    short_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Root is told of it, and may ask. Another user is told whom to ask as."""
    name = f"theirs-{os.getpid()}"
    stranger = 4242  # who can't read this interpreter's files: so the process becomes it later
    code = SERVE.replace("servers =", f"import os, tempfile; os.setuid({stranger}); servers =")
    theirs = {"WORKERSERVER_JOB": name, "RANK": "0", "WORLD_SIZE": "1"}
    short_path.chmod(0o777)
    path = str(short_path / "rank0.sock")
    with running(code, "unix", path, TMPDIR=str(short_path), **theirs) as (pid, _):
        assert of_job(name) == []
        assert main(["call", "ping", str(pid)]) == 0
        assert capsys.readouterr().out.strip() == "pong"
        assert main(["ping", "--job", name, "--count", "1"]) == 3
        said = capsys.readouterr().err
        assert f"no job {name} of this user on this machine" in said
        assert re.search(rf"process(es)? [0-9,-]+ of user {stranger} ha(s|ve) a server", said)
        monkeypatch.setattr("os.geteuid", lambda: 4243)
        assert main(["diagnose", str(pid)]) == 64
        assert f"process {pid} belongs to user {stranger}\n" in capsys.readouterr().err


@needs_machine
def test_a_container_with_a_long_path() -> None:
    """The worker knows its socket by a short name. Here a prefix makes the name too long."""
    name = f"container-{os.getpid()}"
    folder = f"/tmp/{'x' * 85}"
    inside = 'mount -t tmpfs tmpfs /tmp && mkdir "$TMPDIR" && exec "$@"'
    with running(
        SERVE, "unix", f"{folder}/rank0.sock", before=[*SANDBOX, "sh", "-c", inside, "sh"],
        TMPDIR=folder, WORKERSERVER_JOB=name,
    ) as (_, address):  # fmt: skip
        if not address:
            pytest.skip(NO_NAMESPACES)
        (found,) = of_job(name)
        assert len(found.worker.address) > 107
        # With a connection of their own, and with the engine that asks all at once.
        assert main(["call", "ping", "--job", name]) == 0
        assert main(["ping", "--count", "1", "--deadline", "60", "--job", name]) == 0


@needs_machine
def test_a_container() -> None:
    """It has files of its own, and its pids are other ones."""
    name = f"container-{os.getpid()}"
    inside = 'mount -t tmpfs tmpfs /tmp && exec "$@"'
    with running(
        SERVE, "unix", "/tmp/w.sock", before=[*SANDBOX, "sh", "-c", inside, "sh"],
        TMPDIR="/tmp", WORKERSERVER_JOB=name,
    ) as (_, address):  # fmt: skip
        if not address:
            pytest.skip(NO_NAMESPACES)
        (found,) = of_job(name)
        assert found.worker.address == f"/proc/{found.pid}/root/tmp/w.sock"
        assert ask(found.worker.address) == (200, "pong")
        assert not os.path.exists("/tmp/w.sock")
        # A link in there would be followed out here.
        os.unlink(found.worker.address)
        os.symlink("/run/other.sock", found.worker.address)
        assert of_job(name) == []


def test_a_folder_that_others_may_enter_is_not_believed(short_path: Path) -> None:
    """Its records may be anybody's. The mode of the files says nothing then."""
    name = f"open-{os.getpid()}"
    with tempfile.TemporaryDirectory(prefix="ws-", dir="/tmp") as place:
        path = str(short_path / "w.sock")
        with running(SERVE, "unix", path, TMPDIR=place, WORKERSERVER_JOB=name):
            (found,) = of_job(name)
            assert found.worker.address == path
            folder = Path(place, f"workerserver-{os.geteuid()}")
            folder.chmod(0o777)
            assert of_job(name) == []
            folder.chmod(0o700)
