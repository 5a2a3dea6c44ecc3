"""A worker with a black box that times its heartbeats. ``timed_rank.py FOLDER``.

Prints its pid. For each line on stdin it prints the nanoseconds that one of 100,000 heartbeats
takes. It ends when stdin does.
"""

from __future__ import annotations

import os
import sys
import time

from workerserver import heartbeat, worker_main

BEATS = 100_000

with worker_main(blackbox=sys.argv[1]):
    heartbeat(0)
    print(os.getpid(), flush=True)
    step = 0
    for _ in sys.stdin:
        began = time.perf_counter_ns()
        for _ in range(BEATS):
            step += 1
            heartbeat(step)
        print((time.perf_counter_ns() - began) / BEATS, flush=True)
