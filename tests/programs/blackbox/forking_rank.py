"""A rank with a black box that forks: the child says what it has of it.

forking_rank.py FOLDER
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from workerserver import heartbeat, worker_main


def caught() -> int:
    """The signals that have a handler, as a mask."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return int(line.split()[1], 16) & (1 << 31) - 1  # without the C library's own
    raise AssertionError("no SigCgt")


def child(before: int) -> None:
    assert caught() == before, (hex(caught()), hex(before))
    assert ".box" not in Path("/proc/self/maps").read_text()
    thread = threading.Thread(target=lambda: 1 / 0)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    thread.start()
    thread.join()
    print("child: no handler, no mapping, no hook told", flush=True)
    time.sleep(1000)


def main(folder: str) -> None:
    before = caught()
    with worker_main(blackbox=folder):
        heartbeat(1)
        assert caught() != before
        pid = os.fork()
        if pid == 0:
            time.sleep(0.2)  # the parent prints first
            child(before)
        print(os.getpid(), pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(f"child ended: {os.WTERMSIG(status)}", flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    main(sys.argv[1])
