"""How long the job has paused between its recorded operations, by each rank's own clock."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from workerserver.cluster.judge.flight import Group

__all__ = ["longest", "rhythm", "usual"]

#: So many operations of a group tell how long a step takes.
MIN_RHYTHM = 8


def usual(group: Group, rank: int) -> float:
    """The longest usual pause of the rank between two operations of the group, in seconds; 0 if
    unknown. It is the second-longest one: the longest may be the job's start."""
    gaps = _gaps(group, rank)
    return (gaps[-2] if len(gaps) > 2 else gaps[-1]) if gaps else 0.0


def longest(groups: Sequence[Group]) -> float:
    """The longest pause of any rank in any group."""
    gaps = (_gaps(group, rank) for group in groups for rank in group.records)
    return max((each[-1] for each in gaps if each), default=0.0)


def rhythm(groups: Sequence[Group]) -> float | None:
    """The longest usual pause in any group, by the ranks that tell of enough operations."""
    found = [
        usual(group, rank)
        for group in groups
        for rank, record in group.records.items()
        if len(record.collectives) >= MIN_RHYTHM
    ]
    return max(found, default=0.0) or None


def _gaps(group: Group, rank: int) -> list[float]:
    """Between operations that follow each other, the longest last."""
    record = group.records.get(rank)
    if record is None:
        return []
    times = [
        ops[0].created_ns
        for seq, ops in sorted(record.collectives.items())
        if seq - 1 in record.collectives or seq + 1 in record.collectives
    ]
    numbers = {each.p2p_seq for each in record.p2p}
    between = [
        each.created_ns for each in record.p2p if numbers & {each.p2p_seq - 1, each.p2p_seq + 1}
    ]
    return sorted(
        (after - before) / 1e9
        for issued in (times, between)
        for before, after in pairwise(issued)
        if before is not None and after is not None and after >= before
    )
