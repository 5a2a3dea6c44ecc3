"""Real torchrun jobs of programs/blackbox/job_rank.py: how each is ended, and what it tells."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from support.boxes.left import await_no_keeper
from support.boxes.told import MARK
from support.lifecycle import PROGRAMS, environment
from support.torchrun import end
from support.waiting import wait_until

__all__ = [
    "CULPRIT",
    "PROGRAM",
    "RANKS",
    "Told",
    "run_job",
    "started",
    "watchdog_lines",
]

RANKS = 4
CULPRIT = 2
PROGRAM = PROGRAMS / "blackbox" / "job_rank.py"

#: torch writes a rank's error file in place. If SIGTERM comes in between, torchrun finds an empty
#: file and fails itself. And torchrun looks ten times a second: on a busy machine a rank that has
#: lost the culprit may be the first that it sees. Such a run is made again, without boxes as with.
STUMBLED = "json.decoder.JSONDecodeError"
ATTEMPTS = 6
#: What gloo says, behind its own file and line, of an operation that takes too long.
LOST = (
    r"(?:unbound_buffer\.cc:\d+\] Timed out waiting 20000ms for (?:recv|send) operation to "
    r"complete|pair\.cc:\d+\] Connection closed by peer \[127\.0\.0\.1\]:\d+.*?GLHF!.*?)"
    r'(?=\\n|")'  # in JSON, the end of a line or of the text
)


class Told(NamedTuple):
    """What a job tells by itself, without the numbers that differ from run to run. *cause*:
    torchrun's report of the rank that failed first, and its own line about that rank. *files*: the
    error files of that rank. *said*: what that rank wrote to stderr."""

    status: int
    cause: list[str]
    files: list[Any]
    said: list[str]


def run_job(way: str, place: Path, boxes: Path | None = None, **more: str) -> Told:
    """Run the job until the culprit is the rank that failed first. Its output is in *place*/log.
    *boxes*: where its black boxes are to be, those of one run; None: it keeps none."""
    for _ in range(ATTEMPTS):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        if boxes is not None:
            shutil.rmtree(boxes, ignore_errors=True)
            more |= {"WORKERSERVER_BLACKBOX": str(boxes), "WORKERSERVER_BLACKBOX_INTERVAL": "0.5"}
        with started([str(PROGRAM), way], place, more) as job:
            if way == "held":  # nobody but a person, or Slurm, ends this one
                stood = [place / f"stands{CULPRIT}"]
                _await_hang(job, stood if boxes is None else [*stood, place / "log"])
                job.send_signal(signal.SIGTERM)
            status = job.wait(600)
        if boxes is not None:
            await_no_keeper(boxes)
        told = _told(place, status)
        # It is chance which of the ranks that wait is the first one whose time is up.
        first = "" if way in ("stand", "held") else f"rank      : {CULPRIT} "
        if STUMBLED not in _log(place) and first in " ".join(told.cause):
            break
    return _of_any(told) if way == "stand" else told


@contextlib.contextmanager
def started(
    words: list[str], place: Path, more: Mapping[str, str], ranks: int = RANKS
) -> Iterator[subprocess.Popen[bytes]]:
    """torchrun with *words* and *more* variables; all is ended with the block. Error files are
    below *place*."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    command += ["--log-dir", str(place / "errors")]
    with (place / "log").open("wb") as output:
        job = subprocess.Popen(
            [*command, *words],
            env=environment(OMP_NUM_THREADS="1", JOB_RANK_FOLDER=str(place), **more),
            stdout=output,
            stderr=output,
        )
    try:
        yield job
    finally:
        end(job)


def _await_hang(job: subprocess.Popen[bytes], paths: list[Path]) -> None:
    """Until a rank stands, and, if the log is asked for, the watchdog has said so."""

    def hangs() -> bool:
        there = all(path.exists() for path in paths)
        return there and (len(paths) == 1 or bool(watchdog_lines(paths[1])))

    wait_until(lambda: job.poll() is not None or hangs(), 300)
    assert job.returncode is None


# ---- what it tells by itself


def _log(place: Path) -> str:
    return (place / "log").read_text(errors="replace")


def _told(place: Path, status: int) -> Told:
    log = _log(place)
    block = log.partition("Root Cause (first observed failure):")[2]
    lines = [line.strip() for line in block.splitlines()[:8]]
    kept = [line for line in lines if line.startswith(("rank", "exitcode", "traceback", "msg"))]
    failed = re.findall(r"failed \(exitcode: .*", log)[:1]
    failed += re.findall(r"SignalException: .*", log)
    rank = next((line.split()[2] for line in kept if line.startswith("rank ")), "-")
    files = []
    for path in sorted(place.glob(f"errors/*/attempt_*/{rank}/error.json")):
        error = json.loads(path.read_bytes())
        del error["message"]["extraInfo"]["timestamp"]
        files.append(error)
    cause = [re.sub(r"(?i)(pid:?|process) \d+", r"\1", line) for line in [*kept, *failed]]
    # torch puts the rank before each line of a traceback.
    said = [line for line in log.splitlines() if line.startswith(f"[rank{rank}]:")]
    return Told(status, cause, files, said)


def _of_any(told: Told) -> Told:
    """The same, whichever rank's time was up first, or lost one whose time was up before."""
    text = json.dumps([told.cause, told.files, told.said])
    text = re.sub(r"(rank\s*): \d", r"\1: N", text)
    text = re.sub(r"\[rank\d\]", "[rankN]", text)
    text, lost = re.subn(
        rf"RuntimeError: \[\S*gloo/transport/tcp/{LOST}", "RuntimeError: gloo", text
    )
    assert lost, text
    return Told(told.status, *json.loads(text))


# ---- what the watchdog tells


def watchdog_lines(log: Path) -> list[str]:
    text = log.read_text(errors="replace")
    return [line for line in text.splitlines() if line.startswith(MARK)]
