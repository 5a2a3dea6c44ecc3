"""One rank stands elsewhere, in any of the ways in which code can stand; the others wait for it."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import logging
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

import torch
import torch.distributed as dist
from scenes import (
    FOREVER,
    RANK,
    STEPS,
    How,
    Suspect,
    beat,
    fault,
    gets_stuck_in_backward,
    late,
    only,
    prepare,
    reduce,
    standing,
    unclear,
)
from torch.utils.data import DataLoader

#: A worker that does not answer takes the whole deadline.
SILENT = How(deadline_s=3.0)


@only(2, late(2, "load_batch"), 4, stock=[late(2, "load_batch")], quick=True)
def load_batch() -> None:
    time.sleep(FOREVER)


@only(
    1,
    late(1, "sleeps_with_gil", "gil held"),
    3,
    # Who holds the GIL, stock workers can't tell.
    stock=[late(1, None, "unreachable")],
    quick=True,
)
def sleeps_with_gil() -> None:
    ctypes.PyDLL(None).sleep(int(FOREVER))


@only(1, late(1, "matches", "gil held"), 3)
def matches() -> None:
    """A pattern that takes for ever, with the GIL."""
    re.match(r"(a+)+$", "a" * 64 + "b")


@only(1, late(1, "sleeps_in_c"))
def sleeps_in_c() -> None:
    ctypes.CDLL(None).sleep(int(FOREVER))


@only(1, late(1, "spins"))
def spins() -> None:
    while True:
        pass


@only(1, late(1, "collects_garbage"))
def collects_garbage() -> None:
    while True:
        gc.collect()


class Connection:
    def __del__(self) -> None:
        time.sleep(FOREVER)


@only(1, late(1, "__del__"))
def finalizes() -> None:
    connection = Connection()
    del connection


@only(1, late(1, "takes", "lock"))
def takes() -> None:
    """From a queue that nobody fills."""
    queue.Queue[int]().get()


@only(1, late(1, "joins", "lock"))
def joins() -> None:
    thread = threading.Thread(target=time.sleep, args=(FOREVER,), daemon=True)
    thread.start()
    thread.join()


@only(1, late(1, "waits_for_child"))
def waits_for_child() -> None:
    subprocess.run(["sleep", str(FOREVER)], check=False)


@only(1, late(1, "waits_for_stopped_child"))
def waits_for_stopped_child() -> None:
    """As by a debugger, or a terminal that has gone."""
    with subprocess.Popen(["sleep", str(FOREVER)]) as child:
        child.send_signal(signal.SIGSTOP)
        child.wait()


# A child that computes for ever looks as one that will be ready in a minute.
@unclear(3, "works, and may only be slow")
def waits_for_spinning_child() -> None:
    beat(STEPS)
    if RANK == 1:
        subprocess.run(["sh", "-c", "while :; do :; done & wait"], check=False)
    reduce()


@only(1, late(1, "asks_pool", "lock"))
def asks_pool() -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        pool.apply(time.sleep, (FOREVER,))


@only(1, late(1, "awaits"))
def awaits() -> None:
    asyncio.run(asyncio.sleep(FOREVER))


@only(1, late(1, "fetches"))
def fetches() -> None:
    """From a server that never answers."""
    server = socket.create_server(("127.0.0.1", 0))
    with server, socket.create_connection(server.getsockname()) as connection:
        connection.recv(1)


@only(1, late(1, "accepts"), 3)
def accepts() -> None:
    """Waits for a client that never comes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.accept()


@only(1, late(1, "debugs"), 3)
def debugs() -> None:
    """A breakpoint was left in, and nobody sits at the terminal."""
    read, keeps_it_open = os.pipe()
    sys.stdin = os.fdopen(read)
    breakpoint()
    os.close(keeps_it_open)


@only(1, late(1, None, "unreachable"), 3, SILENT, stock=[late(1, None, "unreachable")])
def stops() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


# The others have given the collective up, and wait in code of their own.
@fault(
    3,
    standing(2, None, "unreachable"),
    how=SILENT,
    stock=[standing(2, None, "unreachable")],
)
def dies() -> None:
    beat(STEPS)
    if RANK == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        reduce()
    except RuntimeError:
        wait_for_restart()


@fault(3, standing(2, None, "unreachable"))
def dies_before_group() -> None:
    """The store doesn't tell the others."""
    beat(STEPS)
    if RANK == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.new_group([0, 1, 2])


def wait_for_restart() -> None:
    time.sleep(FOREVER)


FIRST = Suspect(1, "behind", "default_pg", "all_reduce", 1, "compile_model")


# A stock worker doesn't tell what C code waits for. And without a recorded operation, rank 1 may be
# in a receive that gloo doesn't record.
@fault(3, FIRST, how=How(steps=0), stock=[])
def first_step() -> None:
    """Without any step before it."""
    beat(0)
    if RANK == 1:
        compile_model()
    reduce()


def compile_model() -> None:
    time.sleep(FOREVER)


@fault(3, Suspect(1, "behind", "default_pg", "all_gather", 6, "measure"))
def gathers_objects() -> None:
    beat(STEPS)
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


LOADING = Suspect(1, "dataloader", "default_pg", "all_reduce", 11, "loads")


@fault(2, LOADING, stock=[LOADING], quick=True)
def loads() -> None:
    """Rank 1's worker is stuck in the sixth batch."""
    loader = DataLoader(Samples(), batch_size=2, num_workers=1, multiprocessing_context="fork")
    for step, _ in enumerate(loader, STEPS):
        beat(step)
        reduce()


@fault(2, Suspect(1, "behind", "default_pg", "all_reduce", 9, "log_gradient"))
def backward() -> None:
    """Rank 1 is stuck in a hook of the backward pass."""
    gets_stuck_in_backward(1)


@fault(2, Suspect(1, "behind", "default_pg", "all_reduce", 7, "prepare"))
def unwaited() -> None:
    """Rank 0 issues three operations and waits for none; the others issue the first of them."""
    beat(STEPS)
    works = [dist.all_reduce(torch.ones(4), async_op=True) for _ in range(1 if RANK else 3)]
    if RANK:
        prepare()
    works[-1].wait()


# Its own last steps are quick, and the loop of the others does not beat at all.
@fault(3, late(1, "load_batch_late"), how=How(beats=False))
def never_beats() -> None:
    """Nothing but recorders and stacks tells of the job."""
    if RANK == 1:
        load_batch_late()
    reduce()


def load_batch_late() -> None:
    time.sleep(FOREVER)


@fault(4, Suspect(3, "behind", "default_pg", "all_reduce", 7, "validates"))
def validates_for_ever() -> None:
    """Validation is uneven anyhow: ranks come one after the other, and rank 3 never does."""
    for step in range(STEPS, STEPS + 2):
        beat(step)
        if RANK == 3 and step > STEPS:
            validates()
        time.sleep(0.5 * RANK)
        reduce()


def validates() -> None:
    time.sleep(FOREVER)


# What a thread waits for in the kernel, stock workers can't tell.
TWICE = [late(1, "locks_twice")]


@only(1, late(1, "locks_twice", "deadlock"), 3, stock=TWICE, quick=True)
def locks_twice() -> None:
    mutex = threading.Lock()
    with mutex, mutex:
        pass


@only(1, late(1, "locks_crosswise", "deadlock"))
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


AT_ONCE: list[Suspect] = [late(3, "locks_twice", "deadlock"), late(1, "prepare")]


# A deadlock is told in the first seconds, before the wait of the others is a hang. So this job is
# asked later. Of two ranks in C code, of which a stock worker tells nothing, one may wait for the
# other.
@fault(4, *AT_ONCE, how=How(settled_s=12.0), stock=[])
def two_at_once() -> None:
    beat(STEPS)
    if RANK == 1:
        prepare()
    if RANK == 3:
        locks_twice()
    reduce()


# A rank that parses for ever looks as one that will be ready in a minute.
@unclear(3, "rank 1 has not entered all_reduce #6 of default_pg")
def parses() -> None:
    beat(STEPS)
    if RANK == 1:
        parse_index()
    reduce()


def parse_index() -> None:
    line = json.dumps({"shard": list(range(20_000))})
    while True:
        json.loads(line)


@only(1, late(1, "asks_user"), 3)
def asks_user() -> None:
    """Whether to overwrite the old checkpoint; and nobody sits at the terminal."""
    read, keeps_it_open = os.pipe()
    sys.stdin = os.fdopen(read)
    input("overwrite? ")
    os.close(keeps_it_open)


@only(2, late(2, "takes_from_the_dead", "lock"), 3)
def takes_from_the_dead() -> None:
    """The thread that fills the queue has died of an exception."""
    batches: queue.Queue[int] = queue.Queue()

    def produce() -> None:
        raise ValueError("a bad sample")

    threading.excepthook = lambda _: None
    threading.Thread(target=produce).start()
    batches.get()


@only(1, late(1, "waits_for_signal"), 3)
def waits_for_signal() -> None:
    """That the node is to be given back."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    signal.sigwait({signal.SIGUSR1})


@only(1, late(1, "transforms", "lock"), 3)
def transforms() -> None:
    """One process of the pool has died, and its task with it."""
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.map(dies_of_one, range(4))


def dies_of_one(number: int) -> int:
    if number == 1:
        os._exit(1)
    return number


@only(1, late(1, "logs", "lock"), 3)
def logs() -> None:
    """Another thread holds the handler's lock: what it writes to is full."""
    _, write = os.pipe()
    log = logging.getLogger("train")
    log.addHandler(logging.StreamHandler(os.fdopen(write, "w", buffering=1)))
    log.propagate = False
    threading.Thread(target=log.warning, args=("x" * (1 << 20),), daemon=True).start()
    time.sleep(1.0)
    log.warning("a step")


@only(1, late(1, "waits_for_event_of_child"), 3)
def waits_for_event_of_child() -> None:
    """The child that was to set it has ended."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    child = context.Process(target=os._exit, args=(1,))
    child.start()
    child.join()
    ready.wait()


class Stopping:
    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> int:
        if index == 10 and RANK == 1:
            time.sleep(1.0)  # the batch before has been sent
            os.kill(os.getpid(), signal.SIGSTOP)
        return index


@fault(2, Suspect(1, "dataloader", "default_pg", "all_reduce", 11, "loads_from_stopped"))
def loads_from_stopped() -> None:
    """Rank 1's worker was stopped by a signal in the sixth batch."""
    loader = DataLoader(
        Stopping(), batch_size=2, num_workers=1, multiprocessing_context="fork", collate_fn=list
    )
    for step, _ in enumerate(loader, STEPS):
        beat(step)
        reduce()
