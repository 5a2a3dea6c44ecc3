"""A job of the corpus under torchrun, and what the command line says of it."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scenes import Scene, Suspect
from support.commands import answer
from support.lifecycle import environment
from support.torchrun import training

__all__ = ["HERE", "Verdict", "diagnose", "diagnose_hung", "job", "suspects", "told"]

HERE = Path(__file__).resolve().parent

Verdict = dict[str, Any]


@contextlib.contextmanager
def job(scene: Scene, kind: str | None = None) -> Iterator[str]:
    """The running job, once its ranks have come to *scene*; the pattern of their sockets."""
    how = scene.how
    with tempfile.TemporaryDirectory(prefix="ws-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        settings = environment(
            TORCH_WORKER_SERVER_SOCKET=f"{folder}/rank{{rank}}.sock",
            TORCH_FR_BUFFER_SIZE=str(how.ring),
            OMP_NUM_THREADS="1",
            FOLDER=name,
            TMPDIR=name,
        )
        settings |= how.settings
        if not how.beats:
            settings["NO_HEARTBEAT"] = "1"
        words = ["--standalone", *how.words, str(HERE / "job.py"), scene.family, scene.name]
        words.append(kind or how.kind)
        interval = 1 if how.watched_by_torchrun else 3600
        with training(words, settings, folder, scene.ranks, interval, how.processes):
            yield f"{folder}/{how.sockets}"


def diagnose(sockets: str, ranks: int, *words: str) -> tuple[int, Verdict]:
    """The exit status of ``workerserver diagnose --json`` and what it printed."""
    return answer("diagnose", "--world-size", str(ranks), *words, sockets)


def diagnose_hung(sockets: str, scene: Scene, deadline_s: float | None) -> tuple[int, Verdict]:
    """The first verdict on a job that hangs, or is to hang, in which anybody is suspected. If
    nobody can be: the second one."""
    words = () if deadline_s is None else ("--deadline", str(deadline_s))
    time.sleep(scene.how.settled_s)
    give_up = time.monotonic() + scene.how.patience_s
    while True:
        status, verdict = diagnose(sockets, scene.ranks, *words)
        if status == 1 or time.monotonic() > give_up:
            return status, verdict


def suspects(verdict: Verdict) -> tuple[Suspect, ...]:
    found = []
    for each in verdict["suspects"]:
        place, _, function = (each["location"] or "").rpartition(" ")
        file = Path(place.rpartition(":")[0])
        assert not function or HERE in (file.parent, file.parent.parent), each
        found.append(
            Suspect(
                each["rank"],
                each["reason"],
                each["process_group"],
                each["collective"],
                each["seq"],
                function or None,
            )
        )
    return tuple(found)


def told(verdict: Verdict) -> Any:
    """What pytest shows of a wrong one."""
    return verdict["verdict"], verdict["process_groups"], verdict["groups"], verdict["problems"]
