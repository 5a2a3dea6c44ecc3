"""Who is to blame where ranks wait for each other: the records of a rank testify to the order in
which this rank took its operations, and to the order of no other rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from workerserver.cluster.judge.flight import Wait

__all__ = ["contrary"]


class _Side(NamedTuple):
    """*ranks*, of those that wait in *wait*, for which the other side waits. They may be as many as
    *most*, if rings have lost who else belongs to the other side's group, or if ranks without a
    recorder wait beside them."""

    ranks: frozenset[int]
    wait: Wait
    most: int


def contrary(waits: Sequence[Wait], unseen: int) -> dict[int, Wait | None]:
    """By rank, those that took operations in another order than those they wait for: of two sides
    the smaller one, both if they are equal. With each of them, where the other side waits. Empty
    if no two sides wait for each other, or if several do and no one rank explains all of that. A
    side that may be the larger one, too, is not named. *unseen*: how many ranks of the job have
    recorded nothing."""
    found = list(_conflicts(waits, unseen))
    if len(found) == 1:
        one, other = found[0]
        sides = [(one, other)] if one.most <= len(other.ranks) else []
        sides += [(other, one)] if other.most <= len(one.ranks) else []
        return {rank: theirs.wait for own, theirs in sides for rank in sorted(own.ranks)}
    if any(wait.group.lossy for wait in waits):
        return {}
    both = [one.ranks | other.ranks for one, other in found]
    everywhere = frozenset.intersection(*both) if both else frozenset()
    if len(everywhere) != 1:
        return {}
    (rank,) = everywhere
    return {rank: next(side.wait for side in found[0] if rank not in side.ranks)}


def _conflicts(waits: Sequence[Wait], unseen: int) -> Iterator[tuple[_Side, _Side]]:
    """Each two sides that wait for each other. Who waits in several operations is on one side."""
    together: dict[tuple[int, ...], list[Wait]] = {}
    for wait in waits:
        together.setdefault(wait.waiting, []).append(wait)
    sides = list(together.items())
    for number, (some, own) in enumerate(sides):
        for others, theirs in sides[number + 1 :]:
            mine = frozenset(some) & _needed(theirs)
            yours = frozenset(others) & _needed(own)
            if mine and yours and mine.isdisjoint(yours):
                yield (
                    _Side(mine, own[0], _most(mine, own, theirs, unseen)),
                    _Side(yours, theirs[0], _most(yours, theirs, own, unseen)),
                )


def _most(known: frozenset[int], own: Sequence[Wait], theirs: Sequence[Wait], unseen: int) -> int:
    """Of those that wait in *own*, so many may be needed in *theirs*."""
    if any(wait.group.lossy for wait in (*own, *theirs)):
        return len(own[0].waiting) + unseen
    return len(known) + len({rank for wait in own for rank in wait.silent})


def _needed(waits: Sequence[Wait]) -> frozenset[int]:
    return frozenset(rank for wait in waits for rank in (*wait.absent, *wait.queued, *wait.silent))
