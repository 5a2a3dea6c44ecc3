"""``diagnose`` on live ranks and black boxes together."""

from __future__ import annotations

import contextlib
import html
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.boxes.left import await_box, await_no_keeper
from support.boxes.made import put_box
from support.commands import answer
from support.lifecycle import PROGRAMS, environment
from support.torchrun import end
from support.waiting import wait_until

pytestmark = pytest.mark.timeout(300)

PROGRAM = PROGRAMS / "blackbox" / "stepping_rank.py"
RANKS = 3


@contextlib.contextmanager
def ranks(folder: Path, sockets: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Three ranks of a job on this host, which serve and keep boxes."""
    sockets.mkdir()
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "workerserver", "run", str(PROGRAM)],
            env=environment(
                TORCH_WORKER_SERVER_SOCKET=str(sockets / "rank{rank}.sock"),
                WORKERSERVER_BLACKBOX=str(folder),
                WORKERSERVER_BLACKBOX_INTERVAL="0.5",
                WORKERSERVER_JOB="together",
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(RANKS),
                LOCAL_WORLD_SIZE=str(RANKS),
            ),
        )
        for rank in range(RANKS)
    ]
    try:
        for each in started:
            await_box(folder, each.pid, ended=False)
        wait_until(lambda: len(list(sockets.glob("*.sock"))) == RANKS, 60)
        yield started
    finally:
        for each in started:
            end(each)
        await_no_keeper(folder)


def test_a_rank_that_does_not_answer_is_judged_by_its_box(tmp_path: Path) -> None:
    folder, sockets = tmp_path / "boxes", tmp_path / "sockets"
    target = str(sockets / "rank{rank}.sock")
    with ranks(folder, sockets) as started:
        status, told = answer("diagnose", target, str(folder), timeout=120)
        assert status == 0, told
        assert told["boxes"] == []
        assert f"ranks 0-{RANKS - 1} are alive and have a box: the answers count" in told["notes"]
        os.kill(started[1].pid, signal.SIGKILL)
        started[1].wait()
        await_box(folder, started[1].pid)
        status, told = answer("diagnose", target, str(folder), timeout=120)
        page = tmp_path / "report.html"
        of_both = answer("report", target, str(folder), "-o", str(page), timeout=120)
    assert of_both[0] == 1, of_both
    assert of_both[1]["verdict"].startswith("rank 1 was killed (SIGKILL) at ")
    # The one that is gone: framed and grey; what it did last, and how it was started.
    shown = html.unescape(page.read_text())
    assert re.search(r'class="x s" data-r="1"', shown)
    assert re.search(r'class="k\d+" data-r="0"', shown)
    assert re.search(r"<dt>command</dt><dd>[^<]+stepping_rank.py</dd>", shown)
    assert re.search(r"<pre[^>]+newest frames[^<]+load_batch", shown)
    assert re.search(r'class="suspect" data-r="1"><td>rank 1 ', shown)  # its steps
    assert status == 1, told
    (culprit,) = told["culprits"]
    assert (culprit["rank"], culprit["end"]) == (1, "killed"), told
    assert culprit["location"]["function"] == "load_batch"
    assert told["verdict"].startswith("rank 1 was killed (SIGKILL) at ")
    assert told["verdict"].endswith("; ranks 0,2 are alive")
    assert "ranks 0,2 are alive and have a box: the answers count" in told["notes"]
    # Nobody is left: the boxes alone.
    status, told = answer("diagnose", target, str(folder), timeout=120)
    assert status == 1
    assert {each["rank"] for each in told["culprits"]} == {0, 1, 2}


def test_the_boxes_of_another_job_count_for_nothing(tmp_path: Path) -> None:
    folder, sockets, others = tmp_path / "boxes", tmp_path / "sockets", tmp_path / "others"
    others.mkdir()
    killed = {"copied": 1.0, "ended": 1_700_000_007.0, "wait_status": 9, "oom_kills": 0}
    put_box(others, 1, ("keeper", 8.0, killed), job="together")
    with ranks(folder, sockets):
        target = str(sockets / "rank{rank}.sock")
        status, told = answer("diagnose", target, str(others), timeout=120)
    assert status == 0, told
    assert told["culprits"] == []
    assert any("of another job or run (together): not counted" in each for each in told["notes"])
