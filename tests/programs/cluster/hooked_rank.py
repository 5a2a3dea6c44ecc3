"""A rank whose process group has a backend written in Python, which torch 2.15's hook records.

``torchrun hooked_rank.py KIND SCENE``: KIND is ``workerserver`` or ``torch`` (torch's own server),
SCENE ``waits`` (an operation is waited for after it was issued, so that the recorder tells no end)
or ``inside`` (a call returns when the operation has ended). The last rank stops before its fourth
all_reduce.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d

from workerserver import worker_main


class Arrival(dist._Work):  # type: ignore[misc]
    def __init__(self, backend: Mine, number: int) -> None:
        super().__init__()
        self.backend, self.number = backend, number

    def wait(self, timeout: Any = None) -> bool:
        self.backend.wait_for_all(self.number)
        return True

    def is_completed(self) -> bool:
        return False


class Mine(c10d.Backend):
    """Its operations end once all ranks have set a key of the store. Nothing is sent."""

    def __init__(self, store: Any, rank: int, size: int, inside: bool) -> None:
        super().__init__(rank, size)
        self.store, self.inside, self.number = store, inside, 0

    def getBackendName(self) -> str:
        return "mine"

    def wait_for_all(self, number: int) -> None:
        for rank in range(self.size()):
            while not self.store.check([f"{number}/{rank}"]):
                time.sleep(0.02)

    def allreduce(self, tensors: Any, options: Any = None) -> Arrival:
        self.number += 1
        self.store.set(f"{self.number}/{self.rank()}", "here")
        if self.inside:
            self.wait_for_all(self.number)
        return Arrival(self, self.number)


def prepare() -> None:
    while True:
        time.sleep(1)


def train(inside: bool) -> None:
    def create(store: Any, rank: int, size: int, timeout: Any) -> Mine:
        return Mine(store, rank, size, inside)

    dist.Backend.register_backend("mine", create, devices=["cpu"])
    dist.init_process_group("mine")
    rank, size = dist.get_rank(), dist.get_world_size()
    for step in range(1, 5):
        if step == 4:
            Path(os.environ["FOLDER"], f"begun{rank}").touch()
            if rank == size - 1:
                prepare()
        dist.all_reduce(torch.ones(3))


def main() -> None:
    kind, scene = sys.argv[1:]
    server: Any = contextlib.nullcontext()
    if kind == "workerserver":
        server = worker_main()
    else:
        path = os.environ["TORCH_WORKER_SERVER_SOCKET"].format(rank=os.environ["RANK"])
        kept = c10d._WorkerServer(path)  # noqa: F841 - it serves as long as it lives
    with server:
        train(scene == "inside")


if __name__ == "__main__":
    main()
