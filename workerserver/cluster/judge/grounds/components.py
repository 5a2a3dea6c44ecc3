"""Which ranks depend on each other: the connected components that groups and waits join."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["components"]


def components(ranks: Iterable[int], joined: Iterable[Sequence[int]]) -> list[tuple[int, ...]]:
    """*ranks* in components, each sorted. *joined*: ranks that belong together; ranks that are
    named only there may join others."""
    above: dict[int, int] = {}

    def top(rank: int) -> int:
        above.setdefault(rank, rank)
        while above[rank] != rank:
            above[rank] = above[above[rank]]
            rank = above[rank]
        return rank

    for together in joined:
        for rank in together[1:]:
            above[top(rank)] = top(together[0])
    found: dict[int, list[int]] = {}
    for rank in sorted(set(ranks)):
        found.setdefault(top(rank), []).append(rank)
    return sorted(map(tuple, found.values()))
