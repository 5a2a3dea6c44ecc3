"""One rank of a gloo job with a planted fault: ``torchrun … job.py SCENE workerserver|torch``.

All ranks make five steps, say so by a file in $FOLDER, and play the scene. Whoever gets through it
stays until it is killed.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import gc
import importlib
import multiprocessing
import os
import queue
import re
import signal
import socket
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
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import workerserver

FOREVER = 600.0
#: The steps before the scene; each is one all_reduce, so the next one is #6.
STEPS = 5
RANK = int(os.environ["RANK"])
FOLDER = Path(os.environ["FOLDER"])
SCENES: dict[str, Callable[[], None]] = {}


def scene(function: Callable[[], None]) -> Callable[[], None]:
    SCENES[function.__name__] = function
    return function


def only(rank: int) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """A scene in which *rank* alone calls the function, before the next collective."""

    def register(function: Callable[[], None]) -> Callable[[], None]:
        def play() -> None:
            workerserver.heartbeat(STEPS)
            if rank == RANK:
                function()
            reduce()

        SCENES[function.__name__] = play
        return function

    return register


def reduce(size: int = 4) -> None:
    dist.all_reduce(torch.ones(size))


def train(steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        workerserver.heartbeat(step)
        reduce()


def begun() -> None:
    (FOLDER / f"begun{RANK}").touch()


# ---- nothing is wrong, or not much


@scene
def healthy() -> None:
    for step in range(STEPS, 10**6):
        workerserver.heartbeat(step)
        time.sleep(0.01)
        reduce()


@scene
def straggler() -> None:
    for step in range(STEPS, 10**6):
        workerserver.heartbeat(step)
        if RANK == 1:
            time.sleep(0.3)
        reduce()


@scene
def saves_often() -> None:
    """Every fifth step rank 0 keeps the others waiting for two seconds."""
    for step in range(STEPS, 10**6):
        workerserver.heartbeat(step)
        time.sleep(0.05)
        if step % 5 == 0 and RANK == 0:
            time.sleep(2.0)
        reduce()


# ---- one rank stands elsewhere


@only(2)
def load_batch() -> None:
    time.sleep(FOREVER)


@only(1)
def sleeps_with_gil() -> None:
    ctypes.PyDLL(None).sleep(int(FOREVER))


@only(1)
def matches() -> None:
    """A pattern that takes for ever, with the GIL."""
    re.match(r"(a+)+$", "a" * 64 + "b")


@only(1)
def sleeps_in_c() -> None:
    ctypes.CDLL(None).sleep(int(FOREVER))


@only(1)
def spins() -> None:
    while True:
        pass


@only(1)
def collects_garbage() -> None:
    while True:
        gc.collect()


class Connection:
    def __del__(self) -> None:
        time.sleep(FOREVER)


@only(1)
def finalizes() -> None:
    connection = Connection()
    del connection


@only(1)
def locks_twice() -> None:
    mutex = threading.Lock()
    with mutex, mutex:
        pass


@only(1)
def locks_crosswise() -> None:
    first, second, held = threading.Lock(), threading.Lock(), threading.Event()

    def other() -> None:
        with second:
            held.set()
            with first:
                pass

    with first:
        threading.Thread(target=other, daemon=True).start()
        held.wait()
        with second:
            pass


@only(1)
def takes() -> None:
    """From a queue that nobody fills."""
    queue.Queue[int]().get()


@only(1)
def joins() -> None:
    thread = threading.Thread(target=time.sleep, args=(FOREVER,), daemon=True)
    thread.start()
    thread.join()


@only(1)
def waits_for_child() -> None:
    subprocess.run(["sleep", str(FOREVER)], check=False)


@only(1)
def asks_pool() -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        pool.apply(time.sleep, (FOREVER,))


@only(1)
def awaits() -> None:
    asyncio.run(asyncio.sleep(FOREVER))


@only(1)
def opens_fifo() -> None:
    path = FOLDER / "fifo"
    os.mkfifo(path)
    with path.open("rb"):
        pass


@only(1)
def fetches() -> None:
    """From a server that never answers."""
    server = socket.create_server(("127.0.0.1", 0))
    with server, socket.create_connection(server.getsockname()) as connection:
        connection.recv(1)


@only(1)
def stops() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


@scene
def dies() -> None:
    workerserver.heartbeat(STEPS)
    if RANK == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        reduce()
    except RuntimeError:
        wait_for_restart()


@scene
def dies_before_group() -> None:
    """The store doesn't tell the others."""
    workerserver.heartbeat(STEPS)
    if RANK == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.new_group([0, 1, 2])


def wait_for_restart() -> None:
    time.sleep(FOREVER)


@scene
def first_step() -> None:
    """Without any step before it."""
    workerserver.heartbeat(0)
    if RANK == 1:
        compile_model()
    reduce()


def compile_model() -> None:
    time.sleep(FOREVER)


@scene
def saves_checkpoint() -> None:
    """Rank 0 writes to where nobody reads, the others wait in a barrier."""
    workerserver.heartbeat(STEPS)
    if RANK == 0:
        save()
    dist.barrier()


def save() -> None:
    path = FOLDER / "checkpoint"
    os.mkfifo(path)
    keeps_it_open = os.open(path, os.O_RDWR)
    with path.open("wb") as file:
        torch.save({"weights": torch.zeros(1 << 20)}, file)
    os.close(keeps_it_open)


@scene
def gathers_objects() -> None:
    workerserver.heartbeat(STEPS)
    if RANK == 1:
        measure()
    dist.all_gather_object([None] * dist.get_world_size(), {"rank": RANK})


def measure() -> None:
    time.sleep(FOREVER)


class Samples:
    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> int:
        if index == 10 and RANK == 1:
            time.sleep(FOREVER)
        return index


@scene
def loads() -> None:
    """Rank 1's worker is stuck in the sixth batch."""
    loader = DataLoader(Samples(), batch_size=2, num_workers=1, multiprocessing_context="fork")
    for step, _ in enumerate(loader, STEPS):
        workerserver.heartbeat(step)
        reduce()


@scene
def backward() -> None:
    """Rank 1 is stuck in a hook of the backward pass."""
    model = DistributedDataParallel(torch.nn.Linear(4, 4))
    if RANK == 1:
        model.module.weight.register_hook(log_gradient)
    workerserver.heartbeat(STEPS)
    model(torch.ones(2, 4)).sum().backward()


def log_gradient(gradient: Any) -> None:
    time.sleep(FOREVER)


@scene
def unwaited() -> None:
    """Rank 0 issues three operations and waits for none; the others issue the first of them."""
    workerserver.heartbeat(STEPS)
    works = [dist.all_reduce(torch.ones(4), async_op=True) for _ in range(1 if RANK else 3)]
    if RANK:
        prepare()
    works[-1].wait()


def prepare() -> None:
    time.sleep(FOREVER)


@scene
def two_at_once() -> None:
    workerserver.heartbeat(STEPS)
    if RANK == 1:
        prepare()
    if RANK == 3:
        locks_twice()
    reduce()


@scene
def subgroup() -> None:
    """Rank 1 doesn't come to its pair's collective; ranks 2 and 3 wait in the world's."""
    left = dist.new_group([0, 1], group_desc="left")
    right = dist.new_group([2, 3], group_desc="right")
    own = left if RANK < 2 else right
    workerserver.heartbeat(STEPS)
    dist.all_reduce(torch.ones(4), group=own)
    if RANK == 1:
        prepare()
    dist.all_reduce(torch.ones(2), group=own)
    reduce()


@scene
def chain() -> None:
    """Rank 2 is late in its pair; rank 1 waits for it there, and rank 0 for rank 1."""
    one = dist.new_group([0, 1], group_desc="one")
    two = dist.new_group([1, 2], group_desc="two")
    workerserver.heartbeat(STEPS)
    if RANK == 2:
        prepare()
    if RANK:
        dist.all_reduce(torch.ones(4), group=two)
    if RANK < 2:
        dist.all_reduce(torch.ones(4), group=one)


# ---- the ranks don't agree


@scene
def swallows() -> None:
    """Rank 2's step 7 fails before its collective, and the loop goes on."""
    for step in range(STEPS, STEPS + 5):
        workerserver.heartbeat(step)
        try:
            if RANK == 2 and step == 7:
                raise ValueError("a bad sample")
            reduce()
        except ValueError:
            continue
    workerserver.heartbeat(STEPS + 5)
    evaluate()


def evaluate() -> None:
    dist.barrier()


@scene
def gives_up() -> None:
    """Rank 2's loop ends early by an exception that nobody sees."""
    try:
        if RANK == 2:
            raise ValueError("a bad sample")
        train(4, first=STEPS)
    except ValueError:
        wait_for_the_end()


def wait_for_the_end() -> None:
    while True:
        time.sleep(0.5)


@scene
def one_batch_fewer() -> None:
    """Rank 2 has no sixth batch."""
    workerserver.heartbeat(STEPS)
    if RANK == 2:
        evaluate()
    else:
        reduce()
    wait_for_the_end()


@scene
def reorders() -> None:
    """Rank 1 gathers first and reduces then; nobody waits in between."""
    workerserver.heartbeat(STEPS)
    tensor, parts = torch.ones(4), [torch.zeros(4) for _ in range(dist.get_world_size())]
    works: list[Any] = []
    if RANK == 1:
        works.append(dist.all_gather(parts, tensor, async_op=True))
    works.append(dist.all_reduce(tensor, async_op=True))
    if RANK != 1:
        works.append(dist.all_gather(parts, tensor, async_op=True))
    for work in works:
        work.wait()
    wait_for_the_end()


@scene
def crosses_groups() -> None:
    """Rank 1 takes two groups in the other order."""
    first = dist.new_group([0, 1, 2], group_desc="first")
    second = dist.new_group([0, 1, 2], group_desc="second")
    workerserver.heartbeat(STEPS)
    for group in (second, first) if RANK == 1 else (first, second):
        dist.all_reduce(torch.ones(4), group=group)


@scene
def shapes() -> None:
    workerserver.heartbeat(STEPS)
    try:
        reduce(6 if RANK == 2 else 4)
    except RuntimeError:
        wait_for_restart()
    wait_for_the_end()


@scene
def dtypes() -> None:
    workerserver.heartbeat(STEPS)
    dist.all_reduce(torch.ones(4, dtype=torch.int32 if RANK == 2 else torch.float32))
    wait_for_the_end()


@scene
def logs_alone() -> None:
    """Rank 0 reduces its loss for the log; the others don't."""
    workerserver.heartbeat(STEPS)
    if RANK == 0:
        log_loss()
    reduce()
    wait_for_the_end()


def log_loss() -> None:
    try:
        reduce(1)
    except RuntimeError:
        wait_for_restart()


@scene
def broadcasts_alone() -> None:
    workerserver.heartbeat(STEPS)
    if RANK == 1:
        dist.broadcast(torch.ones(4), 0)
    reduce()
    wait_for_the_end()


@scene
def skips_group() -> None:
    """All but rank 1 make a group; gloo's make one together, through the store."""
    workerserver.heartbeat(STEPS)
    if RANK != 1:
        dist.new_group([0, 1, 2])
    reduce()


# ---- another thread than the main one acts


@scene
def trains_in_thread() -> None:
    """The loop runs in a thread, as in an actor framework, and the main thread joins it."""
    thread = threading.Thread(target=train_until_stuck)
    thread.start()
    thread.join()


@scene
def trains_in_polled_thread() -> None:
    thread = threading.Thread(target=train_until_stuck)
    thread.start()
    while thread.is_alive():
        time.sleep(0.5)


def train_until_stuck() -> None:
    workerserver.heartbeat(STEPS)
    if RANK == 1:
        prepare()
    reduce()


# ---- what no recorder holds


@scene
def skips_monitored_barrier() -> None:
    workerserver.heartbeat(STEPS)
    if RANK != 2:
        dist.monitored_barrier(timeout=timedelta(seconds=FOREVER))
    reduce()


@scene
def waits_for_file_lock() -> None:
    """Another process has the lock for which all ranks wait."""
    workerserver.heartbeat(STEPS)
    if RANK == 0:
        code = "import fcntl, sys, time; fcntl.flock(open(sys.argv[1], 'w'), fcntl.LOCK_EX);"
        code += " open(sys.argv[1] + '.held', 'w'); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", code, str(FOLDER / "lock")])
    while not (FOLDER / "lock.held").exists():
        time.sleep(0.05)
    with (FOLDER / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)


@scene
def starves_pipeline() -> None:
    """The first stage sends nothing; each of the others waits for the one before."""
    workerserver.heartbeat(STEPS)
    if RANK == 0:
        prepare()
    else:
        dist.recv(torch.ones(4), RANK - 1)


@scene
def makes_group_again() -> None:
    """The second group of the name has made fewer operations than the first one."""
    pair = dist.new_group([0, 1], group_desc="pair")
    if RANK < 2:
        for _ in range(4):
            dist.all_reduce(torch.ones(4), group=pair)
        dist.destroy_process_group(pair)
    pair = dist.new_group([0, 1], group_desc="pair")
    workerserver.heartbeat(STEPS)
    if RANK < 2:
        dist.all_reduce(torch.ones(4), group=pair)
        if RANK == 1:
            prepare()
        dist.all_reduce(torch.ones(4), group=pair)
    reduce()


@scene
def validates_unevenly() -> None:
    """Nothing is wrong: rank 1's validation is longer, and each of its batches is a heartbeat."""
    workerserver.heartbeat(STEPS)
    if RANK == 1:
        for batch in range(10**6):
            time.sleep(0.3)
            workerserver.heartbeat(STEPS + batch)
    reduce()


# ---- point to point, which gloo doesn't record


@scene
def receives_crosswise() -> None:
    workerserver.heartbeat(STEPS)
    if RANK < 2:
        dist.recv(torch.ones(4), 1 - RANK)
    reduce()


@only(1)
def receives() -> None:
    dist.recv(torch.ones(4), 0)


def main(name: str, kind: str) -> None:
    if kind == "torch":
        variable = "TORCH_WORKER_SERVER_SOCKET"  # torch doesn't fill in the rank
        os.environ[variable] = os.environ[variable].replace("{rank}", str(RANK))
        kind = "torch.distributed.elastic.control_plane"
    package: Any = importlib.import_module(kind)
    with package.worker_main():
        dist.init_process_group("gloo", timeout=timedelta(seconds=FOREVER))
        if name != "first_step":
            train(STEPS)
        begun()
        SCENES[name]()
        time.sleep(FOREVER)


if __name__ == "__main__":
    main(*sys.argv[1:])
