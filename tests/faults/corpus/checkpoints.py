"""Checkpoints that don't end: written by a rank, by a thread of it, by a process of it."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import threading
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from scenes import (
    FOLDER,
    FOREVER,
    RANK,
    STEPS,
    How,
    Suspect,
    beat,
    fault,
    late,
    reduce,
    train,
)

SAVING = Suspect(0, "behind", "default_pg", "barrier", 6, "save")


def save() -> None:
    """To where nobody reads."""
    path = FOLDER / f"checkpoint{RANK}"
    os.mkfifo(path)
    keeps_it_open = os.open(path, os.O_RDWR)
    with path.open("wb") as file:
        torch.save({"weights": torch.zeros(1 << 20)}, file)
    os.close(keeps_it_open)


@fault(3, SAVING, stock=[SAVING])
def saves_checkpoint() -> None:
    """Rank 0 writes to where nobody reads, the others wait in a barrier."""
    beat(STEPS)
    if RANK == 0:
        save()
    dist.barrier()


@fault(3, late(0, "save"))
def saves_in_a_thread() -> None:
    """The main thread waits for the last checkpoint before it begins the next one."""
    beat(STEPS)
    if RANK == 0:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(save).result()
    reduce()


@fault(3, late(0, "save"))
def joins_its_saver() -> None:
    beat(STEPS)
    if RANK == 0:
        saver = threading.Thread(target=save)
        saver.start()
        saver.join()
    reduce()


# Where a child process stands, no worker tells. The main thread is at the line that joins it.
@fault(3, late(0, "ends_saving"))
def saves_in_a_process() -> None:
    beat(STEPS)
    if RANK == 0:
        ends_saving()
    reduce()


def ends_saving() -> None:
    saver = multiprocessing.get_context("fork").Process(target=save)
    saver.start()
    saver.join()


@fault(3, Suspect(1, "behind", "savers", "barrier", 1, "write_shard"))
def saves_with_a_group() -> None:
    """Each rank's saver writes a shard and meets the others in a group of the savers."""
    savers = dist.new_group([0, 1, 2], group_desc="savers")
    beat(STEPS)
    saver = threading.Thread(target=save_shard, args=(savers,))
    saver.start()
    train(3, first=STEPS + 1)
    saver.join()


def save_shard(group: Any) -> None:
    if RANK == 1:
        write_shard()
    dist.barrier(group=group)


def write_shard() -> None:
    time.sleep(FOREVER)


# The ring of 16 entries has overwritten the savers' barrier: only stacks tell of it.
@fault(3, Suspect(1, "behind", None, None, None, "write_shard"), how=How(ring=16))
def saves_with_a_forgotten_group() -> None:
    savers = dist.new_group([0, 1, 2], group_desc="savers")
    beat(STEPS)
    saver = threading.Thread(target=save_shard, args=(savers,))
    saver.start()
    time.sleep(0.5)
    train(40, first=STEPS + 1)
    saver.join()


class SlowWriter(dcp.FileSystemWriter):  # type: ignore[misc, unused-ignore]
    """Rank 1's shard is never written."""

    def write_data(self, plan: Any, planner: Any) -> Any:
        if RANK == 1:
            write_shard()
        return super().write_data(plan, planner)


@fault(3, Suspect(1, "behind", "default_pg", "all_gather", 11, "write_shard"))
def saves_distributed() -> None:
    """torch.distributed.checkpoint: rank 1's writer stands still, the others wait for its word."""
    beat(STEPS)
    dcp.save({"weights": torch.ones(16)}, storage_writer=SlowWriter(str(FOLDER / "dcp")))
    reduce()


@fault(3, Suspect(1, "behind", "savers", "all_gather", 6, "write_shard"))
def saves_distributed_behind_its_back() -> None:
    """async_save: a thread of torch's own writes, while the loop goes on until the next save."""
    savers = dist.new_group([0, 1, 2], group_desc="savers")
    beat(STEPS)
    writer = SlowWriter(str(FOLDER / "dcp"))
    future = dcp.async_save(
        {"weights": torch.ones(16)}, storage_writer=writer, process_group=savers
    )
    train(3, first=STEPS + 1)
    future.result()
    reduce()
