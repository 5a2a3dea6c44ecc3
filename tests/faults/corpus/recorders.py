"""Flight recorders that have forgotten, that only some ranks have, or that nobody has."""

from __future__ import annotations

import torch
import torch.distributed as dist
from scenes import (
    RANK,
    STEPS,
    How,
    Suspect,
    beat,
    fault,
    late,
    prepare,
    reduce,
    sleeps_with_gil,
    standing,
    train,
)

NONE = How(ring=0)


@fault(4, standing(2, "prepare"), how=NONE)
@fault(4, standing(2, "prepare"), how=How(ring=0, beats=False), name="no_recorder_no_heartbeat")
@fault(4, late(2, "prepare"), how=How(recorded=[0]), name="recorder_on_one")
@fault(4, late(2, "prepare"), how=How(recorded=[0, 1, 3]), name="recorder_on_the_innocent")
@fault(4, late(2, "prepare"), how=How(recorded=[2, 3]), name="recorder_on_half")
def no_recorder() -> None:
    beat(STEPS)
    if RANK == 2:
        prepare()
    reduce()


# The only recorder is the one of the rank that is to blame, and holds nothing that is under way.
@fault(4, standing(2, "prepare"), how=How(recorded=[2]))
def recorder_on_the_guilty() -> None:
    beat(STEPS)
    if RANK == 2:
        prepare()
    reduce()


# A GIL that is held for ten seconds is a fault of its own; without a recorder nothing tells that
# the others wait, but their stacks.
@fault(3, standing(1, "sleeps_with_gil", "gil held"), how=NONE)
def no_recorder_and_gil_held() -> None:
    beat(STEPS)
    if RANK == 1:
        sleeps_with_gil()
    reduce()


@fault(3, Suspect(1, "behind", "default_pg", "all_reduce", 56, "prepare"), how=How(ring=16))
def short_ring() -> None:
    """The ring has gone round three times, and still holds the operation that counts."""
    train(50, first=STEPS)
    beat(STEPS + 50)
    if RANK == 1:
        prepare()
    reduce()


@fault(4, Suspect(1, "behind", "left", "all_reduce", 2, "prepare"), how=How(ring=16))
def short_ring_of_two_groups() -> None:
    """The right pair goes on for long before it comes to wait; the left one's entry is old, but
    in rings of its own ranks."""
    left = dist.new_group([0, 1], group_desc="left")
    right = dist.new_group([2, 3], group_desc="right")
    own = left if RANK < 2 else right
    beat(STEPS)
    dist.all_reduce(torch.ones(4), group=own)
    if RANK == 1:
        prepare()
    for _ in range(1 if RANK < 2 else 40):
        dist.all_reduce(torch.ones(2), group=own)
    reduce()
