"""Ranks that a watchdog watches: programs/blackbox/watched_rank.py beside each other, with one
stderr, and what the watchdog says of them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from support.boxes.left import commands, is_collector, parent_of
from support.boxes.told import lines_in, verdicts_in
from support.lifecycle import PROGRAMS, environment
from support.waiting import wait_until

__all__ = ["Watched", "watched"]

SECONDS = 250.0  # on a busy machine: the watchdog and its diagnosis have a low priority


class Watched:
    """*ranks*: the processes. *log*: what they and their watchdog write to stderr, a file."""

    def __init__(self, folder: Path, ranks: int, variables: Mapping[str, str]) -> None:
        self.folder = folder
        self.boxes = folder / "boxes"
        self.log = folder / "log"
        self.ranks: list[subprocess.Popen[bytes]] = []
        self._job = f"watched-{os.getpid()}-{folder.name}"
        self._count = ranks
        self._variables = {"WORKERSERVER_STALL": "1", **variables}

    def start(self, rank: int, stderr: int | None = None) -> None:
        """*stderr*: a descriptor, instead of the log."""
        own = self.folder / f"rank{rank}"
        own.mkdir()
        (own / "disk").touch()
        many = {"RANK": rank, "LOCAL_RANK": rank}
        many |= {"WORLD_SIZE": self._count, "LOCAL_WORLD_SIZE": self._count}
        words = [sys.executable, str(PROGRAMS / "blackbox" / "watched_rank.py"), str(own)]
        variables = {name: str(value) for name, value in many.items()}
        with self.log.open("ab") as log:
            self.ranks.append(
                subprocess.Popen(
                    words,
                    env=environment(WORKERSERVER_JOB=self._job, **variables, **self._variables),
                    stdout=log,
                    stderr=log if stderr is None else stderr,
                )
            )
        wait_until((own / f"begun{rank}").exists, SECONDS)

    @contextlib.contextmanager
    def hung(self, *ranks: int) -> Iterator[None]:
        """The *ranks* wait for their disk."""
        with contextlib.ExitStack() as stack:
            for rank in ranks:
                file = stack.enter_context((self.folder / f"rank{rank}" / "disk").open())
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def end(self, rank: int, way: str = "return") -> int:
        """The exit status."""
        part = self.folder / f"rank{rank}" / "end.part"
        part.write_text(way)
        part.rename(part.with_suffix(""))
        return self.ranks[rank].wait(SECONDS)

    def keepers(self) -> list[tuple[int, list[str]]]:
        """Pid and command line of the job's keepers."""
        found = self._family()
        return [
            (pid, words)
            for pid, words in found.items()
            if parent_of(pid) not in found and not is_collector(pid)
        ]

    def _family(self) -> dict[int, list[str]]:
        """With the process that each has forked for diagnoses."""
        return {
            pid: words
            for pid, words in commands()
            if any(self._job in word for word in words) and "--label" in words
        }

    def kill_watchdog(self) -> None:
        for pid in self._family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.await_none()

    def await_none(self) -> None:
        """Until the watchdog has ended."""
        wait_until(lambda: not self._family(), 250)

    # ---- what it says

    def lines(self) -> list[str]:
        return lines_in(self.log)

    def await_lines(self, count: int) -> list[str]:
        wait_until(lambda: len(self.lines()) >= count, SECONDS)
        return self.lines()

    def verdicts(self) -> list[dict[str, Any]]:
        return verdicts_in(self.boxes)


@contextlib.contextmanager
def watched(
    folder: Path, ranks: int = 1, *, boxes: bool = True, **variables: str
) -> Iterator[Watched]:
    """*ranks* that make steps. Without *boxes*: a watchdog alone. All is ended with the block.
    After a failure the log is printed."""
    asked = {"WORKERSERVER_BLACKBOX": str(folder / "boxes")} if boxes else {}
    if not boxes:
        asked["WORKERSERVER_WATCHDOG"] = "1"
    job = Watched(folder, ranks, {**asked, **variables})
    try:
        for rank in range(ranks):
            job.start(rank)
        yield job
    except BaseException:
        if job.log.exists():
            print(job.log.read_text(errors="replace"))
        raise
    finally:
        for process in job.ranks:
            process.kill()
            process.wait()
        job.await_none()
