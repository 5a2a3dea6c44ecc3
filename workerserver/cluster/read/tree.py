"""The main threads of all workers as a prefix tree: from the oldest frame down, split where the
ranks differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from workerserver.cluster.model import Frame, RankState
from workerserver.cluster.read.groups import Stack, normal, stacks_of
from workerserver.cluster.read.roles import main_thread

__all__ = ["Node", "prefix_tree", "tree"]


@dataclass(slots=True)
class Node:
    """*frames*, oldest first, that all of *count* workers have below the parent's. *ranks*: of
    those whose rank is known, ascending. A worker whose stack ends here is in none of *children*,
    which are in the order of their counts, the smallest first, then of the lowest rank."""

    frames: Stack
    ranks: list[int]
    count: int
    children: list[Node] = field(default_factory=list)

    @property
    def ended(self) -> int:
        """The number of workers whose stack ends here."""
        return self.count - sum(child.count for child in self.children)


def prefix_tree(items: Iterable[tuple[Stack, int | None]]) -> Node:
    """The tree of *items*: stacks, oldest frame first, and the ranks they are of.

    The root has no frames and everybody. Time and memory grow with the frames of distinct stacks,
    and with the ranks times the number of branchings above them.
    """
    numbers: dict[Frame, int] = {}
    by_stack: dict[Stack, list[int | None]] = {}
    for stack, rank in items:
        by_stack.setdefault(stack, []).append(rank)
    # Frames as numbers, in order of appearance: they sort fast, and lines may be None.
    keyed = sorted(
        (tuple([numbers.setdefault(frame, len(numbers)) for frame in stack]), stack)
        for stack in by_stack
    )
    keys = [key for key, _ in keyed]
    stacks = [stack for _, stack in keyed]
    members = [by_stack[stack] for stack in stacks]
    root = Node((), *_everybody(members))
    waiting = [(root, 0, len(keys), 0)]
    while waiting:
        node, low, high, depth = waiting.pop()
        if low < high and len(keys[low]) == depth:
            low += 1  # the one whose stack ends at this node
        while low < high:
            first = keys[low][depth]
            end = low + 1
            while end < high and keys[end][depth] == first:
                end += 1
            # Keys are sorted: what the first and the last one share, all of them share.
            shared = _shared(keys[low], keys[end - 1], depth)
            child = Node(stacks[low][depth:shared], *_everybody(members[low:end]))
            node.children.append(child)
            waiting.append((child, low, end, shared))
            low = end
        node.children.sort(key=_order)
    return root


def _everybody(members: Sequence[Sequence[int | None]]) -> tuple[list[int], int]:
    ranks = {rank for some in members for rank in some if rank is not None}
    return sorted(ranks), sum(map(len, members))


def _shared(one: Sequence[int], other: Sequence[int], start: int) -> int:
    most = min(len(one), len(other))
    while start < most and one[start] == other[start]:
        start += 1
    return start


def _order(node: Node) -> tuple[int, int, list[tuple[str, int, str]]]:
    frames = [
        (file, -1 if line is None else line, function) for file, line, function in node.frames
    ]
    return node.count, node.ranks[0] if node.ranks else 1 << 62, frames


def tree(states: Iterable[RankState]) -> Node:
    """The main threads of all workers that have stacks as a prefix tree."""
    memo: dict[int, Stack] = {}
    frames: dict[Frame, Frame] = {}
    items: list[tuple[Stack, int | None]] = []
    for state, threads in stacks_of(states):
        stack = memo.get(id(threads))
        if stack is None:
            main = main_thread(threads)
            stack = normal(main.frames, frames)[::-1] if main is not None else ()
            memo[id(threads)] = stack
        items.append((stack, state.rank))
    return prefix_tree(items)
