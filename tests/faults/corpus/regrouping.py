"""Smaller groups than the world, and groups that are destroyed and made again; and flight recorders
that have forgotten, that only some ranks have, or that nobody has."""

from __future__ import annotations

from datetime import timedelta

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
    late,
    prepare,
    reduce,
    sleeps_with_gil,
    standing,
    train,
)

LEFT = Suspect(1, "behind", "left", "all_reduce", 2, "prepare")


@fault(4, LEFT, stock=[LEFT], quick=True)
def subgroup() -> None:
    """Rank 1 doesn't come to its pair's collective; ranks 2 and 3 wait in the world's."""
    left = dist.new_group([0, 1], group_desc="left")
    right = dist.new_group([2, 3], group_desc="right")
    own = left if RANK < 2 else right
    beat(STEPS)
    dist.all_reduce(torch.ones(4), group=own)
    if RANK == 1:
        prepare()
    dist.all_reduce(torch.ones(2), group=own)
    reduce()


@fault(3, Suspect(2, "behind", "two", "all_reduce", 1, "prepare"))
def chain() -> None:
    """Rank 2 is late in its pair; rank 1 waits for it there, and rank 0 for rank 1."""
    one = dist.new_group([0, 1], group_desc="one")
    two = dist.new_group([1, 2], group_desc="two")
    beat(STEPS)
    if RANK == 2:
        prepare()
    if RANK:
        dist.all_reduce(torch.ones(4), group=two)
    if RANK < 2:
        dist.all_reduce(torch.ones(4), group=one)


# Only stacks tell that the other two wait in new_group for the rank that left it out.
@fault(3, Suspect(1, "order", "default_pg", "all_reduce", 6, "reduce"))
def skips_group() -> None:
    """All but rank 1 make a group; gloo's make one together, through the store."""
    beat(STEPS)
    if RANK != 1:
        dist.new_group([0, 1, 2])
    reduce()


@fault(3, Suspect(2, "order", "1", None, None, "meets_its_pair"))
def leaves_out_a_group() -> None:
    """Rank 2 has not called new_group for the pair to which it does not belong. So what it calls
    the first group is the others' second one."""
    beat(STEPS)
    first = dist.new_group([0, 1]) if RANK < 2 else None
    meets_its_pair(first)
    meets_its_pair(dist.new_group([1, 2]))


def meets_its_pair(pair: dist.ProcessGroup | None) -> None:
    if pair is not None and pair != dist.GroupMember.NON_GROUP_MEMBER:
        dist.all_reduce(torch.ones(4), group=pair)


@fault(3, Suspect(1, "behind", "pair", "all_reduce", 2, "prepare"))
def makes_group_again() -> None:
    """The second group of the name has made fewer operations than the first one."""
    pair = dist.new_group([0, 1], group_desc="pair")
    if RANK < 2:
        for _ in range(4):
            dist.all_reduce(torch.ones(4), group=pair)
        dist.destroy_process_group(pair)
    pair = dist.new_group([0, 1], group_desc="pair")
    beat(STEPS)
    if RANK < 2:
        dist.all_reduce(torch.ones(4), group=pair)
        if RANK == 1:
            prepare()
        dist.all_reduce(torch.ones(4), group=pair)
    reduce()


@fault(3, Suspect(2, "behind", "epoch", "all_reduce", 2, "prepare"))
def makes_group_each_epoch() -> None:
    """The group of the third epoch has the name of the first two."""
    for epoch in range(3):
        beat(STEPS + epoch)
        group = dist.new_group([0, 1, 2], group_desc="epoch")
        for step in range(3):
            if RANK == 2 and (epoch, step) == (2, 1):
                prepare()
            dist.all_reduce(torch.ones(4), group=group)
        dist.destroy_process_group(group)


@fault(3, standing(1, "prepare"))
def stays_before_the_second_group() -> None:
    """Rank 1 has destroyed the first group, too, and doesn't come to where the next one is made."""
    group = dist.new_group([0, 1, 2], group_desc="epoch")
    dist.all_reduce(torch.ones(4), group=group)
    dist.destroy_process_group(group)
    beat(STEPS)
    if RANK == 1:
        prepare()
    dist.new_group([0, 1, 2], group_desc="epoch")


def join_again() -> None:
    """With keys of its own in the store: gloo would read a peer's address of the first world, if
    the peer has not written its new one yet."""
    size = dist.get_world_size()
    store = dist.PrefixStore("again", dist.distributed_c10d._get_default_store())
    dist.destroy_process_group()
    patience = timedelta(seconds=FOREVER)
    dist.init_process_group("gloo", timeout=patience, world_size=size, rank=RANK, store=store)


@fault(3, Suspect(1, "behind", "default_pg", "all_reduce", 3, "prepare"))
def makes_the_world_again() -> None:
    """As after a restart within the processes; the recorder holds both worlds."""
    join_again()
    train(2, first=STEPS)
    beat(STEPS + 2)
    if RANK == 1:
        prepare()
    reduce()


@fault(3, standing(2, "prepare"))
def stays_out_of_the_second_world() -> None:
    if RANK == 2:
        beat(STEPS)
        prepare()
    join_again()


@fault(4, Suspect(3, "behind", "right", "all_reduce", 3, "prepare"))
def one_of_two_groups_again() -> None:
    """Both pairs are made again, and one of them stops in its second incarnation."""
    for incarnation in range(2):
        left = dist.new_group([0, 1], group_desc="left")
        right = dist.new_group([2, 3], group_desc="right")
        own = left if RANK < 2 else right
        for step in range(3):
            beat(STEPS + 3 * incarnation + step)
            if RANK == 3 and (incarnation, step) == (1, 2):
                prepare()
            dist.all_reduce(torch.ones(4), group=own)
        dist.destroy_process_group(own)
    reduce()


# ---- recorders


@fault(4, standing(2, "prepare"), how=How(ring=0))
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
@fault(3, standing(1, "sleeps_with_gil", "gil held"), how=How(ring=0))
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
