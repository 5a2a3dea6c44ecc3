"""A server beside threads that stand still. ``parked_server.py SOCKET COUNT``.

Prints ``ready``, and ends with its input.
"""

from __future__ import annotations

import sys
import threading

from workerserver import WorkerServer

ends = threading.Event()


def parked_here() -> None:
    ends.wait()


def main() -> None:
    with WorkerServer(sys.argv[1]):
        for _ in range(int(sys.argv[2])):
            threading.Thread(target=parked_here).start()
        print("ready", flush=True)
        sys.stdin.read()
        ends.set()


if __name__ == "__main__":
    main()
