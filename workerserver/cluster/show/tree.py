"""A prefix tree of stacks: from the oldest frame down, split where ranks differ."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from workerserver.cluster.model import Frame
from workerserver.cluster.read.calls import dotted
from workerserver.cluster.read.roles import place
from workerserver.ranks import fold

__all__ = ["Node", "render_tree", "short_fold", "short_frames", "tree"]

Stack = tuple[Frame, ...]

#: Of one line of text.
MOST_PARTS = 12
MOST_PART = 120
MOST_RANGES = 60
MOST_INDENT = 30


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


def tree(items: Iterable[tuple[Stack, int | None]]) -> Node:
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


# ---- as text


def render_tree(node: Node) -> list[str]:
    """One line for each chain of frames without a branch: how many, who, and the frames, oldest
    first. As the workers sent it: whoever prints it escapes it. A line is a few thousand
    characters at most, whatever came."""
    lines: list[str] = []
    waiting = [(node, 0)]
    while waiting:
        here, depth = waiting.pop()
        who = short_fold(here.ranks) or "unknown rank"
        text = f"{'  ' * min(depth, MOST_INDENT)}{here.count} x {who}"
        if here.frames:
            text += f": {' > '.join(_parts(here.frames))}"
        if here.children and here.ended and here.frames:
            text += f" ({here.ended} end here)"
        elif not here.frames and here.ended:
            text += f" ({here.ended} without a Python stack)"
        lines.append(text)
        waiting += [(child, depth + 1) for child in reversed(here.children)]
    return lines


def short_fold(ranks: Sequence[int]) -> str:
    """As ``ranges.fold``, ended with "..." where it gets too long for a line."""
    # What is cut off anyway needn't be folded: each number takes two characters at least.
    text = fold(ranks[: MOST_RANGES * MOST_RANGES])
    if len(text) <= MOST_RANGES and len(ranks) <= MOST_RANGES * MOST_RANGES:
        return text
    if len(text) <= MOST_RANGES:  # few long runs
        text = fold(ranks)
        if len(text) <= MOST_RANGES:
            return text
    return text[:MOST_RANGES].rpartition(",")[0] + ",..."


def _parts(frames: Stack) -> list[str]:
    """Frames, oldest first, each run of the libraries' as its outermost one."""
    parts: list[str] = []
    run: list[Frame] = []
    for frame in (*frames, None):
        if frame is not None and place(frame.file).owner != "user":
            run.append(frame)
            continue
        if run:
            parts.append(_entry(run) + (f" (+{len(run) - 1})" if len(run) > 1 else ""))
            run = []
        if frame is not None:
            parts.append(_short(frame))
    if len(parts) > MOST_PARTS:
        left = len(parts) - MOST_PARTS
        parts[MOST_PARTS // 3 : MOST_PARTS // 3 + left] = [f"... {left} more ..."]
    return parts


#: Functions of libraries that only pass a call on; private ones say little, too.
_PASSING = frozenset({"wrapper", "inner", "decorate_context", "run", "__call__"})


def _entry(run: Sequence[Frame]) -> str:
    """A run of library frames, oldest first, named after the first one that says something."""
    names = (frame for frame in run if not re.match("_(?!_)", frame.function))
    frame = next((frame for frame in names if frame.function not in _PASSING), run[0])
    return _cut(dotted(place(frame.file).path, frame.function))


def _short(frame: Frame) -> str:
    file, line, function = frame
    return _cut(f"{file.rpartition('/')[2]}:{'?' if line is None else line} {function}")


def _cut(text: str) -> str:
    return text if len(text) <= MOST_PART else text[: MOST_PART - 3] + "..."


def short_frames(frames: Stack, most: int = 40) -> list[str]:
    """Newest first, one line for each frame of the user's; runs of library frames are one line, but
    for the newest frame of all, which says where the thread is. Of more than *most* lines the
    middle is left out."""
    lines: list[str] = []
    run: list[Frame] = []
    for index, frame in enumerate((*frames, None)):
        if frame is not None and index and place(frame.file).owner != "user":
            run.append(frame)
            continue
        if run:
            count = "1 library frame" if len(run) == 1 else f"{len(run)} library frames"
            lines.append(f"({count}: {_entry(run[::-1])})")
            run = []
        if frame is not None:
            file = place(frame.file).path
            line = "?" if frame.line is None else frame.line
            lines.append(f"{_cut(file)}:{line} {_cut(frame.function)}")
    if len(lines) > most:
        left = len(lines) - most
        lines[most // 2 : most // 2 + left] = [f"... {left} lines ..."]
    return lines
