"""A job of torchrun with a watchdog and a collector: the keeper starts the collector, and whatever
becomes of the collector changes nothing of the watchdog."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.boxes.left import await_no_keeper, commands, is_collector, keepers_of
from support.boxes.told import lines_in, verdicts_in
from support.commands import answer
from support.lifecycle import PROGRAMS, ask, environment, free_port
from support.torchrun import training
from support.waiting import wait_until

pytest.importorskip("torch")
if sys.platform != "linux":
    pytest.skip("black boxes need Linux", allow_module_level=True)

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow, pytest.mark.torch]

RANKS = 2
SECONDS = 100.0  # on a busy machine


@dataclass
class Job:
    torchrun: subprocess.Popen[bytes]
    folder: Path
    port: int

    @property
    def boxes(self) -> Path:
        return self.folder / "boxes"

    @property
    def log(self) -> str:
        return (self.folder / "job.log").read_text(errors="replace")

    def collectors(self) -> dict[int, list[str]]:
        """The job's, by pid, with their command lines."""
        mine = str(self.folder)
        return {
            pid: words
            for pid, words in commands()
            if any(mine in word for word in words) and is_collector(pid)
        }

    def await_collector(self) -> int:
        """The pid, once the job's collector answers."""
        wait_until(lambda: len(self.collectors()) == 1 and answers(self.port), SECONDS)
        (pid,) = self.collectors()
        return pid

    @contextlib.contextmanager
    def hung(self) -> Iterator[None]:
        with (self.folder / "disk").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def await_lines(self, count: int) -> list[str]:
        log = self.folder / "job.log"
        wait_until(lambda: len(lines_in(log)) >= count, SECONDS)
        return lines_in(log)

    def end(self) -> None:
        """By itself, with all that belongs to it."""
        (self.folder / "end.part").write_text("return")
        (self.folder / "end.part").rename(self.folder / "end")
        assert self.torchrun.wait(SECONDS) == 0
        await_no_keeper(self.boxes)
        wait_until(lambda: not self.collectors(), SECONDS)

    def metrics(self) -> list[str]:
        body = ask(("127.0.0.1", self.port), "/metrics", "GET")[1]
        text = body.decode() if isinstance(body, bytes) else body
        return [line for line in text.splitlines() if "watchdog" in line and line[0] != "#"]


def answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        return ask(("127.0.0.1", port), "/healthz", "GET")[0] == 200
    return False


@contextlib.contextmanager
def running(
    folder: Path,
    port: int = 0,
    program: str = "watched_rank.py",
    host: str = "127.0.0.1",
    **more: str,
) -> Iterator[Job]:
    """After the block, which ends the job or fails, nothing of it is left."""
    port = port or free_port()
    (folder / "disk").touch()
    settings = environment(
        TORCH_WORKER_SERVER_SOCKET=f"{folder}/rank{{rank}}.sock",
        WORKERSERVER_COLLECTOR=f"{host}:{port}",
        **{"WORKERSERVER_STALL": "2", "WORKERSERVER_BLACKBOX": f"{folder}/boxes", **more},
    )
    words = [str(PROGRAMS / "blackbox" / program), str(folder)]
    job = None
    try:
        with training(words, settings, folder, RANKS, interval=1) as torchrun:
            job = Job(torchrun, folder, port)
            yield job
    finally:
        if job is not None:
            for pid in job.collectors():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def held(pid: int) -> set[str]:
    """The files that process *pid* has open."""
    return {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_collector_that_dies_or_stops(folder: Path, number: signal.Signals) -> None:
    with running(folder) as job:
        collector = job.await_collector()
        (keeper,) = keepers_of(job.boxes)
        # Nobody has imported the commands twice, and the collector has nothing of the keeper's.
        assert job.collectors()[collector] == dict(commands())[keeper]
        log = str(folder / "job.log")
        assert any("keeper.lock" in name for name in held(keeper))
        assert log in held(keeper)
        assert not {name for name in held(collector) if name == log or "keeper.lock" in name}
        # Its stdin is one until it silences its streams, after the line that says where it serves.
        wait_until(lambda: not [name for name in held(collector) if "memfd:" in name], SECONDS)
        status, said = answer("ping", "--collectors", f"127.0.0.1:{job.port}", "--world-size", "2")
        assert (status, [each["rank"] for each in said["workers"]]) == (0, [0, 1])

        os.kill(collector, number)
        with job.hung():
            (line,) = job.await_lines(1)
            assert "stand in the file lock on" in line
            wait_until(lambda: verdicts_in(job.boxes), SECONDS)
        assert job.await_lines(2)[1].startswith("the job goes on, at step ")
        if number == signal.SIGSTOP:
            os.kill(collector, signal.SIGCONT)
        job.end()
        assert len(lines_in(folder / "job.log")) == 2
        assert len(verdicts_in(job.boxes)) == 1
        assert "no collector" not in job.log
        assert "did not start" not in job.log


def test_a_watchdog_alone_is_shown_by_the_collector(folder: Path) -> None:
    """Its verdict is in the collector's metrics as long as the watchdog lives."""
    alone = running(folder, host="0.0.0.0", WORKERSERVER_BLACKBOX="", WORKERSERVER_WATCHDOG="1")
    with alone as job:
        collector = job.await_collector()
        # Its warnings come first, and are in the job's log.
        wait_until(lambda: "serving on 0.0.0.0 without a token" in job.log, SECONDS)
        wait_until(job.metrics, SECONDS)
        status = f'workerserver_watchdog_status{{job="{name_of(job)}"}}'
        assert f"{status} 0" in job.metrics()
        with job.hung():
            job.await_lines(1)
            wait_until(lambda: f"{status} 2" in job.metrics(), SECONDS)
            told = f'workerserver_watchdog_incidents_total{{job="{name_of(job)}",kind="stall"}} 1'
            assert told in job.metrics()
            (age,) = [line for line in job.metrics() if "look_age" in line and name_of(job) in line]
            assert float(age.split()[-1]) >= 0
        job.await_lines(2)
        wait_until(lambda: f"{status} 0" in job.metrics(), SECONDS)
        (keeper,) = [pid for pid, words in commands() if is_keeper_of(job, pid, words)]
        os.kill(keeper, signal.SIGKILL)
        wait_until(lambda: not [line for line in job.metrics() if name_of(job) in line], SECONDS)
        # The keeper ignores this signal.
        os.kill(collector, signal.SIGTERM)
        wait_until(lambda: not job.collectors(), SECONDS)
        assert "did not start" not in job.log
        assert "no collector" not in job.log


def name_of(job: Job) -> str:
    """What the ranks say that the job is called."""
    identity = json.loads(ask(f"{job.folder}/rank0.sock", "/healthz", "GET")[1])
    return str(identity["job"])


def is_keeper_of(job: Job, pid: int, words: list[str]) -> bool:
    if "--label" not in words or is_collector(pid):
        return False
    label = words[words.index("--label") + 1]
    return label.endswith(f"-{job.torchrun.pid}") and Path(f"/proc/{pid}/comm").read_text()[:3] != (
        "ws-"
    )


def test_where_the_keeper_has_to_wait(folder: Path) -> None:
    """For the keeper of the job's last attempt. The worker starts the collector itself, at once."""
    with running(folder, program="watchdog/other_keeper.py") as job:
        collector = job.await_collector()
        assert "collector" in job.collectors()[collector]
        status, said = answer("ping", "--collectors", f"127.0.0.1:{job.port}", "--world-size", "2")
        assert (status, [each["rank"] for each in said["workers"]]) == (0, [0, 1])
        job.end()


def test_where_the_port_is_taken(folder: Path) -> None:
    """By an operator's collector, say, or by that of another job: a line says so, and the job has
    its watchdog. A collector of an operator outlives the job."""
    words = [sys.executable, "-m", "workerserver", "collector", "--listen", "127.0.0.1:0"]
    first = subprocess.Popen(
        [*words, f"{folder}/rank{{rank}}.sock"],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    with first:
        try:
            assert first.stdout is not None
            port = int(first.stdout.readline().rpartition(":")[2])
            with running(folder, port) as job:
                wait_until(lambda: "this host's collector did not start" in job.log, SECONDS)
                assert f"can't serve: Error binding to 127.0.0.1:{port}" in job.log
                assert list(job.collectors()) == []
                with job.hung():
                    job.await_lines(1)
                job.await_lines(2)
                (folder / "end").write_text("return")
                assert job.torchrun.wait(SECONDS) == 0
                await_no_keeper(job.boxes)
                assert len(lines_in(folder / "job.log")) == 2
            assert answers(port)
            first.terminate()
            assert first.wait(SECONDS) == 0
        finally:
            first.kill()
