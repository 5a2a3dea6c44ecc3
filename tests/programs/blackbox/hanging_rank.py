"""A rank of a gloo job in which rank 1 does not come to the sixth all_reduce.

    hanging_rank.py [TIMEOUT]

With TIMEOUT, in seconds, gloo's time-out ends the others by an exception.
"""

from __future__ import annotations

import datetime
import sys
import time

import torch
import torch.distributed as dist

from workerserver import heartbeat, worker_main


def stand() -> None:
    while True:
        time.sleep(1000)


@worker_main()
def main(timeout: float) -> None:
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=timeout))
    for step in range(10):
        heartbeat(step)
        if step == 5 and dist.get_rank() == 1:
            stand()
        dist.all_reduce(torch.ones(4))


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1800.0)
