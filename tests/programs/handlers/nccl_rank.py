"""A rank of an NCCL job that hangs. It needs a GPU, and shares device 0 with the other ranks.

``torchrun nccl_rank.py SCENE``, where SCENE is one of these:

late      the last rank stops before its first all_reduce, so NCCL never connects the ranks
device    the device has work for hours before the last all_reduce; the rank synchronises
teardown  the same, and the rank destroys its process group
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

import workerserver

#: Clock cycles of the device: hours.
FOREVER = 1 << 45


def prepare() -> None:
    while True:
        time.sleep(1)


def train(scene: str) -> None:
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.cuda.set_device(0)
    dist.init_process_group("nccl")
    begun = Path(os.environ["FOLDER"], f"begun{rank}")
    tensor = torch.ones(4, device="cuda")
    if scene == "late":
        begun.touch()
        if rank == size - 1:
            prepare()
        dist.all_reduce(tensor)
        torch.cuda.synchronize()
        return
    for _ in range(3):
        dist.all_reduce(tensor)
    torch.cuda.synchronize()
    torch.cuda._sleep(FOREVER)
    dist.all_reduce(tensor)
    begun.touch()
    if scene == "teardown":
        dist.destroy_process_group()
    torch.cuda.synchronize()


def main() -> None:
    with workerserver.worker_main():
        train(sys.argv[1])


if __name__ == "__main__":
    main()
