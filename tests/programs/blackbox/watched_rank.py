"""One rank, or several ones beside each other, that do what files in a folder say.

    watched_rank.py FOLDER

It makes steps. While somebody else locks the file ``disk``, it makes none. Once there is a file
``end`` it ends as the word in that file says.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from pathlib import Path

from workerserver import heartbeat, worker_main

FOLDER = Path(sys.argv[1])


def load_batch() -> None:
    time.sleep(1000)


def wait_for_disk() -> None:
    with (FOLDER / "disk").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)


def end(way: str) -> None:
    if way == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif way == "os_exit":
        os._exit(7)
    elif way == "leave":
        os._exit(0)
    elif way == "exec":
        (FOLDER / "end").unlink()
        os.execv(sys.executable, [sys.executable, *sys.argv])
    elif way == "exception":
        raise ValueError("a batch of nothing")
    elif way == "load":
        load_batch()


@worker_main()
def main() -> None:
    step = 0
    (FOLDER / f"begun{os.environ.get('RANK', '0')}").touch()
    while not (FOLDER / "end").exists():
        heartbeat(step)
        step += 1
        time.sleep(0.05)
        wait_for_disk()
    end((FOLDER / "end").read_text())


main()
