"""Ranks that do different work, or different amounts of it."""

from __future__ import annotations

import time
from datetime import timedelta
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
    prepare,
    reduce,
    standing,
    unclear,
)


# No recorder of gloo's holds monitored_barrier; the other two wait there for who skipped it.
@fault(3, Suspect(2, "order", "default_pg", "all_reduce", 6, "reduce"))
def skips_monitored_barrier() -> None:
    beat(STEPS)
    if RANK != 2:
        dist.monitored_barrier(timeout=timedelta(seconds=FOREVER))
    reduce()


@fault(3, standing(2, "prepare"))
@fault(3, standing(2, "prepare"), how=How(beats=False), name="late_at_a_meeting_unseen")
def late_at_a_meeting() -> None:
    """Rank 2 doesn't skip the monitored barrier, but is not there yet."""
    beat(STEPS)
    if RANK == 2:
        prepare()
    dist.monitored_barrier(timeout=timedelta(seconds=FOREVER))


def halves() -> tuple[Any, Any]:
    """Ranks 0 and 1 train, ranks 2 and 3 sample for them."""
    return (
        dist.new_group([0, 1], group_desc="trainers"),
        dist.new_group([2, 3], group_desc="samplers"),
    )


def work_in_halves(steps: int, stops_at: int, rank: int) -> None:
    """In each step a sampler sends to its trainer, and gets new weights from it."""
    trainers, _ = halves()
    for step in range(steps):
        beat(STEPS + step)
        if rank == RANK and step == stops_at:
            prepare()
        if RANK > 1:
            dist.send(torch.ones(4), RANK - 2)
            dist.recv(torch.ones(4), RANK - 2)
        else:
            dist.recv(torch.ones(4), RANK + 2)
            dist.all_reduce(torch.ones(4), group=trainers)
            dist.send(torch.ones(4), RANK + 2)


# Rank 0 waits for rank 1 in the trainers' group, rank 1 in a recv for rank 3, and rank 2 in a recv
# for rank 0. Only rank 3 waits for nobody.
@fault(4, Suspect(3, "behind", "default_pg", "recv from rank 3", None, "prepare"))
def sampler_stops() -> None:
    work_in_halves(4, 2, 3)


@fault(4, Suspect(1, "behind", "trainers", "all_reduce", 3, "prepare"))
def trainer_stops() -> None:
    work_in_halves(4, 2, 1)


@fault(4, Suspect(3, "behind", "samplers", "all_reduce", 4, "prepare"))
def samplers_count_their_own_steps() -> None:
    """A sampler's heartbeats are its samples: the halves' steps have nothing to do with each other.
    Within the samplers rank 3 stands still; the trainers wait for weights that nobody sends."""
    _, samplers = halves()
    if RANK > 1:
        for sample in range(4):
            beat(100 * sample)
            if RANK == 3 and sample == 3:
                prepare()
            dist.all_reduce(torch.ones(4), group=samplers)
    beat(STEPS)
    reduce()


@fault(3, Suspect(1, "behind", "default_pg", "all_reduce", 6, "collect_samples"))
def samples_for_ever() -> None:
    """Heartbeats that count each rank's own samples: more of them is no step ahead."""
    for sample in range(10 + 20 * RANK):
        beat(STEPS + sample)
        time.sleep(0.01)
    if RANK == 1:
        collect_samples()
    reduce()


def collect_samples() -> None:
    time.sleep(FOREVER)


# A heartbeat of rank 1 each 0.3 s: it goes on, and may only be slow.
@unclear(3, "goes on, and may only be slow")
def validates_unevenly() -> None:
    """Nothing is wrong: rank 1's validation is longer, and each of its batches is a heartbeat."""
    beat(STEPS)
    if RANK == 1:
        for batch in range(10**6):
            time.sleep(0.3)
            beat(STEPS + batch)
    reduce()


@fault(4, Suspect(0, "behind", "default_pg", "all_reduce", 6, "log_activation"))
def evaluates_on_one_rank() -> None:
    """Rank 0 alone evaluates after each epoch, and does not come back."""
    beat(STEPS)
    if RANK == 0:
        evaluate()
    reduce()


def evaluate() -> None:
    model = torch.nn.Linear(4, 4)
    model.register_forward_hook(log_activation)
    model(torch.ones(2, 4))


def log_activation(*_: Any) -> None:
    time.sleep(FOREVER)
