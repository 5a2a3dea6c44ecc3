"""A training job under torchrun that has begun to train, and that is always ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from support.waiting import wait_until

__all__ = ["descendants", "end", "training"]


@contextlib.contextmanager
def training(
    words: Sequence[str],
    settings: Mapping[str, str],
    folder: Path,
    ranks: int,
    interval: int = 3600,
    processes: int | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """torchrun with *words*, once each rank has put a file ``begun{rank}`` into *folder*. When the
    block ends, the whole job is killed. After a failure its output is printed. *interval*: seconds
    between two looks of torchrun's at its workers; a long one, so that it doesn't end the other
    ranks when one rank has died. *processes*: how many it starts, if they are not the ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--monitor-interval", str(interval)]
    log = folder / "job.log"
    with log.open("wb") as output:
        torchrun = subprocess.Popen(
            [*command, "--nproc-per-node", str(processes or ranks), *words],
            env=settings,
            stdout=output,
            stderr=output,
        )
    try:
        begun = [folder / f"begun{rank}" for rank in range(ranks)]
        wait_until(lambda: torchrun.poll() is not None or all(each.exists() for each in begun), 300)
        assert torchrun.returncode is None
        yield torchrun
    except BaseException:
        print(log.read_text(errors="replace"))
        raise
    finally:
        end(torchrun)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill *process* and all its descendants."""
    below = descendants(process.pid)
    for pid in [*below, process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(running(pid) for pid in below))


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *descendants(child)]
    return found


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
