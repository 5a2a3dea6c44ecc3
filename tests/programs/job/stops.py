"""A job of one process that makes steps, until the file that its argument names is there."""

from __future__ import annotations

import os
import sys
import time

from workerserver import heartbeat, worker_main


def load_shard() -> None:
    time.sleep(10_000)


@worker_main()
def main() -> None:
    for step in range(1_000_000):
        heartbeat(step)
        time.sleep(0.01)
        if os.path.exists(sys.argv[1]):
            load_shard()


main()
