"""Starts the keeper of this host's black boxes from one of its workers, as a detached process."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import subprocess
import sys

from workerserver.blackbox.place import READY

__all__ = ["label_of", "start_keeper"]

logger = logging.getLogger("workerserver")

#: Variables that would make the keeper a worker.
NOT_ITS = ("TORCH_WORKER_SERVER_SOCKET", "WORKERSERVER_", "RANK", "LOCAL_RANK", "TORCHELASTIC_")
REAP_SECONDS = 0.2
MAX_LINE_BYTES = 4096
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


def label_of(job: str, host: str, starter: str) -> str:
    """How the folder of a run of this job on this host ends. *starter*: ``PID:TICKS``."""
    plain = (_UNSAFE.sub("_", text)[:64] or "_" for text in (job, host))
    return f"{'@'.join(plain)}-{starter.partition(':')[0]}"


def start_keeper(
    loop: asyncio.AbstractEventLoop, boxes: str, folder: str, keep: int, label: str
) -> None:
    """On the loop's thread, which never waits for it: the folder may block for ever. What the
    keeper can't do is a warning of one line. OSError if no process can be had."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", f"{__package__}.keeper", "--boxes", boxes),
            *("--folder", os.path.abspath(folder), "--keep", str(keep), "--label", label),
        ],
        cwd="/",  # -m looks for modules in the current folder first
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # At once: a launcher may kill our process group before Python runs in the keeper.
        start_new_session=True,
    )
    assert process.stdout is not None
    pipe = process.stdout
    os.set_blocking(pipe.fileno(), False)

    def reap() -> None:
        if process.poll() is None:  # it forks as soon as Python runs in it, and ends
            loop.call_later(REAP_SECONDS, reap)

    def read() -> None:
        line = pipe.read(MAX_LINE_BYTES)
        loop.remove_reader(pipe.fileno())
        pipe.close()
        if line == READY:
            return
        reason = (line or b"it did not start").decode("utf-8", "replace").strip()
        logger.warning("black boxes are not copied to %s: %s", folder, reason)

    loop.add_reader(pipe.fileno(), read)
    loop.call_later(REAP_SECONDS, reap)


def _environment() -> dict[str, str]:
    environment = {name: text for name, text in os.environ.items() if not name.startswith(NOT_ITS)}
    path = environment.get("PYTHONPATH", "")
    if path:
        parts = (os.path.abspath(part) for part in path.split(os.pathsep) if part)
        environment["PYTHONPATH"] = os.pathsep.join(parts)
    return environment
