"""One rank of a gloo job, of which one rank ends in a given way at step 5, or is in C with the GIL.

    job_rank.py WAY

Without WORKERSERVER_BLACKBOX it has no black box.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

import torch
import torch.distributed as dist

from workerserver import heartbeat, worker_main

CULPRIT = 2
AT_STEP = 5


def load_batch(way: str, rank: int, step: int) -> torch.Tensor:
    if rank == CULPRIT and step == AT_STEP:
        time.sleep(4)  # so that the step and the stacks are in the box, and the others wait
        end(way)
    if way == "gil" and rank == CULPRIT + 1 and step == AT_STEP:
        ctypes.PyDLL(None).sleep(1000)  # C code that keeps the GIL, until torchrun's SIGTERM
    return torch.ones(8)


def end(way: str) -> None:
    if way == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1000)
    elif way in ("exception", "gil"):
        raise ValueError("a batch of nothing")
    elif way == "segv":
        ctypes.string_at(0)
    elif way == "os_exit":
        os._exit(7)


@worker_main()
def main(way: str) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    for step in range(AT_STEP + 3):
        heartbeat(step)
        dist.all_reduce(load_batch(way, rank, step))
        time.sleep(0.02)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
