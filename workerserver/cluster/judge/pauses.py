"""How long the job has paused between its recorded operations, by each rank's own clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from workerserver.cluster.judge.flight import Group
from workerserver.cluster.read.columns.rows import Times, moment
from workerserver.cluster.read.recorder import GroupRecord

__all__ = ["longest", "rhythm", "usual", "usual_of_ranks"]

#: So many operations of a group tell how long a step takes.
MIN_RHYTHM = 8


def usual(group: Group, rank: int) -> float:
    """The longest usual pause of the rank between two operations of the group, in seconds; 0 if
    unknown. It is the second-longest one: the longest may be the job's start."""
    record = group.records.get(rank)
    return _usual(sorted(_gaps(_pairs(record), None))) if record is not None else 0.0


def longest(groups: Sequence[Group]) -> float:
    """The longest pause of any rank in any group."""
    found = (gap for group in groups for _, gaps in _of_ranks(group) for gap in gaps)
    return max(found, default=0.0)


def rhythm(groups: Sequence[Group]) -> float | None:
    """The longest usual pause in any group, by the ranks that tell of enough operations."""
    found = [_usual(sorted(gaps)) for group in groups for _, gaps in _of_ranks(group, MIN_RHYTHM)]
    return max(found, default=0.0) or None


def usual_of_ranks(group: Group) -> dict[int, float]:
    """As :func:`usual`, of each rank that tells something of the group."""
    return {rank: _usual(sorted(gaps)) for rank, gaps in _of_ranks(group)}


def _usual(gaps: Sequence[float]) -> float:
    """*gaps*: the longest last."""
    return (gaps[-2] if len(gaps) > 2 else gaps[-1]) if gaps else 0.0


def _of_ranks(group: Group, least: int = 0) -> Iterator[tuple[int, list[float]]]:
    """The pauses of each rank that tells of *least* collectives or more."""
    for part in group.parts:
        if len(part.record.collectives) < least:
            continue
        pairs = _pairs(part.record)
        for rank in part.ranks:
            yield rank, _gaps(pairs, part.times(rank))


def _pairs(record: GroupRecord) -> list[tuple[int | None, int | None]]:
    """When two operations that follow each other were issued."""
    times = [
        ops[0].created_ns
        for seq, ops in sorted(record.collectives.items())
        if seq - 1 in record.collectives or seq + 1 in record.collectives
    ]
    numbers = {each.p2p_seq for each in record.p2p}
    between = [
        each.created_ns for each in record.p2p if numbers & {each.p2p_seq - 1, each.p2p_seq + 1}
    ]
    return [pair for issued in (times, between) for pair in pairwise(issued)]


def _gaps(pairs: Sequence[tuple[int | None, int | None]], times: Times | None) -> list[float]:
    """The pauses between them, in seconds. *times*: as of a row (:func:`moment`)."""
    found = []
    for pair in pairs:
        before, after = moment(pair[0], times), moment(pair[1], times)
        if before is not None and after is not None and after >= before:
            found.append((after - before) / 1e9)
    return found
