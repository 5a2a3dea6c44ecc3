"""Jobs on a machine of their own, and what the commands say of them: ``unshare`` gives a program
pid and mount namespaces, so that no other process of the user and no other file in /tmp is seen.

For the programs in there; scenes.py starts them. No pytest in here.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from support.lifecycle import PROGRAMS, ROOT, environment, free_port
from support.torchrun import end
from support.waiting import wait_until

__all__ = [
    "TRAIN",
    "Jobs",
    "Said",
    "begun",
    "isolate",
    "until",
    "workerserver",
]

#: What a command said: its status, the lines or the object that it printed, and stderr.
Said = dict[str, Any]

TRAIN = str(PROGRAMS / "job/train.py")


def isolate() -> None:
    """An empty /tmp, in the mount namespace of this program: but for the environment and the
    sources, if those are there."""
    kept = [path for path in {sys.prefix, str(ROOT)} if Path(path).is_relative_to("/tmp")]
    held = {path: os.open(path, os.O_PATH) for path in kept}
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/tmp"], check=True)
    for path, descriptor in held.items():
        Path(path).mkdir(parents=True, exist_ok=True)
        bind = ["mount", "--no-canonicalize", "--bind", f"/proc/self/fd/{descriptor}", path]
        subprocess.run(bind, check=True, pass_fds=(descriptor,))
        os.close(descriptor)
    os.environ.pop("TMPDIR", None)


def workerserver(*words: str, **more: str) -> Said:
    """What a command says: status, the object of --json, or lines, and stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "workerserver", *words],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    value: object = done.stdout.splitlines()
    if "--json" in words and done.stdout:
        value = json.loads(done.stdout)
    return {"status": done.returncode, "said": value, "error": done.stderr}


def until(
    status: int, *words: str, seconds: float = 120.0, run: Callable[..., Said] = workerserver
) -> Said:
    """What the command says once it ends with *status*: a hang has to be old enough. After
    *seconds*, what it says then. *run* runs the words."""
    give_up = time.monotonic() + seconds
    while True:
        said = run(*words)
        if said["status"] == status or time.monotonic() > give_up:
            return said
        time.sleep(1)


class Jobs:
    """Jobs that are ended with the scene. Each one has a folder for what its ranks report."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self.count = 0

    def start(self, words: Sequence[str], **more: str) -> tuple[subprocess.Popen[bytes], Path]:
        self.count += 1
        folder = Path(f"/tmp/{self.count}")
        folder.mkdir()
        log = self.stack.enter_context((folder / "log").open("wb"))
        process = subprocess.Popen(
            [sys.executable, *words],
            env=environment(
                BEGUN=str(folder), TORCH_FR_BUFFER_SIZE="2000", OMP_NUM_THREADS="1", **more
            ),
            stdout=log,
            stderr=log,
        )
        self.stack.callback(end, process)
        return process, folder

    def torchrun(
        self, ranks: int, *words: str, restarts: int = 0, watch: bool = False, **more: str
    ) -> tuple[subprocess.Popen[bytes], Path]:
        """torchrun; without *watch* it leaves the other ranks alone when one rank dies."""
        interval = "0.1" if watch else "3600"
        options = ["--nproc-per-node", str(ranks), "--max-restarts", str(restarts)]
        options += ["--monitor-interval", interval, "--master-port", str(free_port())]
        return self.start(["-m", "torch.distributed.run", *options, *words, TRAIN], **more)


def begun(
    folder: Path,
    ranks: int,
    restart: int = 0,
    seconds: float = 300.0,
    launcher: subprocess.Popen[bytes] | None = None,
) -> list[int]:
    """The pids of the ranks once all of them train, within *seconds*. AssertionError once the
    *launcher* has ended before that: nobody will train then."""
    files = [folder / f"{rank}-{restart}" for rank in range(ranks)]

    def all_there() -> bool:
        there = all(each.exists() and each.read_text() for each in files)
        assert there or launcher is None or launcher.poll() is None, "the launcher has ended"
        return there

    try:
        wait_until(all_there, seconds)
    except AssertionError:
        print((folder / "log").read_text(errors="replace"), file=sys.stderr)
        raise
    return [int(each.read_text()) for each in files]
