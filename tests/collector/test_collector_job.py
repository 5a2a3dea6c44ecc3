"""The collector that a job's launcher starts: found in the store, there after a rank has died, gone
after the job has."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.lifecycle import PROGRAMS, ask, environment, free_port
from support.torchrun import training
from support.waiting import wait_until

pytest.importorskip("torch")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.torch,
    pytest.mark.skipif(sys.platform != "linux", reason="pidfd_open is Linux's"),
]

RANKS = 3
TOKEN = {"WORKERSERVER_TOKEN": "of-this-job"}


def command(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workerserver", *words],
        env=environment(**{**TOKEN, **more}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@dataclass
class Job:
    torchrun: subprocess.Popen[bytes]
    store: str
    folder: Path

    def asked(self, name: str, *words: str) -> tuple[int, Any]:
        done = command(name, "--json", "--store", self.store, "--deadline", "5", *words)
        assert done.stderr == ""
        return done.returncode, json.loads(done.stdout)

    @property
    def collectors(self) -> list[int]:
        """The processes of the job's collectors."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if b"collector" in words and any(str(self.folder).encode() in w for w in words):
                    found.append(int(folder.name))
        return found

    def pid(self, rank: int) -> int:
        return int((self.folder / f"begun{rank}").read_text())

    def kill(self, *pids: int) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def job() -> Iterator[Job]:
    """A job on one host with a collector, in the middle of its training."""
    with tempfile.TemporaryDirectory(prefix="ws-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder, port = Path(name), free_port()
        settings = environment(
            TORCH_WORKER_SERVER_SOCKET=f"{folder}/rank{{rank}}.sock",
            WORKERSERVER_COLLECTOR="127.0.0.1:0",
            TORCH_FR_BUFFER_SIZE="2000",
            OMP_NUM_THREADS="1",
            FOLDER=name,
            **TOKEN,
        )
        words = ["--master-addr", "127.0.0.1", "--master-port", str(port)]
        words.append(str(PROGRAMS / "cluster/steps_rank.py"))
        with training(words, settings, folder, RANKS) as torchrun:
            made = Job(torchrun, f"127.0.0.1:{port}", folder)
            try:
                wait_until(lambda: command("ping", "--store", made.store).returncode == 0, 30)
                yield made
            finally:
                made.kill(*made.collectors)


def test_a_whole_job(job: Job) -> None:
    """One after the other: found and healthy, a rank killed, the job killed."""
    status, said = job.asked("diagnose")
    assert (status, said["ranks"], said["responded"]) == (0, RANKS, RANKS), said
    assert said["suspects"] == []
    # There is one collector. It is no child of the job, and training goes before it.
    (collector,) = job.collectors
    stat = Path(f"/proc/{collector}/stat").read_text().rpartition(")")[2].split()
    assert int(stat[1]) not in {job.torchrun.pid, *map(job.pid, range(RANKS))}
    assert int(stat[16]) >= 10
    # In each round the host is asked, and then each rank at most for the stacks of its group, once
    # more for its digest, and for its own stacks. At the end of a healthy job, each rank is asked
    # for its recorder and its steps. None is asked for its health.
    assert said["cost"]["questions"] <= said["cost"]["rounds"] * (1 + 3 * RANKS) + 2 * RANKS

    status, said = job.asked("stacks")
    assert (said["responded"], said["unreachable"]) == (RANKS, [])
    # At least one rank is seen in a step in which no other rank is.
    assert (status, sum(each["count"] for each in said["groups"])) in [(0, RANKS), (1, 1), (1, 2)]
    status, said = job.asked("top", "--count", "1")
    assert (status, len(said["workers"])) == (0, RANKS)
    status, said = job.asked("ping")
    assert (status, [each["rank"] for each in said["workers"]]) == (0, list(range(RANKS)))
    profile = job.folder / "trace.json"
    status, said = job.asked("profile", "-o", str(profile), "--duration", "0.1")
    assert (status, len(said["workers"])) == (0, RANKS)

    # The rank that started the collector dies. The collector goes on, and reports that rank.
    first = job.pid(0)
    job.kill(first)
    before = wakings(collector)
    wait_until(lambda: any(job.folder.glob("stands*")))  # the other ranks have noticed the death
    wait_until(lambda: wakings(collector) > before)  # time to look which ranks live
    status, said = job.asked("diagnose", "--world-size", str(RANKS))
    assert status == 1, said
    assert [each["rank"] for each in said["unreachable"]] == [0]
    assert [(each["rank"], each["reason"]) for each in said["suspects"]] == [(0, "unreachable")]
    assert re.search(r"rank 0 does not answer", said["verdict"])
    assert job.collectors == [collector]

    # The job ends, so the collector ends too.
    job.kill(*map(job.pid, range(1, RANKS)))
    wait_until(lambda: job.collectors == [], 30)


def wakings(pid: int) -> int:
    """How often the main thread of process *pid* has gone to sleep again."""
    status = Path(f"/proc/{pid}/task/{pid}/status").read_text()
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def test_it_can_be_had_by_itself(folder: Path) -> None:
    """For a DaemonSet, a sidecar or srun: SIGTERM ends the collector, and it reports its health."""
    words = [sys.executable, "-m", "workerserver", "collector", "--listen", "127.0.0.1:0"]
    words += ["--ranks", "4-5", f"{folder}/rank{{rank}}.sock"]
    process = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("workerserver: collector on 127.0.0.1:")
            address = line.split()[-1]
            host, _, port = address.rpartition(":")
            assert ask((host, int(port)), "/healthz", "GET")[0] == 200
            done = command("stacks", "--json", "--collectors", address, WORKERSERVER_TOKEN="")
            gone = json.loads(done.stdout)["unreachable"]
            assert done.returncode == 2
            assert [(each["rank"], each["text"]) for each in gone] == [
                (4, "not registered"),
                (5, "not registered"),
            ]
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--listen", "nowhere", "./x.sock"), "'nowhere' is not HOST:PORT"),
        (("--listen", "127.0.0.1:0"), "TARGET"),
        (("--listen", "127.0.0.1:0", "--ranks", "8-1", "./x.sock"), "runs backwards"),
        (("--listen", "127.0.0.1:0", "--starter", "4194300", "./x.sock"), "no such process"),
        (("--listen", "127.0.0.1:0", "nonsense"), "'nonsense' is not a target"),
        (("--listen", "192.0.2.1:80", "./x.sock"), "can't serve: Error binding to 192.0.2.1:80"),
    ],
)
def test_wrong_use(words: tuple[str, ...], complaint: str) -> None:
    done = command("collector", *words)
    assert done.returncode == (2 if "can't serve" in complaint else 64)
    assert complaint in done.stderr


def test_it_needs_sockets(folder: Path) -> None:
    script = folder / "nothing.py"
    script.write_text("print('trained')")
    done = command("run", "--tcp", "127.0.0.1:0", str(script), WORKERSERVER_COLLECTOR="127.0.0.1:0")
    assert (done.returncode, done.stdout) == (0, "trained\n")
    assert "WORKERSERVER_COLLECTOR needs this process to serve on a Unix socket" in done.stderr


def test_where_there_is_no_python_to_be_started(folder: Path) -> None:
    script = folder / "nothing.py"
    script.write_text("print('trained')")
    code = "import sys; sys.executable = None; from workerserver.cli import main; "
    code += f"sys.exit(main(['run', '--socket', '{folder}/x.sock', '{script}']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(WORKERSERVER_COLLECTOR="127.0.0.1:0"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "trained\n")
    assert "no collector was started" in done.stderr


def test_a_worker_that_is_restarted(folder: Path) -> None:
    """As torchrun does it: the next job's collector takes the place of the last job's."""
    script = folder / "sleep.py"
    script.write_text("import time\ntime.sleep(60)\n")
    token = folder / "token"
    token.write_text("first\nsecond line, which nobody reads\n")
    port = free_port()
    settings = environment(
        WORKERSERVER_COLLECTOR=f"127.0.0.1:{port}", WORKERSERVER_TOKEN_FILE="token", RANK="3"
    )
    words = [sys.executable, "-m", "workerserver", "run", "--socket", "rank{rank}.sock"]
    job = Job(subprocess.Popen(["true"]), "", folder)
    job.torchrun.wait()

    def run_once(before: list[int]) -> list[int]:
        """The collectors of one worker, which ends here."""
        with (folder / "log").open("wb") as log:
            worker = subprocess.Popen(
                [*words, str(script)], cwd=folder, env=settings, stdout=log, stderr=log
            )
        with worker:
            try:
                wait_until(lambda: set(job.collectors) - set(before), 30)
                wait_until(lambda: not set(job.collectors) & set(before), 30)
                wait_until(lambda: listening(port), 30)
                looked = ["stacks", "--json", "--collectors", f"127.0.0.1:{port}"]
                done = command(*looked, WORKERSERVER_TOKEN="first")
                said = json.loads(done.stdout)
                assert (said["responded"], said["groups"][0]["ranks"]) == (1, "3"), said
                return job.collectors
            finally:
                worker.kill()

    try:
        first = run_once([])
        second = run_once(first)
        assert (len(first), len(second)) == (1, 1)
        wait_until(lambda: job.collectors == [], 30)
    finally:
        job.kill(*job.collectors)


def listening(port: int) -> bool:
    with contextlib.suppress(OSError):
        return ask(("127.0.0.1", port), "/healthz", "GET")[0] in (200, 401)
    return False


TRAINS_UNTIL_THE_COLLECTOR_HAS_ENDED = """
import threading, time
while any(each.name == "workerserver-collector" for each in threading.enumerate()):
    time.sleep(0.05)
print("trained")
"""


def test_where_it_cannot_serve_training_goes_on(folder: Path) -> None:
    script = folder / "nothing.py"
    script.write_text(TRAINS_UNTIL_THE_COLLECTOR_HAS_ENDED)
    done = command(
        *("run", "--socket", f"{folder}/x.sock", str(script)),
        WORKERSERVER_COLLECTOR="192.0.2.1:80",
    )
    assert (done.returncode, done.stdout) == (0, "trained\n")
    assert "can't serve: Error binding to 192.0.2.1:80" in done.stderr
    assert "collector did not start" in done.stderr
