"""One rank that makes steps until somebody ends it."""

from __future__ import annotations

import time

from workerserver import heartbeat


def load_batch() -> None:
    time.sleep(0.1)


for step in range(100_000):
    heartbeat(step)
    load_batch()
