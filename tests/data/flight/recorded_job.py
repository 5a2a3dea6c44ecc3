"""One rank of a gloo job with a planted fault; ``record.py`` starts it and keeps what it answers.

``recorded_job.py SCENE ours|torch SOCKET``, under torchrun's environment. Lives until it is killed.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

import workerserver

FOREVER = 600.0
RANK = int(os.environ["RANK"])
SCENES: dict[str, Callable[[], None]] = {}


def scene(function: Callable[[], None]) -> Callable[[], None]:
    SCENES[function.__name__] = function
    return function


def train(steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        workerserver.heartbeat(step)
        dist.all_reduce(torch.ones(4))


def compute() -> None:
    time.sleep(FOREVER)


@scene
def healthy() -> None:
    for step in range(10**6):
        workerserver.heartbeat(step)
        time.sleep(0.01)
        dist.all_reduce(torch.ones(4))


@scene
def straggler() -> None:
    for step in range(10**6):
        workerserver.heartbeat(step)
        if RANK == 1:
            time.sleep(1.0)
        dist.all_reduce(torch.ones(4))


@scene
def asleep() -> None:
    train(5)
    workerserver.heartbeat(5)
    if RANK == 2:
        compute()
    dist.all_reduce(torch.ones(4))


@scene
def stopped() -> None:
    """record.py stops rank 1."""
    for step in range(10**6):
        workerserver.heartbeat(step)
        time.sleep(0.01)
        dist.all_reduce(torch.ones(4))


@scene
def two_asleep() -> None:
    """Ranks 1 and 3, in different places; record.py stops rank 2."""
    train(5)
    workerserver.heartbeat(5)
    if RANK == 1:
        compute()
    if RANK == 3:
        threading.Event().wait(FOREVER)
    dist.all_reduce(torch.ones(4))


@scene
def operations() -> None:
    train(3)
    if RANK == 1:
        dist.broadcast(torch.ones(4), 0)
    else:
        dist.all_reduce(torch.ones(4))
    compute()


@scene
def order() -> None:
    """Rank 1 gathers first and reduces then, in one group; without waiting in between."""
    train(3)
    tensor, parts = torch.ones(4), [torch.zeros(4) for _ in range(dist.get_world_size())]
    if RANK == 1:
        works = [
            dist.all_gather(parts, tensor, async_op=True),
            dist.all_reduce(tensor, async_op=True),
        ]
    else:
        works = [
            dist.all_reduce(tensor, async_op=True),
            dist.all_gather(parts, tensor, async_op=True),
        ]
    for work in works:
        work.wait()
    compute()


@scene
def crossed() -> None:
    """Rank 1 takes two groups in the other order."""
    first = dist.new_group([0, 1, 2], group_desc="first")
    second = dist.new_group([0, 1, 2], group_desc="second")
    train(3)
    for group in (second, first) if RANK == 1 else (first, second):
        dist.all_reduce(torch.ones(4), group=group)
    compute()


@scene
def shapes() -> None:
    train(3)
    try:
        dist.all_reduce(torch.ones(6 if RANK == 2 else 4))
    except RuntimeError as error:
        print(RANK, error, flush=True)
    compute()


@scene
def dtypes() -> None:
    train(3)
    dist.all_reduce(torch.ones(4, dtype=torch.int32 if RANK == 2 else torch.float32))
    compute()


@scene
def subgroup() -> None:
    """Rank 1 doesn't come to its pair's collective; ranks 2 and 3 wait in the world's."""
    left = dist.new_group([0, 1], group_desc="left")
    right = dist.new_group([2, 3], group_desc="right")
    train(3)
    dist.all_reduce(torch.ones(4), group=left if RANK < 2 else right)
    if RANK == 1:
        compute()
    dist.all_reduce(torch.ones(2), group=left if RANK < 2 else right)
    dist.all_reduce(torch.ones(4))


@scene
def unwaited() -> None:
    """Rank 0 issues three operations and waits for none; rank 1 issues the first of them."""
    train(3)
    works = [dist.all_reduce(torch.ones(4), async_op=True) for _ in range(1 if RANK else 3)]
    if RANK:
        compute()
    works[-1].wait()


@scene
def gil() -> None:
    train(3)
    workerserver.heartbeat(3)
    if RANK == 1:
        time.sleep(1.0)
        ctypes.PyDLL(None).sleep(int(FOREVER))
    dist.all_reduce(torch.ones(4))


@scene
def lock() -> None:
    train(3)
    workerserver.heartbeat(3)
    if RANK == 1:
        mutex = threading.Lock()
        with mutex, mutex:
            pass
    dist.all_reduce(torch.ones(4))


class Stuck:
    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> int:
        if index == 8 and RANK == 1:
            time.sleep(FOREVER)
        return index


@scene
def dataloader() -> None:
    loader = DataLoader(Stuck(), batch_size=2, num_workers=1, multiprocessing_context="fork")
    for step, _ in enumerate(loader):
        workerserver.heartbeat(step)
        dist.all_reduce(torch.ones(4))


@scene
def swallowed() -> None:
    """Rank 2's step 4 fails before its collective, and the loop goes on."""
    for step in range(8):
        workerserver.heartbeat(step)
        try:
            if RANK == 2 and step == 4:
                raise ValueError("a bad sample")
            dist.all_reduce(torch.ones(4))
        except ValueError:
            continue
    workerserver.heartbeat(8)
    evaluate()


def evaluate() -> None:
    dist.barrier()


@scene
def gave_up() -> None:
    """Rank 2's loop ends early by an exception that nobody sees."""
    try:
        train(4)
        if RANK == 2:
            raise ValueError("a bad sample")
        train(4, first=4)
    except ValueError:
        pass
    if RANK == 2:
        wait_for_the_end()


def wait_for_the_end() -> None:
    while True:
        time.sleep(0.5)


@scene
def receive() -> None:
    """Ranks 0 and 1 each receive from the other; gloo records neither."""
    train(3)
    if RANK < 2:
        dist.recv(torch.ones(4), 1 - RANK)
    dist.all_reduce(torch.ones(4))


@scene
def mixture() -> None:
    """Every collective that gloo has, all ranks alike, then a rank that stays away."""
    world, ones = dist.get_world_size(), torch.ones(4)
    parts = [torch.zeros(4) for _ in range(world)]
    workerserver.heartbeat(0)
    dist.all_gather(parts, ones)
    dist.broadcast(ones, 0)
    dist.reduce(ones, 0)
    dist.gather(ones, parts if RANK == 0 else None, 0)
    dist.scatter(ones, parts if RANK == 0 else None, 0)
    dist.all_to_all_single(torch.zeros(4 * world), torch.ones(4 * world))
    dist.all_gather_into_tensor(torch.zeros(4 * world), ones)
    dist.reduce_scatter_tensor(torch.zeros(4), torch.ones(4 * world))
    dist.all_gather_object([None] * world, "x" * (RANK + 1))
    dist.broadcast_object_list([RANK] * 2, 0)
    dist.barrier()
    dist.all_reduce_coalesced([torch.ones(2), torch.ones(3)])
    dist.send(ones, 1) if RANK == 0 else dist.recv(ones, 0) if RANK == 1 else None
    dist.monitored_barrier()
    if RANK == 1:
        compute()
    dist.barrier()


def main() -> None:
    name, kind, path = sys.argv[1:]
    dist.init_process_group("gloo", timeout=timedelta(seconds=FOREVER))
    if kind == "ours":
        server = workerserver.WorkerServer(path)
    else:
        server = torch._C._distributed_c10d._WorkerServer(path)
    SCENES[name]()
    time.sleep(FOREVER)
    del server


if __name__ == "__main__":
    main()
