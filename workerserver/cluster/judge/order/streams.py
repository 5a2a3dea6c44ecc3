"""Which recorded operations a rank is in, and which it has only put behind another one.

A call of NCCL's returns at once, and its work is done in the order of the calls. So of the
operations that have not ended, a rank is in the oldest one; it may have come to no later one. Two
that run beside each other look the same, unless torch says that they have started.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from workerserver.cluster.read.recorder import WATCHED, Key, Operation, RankRecord

__all__ = ["Head", "heads", "is_queued", "issuer"]


class Head(NamedTuple):
    """The oldest operation of a rank that has not ended: when it was issued, and which it is."""

    created_ns: int
    which: tuple[Key, bool, int, int]


def heads(records: Mapping[int, RankRecord]) -> dict[int, Head]:
    """By rank; only of ranks with such an operation. If the ring may have lost the oldest one, all
    that it still holds may stand behind that."""
    found: dict[int, Head] = {}
    for rank, record in records.items():
        known = [
            (key, operation)
            for key, group in record.groups.items()
            for operation in (*(ops[-1] for ops in group.collectives.values()), *group.p2p)
            if operation.backend in WATCHED
        ]
        pending = [
            (Head(operation.created_ns or 0, _which(key, operation)), operation)
            for key, operation in known
            if not operation.done
        ]
        if pending:
            head, oldest = min(pending, key=lambda each: each[0])
            first = (oldest.p2p_seq if oldest.p2p else oldest.seq) <= 1 or oldest.record == 0
            whole = first or len(known) > len(pending)
            found[rank] = head if whole else Head(-1, head.which)
    return found


def is_queued(head: Head | None, key: Key, operation: Operation) -> bool:
    """It stands behind *head*, of the same rank. The parts of one batch stand side by side."""
    if head is None or operation.backend not in WATCHED or operation.state == "started":
        return False
    if head.created_ns < 0:
        return True
    return (operation.created_ns or 0) > head.created_ns and _which(key, operation) != head.which


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
