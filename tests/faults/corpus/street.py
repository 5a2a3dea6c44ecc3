"""Jobs as they come from the street: written without a look at the rules of the judge."""

from __future__ import annotations

import atexit
import io
import multiprocessing
import os
import pdb
import queue
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from filelock import FileLock
from scenes import (
    FOLDER,
    FOREVER,
    RANK,
    STEPS,
    How,
    Suspect,
    apart,
    beat,
    fault,
    healthy,
    late,
    only,
    reduce,
    standing,
    unclear,
)
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

FOR_GOOD = 10**6
QUIET = How(ring=0, beats=False)
CACHE = threading.Lock()


class Cached:
    """Each sample is looked up in a cache that threads share."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> int:
        with CACHE:
            return index


def fill_cache() -> None:
    with CACHE:
        time.sleep(3.0)


@only(1, late(1, "loads_with_inherited_lock", "dataloader"), 3)
def loads_with_inherited_lock() -> None:
    """The worker was forked while a thread had the cache's lock: there it is never given back."""
    threading.Thread(target=fill_cache).start()
    time.sleep(0.5)
    loader = DataLoader(Cached(), batch_size=2, num_workers=1, multiprocessing_context="fork")
    for _ in loader:
        pass


@fault(3, apart(1, "barrier", "checks_loss"))
def barrier_in_one_branch() -> None:
    """Only rank 1's loss is not finite."""
    beat(STEPS)
    checks_loss(float("nan") if RANK == 1 else 0.5)
    reduce()


def checks_loss(loss: float) -> None:
    if loss != loss:
        dist.barrier()


@fault(3, apart(2, "all_gather", "gathers_predictions"))
def one_more_batch_to_evaluate() -> None:
    """The other ranks train again already."""
    beat(STEPS)
    if RANK == 2:
        gathers_predictions()
    reduce()


def gathers_predictions() -> None:
    found: list[Any] = [None] * 3
    dist.all_gather_object(found, {"label": RANK})


# gloo's recorder holds no isend and no irecv, and what work.wait() waits for is the user's own.
@fault(4, standing(2, "next_microbatch", "lock"))
def stage_without_data() -> None:
    """The thread that fills stage 2's queue has ended. All stages wait by work.wait()."""
    beat(STEPS)
    batches: queue.Queue[torch.Tensor] = queue.Queue()
    tensor = torch.ones(4)
    for _ in range(4):
        if RANK:
            received = dist.irecv(tensor, RANK - 1)
            assert received is not None
            received.wait()
        if RANK == 2:
            next_microbatch(batches)
        if RANK < 3:
            sent = dist.isend(tensor, RANK + 1)
            assert sent is not None
            sent.wait()
    reduce()


def next_microbatch(batches: queue.Queue[torch.Tensor]) -> torch.Tensor:
    return batches.get()


# Rank 0 sets the key only after the meeting. That is in the user's head: for all that can be seen,
# any process may be the one to set it.
@unclear(3)
def key_that_comes_after_the_meeting() -> None:
    beat(STEPS)
    store = dist.distributed_c10d._get_default_store()
    if RANK == 1:
        store.wait(["epoch"], timedelta(seconds=FOREVER))
    dist.monitored_barrier(timeout=timedelta(seconds=FOREVER))
    store.set("epoch", "1")


# Rank 0 has forgotten to set the key, and has gone on. Nobody can know that it was to set it.
@unclear(3)
def key_that_was_forgotten() -> None:
    beat(STEPS)
    if RANK:
        store = dist.distributed_c10d._get_default_store()
        store.wait(["weights"], timedelta(seconds=FOREVER))
    reduce()


# Rank 1 meets the others with the lock in its hands. They poll for a lock: a loop that sleeps may
# end, and nothing tells who has the lock.
@unclear(3)
def meets_with_the_download_lock() -> None:
    beat(STEPS)
    path = str(FOLDER / "model.lock")
    if RANK == 1:
        with FileLock(path):
            (FOLDER / "taken").touch()
            dist.barrier()
    while not (FOLDER / "taken").exists():
        time.sleep(0.05)
    with FileLock(path):
        dist.barrier()


@only(1, late(1, "looks_at_the_error"), 3)
def looks_at_the_error() -> None:
    """Post mortem, with nobody at the terminal."""
    read, keeps_it_open = os.pipe()
    sys.stdin = os.fdopen(read)
    try:
        raise ValueError("a bad sample")
    except ValueError as error:
        pdb.post_mortem(error.__traceback__)
    os.close(keeps_it_open)


@fault(3, Suspect(0, "behind", "default_pg", "barrier", 6, "uploads_checkpoint"))
def copies_to_a_frozen_mount() -> None:
    """Rank 0's copy of a checkpoint does not end: nobody takes what it writes."""
    beat(STEPS)
    if RANK == 0:
        uploads_checkpoint()
    dist.barrier()


def uploads_checkpoint() -> None:
    source, mount = FOLDER / "checkpoint", FOLDER / "mount"
    source.write_bytes(bytes(1 << 20))
    os.mkfifo(mount)
    keeps_it_open = os.open(mount, os.O_RDWR)
    with source.open("rb") as read, mount.open("wb") as write:
        shutil.copyfileobj(read, write)
    os.close(keeps_it_open)


@fault(3, Suspect(0, "behind", "default_pg", "barrier", 6, "uploads_checkpoint"))
def waits_until_all_is_written() -> None:
    """Rank 0 joins the queue of a thread that writes."""
    beat(STEPS)
    if RANK == 0:
        results: queue.Queue[int] = queue.Queue()
        results.put(1)
        threading.Thread(target=writes_results, args=(results,), daemon=True).start()
        results.join()
    dist.barrier()


def writes_results(results: queue.Queue[int]) -> None:
    while results.get():
        uploads_checkpoint()
        results.task_done()


@only(0, late(0, "sends_results"), 3)
def sends_results() -> None:
    """The process that takes them has ended, and the queue is full."""
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue(maxsize=1)
    reader = context.Process(target=os._exit, args=(1,))
    reader.start()
    reader.join()
    for number in range(3):
        results.put(number)


# The server of worker_main ends before atexit's functions run. So nobody can see rank 1: it may
# have ended.
@unclear(3, "rank 1 has not entered barrier #6 of default_pg", how=How(stays=False))
def flushes_at_exit() -> None:
    """Rank 1 has left the program early, and what it does at its exit does not end."""
    beat(STEPS)
    if RANK == 1:
        atexit.register(flushes_metrics)
        return
    dist.barrier()


def flushes_metrics() -> None:
    time.sleep(FOREVER)


@fault(3, Suspect(1, "swallowed", "default_pg", "barrier", 14, "ends_epoch"))
def accumulates_once_too_often() -> None:
    """Gradients are summed over the ranks in every fourth step. Rank 1 leaves one of these out."""
    model = DistributedDataParallel(torch.nn.Linear(4, 4))
    for step in range(STEPS, 21):
        beat(step)
        sums = step % 4 == 3 and not (RANK == 1 and step == 7)
        with nullcontext() if sums else model.no_sync():
            model(torch.ones(2, 4)).sum().backward()
    beat(21)
    ends_epoch()


def ends_epoch() -> None:
    dist.barrier()


# Rank 0 was to make the file, and has gone on without it. A loop that sleeps and looks may end.
@unclear(3, "ranks 1-2 have not entered all_reduce #6 of default_pg")
def file_that_nobody_makes() -> None:
    beat(STEPS)
    while RANK and not (FOLDER / "tokenized").exists():
        time.sleep(0.1)
    reduce()


@only(1, late(1, "downloads"), 3)
def prefetches() -> None:
    """The main thread waits for the next shard, and its server has gone silent."""
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        pool.submit(downloads, server.getsockname()).result()


def downloads(address: tuple[str, int]) -> bytes:
    with socket.create_connection(address) as connection:
        return connection.recv(1)


@fault(3, Suspect(1, "behind", "default_pg", "barrier", 6, "computes_metrics"))
def polls_a_barrier() -> None:
    """The others look ten times a second whether all have come, to print a line now and then."""
    beat(STEPS)
    if RANK == 1:
        computes_metrics()
    meets_in_turns()


def computes_metrics() -> None:
    time.sleep(FOREVER)


def meets_in_turns() -> None:
    work = dist.barrier(async_op=True)
    assert work is not None
    while not work.is_completed():
        time.sleep(0.1)


@only(2, late(2, "reads_shard"), 3)
def reads_shard() -> None:
    """From where nothing comes any more."""
    mount = FOLDER / "mount"
    os.mkfifo(mount)
    keeps_it_open = os.open(mount, os.O_RDWR)
    with mount.open("rb") as file:
        torch.load(io.BytesIO(file.read()))
    os.close(keeps_it_open)


# ---- healthy


@healthy(3)
def polls_a_barrier_in_each_step() -> None:
    """Rank 1 comes 3 s late to each."""
    for step in range(STEPS, FOR_GOOD):
        beat(step)
        if RANK == 1:
            time.sleep(3.0)
        meets_in_turns()


@healthy(3)
def reads_from_a_slow_mount() -> None:
    """Rank 0 reads a shard for 25 s, of which a part comes each 0.5 s."""
    for epoch in range(FOR_GOOD):
        beat(STEPS + epoch)
        if RANK == 0:
            reads_slowly()
        reduce()


def reads_slowly() -> None:
    part = "sleep 0.5; head -c 100000 /dev/zero"
    command = f"for part in $(seq 50); do {part}; done"
    with subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE) as source:
        assert source.stdout is not None
        while source.stdout.read(100_000):
            pass


# No recorder and no heartbeat: each look meets rank 1 in its loader and the others in all_reduce.
@healthy(3, how=QUIET)
def slow_loader_unseen() -> None:
    for _ in range(FOR_GOOD):
        if RANK == 1:
            takes_batch()
        reduce()


class Slow:
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        time.sleep(3.0)
        return index


def takes_batch() -> None:
    loader = DataLoader(Slow(), num_workers=1, multiprocessing_context="fork")
    for _ in loader:
        reduce()


@healthy(3)
def prepares_for_the_others() -> None:
    """Rank 0 works through an index in pieces; the others wait for its word, for 12 s."""
    store = dist.distributed_c10d._get_default_store()
    for epoch in range(FOR_GOOD):
        beat(STEPS + epoch)
        if RANK == 0:
            for _ in range(120):
                time.sleep(0.1)
            store.set(f"epoch {epoch}", "1")
        store.wait([f"epoch {epoch}"], timedelta(seconds=FOREVER))
        reduce()


@healthy(4, how=QUIET)
def slow_stage_unseen() -> None:
    """Stage 2 takes 3 s for each microbatch."""
    tensor = torch.ones(4)
    for _ in range(FOR_GOOD):
        if RANK:
            received = dist.irecv(tensor, RANK - 1)
            assert received is not None
            received.wait()
        if RANK == 2:
            time.sleep(3.0)
        if RANK < 3:
            sent = dist.isend(tensor, RANK + 1)
            assert sent is not None
            sent.wait()
