"""Which recorded operations a rank is in, and which it has only put behind another one.

A call of NCCL's returns at once, and its work is done in the order of the calls. So of the
operations that have not ended, a rank is in the oldest one; it may have come to no later one. Two
that run beside each other look the same, unless torch says that they have started.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from workerserver.cluster.read.columns.rows import Row, moment
from workerserver.cluster.read.recorder import WATCHED, Key, Operation, RankRecord

__all__ = ["Head", "heads", "is_queued", "issuer", "may_queue"]


class Head(NamedTuple):
    """The oldest operation of a rank that has not ended: when it was issued, and which it is."""

    created_ns: int
    which: tuple[Key, bool, int, int]


def heads(rows: Iterable[Row]) -> dict[int, Head]:
    """By rank; only of ranks with such an operation. If the ring may have lost the oldest one, all
    that it still holds may stand behind that."""
    found: dict[int, Head] = {}
    for row in rows:
        known = [
            (key, operation)
            for key, group in row.record.groups.items()
            for operation in (*(ops[-1] for ops in group.collectives.values()), *group.p2p)
            if operation.backend in WATCHED
        ]
        pending = [(_which(key, each), each) for key, each in known if not each.done]
        for rank in row.ranks if pending else ():
            times = row.times[rank] if row.times is not None else None
            head, oldest = min(
                (
                    (Head(moment(operation.created_ns, times) or 0, which), operation)
                    for which, operation in pending
                ),
                key=lambda each: each[0],
            )
            first = (oldest.p2p_seq if oldest.p2p else oldest.seq) <= 1 or oldest.record == 0
            whole = first or len(known) > len(pending)
            found[rank] = head if whole else Head(-1, head.which)
    return found


def is_queued(head: Head | None, key: Key, operation: Operation, created_ns: int | None) -> bool:
    """It stands behind *head*, of the same rank, which has issued it at *created_ns*. The parts of
    one batch stand side by side."""
    if head is None or not may_queue(operation):
        return False
    if head.created_ns < 0:
        return True
    return (created_ns or 0) > head.created_ns and _which(key, operation) != head.which


def may_queue(operation: Operation) -> bool:
    """Operations of its kind may stand behind each other, and torch does not say that this one has
    started."""
    return operation.backend in WATCHED and operation.state != "started"


def issuer(record: RankRecord) -> int | None:
    """The thread that issued the oldest operation that has not ended; if all have, the newest."""
    known = [
        each
        for group in record.groups.values()
        for each in (*(ops[-1] for ops in group.collectives.values()), *group.p2p)
        if each.thread is not None
    ]
    if not known:
        return None
    pending = [each for each in known if not each.done]
    if pending:
        return min(pending, key=lambda each: each.created_ns or 0).thread
    return max(known, key=lambda each: each.created_ns or 0).thread


def _which(key: Key, operation: Operation) -> tuple[Key, bool, int, int]:
    return key, operation.p2p, operation.seq if not operation.p2p else 0, operation.p2p_seq
