"""The calls that take all ranks of a group and end on none of them before all have come: as stacks
tell them, where no recorder does."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from workerserver.cluster.judge.chains.words import WHOLE_JOB
from workerserver.cluster.judge.flight import TOGETHER
from workerserver.cluster.read.blocked_on import Blocked
from workerserver.cluster.read.waits_for import DIRECTIONS

if TYPE_CHECKING:
    from workerserver.cluster.judge.job import Job

__all__ = ["MEETINGS", "Call", "calls_of"]

#: A call that takes all ranks of the job, and ends on none before all have come.
NEW_GROUP = "torch.distributed.new_group"
#: So do these, among operations of a group.
MEETINGS = (*TOGETHER, "monitored_barrier", NEW_GROUP)


class Call(NamedTuple):
    """*ranks*: all that it takes. *name*: of the operation. *group*: for people."""

    ranks: tuple[int, ...]
    name: str
    group: str


def calls_of(job: Job) -> dict[int, Call]:
    """By rank, the call in which its acting thread stands, if it is known which ranks it takes."""
    everybody = tuple(job.expected)
    return {
        rank: call
        for rank in job.ranks
        if (call := _call(rank, job.blocked[rank], everybody)) is not None
    }


def _call(rank: int, blocked: Blocked, everybody: tuple[int, ...]) -> Call | None:
    if not blocked.on_ranks or blocked.thread is None:
        return None
    if blocked.call == NEW_GROUP:
        return Call(everybody, NEW_GROUP, WHOLE_JOB)
    waits = blocked.thread.waits
    if waits is None or waits.kind != "operation" or not waits.op or waits.op in DIRECTIONS:
        return None
    ranks = waits.ranks or (everybody if waits.group == "default_pg" else ())
    return Call(ranks, waits.op, waits.group or "") if rank in ranks else None
