"""One rank of a gloo job that goes on: ``torchrun … uneven_ranks.py workerserver|torch FACTOR``.

Each step is some 40 ms of work, as random on each rank; that of rank 2 takes FACTOR times as long.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

import workerserver

ENOUGH = 120
RANK = int(os.environ["RANK"])
FOLDER = Path(os.environ["FOLDER"])


def main(kind: str, factor: str) -> None:
    dist.init_process_group("gloo")
    path = str(FOLDER / f"rank{RANK}.sock")
    if kind == "torch":
        server = torch._C._distributed_c10d._WorkerServer(path)
    else:
        server = workerserver.WorkerServer(path)
    loads = random.Random(RANK)
    slower = float(factor) if RANK == 2 else 1.0
    for step in range(100_000):
        workerserver.heartbeat(step)
        time.sleep(0.04 * loads.uniform(0.8, 1.2) * slower)
        dist.all_reduce(torch.ones(4))
        if step == 0:
            (FOLDER / f"begun{RANK}").touch()
        if step == ENOUGH and RANK == 0:
            (FOLDER / "enough").touch()
    del server


if __name__ == "__main__":
    main(*sys.argv[1:])
