"""Point-to-point operations, which gloo doesn't record: stages of a pipeline, and rings."""

from __future__ import annotations

from collections.abc import Callable

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
    only,
    prepare,
    reduce,
    train,
    unclear,
)

UNSEEN = How(beats=False)
#: More than the buffers of a socket hold: such a send waits for its receiver.
LARGE = 1 << 24


def last() -> int:
    return int(dist.get_world_size()) - 1


def pass_on(tensor: torch.Tensor) -> None:
    """One microbatch through this rank's stage."""
    if RANK:
        dist.recv(tensor, RANK - 1)
    if last() > RANK:
        dist.send(tensor, RANK + 1)


def owes(rank: int, function: str, operation: str = "") -> Suspect:
    """Others wait for it in *operation*, by default to receive from it. No recorder holds that; the
    stacks of our workers tell it. A send of gloo's waits for its receiver, however small it is."""
    operation = operation or f"recv from rank {rank}"
    return Suspect(rank, "behind", "default_pg", operation, None, function)


def crosswise(rank: int, peer: int) -> Suspect:
    operation = f"recv from rank {peer}"
    return Suspect(rank, "p2p cycle", "default_pg", operation, None, "receives_crosswise")


@fault(3, crosswise(0, 1), crosswise(1, 0))
def receives_crosswise() -> None:
    beat(STEPS)
    if RANK < 2:
        dist.recv(torch.ones(4), 1 - RANK)
    reduce()


@only(1, late(1, "receives", "p2p"), 3)
def receives() -> None:
    dist.recv(torch.ones(4), 0)


# gloo doesn't record send and recv: who owes a send is told by stacks alone.
@fault(4, owes(0, "prepare"))
@fault(4, owes(0, "prepare"), how=UNSEEN, name="starves_pipeline_unseen")
def starves_pipeline() -> None:
    """The first stage sends nothing; each of the others waits for the one before."""
    beat(STEPS)
    if RANK == 0:
        prepare()
    else:
        dist.recv(torch.ones(4), RANK - 1)


@fault(2, owes(0, "prepare"), how=UNSEEN)
def starves_two_stages() -> None:
    """Of two stages, neither is the crowd."""
    if RANK == 0:
        prepare()
    dist.recv(torch.ones(4), 0)


@fault(4, owes(2, "prepare", "send to rank 2"))
@fault(4, owes(2, "prepare", "send to rank 2"), how=UNSEEN, name="stops_in_the_middle_unseen")
def stops_in_the_middle() -> None:
    """The third microbatch stops in the third stage; the stages before wait for its gradient."""
    for microbatch in range(4):
        beat(STEPS + microbatch)
        if RANK == 2 and microbatch == 2:
            prepare()
        tensor = torch.ones(4)
        pass_on(tensor)
        if last() > RANK:
            dist.recv(tensor, RANK + 1)
        if RANK:
            dist.send(tensor, RANK - 1)


TOO_FEW = Suspect(0, "order", "default_pg", "all_reduce", 6, "reduce")


# Rank 0 is in the all_reduce, and the others are still to come there. That rank 0 has sent too few,
# and not each of the others asks for too many, is told by their number.
@fault(4, TOO_FEW)
@fault(4, TOO_FEW, how=UNSEEN, name="one_microbatch_too_few_unseen")
def one_microbatch_too_few() -> None:
    beat(STEPS)
    for microbatch in range(4):
        if RANK or microbatch < 3:
            pass_on(torch.ones(4))
    reduce()


@fault(4, owes(0, "prepare"))
def one_microbatch_too_few_and_none_after() -> None:
    """Rank 0 waits for its next batch, and not for the others."""
    beat(STEPS)
    for microbatch in range(4):
        if RANK or microbatch < 3:
            pass_on(torch.ones(4))
        else:
            prepare()
    reduce()


def exchange(to: int, source: int) -> None:
    """A ring's step: send to the one, receive from the other."""
    works = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, torch.ones(4), to),
            dist.P2POp(dist.irecv, torch.ones(4), source),
        ]
    )
    for work in works:
        work.wait()


def ring(stops: Callable[[], None], steps: int = 3) -> None:
    size = dist.get_world_size()
    for step in range(steps):
        beat(STEPS + step)
        if RANK == 2 and step == steps - 1:
            stops()
        exchange((RANK + 1) % size, (RANK - 1) % size)


@fault(4, late(2, "prepare"))
@fault(4, late(2, "prepare"), how=UNSEEN, name="stops_in_a_ring_unseen")
def stops_in_a_ring() -> None:
    """Ranks 0 and 1 have all that they need, and have come to the sum after the ring; rank 3 waits
    for rank 2. The wait of batch_isend_irecv leaves no frame of torch's."""
    ring(prepare)
    reduce()


# No frame and no record tells whose message is missing: all ranks stand in work.wait().
@unclear(3, "nothing has moved for")
def asks_the_wrong_neighbour() -> None:
    """Rank 1 expects its message from itself's successor, which sends to nobody but rank 0."""
    beat(STEPS)
    size = dist.get_world_size()
    source = (RANK + 1) % size if RANK == 1 else (RANK - 1) % size
    exchange((RANK + 1) % size, source)
    exchange((RANK + 1) % size, source)


@fault(2, owes(1, "prepare", "send to rank 1"))
def sends_to_nobody() -> None:
    """A large send waits for its receiver."""
    beat(STEPS)
    if RANK == 1:
        prepare()
    dist.send(torch.ones(LARGE), 1)


@fault(4, late(3, "prepare"))
def last_stage_misses_the_sum() -> None:
    """The pipeline is through; the last stage doesn't come to the sum of the gradients."""
    beat(STEPS)
    for _ in range(4):
        pass_on(torch.ones(4))
    if RANK == 3:
        prepare()
    reduce()


@fault(4, owes(1, "prepare", "send to rank 1"), how=How(ring=0))
def pipeline_without_recorder() -> None:
    train(2, first=STEPS)
    for microbatch in range(3):
        beat(STEPS + 2 + microbatch)
        if RANK == 1 and microbatch == 1:
            prepare()
        pass_on(torch.ones(4))
