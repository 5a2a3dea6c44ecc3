"""A real job under torchrun, and what the command line says of it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.lifecycle import environment
from support.torchrun import training

__all__ = ["JOB", "Verdict", "diagnose", "diagnose_hung", "job"]

JOB = Path(__file__).resolve().with_name("job.py")
#: With the time between two rounds longer than what counts as a hang.
HUNG_S = 2.0

Verdict = dict[str, Any]


@contextlib.contextmanager
def job(scene: str, ranks: int, kind: str = "workerserver") -> Iterator[str]:
    """A running job whose ranks have come to *scene*; the pattern of their sockets."""
    with tempfile.TemporaryDirectory(prefix="ws-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        sockets = f"{folder}/rank{{rank}}.sock"
        settings = environment(
            TORCH_WORKER_SERVER_SOCKET=sockets,
            TORCH_FR_BUFFER_SIZE="2000",
            OMP_NUM_THREADS="1",
            FOLDER=name,
            TMPDIR=name,
        )
        with training(["--standalone", str(JOB), scene, kind], settings, folder, ranks):
            yield sockets


def diagnose(sockets: str, ranks: int, *words: str) -> tuple[int, Verdict]:
    """The exit status of ``workerserver diagnose --json`` and what it printed."""
    command = [sys.executable, "-m", "workerserver", "diagnose", "--json"]
    done = subprocess.run(
        [*command, "--world-size", str(ranks), *words, sockets],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


def diagnose_hung(
    sockets: str, ranks: int, *words: str, patience: float = 45
) -> tuple[int, Verdict]:
    """The first verdict on a job that hangs, or is to hang, in which anybody is suspected."""
    time.sleep(HUNG_S)
    give_up = time.monotonic() + patience
    while True:
        status, verdict = diagnose(sockets, ranks, *words)
        if status == 1 or time.monotonic() > give_up:
            return status, verdict
