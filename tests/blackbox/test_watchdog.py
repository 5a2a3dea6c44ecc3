"""The watchdog of real processes: what it says, once, and where."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from support.boxes.watched import SECONDS, watched
from support.waiting import wait_until

if sys.platform != "linux":
    pytest.skip("black boxes need Linux", allow_module_level=True)

pytestmark = pytest.mark.timeout(600)

WAITS = "stands in the file lock on"


def test_a_stall_and_its_end(tmp_path: Path) -> None:
    with watched(tmp_path) as job:
        with job.hung(0):
            (line,) = job.await_lines(1)
            assert WAITS in line
            wait_until(job.verdicts, SECONDS)
            (verdict,) = job.verdicts()
            assert verdict["incident"] == "stall"
            assert verdict["quiet_s"] >= verdict["threshold_s"] == 1.0
            assert verdict["recovered"] is None
            assert line == f"{verdict['line'][23:]}; {next(job.boxes.glob('verdict-*.json'))}"
            wait_until(lambda: list(job.boxes.glob("verdict-*.html")), SECONDS)
            (page,) = job.boxes.glob("verdict-*.html")
            assert "wait_for_disk" in page.read_text()
            assert all(each.stat().st_mode & 0o777 == 0o600 for each in job.boxes.glob("verdict-*"))
        after = job.await_lines(2)[1]
        assert after.startswith("the job goes on, at step ")
        wait_until(lambda: job.verdicts()[0]["recovered"] is not None, SECONDS)
        assert job.end(0) == 0
        job.await_none()
        assert len(job.lines()) == 2
        assert len(job.verdicts()) == 1


def test_alone(tmp_path: Path) -> None:
    """Without black boxes there is the line, and no file. The token is no argument."""
    with watched(tmp_path, boxes=False, WORKERSERVER_TOKEN="a-secret-of-ours") as job:
        with job.hung(0):
            (line,) = job.await_lines(1)
            assert WAITS in line
            ((_, words),) = job.keepers()
            assert not [word for word in words if "secret" in word]
        assert not job.boxes.exists()


def test_only_when_asked(tmp_path: Path) -> None:
    with watched(tmp_path, WORKERSERVER_WATCHDOG="0") as job:
        wait_until(job.keepers, SECONDS)
        ((pid, words),) = job.keepers()
        assert "--watch" not in words
        log = os.stat(job.log)
        held = [os.stat(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.exists()]
        assert not [each for each in held if os.path.samestat(each, log)]
        assert "serving on" not in job.log.read_text()


def test_a_rank_is_gone(tmp_path: Path) -> None:
    """It is told once, while the other rank lives. The end of that one is no other incident."""
    with watched(tmp_path, 2) as job:
        assert job.end(1, "kill") == -signal.SIGKILL
        (line,) = job.await_lines(1)
        assert "rank 1 " in line
        assert "SIGKILL" in line
        wait_until(job.verdicts, SECONDS)
        assert job.verdicts()[0]["incident"] == "gone"
        assert job.end(0, "os_exit") == 7
        job.await_none()
        assert [each for each in job.lines() if not each.startswith("the job goes on")] == [line]


def test_the_last_rank_is_gone(tmp_path: Path) -> None:
    """The verdict is written even if the line comes too late for stderr."""
    with watched(tmp_path) as job:
        assert job.end(0, "exception") == 1
        job.await_none()
        (verdict,) = job.verdicts()
        assert "ValueError: a batch of nothing" in verdict["verdict"]
        assert len(job.lines()) <= 1


@pytest.mark.parametrize("way", ["return", "SIGTERM", "SIGINT"])
def test_ends_that_are_no_incident(way: str, tmp_path: Path) -> None:
    with watched(tmp_path) as job:
        wait_until(job.keepers, SECONDS)
        if way == "return":
            assert job.end(0) == 0
        else:
            job.ranks[0].send_signal(signal.Signals[way])
            job.ranks[0].wait(SECONDS)
        job.await_none()
        assert job.lines() == []
        assert job.verdicts() == []


def test_who_reads_stderr_sees_its_end(tmp_path: Path) -> None:
    """As in ``torchrun ... 2>&1 | tee``: nobody holds the job's stderr after the job."""
    with watched(tmp_path, 0) as job:
        reader, writer = os.pipe()
        job.start(0, writer)
        os.close(writer)
        wait_until(job.keepers, SECONDS)
        ((pid, words),) = job.keepers()
        held = Path(f"/proc/{pid}/fd") / words[words.index("--stderr") + 1]
        assert held.readlink() == Path(f"/proc/self/fd/{reader}").readlink()
        assert job.end(0) == 0
        with open(reader, "rb") as stream:
            assert b"watchdog" not in stream.read()
