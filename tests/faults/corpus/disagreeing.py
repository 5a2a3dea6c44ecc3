"""The ranks have issued different operations, or one of them has left some out."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist
from scenes import (
    FOREVER,
    RANK,
    STEPS,
    Suspect,
    apart,
    beat,
    fault,
    late,
    reduce,
    train,
)

SWALLOWED = Suspect(2, "swallowed", "default_pg", "barrier", 10, "evaluate")
# That a rank is a step ahead, stock workers can't tell.
AHEAD = Suspect(2, "mismatch", "default_pg", "barrier", 10, "evaluate")


@fault(3, SWALLOWED, stock=[AHEAD], quick=True)
def swallows() -> None:
    """Rank 2's step 7 fails before its collective, and the loop goes on."""
    for step in range(STEPS, STEPS + 5):
        beat(step)
        try:
            if RANK == 2 and step == 7:
                raise ValueError("a bad sample")
            reduce()
        except ValueError:
            continue
    beat(STEPS + 5)
    evaluate()


def evaluate() -> None:
    dist.barrier()


@fault(3, late(2, "wait_for_restart"))
def gives_up() -> None:
    """Rank 2's loop ends early by an exception that nobody sees."""
    try:
        if RANK == 2:
            raise ValueError("a bad sample")
        train(4, first=STEPS)
    except ValueError:
        wait_for_restart()


def wait_for_the_end() -> None:
    while True:
        time.sleep(0.5)


def wait_for_restart() -> None:
    time.sleep(FOREVER)


@fault(3, apart(2, "barrier", "evaluate"))
def one_batch_fewer() -> None:
    """Rank 2 has no sixth batch."""
    beat(STEPS)
    if RANK == 2:
        evaluate()
    else:
        reduce()
    wait_for_the_end()


@fault(4, Suspect(1, "mismatch", "default_pg", "broadcast", 9, "sends_weights"))
def validates_fewer_batches() -> None:
    """Rank 1 has three batches to validate and the others four; each is averaged over the ranks."""
    for batch in range(3 if RANK == 1 else 4):
        beat(STEPS + batch)
        reduce()
    sends_weights()
    wait_for_the_end()


def sends_weights() -> None:
    dist.broadcast(torch.ones(4), 0)


@fault(
    3,
    apart(1, "all_gather", "reorders", "order"),
    stock=[apart(1, "all_gather", "reorders", "order")],
)
def reorders() -> None:
    """Rank 1 gathers first and reduces then; nobody waits in between."""
    beat(STEPS)
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


# Which ranks gloo's groups have, stock workers can't tell.
@fault(3, Suspect(1, "order", "second", "all_reduce", 1, "crosses_groups"), stock=[])
def crosses_groups() -> None:
    """Rank 1 takes two groups in the other order."""
    first = dist.new_group([0, 1, 2], group_desc="first")
    second = dist.new_group([0, 1, 2], group_desc="second")
    beat(STEPS)
    for group in (second, first) if RANK == 1 else (first, second):
        dist.all_reduce(torch.ones(4), group=group)


@fault(3, apart(2, "all_reduce", "reduce"), stock=[apart(2, "all_reduce", "reduce")])
def shapes() -> None:
    beat(STEPS)
    try:
        reduce(6 if RANK == 2 else 4)
    except RuntimeError:
        wait_for_restart()
    wait_for_the_end()


@fault(3, apart(2, "all_reduce", "wait_for_the_end"))
def dtypes() -> None:
    beat(STEPS)
    dist.all_reduce(torch.ones(4, dtype=torch.int32 if RANK == 2 else torch.float32))
    wait_for_the_end()


@fault(3, apart(0, "all_reduce", "reduce"))
def logs_alone() -> None:
    """Rank 0 reduces its loss for the log; the others don't."""
    beat(STEPS)
    if RANK == 0:
        log_loss()
    reduce()
    wait_for_the_end()


def log_loss() -> None:
    try:
        reduce(1)
    except RuntimeError:
        wait_for_restart()


@fault(3, apart(1, "broadcast", "broadcasts_alone"))
def broadcasts_alone() -> None:
    beat(STEPS)
    if RANK == 1:
        dist.broadcast(torch.ones(4), 0)
    reduce()
    wait_for_the_end()


PAIR = [
    Suspect(2, "order", "all", "all_reduce", 1, "takes_the_pair_first"),
    Suspect(3, "order", "pair", "all_reduce", 1, "takes_the_pair_first"),
]


# Ranks 0 and 1 are not in the pair, so they don't tell which of the two orders is right.
@fault(4, *PAIR)
def takes_the_pair_first() -> None:
    """Rank 3 reduces with rank 2 before it reduces with all, and rank 2 after it."""
    everybody = dist.new_group([0, 1, 2, 3], group_desc="all")
    pair = dist.new_group([2, 3], group_desc="pair")
    beat(STEPS)
    groups = [everybody, pair] if RANK == 2 else [pair, everybody] if RANK == 3 else [everybody]
    for group in groups:
        dist.all_reduce(torch.ones(4), group=group)


@fault(3, apart(0, "all_reduce", "reduce"))
def swallows_broadcast_of_objects() -> None:
    """Rank 0 can't pickle what it has to send, and goes on."""
    beat(STEPS)
    try:
        dist.broadcast_object_list([lambda: None] if RANK == 0 else [None], src=0)
    except Exception:  # as careless code does
        if RANK != 0:
            raise
    reduce()
    time.sleep(FOREVER)
