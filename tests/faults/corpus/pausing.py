"""Healthy jobs with pauses, each at least three times as long as what counts as a hang elsewhere.

The others wait in an operation for 9 s and more: three times 3 s. What only stands still for that
long, at one place and without a trace of work, looks as what never goes on; so such pauses come in
jobs that have had some before, and the others work: they compute, read and write, or beat.
"""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import os
import subprocess
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.rpc as rpc
from scenes import FOLDER, FOREVER, RANK, STEPS, How, beat, begun, healthy, reduce, train
from torch.utils.data import DataLoader

from .going_on import FOR_GOOD
from .launching import OWN_STORES

#: Three times what a wait may last, and what stacks alone may show.
WAIT_S, STACKS_S = 9.0, 15.0
#: It has paused three times before it is looked at: then a pause is a usual one.
USED_TO_IT = How(begins=False)
USUAL = 3
NO_GROUP = How(joined=False)


def work(seconds: float) -> None:
    """As tokenizers do: Python and C in turns."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        count_words()
        digest()


def count_words() -> None:
    counts: dict[int, int] = {}
    for word in range(50_000):
        counts[word % 97] = counts.get(word % 97, 0) + 1


def digest() -> None:
    hashlib.sha256(bytes(1 << 22)).digest()


def pause(every: int, alone: Callable[[], object]) -> None:
    """Steps, and each few of them rank 1 keeps the others waiting."""
    for step in range(STEPS, FOR_GOOD):
        beat(step)
        if step == STEPS + USUAL * every:
            begun()
        time.sleep(0.2)
        if step % every == 0 and RANK == 1:
            alone()
        reduce()


@healthy(3, how=USED_TO_IT)
def pauses_that_are_usual() -> None:
    """At one line."""
    pause(3, partial(time.sleep, WAIT_S))


@healthy(3, how=USED_TO_IT)
def waits_for_a_tool() -> None:
    """Rank 1 runs a program now and then."""
    pause(5, partial(subprocess.run, ["sleep", str(WAIT_S)], check=False))


@healthy(3, how=USED_TO_IT)
def keeps_gil_for_long() -> None:
    pause(5, partial(ctypes.PyDLL(None).sleep, int(WAIT_S)))


@healthy(3)
def works_alone() -> None:
    """Nobody has paused before; rank 1 computes for 20 s."""
    pause(3, partial(work, 20.0))


# Nothing but stacks tells, for three times what counts with them.
@healthy(3, how=How(ring=0, beats=False))
def works_alone_unseen() -> None:
    pause(3, partial(work, STACKS_S))


# The first of them is later than the steps before, and nothing moves but within the step.
@healthy(3)
def slow_steps() -> None:
    """Ten seconds each, on all ranks alike, after some that were quick."""
    for step in range(STEPS, FOR_GOOD):
        beat(step)
        work(10.0)
        reduce()


@healthy(3, how=NO_GROUP)
def slow_from_the_start() -> None:
    """Ten seconds each, unequal, and in one call each."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=FOREVER))
    for step in range(FOR_GOOD):
        beat(step)
        time.sleep(8.0 + RANK)
        reduce()
        if step == 2:
            begun()


@healthy(3)
def computes_a_checkpoint() -> None:
    """Rank 0 packs and writes for 15 s, the others wait in a barrier."""
    for step in range(STEPS, FOR_GOOD):
        beat(step)
        if RANK == 0 and step % 10 == STEPS:
            write_packed(15.0)
        dist.barrier()
        time.sleep(0.2)


def write_packed(seconds: float) -> None:
    end = time.monotonic() + seconds
    with (FOLDER / "checkpoint").open("wb") as file:
        while time.monotonic() < end:
            file.seek(0)
            file.write(zlib.compress(os.urandom(1 << 20), 9))
            file.flush()
            os.fsync(file.fileno())


@healthy(3)
def writes_a_checkpoint_slowly() -> None:
    """To a store that takes 1 MiB a second; rank 0's bytes grow, and nothing else tells."""
    for step in range(STEPS, FOR_GOOD):
        beat(step)
        if RANK == 0 and step % 10 == STEPS:
            write_slowly(15)
        dist.barrier()
        time.sleep(0.2)


@healthy(3)
def compresses_in_a_process() -> None:
    """A program of a program: rank 0 waits for 20 s, and so do the others."""
    for step in range(STEPS, FOR_GOOD):
        beat(step)
        if RANK == 0 and step % 10 == STEPS:
            pack(20)
        dist.barrier()
        time.sleep(0.2)


def pack(seconds: int) -> None:
    with Path("/dev/zero").open("rb") as source:
        command = ["timeout", str(seconds), "gzip", "-9"]
        subprocess.run(command, stdin=source, stdout=subprocess.DEVNULL, check=False)


class Packed:
    """Each tenth sample takes long to unpack."""

    def __len__(self) -> int:
        return FOR_GOOD

    def __getitem__(self, index: int) -> int:
        if index % 10 == 3 and RANK == 1:
            work(STACKS_S)
        return index


@healthy(3, how=NO_GROUP)
def loads_with_much_work() -> None:
    """It has never taken so long before: the DataLoader's process works."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=FOREVER))
    loader = DataLoader(Packed(), batch_size=1, num_workers=1, multiprocessing_context="fork")
    for step, _ in enumerate(loader):
        beat(step)
        if step == 2:
            begun()
        time.sleep(0.1)
        reduce()


SLOW_STORE = "import sys, time\nwhile sys.stdin.buffer.read(1 << 16): time.sleep(0.06)"


def write_slowly(mebibytes: int) -> None:
    with subprocess.Popen(["python3", "-c", SLOW_STORE], stdin=subprocess.PIPE) as store:
        assert store.stdin is not None
        for _ in range(16 * mebibytes):
            store.stdin.write(bytes(1 << 16))


@healthy(3)
def evaluates_on_one_rank_for_a_while() -> None:
    model = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(4)))
    for step in range(STEPS, FOR_GOOD):
        beat(step)
        if RANK == 0 and step % 10 == STEPS:
            evaluate(model, 12.0)
        dist.barrier()
        time.sleep(0.2)


def evaluate(model: torch.nn.Module, seconds: float) -> None:
    end = time.monotonic() + seconds
    with torch.no_grad():
        while time.monotonic() < end:
            model(torch.ones(256, 256)).argmax(-1).float().mean().item()


@healthy(4, earns=True)
def validates_unevenly_with_heartbeats() -> None:
    """Rank r validates 4 r seconds; each batch is a heartbeat."""
    count = STEPS
    while True:
        for _ in range(1 + 8 * RANK):
            count += 1
            beat(count)
            time.sleep(0.5)
        dist.barrier()


class Slow:
    """Each tenth sample takes long."""

    def __len__(self) -> int:
        return FOR_GOOD

    def __getitem__(self, index: int) -> int:
        if index % 10 == 3 and RANK == 1:
            time.sleep(WAIT_S)
        return index


@healthy(3, how=NO_GROUP)
def loads_slowly_now_and_then() -> None:
    """It has done so before."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=FOREVER))
    loader = DataLoader(Slow(), batch_size=2, num_workers=1, multiprocessing_context="fork")
    for step, _ in enumerate(loader):
        beat(step)
        time.sleep(0.1)
        reduce()
        if step == 8:
            begun()


@healthy(3, how=How(steps=0))
def compiles_first() -> None:
    """The first step takes its time, and not the same on all ranks."""
    for step in range(FOR_GOOD):
        beat(step)
        if step == 0:
            work(5.0 + 5.0 * RANK)
        time.sleep(0.1)
        reduce()


@healthy(3)
def prepares_in_a_pool() -> None:
    """Rank 1's pool works for 12 s, and its main thread waits for the result."""
    with ThreadPoolExecutor(2) as pool:
        for step in range(STEPS, FOR_GOOD):
            beat(step)
            if RANK == 1 and step % 10 == STEPS:
                pool.submit(work, 12.0).result()
            time.sleep(0.1)
            reduce()


def send_parts() -> None:
    for _ in range(12):
        time.sleep(1.5)  # for a slow store


@healthy(3)
def uploads_from_a_pool() -> None:
    """Four threads of rank 1 send parts for 18 s, and its main thread waits for one after the
    other. Nobody tells which of them it waits for."""
    with ThreadPoolExecutor(4) as pool:
        for step in range(STEPS, FOR_GOOD):
            beat(step)
            if RANK == 1 and step % 10 == STEPS:
                for each in [pool.submit(send_parts) for _ in range(4)]:
                    each.result()
            time.sleep(0.1)
            reduce()


@healthy(4)
def pipeline_with_a_slow_stage() -> None:
    """The second stage works for 9 s on each microbatch."""
    for step in range(STEPS, FOR_GOOD):
        beat(step)
        tensor = torch.ones(4)
        if RANK:
            dist.recv(tensor, RANK - 1)
        if RANK == 1:
            work(WAIT_S)
        if RANK < 3:
            dist.send(tensor, RANK + 1)


@healthy(4)
def samplers_that_take_long() -> None:
    """The trainers wait for them, one pair for longer than the other."""
    trainers = dist.new_group([0, 1], group_desc="trainers")
    for step in range(STEPS, FOR_GOOD):
        beat(step)
        if RANK < 2:
            dist.recv(torch.ones(4), RANK + 2)
            dist.all_reduce(torch.ones(4), group=trainers)
        else:
            work(3.0 * RANK)
            dist.send(torch.ones(4), RANK - 2)


@healthy(3)
def joins_a_saver_that_works() -> None:
    """Rank 0 begins the next checkpoint only when the last one is written."""
    saver: threading.Thread | None = None
    for step in range(STEPS, FOR_GOOD):
        beat(step)
        if RANK == 0 and step % 5 == 0:
            if saver is not None:
                saver.join()
            saver = threading.Thread(target=write_packed, args=(15.0,))
            saver.start()
        time.sleep(0.1)
        reduce()


@healthy(3, how=NO_GROUP)
def prepares_before_it_joins() -> None:
    """Rank 1 reads its data first; the others are in init_process_group."""
    begun()
    if RANK == 1:
        work(STACKS_S)
    dist.init_process_group("gloo", timeout=timedelta(seconds=FOREVER))
    train(FOR_GOOD)


ELASTIC = How(words=("--max-restarts", "3"), settings=OWN_STORES, watched_by_torchrun=True)


@healthy(3, how=ELASTIC, moments=(0.0, 3.0, 6.0, 9.0, 12.0))
def restarts() -> None:
    """Rank 2 dies after two seconds; torchrun starts all again, and again."""
    start = time.monotonic()
    again = os.environ["TORCHELASTIC_RESTART_COUNT"] != "3"
    for step in range(STEPS, FOR_GOOD):
        beat(step)
        if again and RANK == 2 and time.monotonic() > start + 2:
            os._exit(1)
        time.sleep(0.1)
        reduce()


@healthy(3, how=How(beats=False))
def accumulates() -> None:
    """An operation each ten seconds, and the ranks work in between."""
    for _ in range(FOR_GOOD):
        work(10.0)
        reduce()


@healthy(4)
def half_of_them_evaluate() -> None:
    """Ranks 2 and 3 evaluate, in a group of their own, while the others wait for them."""
    evaluators = dist.new_group([2, 3], group_desc="evaluators")
    for step in range(STEPS, FOR_GOOD):
        beat(step)
        if RANK > 1 and step % 10 == STEPS:
            for _ in range(24):
                work(0.5)
                dist.all_reduce(torch.ones(4), group=evaluators)
        time.sleep(0.1)
        reduce()


@healthy(3)
def polls_the_store() -> None:
    """The others look for a key each half a second, until rank 0 has worked for 12 s."""
    store = dist.distributed_c10d._get_default_store()
    for step in range(STEPS, FOR_GOOD):
        beat(step)
        if step % 10 == STEPS:
            if RANK == 0:
                work(12.0)
                store.set(f"ready{step}", "1")
            while not store.check([f"ready{step}"]):
                time.sleep(0.5)
        time.sleep(0.1)
        reduce()


# One process, whose steps take 10 s: no other rank tells anything.
@healthy(1, how=NO_GROUP)
def alone_and_slow() -> None:
    begun()
    for step in range(FOR_GOOD):
        beat(step)
        work(10.0)


# The trainers sleep together for longer than stacks alone have to be seen, without any trace.
@healthy(3, how=How(ring=0, beats=False))
def serves_parameters() -> None:
    """Rank 0 is a parameter server: its main thread waits in shutdown() for the others."""
    rpc.init_rpc(f"worker{RANK}", rank=RANK, world_size=3)
    begun()
    while RANK:
        rpc.rpc_sync("worker0", torch.ones, args=(4,))
        time.sleep(STACKS_S)
    rpc.shutdown()


@healthy(3)
def fetches_in_processes() -> None:
    """The others wait in a barrier while rank 0's pool fetches samples; that takes little of a
    processor."""
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for epoch in range(FOR_GOOD):
            beat(STEPS + epoch)
            if RANK == 0:
                pool.map(fetch, range(600), chunksize=100)
            dist.barrier()


def fetch(sample: int) -> int:
    count_words()
    time.sleep(0.1)
    return sample
