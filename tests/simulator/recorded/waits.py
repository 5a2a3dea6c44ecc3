"""One rank of a real gloo job in which each thread stands in one kind of wait.

``record.py`` starts three ranks, and keeps what they answer. Rank 1 never comes to an operation of
the others, so that each thread of ranks 0 and 2 waits for good in the operation that it is named
for. The operations of one thread have a group of their own.
"""

from __future__ import annotations

import concurrent.futures
import fcntl
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

import workerserver

FOREVER = 600.0
RANK = int(os.environ["RANK"])
FOLDER = Path(sys.argv[3])
Group = Any

#: What ranks 0 and 2 do in a group of their own.
TOGETHER: dict[str, Callable[[Group], None]] = {}
#: What each rank does alone.
ALONE: dict[str, Callable[[], None]] = {}


def together(function: Callable[[Group], None]) -> Callable[[Group], None]:
    TOGETHER[function.__name__] = function
    return function


def alone(function: Callable[[], None]) -> Callable[[], None]:
    ALONE[function.__name__] = function
    return function


def ones() -> torch.Tensor:
    return torch.ones(4)


@together
def all_reduce(group: Group) -> None:
    dist.all_reduce(ones(), group=group)


@together
def broadcast(group: Group) -> None:
    dist.broadcast(ones(), 1, group=group)


@together
def barrier(group: Group) -> None:
    dist.barrier(group=group)


@together
def all_gather(group: Group) -> None:
    dist.all_gather([torch.zeros(4) for _ in range(3)], ones(), group=group)


@together
def all_gather_into_tensor(group: Group) -> None:
    dist.all_gather_into_tensor(torch.zeros(12), ones(), group=group)


@together
def reduce_scatter_tensor(group: Group) -> None:
    dist.reduce_scatter_tensor(torch.zeros(4), torch.ones(12), group=group)


@together
def all_gather_object(group: Group) -> None:
    dist.all_gather_object([None] * 3, "x", group=group)


@together
def broadcast_object_list(group: Group) -> None:
    dist.broadcast_object_list(["x"], 1, group=group)


@together
def monitored_barrier(group: Group) -> None:
    dist.monitored_barrier(group=group)


@together
def wait(group: Group) -> None:
    work = dist.all_reduce(ones(), group=group, async_op=True)
    work.wait()


@together
def poll(group: Group) -> None:
    work = dist.all_reduce(ones(), group=group, async_op=True)
    while not work.is_completed():
        time.sleep(0.01)


@together
def send(group: Group) -> None:
    dist.send(ones(), 1, group=group)


@together
def recv(group: Group) -> None:
    dist.recv(ones(), 1, group=group)


@together
def irecv(group: Group) -> None:
    work = dist.irecv(ones(), 1, group=group)
    assert work is not None
    work.wait()


@together
def isend(group: Group) -> None:
    work = dist.isend(ones(), 1, group=group)
    assert work is not None
    work.wait()


@together
def batch(group: Group) -> None:
    works = dist.batch_isend_irecv([dist.P2POp(dist.irecv, ones(), 1, group)])
    for work in works:
        work.wait()


@together
def new_group(group: Group) -> None:
    dist.new_group([0, 1, 2], timeout=timedelta(seconds=FOREVER))


@together
def store_wait(group: Group) -> None:
    dist.distributed_c10d._get_default_store().wait(["never"], timedelta(seconds=FOREVER))


@alone
def sleep() -> None:
    time.sleep(FOREVER)


@alone
def compute() -> None:
    while True:
        sum(range(1000))


@alone
def lock() -> None:
    mutex = threading.Lock()
    with mutex, mutex:
        pass


@alone
def acquire() -> None:
    mutex = threading.Lock()
    mutex.acquire()
    mutex.acquire()


@alone
def condition() -> None:
    changed = threading.Condition()
    with changed:
        changed.wait()


@alone
def event() -> None:
    threading.Event().wait()


@alone
def get() -> None:
    queue.Queue[int]().get()


@alone
def join() -> None:
    thread = threading.Thread(target=time.sleep, args=(FOREVER,), daemon=True, name="joined")
    thread.start()
    thread.join()


@alone
def result() -> None:
    pool = concurrent.futures.ThreadPoolExecutor(1)
    pool.submit(time.sleep, FOREVER).result()


@alone
def child() -> None:
    subprocess.run(["sleep", str(FOREVER)], check=False)


@alone
def fifo() -> None:
    path = FOLDER / f"fifo{RANK}"
    os.mkfifo(path)
    with path.open("rb"):
        pass


@alone
def flock() -> None:
    path = FOLDER / f"lock{RANK}"
    with path.open("w") as first, path.open("w") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        fcntl.flock(second, fcntl.LOCK_EX)


@alone
def save() -> None:
    path = FOLDER / f"checkpoint{RANK}"
    os.mkfifo(path)
    keeps_it_open = os.open(path, os.O_RDWR)
    with path.open("wb") as file:
        torch.save({"weights": torch.zeros(1 << 20)}, file)
    os.close(keeps_it_open)


class Stuck:
    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> int:
        if index == 4:
            time.sleep(FOREVER)
        return index


@alone
def data() -> None:
    for _ in DataLoader(Stuck(), batch_size=2, num_workers=1, multiprocessing_context="fork"):
        pass


def train() -> None:
    for step in range(3):
        workerserver.heartbeat(step)
        dist.all_reduce(ones())
    workerserver.heartbeat(3)
    if RANK == 1:
        sleep()
    dist.all_reduce(ones())


def start() -> None:
    for function in ALONE.values():
        threading.Thread(target=function, name=function.__name__, daemon=True).start()
    groups = {name: dist.new_group([0, 1, 2], group_desc=name) for name in sorted(TOGETHER)}
    time.sleep(1.0)
    if RANK != 1:
        for name, group in groups.items():
            threading.Thread(target=TOGETHER[name], args=(group,), name=name, daemon=True).start()
            if name == "new_group":
                time.sleep(1.0)


def main() -> None:
    kind, path = sys.argv[1:3]
    dist.init_process_group("gloo", timeout=timedelta(seconds=FOREVER))
    if kind == "ours":
        server: Any = workerserver.WorkerServer(path)
    else:
        server = torch._C._distributed_c10d._WorkerServer(path)
    if len(sys.argv) > 4:
        start()
    train()
    del server


if __name__ == "__main__":
    main()
