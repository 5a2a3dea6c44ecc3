"""The calls that take all ranks of a group and end on none of them before all have come: as stacks
tell them, where no recorder does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from workerserver.cluster.judge.chains.words import WHOLE_JOB
from workerserver.cluster.judge.flight import TOGETHER
from workerserver.cluster.read.blocked_on import Blocked
from workerserver.cluster.read.waits_for import DIRECTIONS

__all__ = ["MEETINGS", "NEW_GROUP", "Call", "call_of"]

#: A call that takes all ranks of the job, and ends on none before all have come.
NEW_GROUP = "torch.distributed.new_group"
#: So do these, among operations of a group.
MEETINGS = (*TOGETHER, "monitored_barrier", NEW_GROUP)


class Call(NamedTuple):
    """*ranks*: all that it takes. *name*: of the operation. *group*: for people."""

    ranks: tuple[int, ...]
    name: str
    group: str


def call_of(rank: int, blocked: Blocked, everybody: Sequence[int]) -> Call | None:
    """The call in which the acting thread of *rank* stands, if it is known which ranks it takes.
    *everybody*: all ranks of the job."""
    if not blocked.on_ranks or blocked.thread is None:
        return None
    if blocked.call == NEW_GROUP:
        return Call(tuple(everybody), NEW_GROUP, WHOLE_JOB)
    waits = blocked.thread.waits
    if waits is None or waits.kind != "operation" or not waits.op or waits.op in DIRECTIONS:
        return None
    ranks = waits.ranks or (tuple(everybody) if waits.group == "default_pg" else ())
    return Call(ranks, waits.op, waits.group or "") if rank in ranks else None
