"""Another thread than the main one acts for the rank."""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import threading
import time
from typing import Any

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
    prepare,
    reduce,
    unclear,
)


def train_until_stuck() -> None:
    beat(STEPS)
    if RANK == 1:
        prepare()
    reduce()


@fault(3, late(1, "prepare"), stock=[late(1, "prepare")])
def trains_in_thread() -> None:
    """The loop runs in a thread, as in an actor framework, and the main thread joins it."""
    thread = threading.Thread(target=train_until_stuck)
    thread.start()
    thread.join()


@fault(3, late(1, "prepare"))
@fault(3, late(1, "prepare"), how=How(beats=False), name="trains_unseen_in_polled_thread")
def trains_in_polled_thread() -> None:
    thread = threading.Thread(target=train_until_stuck)
    thread.start()
    while thread.is_alive():
        time.sleep(0.5)


@fault(3, late(1, "prepare"))
def trains_in_pool() -> None:
    """The main thread waits for the result."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(train_until_stuck).result()


@fault(3, late(1, "prepare"))
def trains_beside_a_loop() -> None:
    """The main thread runs an event loop, as an actor's does."""

    async def act() -> None:
        await asyncio.get_running_loop().run_in_executor(None, train_until_stuck)

    asyncio.run(act())


@fault(3, late(1, "prepare"))
def joins_in_turns() -> None:
    """The main thread joins with a timeout, and looks after other things in between."""
    thread = threading.Thread(target=train_until_stuck)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)


@fault(3, Suspect(1, "behind", "default_pg", "all_reduce", 9, "log_gradient"))
def ddp_in_thread() -> None:
    thread = threading.Thread(target=gets_stuck_in_backward, args=(1,))
    thread.start()
    thread.join()


# The trainer of rank 1 waits for its own main thread, and no other rank does anything wrong. That
# the main thread should put something into the queue nobody can see: the trainer is named.
@fault(3, late(1, "obeys", "lock"))
def waits_for_its_driver() -> None:
    """The main thread tells the trainer what to do, step by step; rank 1's forgets to."""
    commands: queue.Queue[int] = queue.Queue()
    threading.Thread(target=obeys, args=(commands,), daemon=True).start()
    for step in range(STEPS, STEPS + 2):
        if RANK != 1:
            commands.put(step)
    while True:
        time.sleep(0.5)


def obeys(commands: queue.Queue[int]) -> None:
    while True:
        beat(commands.get())
        reduce()


@fault(3, late(1, "uploads"))
def outlives_main() -> None:
    """Rank 1's program is over, but for a thread that isn't a daemon's; it serves on."""
    beat(STEPS)
    if RANK == 1:
        threading.Thread(target=uploads).start()
        threading._shutdown()  # type: ignore[attr-defined]  # as the interpreter does at its end
    reduce()


# The server ends with worker_main: nobody can look at the thread that keeps the process, so nobody
# knows whether it only takes long.
@unclear(
    3,
    "rank 1 has not entered all_reduce #6 of default_pg",
    how=How(stays=False, deadline_s=3.0),
)
def leaves_a_thread_behind() -> None:
    """Rank 1's program is over, and its process waits for a thread that isn't a daemon's."""
    beat(STEPS)
    if RANK == 1:
        threading.Thread(target=uploads).start()
    else:
        reduce()


def uploads() -> None:
    time.sleep(FOREVER)


@fault(3, Suspect(2, "behind", "second", "all_reduce", 2, "prepare"))
def trains_two_models() -> None:
    """Two threads with a group each; the second one of rank 2 stands still."""
    groups = [dist.new_group([0, 1, 2], group_desc=name) for name in ("first", "second")]
    beat(STEPS)
    threads = [threading.Thread(target=train_one, args=(group,)) for group in groups]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def train_one(group: Any) -> None:
    for step in range(2):
        if RANK == 2 and step and group.group_desc == "second":
            prepare()
        dist.all_reduce(torch.ones(4), group=group)


@fault(3, late(1, "prepare"))
def trains_beside_idle_threads() -> None:
    """Consumers that wait for work, and a thread that logs, stand beside the trainer."""
    work: queue.Queue[int] = queue.Queue()
    for _ in range(6):
        threading.Thread(target=consume, args=(work,), daemon=True).start()
    threading.Thread(target=log, daemon=True).start()
    trainer = threading.Thread(target=train_until_stuck)
    trainer.start()
    trainer.join()


def consume(work: queue.Queue[int]) -> None:
    while True:
        work.get()


def log() -> None:
    while True:
        time.sleep(0.2)
