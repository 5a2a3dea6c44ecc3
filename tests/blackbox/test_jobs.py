"""Real torchrun jobs that end: what ``diagnose DIR`` says of the boxes, and that the job ends as it
would without them.

WORKERSERVER_BLACKBOX_RUNS=20 for the long form (``make blackbox``).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.boxes.left import await_no_keeper
from support.commands import answer
from support.lifecycle import PROGRAMS, environment
from support.torchrun import end

from workerserver.blackbox.runs import runs_in

pytestmark = [
    pytest.mark.torch,
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("torch") is None, reason="needs torch"),
    pytest.mark.timeout(3600),
]

RUNS = int(os.environ.get("WORKERSERVER_BLACKBOX_RUNS", "1"))
RANKS = 4
CULPRIT = 2
PROGRAM = PROGRAMS / "blackbox" / "job_rank.py"
#: By the way to end: the kind of the culprit's end, words of it, and torchrun's word for it.
WAYS = {
    "kill": ("killed", "was killed (SIGKILL)", "exitcode  : -9"),
    "exception": ("exception", "ended by ValueError: a batch of nothing", "exitcode  : 1"),
    "segv": ("crash", "ended by SIGSEGV", "exitcode  : -11"),
    "os_exit": ("status", "left with exit status 7", "exitcode  : 7"),
    "gil": ("exception", "ended by ValueError: a batch of nothing", "exitcode  : 1"),
    "abort": ("crash", "ended by SIGABRT", "exitcode  : -6"),
    "memory": ("oom", "was killed (out of memory", "exitcode  : -9"),
}


#: These are tried by ``make blackbox`` alone.
LONG = ("abort", "memory")
LIMITS = Path("/sys/fs/cgroup/memory")  # of cgroup v1
if not LIMITS.exists():
    LIMITS = Path("/sys/fs/cgroup")

#: torch writes a rank's error file in place. If SIGTERM comes in between, torchrun finds an empty
#: file and fails itself. And torchrun looks ten times a second: on a busy machine a rank that has
#: lost the culprit may be the first that it sees. Such a run is made again, without boxes as with.
STUMBLED = "json.decoder.JSONDecodeError"
ATTEMPTS = 6


def run_job(way: str, log: Path, folder: Path | None = None) -> int:
    """The exit status of the job; its output is in *log*. With *folder*: its black boxes are there,
    those of one run."""
    for _ in range(ATTEMPTS):
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        status = run_once(way, log, **({} if folder is None else with_boxes(folder)))
        if folder is not None:
            await_no_keeper(folder)
        text = log.read_text(errors="replace")
        if STUMBLED not in text and f"rank      : {CULPRIT} " in " ".join(root_cause(text)):
            break
    return status


def run_once(way: str, log: Path, **more: str) -> int:
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS)]
    with log.open("wb") as output:
        job = subprocess.Popen(
            [*words, str(PROGRAM), way],
            env=environment(OMP_NUM_THREADS="1", **more),
            stdout=output,
            stderr=output,
        )
        try:
            return job.wait(600)
        finally:
            end(job)


def with_boxes(folder: Path) -> dict[str, str]:
    return {"WORKERSERVER_BLACKBOX": str(folder), "WORKERSERVER_BLACKBOX_INTERVAL": "0.5"}


def root_cause(log: str) -> list[str]:
    """torchrun's report of the rank that failed first, without numbers that differ."""
    block = log.partition("Root Cause (first observed failure):")[2]
    lines = [line.strip() for line in block.splitlines()[:8]]
    kept = [line for line in lines if line.startswith(("rank", "exitcode", "traceback", "msg"))]
    return [re.sub(r"(?i)(pid:?) \d+", r"\1", line) for line in kept]


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cgroup that the culprit may enter."""
    folder = LIMITS / f"workerserver-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made: {error.strerror}")
    monkeypatch.setenv("JOB_RANK_CGROUP", str(folder))
    yield
    folder.rmdir()


@pytest.mark.parametrize("way", WAYS)
def test_who_ended_the_job(way: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if way in LONG and RUNS == 1:
        pytest.skip("make blackbox tries it")
    if way == "memory":
        request.getfixturevalue("limited")
    plain = tmp_path / "plain.log"
    status = run_job(way, plain)
    reported = root_cause(plain.read_text(errors="replace"))
    assert WAYS[way][2] in " ".join(reported)
    for number in range(RUNS):
        folder = tmp_path / f"boxes{number}"
        log = tmp_path / f"job{number}.log"
        try:
            assert run_job(way, log, folder) == status
            text = log.read_text(errors="replace")
            assert root_cause(text) == reported
            check(way, folder)
        except BaseException:
            print(log.read_text(errors="replace"))
            raise


def check(way: str, folder: Path) -> None:
    kind, words = WAYS[way][:2]
    (run,), problems = runs_in([str(folder)])
    assert not problems
    assert [box.rank for box in run.boxes] == list(range(RANKS))
    assert sum(box.torn for box in run.boxes) <= (way == "kill")
    status, verdict = answer("diagnose", str(folder), timeout=120)
    assert status == 1, verdict
    (culprit,) = verdict["culprits"]
    assert (culprit["rank"], culprit["end"]) == (CULPRIT, kind), verdict
    assert words in verdict["verdict"]
    assert culprit["step"] == 5
    assert culprit["location"]["function"] in ("load_batch", "end")
    assert culprit["location"]["file"] == str(PROGRAM)
    if way == "gil":
        held = verdict["boxes"][CULPRIT + 1]
        assert held["end"] == "terminated"
        assert held["location"]["function"] == "load_batch"
    status, listed = answer("blackbox", str(folder), timeout=120)
    assert status == 0
    assert [box["rank"] for box in listed["runs"][0]["boxes"]] == list(range(RANKS))


@pytest.mark.skipif(RUNS == 1, reason="takes half a minute: make blackbox")
def test_a_hang_that_gloos_time_out_ends(tmp_path: Path) -> None:
    """The ranks that waited end by an exception. The one that stood still is named all the same."""
    for number in range(RUNS):
        folder = tmp_path / f"boxes{number}"
        log = tmp_path / f"job{number}.log"
        assert run_once("stand", log, **with_boxes(folder)) == 1
        await_no_keeper(folder)
        (run,), problems = runs_in([str(folder)])
        assert not problems
        assert [box.rank for box in run.boxes] == list(range(RANKS))
        status, verdict = answer("diagnose", str(folder), timeout=120)
        assert status == 1, verdict
        assert f"rank {CULPRIT} " in verdict["verdict"], verdict["verdict"]
        assert "load_batch" in verdict["verdict"] or "end()" in verdict["verdict"]
        assert [each["rank"] for each in verdict["culprits"]] in ([], [CULPRIT])
