"""What one process recorded: the answer of ``sample_stacks``, checked.

The head of ``stacks/sampler/render_tree.c`` says what each field means.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["MAX_BYTES", "Function", "Node", "Recorded", "Thread", "parse"]

#: The largest answer: a full tree with all its names takes less.
MAX_BYTES = 32 << 20
#: Bounds of stacks/sampler/tree.h.
MAX_NODES = 1 << 15
MAX_FUNCTIONS = 1 << 14
MAX_THREADS = 1 << 12
MAX_COUNT = 1 << 53

#: File, name and first line; an empty file or name, or line 0, is not known.
Function = tuple[str, str, int]


class Thread(NamedTuple):
    """A thread of the process. An ident is used again after its thread's end, with another
    *native_id*."""

    name: str
    ident: int
    native_id: int


class Node(NamedTuple):
    """One call, or a thread's root. *function* is a place in ``functions``, of a root in
    ``threads``. *active* and *idle* count the samples that ended here."""

    parent: int
    function: int
    active: int
    idle: int


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recording of one process."""

    mode: str
    hz: float
    time: float
    seconds: float
    samples: int
    missed: int
    unstable: int
    cut: int
    cost_seconds: float
    functions: list[Function] = field(repr=False)
    threads: list[Thread] = field(repr=False)
    nodes: list[Node] = field(repr=False)


def parse(body: bytes) -> Recorded:
    """The recording in *body*. ValueError if *body* holds something else."""
    try:
        return _parse(json.loads(body))
    except (KeyError, TypeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"no recording: {type(error).__name__}: {error}") from None


def _parse(told: Any) -> Recorded:
    if type(told) is not dict or told["version"] != 1 or told["mode"] not in ("wall", "cpu"):
        raise ValueError("no recording of version 1")
    functions = [_function(each) for each in _list(told["functions"], MAX_FUNCTIONS)]
    threads = [_thread(each) for each in _list(told["threads"], MAX_THREADS)]
    nodes: list[Node] = []
    for each in _list(told["nodes"], MAX_NODES):
        parent, function, active, idle = _list(each, 4)
        known = threads if parent == -1 else functions
        if type(parent) is not int or not -1 <= parent < len(nodes):
            raise ValueError(f"node {len(nodes)} has parent {parent!r}")
        if _count(function) >= len(known):
            raise ValueError(f"node {len(nodes)} is of no known function")
        nodes.append(Node(parent, function, _count(active), _count(idle)))
    return Recorded(
        told["mode"],
        _number(told["hz"], 0.001),
        _number(told["time"]),
        _number(told["seconds"]),
        _count(told["samples"]),
        _count(told["missed"]),
        _count(told["unstable"]),
        _count(told["cut"]),
        _number(told["cost_seconds"]),
        functions,
        threads,
        nodes,
    )


def _function(told: Any) -> Function:
    file, name, line = _list(told, 3)
    return _text(file), _text(name), _count(line)


def _thread(told: Any) -> Thread:
    name, ident, native_id = _list(told, 3)
    if type(ident) is not int or type(native_id) is not int:
        raise ValueError(f"no thread: {told!r}")
    return Thread(_text(name) or "thread without a name", ident, native_id)


def _list(told: Any, most: int) -> list[Any]:
    if type(told) is not list or len(told) > most:
        raise ValueError(f"no list of at most {most}: {type(told).__name__}")
    return told


def _text(told: Any) -> str:
    """*told* without lone surrogates, which no encoding can carry."""
    if told is None:
        return ""
    if type(told) is not str:
        raise ValueError(f"no text: {type(told).__name__}")
    return told.encode("utf-8", "backslashreplace").decode()


def _count(told: Any) -> int:
    if type(told) is not int or not 0 <= told < MAX_COUNT:
        raise ValueError(f"no count: {told!r}")
    return told


def _number(told: Any, least: float = 0.0) -> float:
    if type(told) not in (int, float) or not math.isfinite(told) or not least <= told < 1e12:
        raise ValueError(f"no number: {told!r}")
    return float(told)
