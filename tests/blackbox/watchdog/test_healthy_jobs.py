"""Real healthy jobs of which the watchdog says nothing, however uneven they are.

WORKERSERVER_BLACKBOX_HEALTHY=20 for the long form (``make blackbox``).
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
from support.boxes.jobs import started, watchdog_lines
from support.boxes.left import await_no_keeper, boxes_in, diagnoses_of
from support.boxes.told import verdicts_in
from support.commands import answer
from support.lifecycle import PROGRAMS
from support.waiting import wait_until

from workerserver.cluster.read.steps import Pace, read_steps

if sys.platform != "linux":
    pytest.skip("black boxes need Linux", allow_module_level=True)

JOBS = int(os.environ.get("WORKERSERVER_BLACKBOX_HEALTHY", "1"))
RANKS = 2 if JOBS == 1 else 4
STALL_SECONDS = 2.0


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(JOBS))
def test_nothing_is_said_of_a_healthy_job(seed: int, tmp_path: Path) -> None:
    boxes, log = tmp_path / "boxes", tmp_path / "log"
    program = PROGRAMS / "blackbox" / "healthy_rank.py"
    words = [str(program), str(seed), f"{STALL_SECONDS:g}", str(tmp_path)]
    asked = {"WORKERSERVER_BLACKBOX": str(boxes), "WORKERSERVER_STALL": f"{STALL_SECONDS:g}"}
    with started(words, tmp_path, asked, RANKS) as job:
        looked = 0
        for number in (1, 2):
            await_file(job, tmp_path / f"pause{number}")
            looked += await_diagnosis(job, boxes, tmp_path / f"over{number}")
            (tmp_path / f"looked{number}").touch()
        status = job.wait(200)
    await_no_keeper(boxes)
    text = log.read_text(errors="replace")
    assert status == 0, text
    assert watchdog_lines(log) == []
    assert verdicts_in(boxes) == []
    # The threshold was passed, else this shows nothing.
    paces = [read_steps(box.steps.value) for box in boxes_in(boxes) if box.steps is not None]
    assert len(paces) == RANKS
    assert all(longest(pace) > 2 * STALL_SECONDS for pace in paces)
    # On a machine whose processors are all taken, a diagnosis may take longer than a pause.
    print(f"seed {seed}: a whole diagnosis in {looked} of 2 pauses")
    status, verdict = answer("diagnose", str(boxes))
    assert (status, verdict["culprits"]) == (3, []), verdict


def await_file(job: subprocess.Popen[bytes], path: Path) -> None:
    wait_until(lambda: job.poll() is not None or path.exists(), 200)


def await_diagnosis(job: subprocess.Popen[bytes], boxes: Path, over: Path) -> bool:
    """Whether the watchdog makes a whole diagnosis, from now on, until the pause is *over*: without
    one it would say nothing of any job."""
    before = set(diagnoses_of(boxes))
    seen: set[int] = set()

    def made() -> bool:
        now = set(diagnoses_of(boxes)) - before
        seen.update(now)
        return bool(seen - now)

    wait_until(lambda: made() or over.exists() or job.poll() is not None, 200)
    return made()


def longest(pace: Pace) -> float:
    """Seconds."""
    return max(after - before for before, after in pairwise(pace.began_ns)) / 1e9
