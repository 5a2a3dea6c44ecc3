"""One rank of a gloo job, of which one rank ends in a given way at step 5, or is in C with the GIL.

    job_rank.py WAY

Without WORKERSERVER_BLACKBOX it has no black box. JOB_RANK_FOLDER: where a file tells that the rank
has come to its last step.
"""

from __future__ import annotations

import ctypes
import datetime
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from workerserver import heartbeat, worker_main

CULPRIT = 2
AT_STEP = 5
LIMIT = 256 << 20


def load_batch(way: str, rank: int, step: int) -> torch.Tensor:
    if rank == CULPRIT and step == AT_STEP:
        Path(os.environ["JOB_RANK_FOLDER"], f"stands{rank}").touch()
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
    elif way == "abort":
        # As NCCL's watchdog does it: from a thread that has never seen Python, while another one
        # keeps the GIL.
        libc = ctypes.CDLL(None)
        thread = ctypes.c_ulong()
        libc.pthread_create(ctypes.byref(thread), None, libc.abort, None)
        ctypes.PyDLL(None).sleep(1000)
    elif way == "memory":
        _ = b"x" * (4 * LIMIT)
    elif way == "held":
        ctypes.PyDLL(None).sleep(1000)  # C code that keeps the GIL
    elif way == "stand":
        time.sleep(1000)


def with_limit(folder: str) -> None:
    """Put this process into the cgroup *folder*, which may take LIMIT bytes."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        if os.path.exists(f"{folder}/{name}"):
            Path(folder, name).write_text(str(LIMIT))
    Path(folder, "cgroup.procs").write_text(str(os.getpid()))


@worker_main()
def main(way: str) -> None:
    timeout = datetime.timedelta(seconds=20 if way == "stand" else 1800)
    dist.init_process_group("gloo", timeout=timeout)
    rank = dist.get_rank()
    for step in range(AT_STEP + 3):
        heartbeat(step)
        dist.all_reduce(load_batch(way, rank, step))
        time.sleep(0.02)
    dist.destroy_process_group()


if __name__ == "__main__":
    if sys.argv[1] == "memory" and os.environ["RANK"] == str(CULPRIT):
        with_limit(os.environ["JOB_RANK_CGROUP"])
    main(sys.argv[1])
