"""A worker without a black box has nothing of one.

nothing_asked.py [SOCKET]
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from workerserver import heartbeat, worker_main

#: Signals above these are the C library's own, which catches some for its threads.
USUAL = (1 << 31) - 1


def signals() -> list[int]:
    """The masks of signals that are blocked, ignored and caught."""
    fields = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return [int(words[1], 16) & USUAL for words in fields if words[0] in KINDS]


KINDS = ("SigBlk:", "SigIgn:", "SigCgt:")


def main(*socket: str) -> None:
    if socket:
        os.environ["TORCH_WORKER_SERVER_SOCKET"] = socket[0]
    before = signals(), sys.excepthook, threading.excepthook
    with worker_main():
        heartbeat(1)
        assert (signals(), sys.excepthook, threading.excepthook) == before
        assert ".box" not in Path("/proc/self/maps").read_text()
        ours = [name for name in sys.modules if "blackbox" in name or "black_box" in name]
        assert not ours, ours
        assert threading.active_count() == 1 + 2 * len(socket)


if __name__ == "__main__":
    main(*sys.argv[1:])
