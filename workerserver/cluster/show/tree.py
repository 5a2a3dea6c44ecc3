"""Stacks as text: the prefix tree, and one stack with the libraries' frames folded."""

from __future__ import annotations

import re
from collections.abc import Sequence

from workerserver.cluster.model import NATIVE, Frame
from workerserver.cluster.read.owners import code_file, dotted
from workerserver.cluster.read.tree import Node
from workerserver.ranks import fold

__all__ = ["render_tree", "short_fold", "short_frames", "where"]

Stack = tuple[Frame, ...]

#: Of one line of text.
MAX_PARTS = 12
MAX_PART = 120
MAX_RANGES = 60
MAX_INDENT = 30


def where(frame: Frame) -> str:
    """``/home/user/hang.py:12 compute``, as JSON has it; a native frame: ``libc.so.6: recv()``."""
    if frame.file.startswith(NATIVE):
        return _native(frame)
    return f"{frame.file}:{'?' if frame.line is None else frame.line} {frame.function}"


def _native(frame: Frame) -> str:
    return f"{frame.file.removeprefix(NATIVE).rpartition('/')[2]}: {frame.function}"


def render_tree(node: Node) -> list[str]:
    """One line for each chain of frames without a branch: how many workers, their ranks, and the
    frames, oldest first. The text is as the workers sent it: escape it before you print it. A line
    has a few thousand characters at most."""
    lines: list[str] = []
    waiting = [(node, 0)]
    while waiting:
        here, depth = waiting.pop()
        who = short_fold(here.ranks) or "unknown rank"
        text = f"{'  ' * min(depth, MAX_INDENT)}{here.count} x {who}"
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
    """As :func:`fold`, cut with "..." if it gets too long for a line."""
    # Each number takes two characters at least: numbers that are cut off need not be folded.
    text = fold(ranks[: MAX_RANGES * MAX_RANGES])
    if len(text) <= MAX_RANGES and len(ranks) <= MAX_RANGES * MAX_RANGES:
        return text
    if len(text) <= MAX_RANGES:  # few long runs
        text = fold(ranks)
        if len(text) <= MAX_RANGES:
            return text
    return text[:MAX_RANGES].rpartition(",")[0] + ",..."


def _parts(frames: Stack) -> list[str]:
    """Frames, oldest first, each run of the libraries' as its outermost one."""
    parts: list[str] = []
    run: list[Frame] = []
    for frame in (*frames, None):
        if frame is not None and code_file(frame.file).owner != "user":
            run.append(frame)
            continue
        if run:
            parts.append(_entry(run) + (f" (+{len(run) - 1})" if len(run) > 1 else ""))
            run = []
        if frame is not None:
            parts.append(_short(frame))
    if len(parts) > MAX_PARTS:
        left = len(parts) - MAX_PARTS
        parts[MAX_PARTS // 3 : MAX_PARTS // 3 + left] = [f"... {left} more ..."]
    return parts


#: Functions of libraries that only pass a call on. Private functions say little, too.
_PASSING = frozenset({"wrapper", "inner", "decorate_context", "run", "__call__"})


def _entry(run: Sequence[Frame]) -> str:
    """A run of library frames, oldest first, named after the first one that says something."""
    names = (frame for frame in run if not re.match("_(?!_)", frame.function))
    frame = next((frame for frame in names if frame.function not in _PASSING), run[0])
    return _cut(dotted(code_file(frame.file).path, frame.function))


def _short(frame: Frame) -> str:
    file, line, function = frame
    if file.startswith(NATIVE):
        return _cut(_native(frame))
    return _cut(f"{file.rpartition('/')[2]}:{'?' if line is None else line} {function}")


def _cut(text: str) -> str:
    return text if len(text) <= MAX_PART else text[: MAX_PART - 3] + "..."


def _folds(frame: Frame) -> bool:
    return not frame.file.startswith(NATIVE) and code_file(frame.file).owner != "user"


def _is_interpreter(frame: Frame) -> bool:
    name = frame.file.rpartition("/")[2]
    return frame.file.startswith(NATIVE) and name.startswith(("libpython", "python"))


def short_frames(frames: Stack, most: int = 40) -> list[str]:
    """Newest first, one line for each frame of the user's. A run of library frames is one line. The
    newest frame of all has a line in any case, because it says where the thread is. If there are
    more than *most* lines, the middle is left out. Native frames of Python itself are left out, but
    for the newest one."""
    lines: list[str] = []
    run: list[Frame] = []
    frames = tuple(
        frame for index, frame in enumerate(frames) if not index or not _is_interpreter(frame)
    )
    for index, frame in enumerate((*frames, None)):
        if frame is not None and index and _folds(frame):
            run.append(frame)
            continue
        if run:
            count = "1 library frame" if len(run) == 1 else f"{len(run)} library frames"
            lines.append(f"({count}: {_entry(run[::-1])})")
            run = []
        if frame is not None and frame.file.startswith(NATIVE):
            lines.append(_cut(_native(frame)))
        elif frame is not None:
            file = code_file(frame.file).path
            line = "?" if frame.line is None else frame.line
            lines.append(f"{_cut(file)}:{line} {_cut(frame.function)}")
    if len(lines) > most:
        left = len(lines) - most
        lines[most // 2 : most // 2 + left] = [f"... {left} lines ..."]
    return lines
