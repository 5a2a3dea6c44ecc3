"""The watchdogs of a job on several hosts, which are namespaces: one line for each incident.

WORKERSERVER_BLACKBOX_RUNS=20 for the whole table (``make blackbox``).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.boxes.hosts import SECONDS, Job, job_on
from support.boxes.network import hosts, needs_hosts
from support.commands import answer
from support.waiting import wait_until

pytestmark = [
    *needs_hosts,
    pytest.mark.torch,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("torch") is None, reason="needs torch"),
    pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare, of util-linux"),
    pytest.mark.timeout(3600),
]

RUNS = int(os.environ.get("WORKERSERVER_BLACKBOX_RUNS", "1"))
long = pytest.mark.skipif(RUNS == 1, reason="takes a minute: make blackbox")
BACK = "the job goes on"


@pytest.fixture(params=range(RUNS))
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)  # 2 MiB for each rank


def told(job: Job) -> list[tuple[int, str]]:
    """The incidents that are told in the logs: without the lines that the job goes on."""
    return [(host, line) for host, line in job.lines() if not line.startswith(BACK)]


def ends(job: Job) -> None:
    """All watchdogs have ended, and what was told of a rank's end is written once."""
    job.await_end()
    verdicts = job.verdicts()
    assert [each["incident"] for each in verdicts] == ["gone"], [v["line"] for v in verdicts]
    assert len(job.lines()) <= 1  # a line that comes too late for stderr is in the file alone


def test_a_rank_of_the_second_host(folder: Path) -> None:
    """It stands still, goes on, and is killed."""
    with hosts(2) as network, job_on(network, folder) as job:
        with job.hung(1):
            ((host, line),) = job.await_lines(1)
            assert host == 0
            assert "rank 1 has not entered all_reduce" in line
            assert "load_batch()" in line
            wait_until(job.verdicts, SECONDS)
        wait_until(lambda: len(job.lines()) == 2, SECONDS)
        assert job.lines()[1][1].startswith(f"{BACK}, at step ")
        wait_until(lambda: job.verdicts()[0]["recovered"] is not None, SECONDS)
        job.end(1, "kill")
        job.await_end()
        stall, gone = job.verdicts()
        assert (stall["host"], stall["incident"]) == ("node0", "stall")
        assert gone["incident"] == "gone"
        assert "rank 1 was killed (SIGKILL)" in gone["verdict"]
        assert len(job.lines()) <= 3


@long
def test_rank_0_is_gone_with_its_host(folder: Path) -> None:
    """The kernel resets the connections of a host of which all processes are killed."""
    with hosts(3) as network, job_on(network, folder) as job:
        job.kill_host(0)
        job.await_end()
        print(told(job), [v["line"] for v in job.verdicts()])
        assert len(job.verdicts()) <= 1
        assert len(told(job)) <= 1


@long
def test_rank_0_s_host_loses_its_power(folder: Path) -> None:
    """Nothing is reset. The watchdog of the next host tells, and accuses nobody of an end."""
    with hosts(3) as network, job_on(network, folder) as job:
        network.cut_off(0)
        job.kill_host(0)
        ((host, line),) = job.await_lines(1)
        assert host == 1
        assert "rank 0 does not answer" in line
        assert "ranks 1-2 wait for it in all_reduce" in line
        quiet(job, 1)


def quiet(job: Job, count: int) -> None:
    """Nothing more is told while another watchdog would have had the time to tell it."""
    with pytest.raises(AssertionError):
        wait_until(lambda: len(job.lines()) > count, 20)


@long
@pytest.mark.parametrize("way", ["link", "switch"])
def test_a_host_is_cut_off(way: str, folder: Path) -> None:
    """One line by each side, and each is true: nobody has ended."""
    with hosts(3) as network, job_on(network, folder) as job:
        if way == "link":
            network.link(2, "down")
        else:
            network.cut_off(2)
        job.await_lines(2)
        (far, first), (near, second) = sorted(told(job), reverse=True)
        assert (near, far) == (0, 2)
        assert "rank 2 does not answer" in second
        assert "ranks 0-1 wait for it in all_reduce" in second
        assert "ranks 0-1 do not answer" in first
        assert "rank 2 waits for them in all_reduce" in first
        quiet(job, 2)
        if way == "link":
            network.link(2, "up")
        else:
            network.join(2)
        wait_until(lambda: len(job.lines()) == 4, SECONDS)
        assert job.finish() == [0, 0, 0]
        assert len(told(job)) == 2


@long
def test_a_recovery_after_a_restart(folder: Path) -> None:
    """Each agent of torchrun counts attempts by itself: those that it begins since another agent's
    ranks have ended do not count."""
    with hosts(2) as network, job_on(network, folder, 2, restarts=4) as job:
        job.end(3, "kill")
        wait_until(lambda: list(folder.glob("begun3-[1-4]")), SECONDS)
        wait_until(lambda: [line for _, line in job.lines() if line.startswith(BACK)], SECONDS)
        assert job.finish() == [0, 0]
        (verdict,) = job.verdicts()
        assert "rank 3 was killed (SIGKILL)" in verdict["verdict"]
        assert verdict["recovered"]["step"] >= 0
        assert len(told(job)) <= 1  # torchrun ends the host's other rank at once
        assert len(job.lines()) - len(told(job)) == 1


@long
def test_without_tcp(folder: Path) -> None:
    """Each host judges its own ranks, and says so."""
    with hosts(2) as network, job_on(network, folder, 2, tcp=False) as job, job.hung(3):
        job.await_lines(2)
        quiet(job, 2)
        lines = dict(told(job))
        assert "rank 3 has not entered all_reduce" in lines[1]
        assert "rank 3 has not entered all_reduce" not in lines[0]
        assert all("only the ranks of this host can be reached" in line for line in lines.values())


@long
def test_with_collectors(folder: Path) -> None:
    with hosts(2) as network, job_on(network, folder, 2, tcp=False, collectors=True) as job:
        with job.hung(3):
            ((host, line),) = job.await_lines(1)
            assert host == 0
            assert "rank 3 has not entered all_reduce" in line
            quiet(job, 1)
        job.await_lines(2)
        assert job.finish() == [0, 0]
        assert len(job.lines()) == 2


@long
def test_clocks_differ(folder: Path) -> None:
    """By a time namespace: what runs since the start of the machine differs by a day."""
    with hosts(2) as network, job_on(network, folder, clocks=True) as job:
        with job.hung(1):
            ((host, line),) = job.await_lines(1)
            assert host == 0
            assert "rank 1 has not entered all_reduce" in line
        job.await_lines(2)
        job.end(1, "kill")
        job.await_end()
        gone = job.verdicts()[1]
        assert "rank 1 was killed (SIGKILL)" in gone["verdict"]
        assert len(job.verdicts()) == 2


@long
@pytest.mark.parametrize("ahead", [3600, -3600])
def test_wall_clocks_differ(ahead: int, folder: Path) -> None:
    """By an hour, which is longer than the job. No time of one host counts on the other one."""
    with hosts(2) as network, job_on(network, folder, wall=ahead) as job:
        with job.hung(1):
            ((host, line),) = job.await_lines(1)
            assert host == 0
            assert "rank 1 has not entered all_reduce" in line
        wait_until(lambda: len(job.lines()) == 2, SECONDS)
        assert job.lines()[1][1].startswith(f"{BACK}, at step ")
        job.end(1, "kill")
        job.await_end()
        stall, gone = sorted(job.verdicts(), key=lambda each: str(each["incident"]), reverse=True)
        assert (stall["incident"], gone["incident"]) == ("stall", "gone")
        assert "rank 1 was killed (SIGKILL)" in gone["verdict"]
        status, told = answer("diagnose", str(job.boxes), timeout=120)
        assert status == 1
        assert [each["rank"] for each in told["culprits"]] == [1], told["verdict"]
        assert told["without_box"] == []
        assert "the clocks of its hosts differ by about 3,6" in told["notes"][0]
