"""The watchdog of real processes: what it says, once, and where."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.boxes.left import await_box, boxes_in
from support.boxes.watched import SECONDS, watched
from support.commands import answer
from support.waiting import wait_until

from workerserver.blackbox.place import label_of
from workerserver.blackbox.watchdog.incident import Settings
from workerserver.blackbox.watchdog.ranks import Rank, look
from workerserver.blackbox.watchdog.watch import Watch
from workerserver.job.identity import Identity
from workerserver.job.proc import namespace
from workerserver.job.records import Record, write
from workerserver.process.run_folder import make_run_folder

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


def test_boxes_that_can_no_longer_be_copied(tmp_path: Path) -> None:
    """As on a disk that runs full: one line, and the boxes stay where they are."""
    with watched(tmp_path) as job:
        (run,) = wait_for_runs(job.boxes)
        shutil.rmtree(run)
        run.touch()
        wait_until(lambda: "can't be copied to" in job.log.read_text(), SECONDS)
        (line,) = [each for each in job.log.read_text().splitlines() if "can't be copied" in each]
        assert f"to {job.boxes}: No such file or directory; " in line
        (left,) = Path(line.rpartition(": ")[2]).glob("*.box")
        assert job.end(0, "kill") == -signal.SIGKILL
        job.await_none()
        assert job.log.read_text().count("can't be copied") == 1
        status, verdict = answer("diagnose", str(left.parent))
        assert status == 1
        assert "SIGKILL" in verdict["verdict"]


def wait_for_runs(boxes: Path) -> list[Path]:
    wait_until(lambda: list(boxes.glob("*/rank*.box")), SECONDS)
    return [path.parent for path in boxes.glob("*/rank*.box")]


def test_ranks_that_leave_with_status_0(tmp_path: Path) -> None:
    """By ``os._exit(0)``, one after the other: the job is done."""
    with watched(tmp_path, 2) as job:
        # The kernel tells how a process has ended to a keeper that knew the process before.
        wait_until(lambda: len(list(job.boxes.glob("*/rank*.box"))) == 2, SECONDS)
        assert job.end(1, "leave") == 0
        await_box(job.boxes, job.ranks[1].pid)
        assert job.end(0, "leave") == 0
        job.await_none()
        assert job.lines() == []
        assert job.verdicts() == []


def test_a_program_that_becomes_another_one(tmp_path: Path) -> None:
    """By exec(), as scripts do that set a variable for a library: same pid, a new box."""
    with watched(tmp_path) as job:
        begun = job.folder / "rank0" / "begun0"
        begun.unlink()
        (job.folder / "rank0" / "end").write_text("exec")
        wait_until(begun.exists, SECONDS)
        assert job.end(0) == 0
        job.await_none()
        assert "keeps no black box" not in job.log.read_text()
        assert job.lines() == []
        (box,) = boxes_in(job.boxes)
        assert [end.value["why"] for end in box.ends] == ["exit"]


def test_ranks_of_another_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell starts one job after the other. What was killed in the job before is not the next
    one's. torchrun starts one job, whose name may change with the port of an attempt."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = make_run_folder(str(tmp_path))
    mine = Identity("job", "WORKERSERVER_JOB", agent="77:7", host="node")
    for pid, identity in enumerate(
        [mine, replace(mine, job="before"), replace(mine, job="again", restart=1)], 1 << 29
    ):
        write(folder, Record(pid, 1, namespace("pid"), (), identity))
    found = look(str(tmp_path), "77:7", label_of("job", "node", "77:7"), None)
    assert [each.pid - (1 << 29) for each in found] == [0, 2]


class Explained(Watch):
    """A watch of ranks that are set, with the verdicts of a diagnosis that are set. *during*: what
    happens in the next diagnosis."""

    def __init__(self, folder: Path) -> None:
        reader, writer = os.pipe()
        self.told = open(reader, encoding="utf-8")  # noqa: SIM115
        super().__init__(Settings(str(folder), "", "job@node-77", "77:7", "/", 60.0), writer)
        self.ranks: list[Rank] = []
        self.verdicts: list[dict[str, Any] | None] = []
        self.during: Callable[[], object] = bool

    def _ranks(self) -> list[Rank]:
        return [replace(each) for each in self.ranks]

    def _diagnose(self, ranks: Sequence[Rank]) -> dict[str, Any] | None:
        during, self.during = self.during, bool
        during()
        return self.verdicts.pop(0)

    def end(self, rank: Rank) -> None:
        rank.alive = False
        self.ended(rank.key, clean=False, copied=True)

    def gone(self, rank: Rank, now: float) -> None:
        self.end(rank)
        self._look(now)

    def lines(self) -> list[str]:
        self.close_stderr()
        with self.told as stream:
            return stream.read().splitlines()


def test_each_end_has_its_own_tries(tmp_path: Path) -> None:
    """Two ends that no verdict explains are given up. A third one comes just then."""
    watch = Explained(tmp_path)
    watch.ranks = [Rank(pid, 1, True, rank=pid, step=1, step_age_s=0.0) for pid in range(4)]
    unclear = {"status": 2, "verdict": "could not tell"}
    watch.verdicts = [unclear, unclear, unclear, {"status": 1, "verdict": "rank 3 was killed"}]
    watch._look(0.0)
    watch.gone(watch.ranks[1], 10.0)
    watch._look(20.0)
    watch.gone(watch.ranks[3], 30.0)
    watch._look(40.0)
    assert watch.verdicts == []
    assert watch.lines() == ["workerserver watchdog: rank 3 was killed"]


@pytest.mark.parametrize("stands", [True, False])
def test_an_end_in_the_middle_of_a_diagnosis(tmp_path: Path, stands: bool) -> None:
    """The box of the rank that ends is moved just then. Who ended because of that rank would be
    named, if the diagnosis counted."""
    watch = Explained(tmp_path)
    watch.ranks = [Rank(pid, 1, True, rank=pid, step=1, step_age_s=0.0) for pid in range(4)]
    watch.verdicts = [{"status": 1, "verdict": f"rank {rank} ended"} for rank in (1, 2)]
    watch.during = lambda: watch.end(watch.ranks[2])
    watch._look(0.0)
    if stands:
        watch.ranks = [replace(each, step_age_s=100.0) for each in watch.ranks]
        watch._look(100.0)
    else:
        watch.gone(watch.ranks[1], 100.0)
    assert len(watch.verdicts) == 1
    watch._look(101.0)
    assert watch.lines() == ["workerserver watchdog: rank 2 ended"]


def test_an_end_whose_box_is_under_way(tmp_path: Path) -> None:
    watch = Explained(tmp_path)
    box = str(tmp_path / "2-1.box")
    watch.ranks = [Rank(pid, 1, True, rank=pid, step=1, step_age_s=0.0) for pid in range(4)]
    watch.ranks[2] = replace(watch.ranks[2], box=box)
    watch.verdicts = [{"status": 1, "verdict": "rank 2 ended"}]
    watch._look(0.0)
    watch.ranks[2].alive = False
    watch.gone(watch.ranks[1], 10.0)
    assert len(watch.verdicts) == 1
    watch.gone(watch.ranks[2], 11.0)
    assert watch.lines() == ["workerserver watchdog: rank 2 ended"]


def test_an_end_without_a_diagnosis(tmp_path: Path) -> None:
    watch = Explained(tmp_path)
    watch.ranks = [Rank(pid, 1, True, rank=pid, step=1, step_age_s=0.0) for pid in range(3)]
    watch.verdicts = [None] * 3
    watch._look(0.0)
    watch.gone(watch.ranks[2], 10.0)
    for now in (20.0, 30.0, 40.0):
        watch._look(now)
    assert watch.lines() == [
        "workerserver watchdog: could not tell: rank 2 ended, and no diagnosis could be made"
    ]


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


def test_a_box_that_another_job_has_left(tmp_path: Path) -> None:
    """One shell or driver starts one job after the other. Of the first one nobody is left to take
    the box away."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with watched(first) as job:
        wait_until(job.keepers, SECONDS)
        job.kill_watchdog()
        job.ranks[0].kill()
    with watched(second) as job:
        wait_until(job.keepers, SECONDS)
        assert job.end(0) == 0
        job.await_none()
        assert (job.lines(), job.verdicts()) == ([], [])
        (run,) = job.boxes.iterdir()
        assert len([path for path in run.iterdir() if path.suffix == ".box"]) == 1


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
