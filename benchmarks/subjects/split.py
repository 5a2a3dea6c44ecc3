"""A program that computes for seven parts of its time in ``seven()`` and for three in ``three()``.

Use: ``python -m benchmarks.subjects.split SOCKET``. A server of ours listens at SOCKET. Each line
of input starts a new measurement, and gets one line of JSON about the last one: ``share``, the part
of its time that the program itself measured in ``seven()``.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time

PDEATHSIG = 1  # prctl's

spent = [0, 0]


def spin(count: int) -> None:
    for _ in range(count):
        pass


def seven() -> None:
    spin(70_000)


def three() -> None:
    spin(30_000)


def orders() -> None:
    for _ in sys.stdin:
        one, other = spent
        spent[:] = [0, 0]
        print(json.dumps({"share": one / max(one + other, 1)}), flush=True)
    os._exit(0)


def main() -> None:
    ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGKILL)
    from workerserver import WorkerServer

    server = WorkerServer(sys.argv[1])
    print(json.dumps({"pid": os.getpid(), "port": server.port}), flush=True)
    threading.Thread(target=orders, daemon=True).start()
    while True:
        start = time.perf_counter_ns()
        seven()
        between = time.perf_counter_ns()
        three()
        spent[0] += between - start
        spent[1] += time.perf_counter_ns() - between


if __name__ == "__main__":
    main()
