"""Which rank waits for which, and where these chains end.

A hang begins at a rank that others wait for and that itself waits for nobody. A rank that waits is
a victim. It also begins where ranks wait for each other in a ring.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Blame", "Need", "resolve", "terminals"]


@dataclass(frozen=True, slots=True)
class Need:
    """*waiting* can't go on before each rank of *absent* has entered the operation, too."""

    waiting: tuple[int, ...]
    absent: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Blame:
    """*ends*: the ranks that others wait for and that wait for nobody, each with the numbers of the
    needs in which it is absent. *rings*: ranks that wait for each other, with the numbers of the
    needs that close the ring. *inside*: the numbers of the needs in which nobody is absent.
    *doubtful*: the ranks that would close a ring if they waited, which can't be seen."""

    ends: Mapping[int, tuple[int, ...]]
    rings: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    inside: tuple[int, ...]
    doubtful: frozenset[int] = frozenset()


def resolve(
    needs: Sequence[Need], free: Collection[int] = (), unsure: Collection[int] = ()
) -> Blame:
    """Follow *needs*. Ranks in *free* wait for nobody, whatever they have issued. Whether ranks in
    *unsure* wait can't be seen: they count as waiting, unless that closes a ring."""
    still = set(free)
    while True:
        edges = _edges(needs, still)
        ends: set[int] = set()
        rings: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        inside: list[int] = []
        doubtful: set[int] = set()
        for component in terminals(edges):
            ranks = [node for node in component if node >= 0]
            numbers = tuple(sorted(-1 - node for node in component if node < 0))
            if not numbers:
                ends.update(ranks)
            elif not ranks:
                inside.extend(numbers)
            else:
                some = [rank for rank in ranks if rank in unsure]
                if some and len(some) < len(ranks):
                    doubtful.update(some)
                else:
                    rings.append((tuple(ranks), numbers))
        if not doubtful:
            break
        still |= doubtful
    unmet: dict[int, list[int]] = {rank: [] for rank in sorted(ends)}
    for number, need in enumerate(needs):
        for rank in need.absent:
            if rank in unmet:
                unmet[rank].append(number)
    return Blame(
        {rank: tuple(numbers) for rank, numbers in unmet.items() if numbers},
        tuple(sorted(rings)),
        tuple(sorted(inside)),
        frozenset(still.difference(free)),
    )


def _edges(needs: Sequence[Need], free: Collection[int]) -> dict[int, list[int]]:
    """Ranks are the nodes from 0 up, needs those from -1 down. So the number of edges grows with
    the number of ranks, not with its square."""
    edges: dict[int, list[int]] = {}
    for number, need in enumerate(needs):
        waiting = [rank for rank in need.waiting if rank not in free]
        if not waiting:
            continue
        node = -1 - number
        edges[node] = list(need.absent)
        for rank in need.absent:
            edges.setdefault(rank, [])
        for rank in waiting:
            edges.setdefault(rank, []).append(node)
    return edges


def terminals(edges: Mapping[int, Iterable[int]]) -> list[tuple[int, ...]]:
    """The strongly connected components that no edge leaves, each sorted (Tarjan's algorithm,
    without recursion: a chain may be as long as the job has ranks)."""
    index: dict[int, int] = {}
    low: dict[int, int] = {}
    component: dict[int, int] = {}
    leaves: list[bool] = []
    members: list[list[int]] = []
    stack: list[int] = []
    for root in sorted(edges):
        if root in index:
            continue
        work: list[tuple[int, Iterator[int]]] = [(root, iter(edges[root]))]
        index[root] = low[root] = len(index)
        stack.append(root)
        while work:
            node, targets = work[-1]
            for target in targets:
                if target not in index:
                    index[target] = low[target] = len(index)
                    stack.append(target)
                    work.append((target, iter(edges.get(target, ()))))
                    break
                if target not in component:
                    low[node] = min(low[node], index[target])
            else:
                work.pop()
                if work:
                    parent = work[-1][0]
                    low[parent] = min(low[parent], low[node])
                if low[node] == index[node]:
                    found = []
                    while True:
                        member = stack.pop()
                        component[member] = len(members)
                        found.append(member)
                        if member == node:
                            break
                    members.append(found)
                    leaves.append(False)
    for node, nexts in edges.items():
        for target in nexts:
            if component[target] != component[node]:
                leaves[component[node]] = True
    return sorted(
        tuple(sorted(found)) for found, leaving in zip(members, leaves, strict=True) if not leaving
    )
