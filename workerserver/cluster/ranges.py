"""Ranges in text: ranks (``0-1,3-4095``) and host names (``node[001-128]:25[000-007]``)."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator

from workerserver.cluster.errors import ClusterError

__all__ = ["MOST", "expand", "expand_hosts", "fold", "split_hosts", "unfold"]

#: One text stands for so many ranks or hosts at most: a typing error must not eat the memory.
MOST = 1 << 18
#: Of a number, so that it stays one.
_DIGITS = 12

_RANKS = re.compile(r"([0-9]+)(?:-([0-9]+))?\Z")
#: What is in brackets and looks otherwise (``[::1]``) is no range.
_BRACKET = re.compile(r"\[([0-9][0-9,\- ]*)\]")


def fold(ranks: Iterable[int]) -> str:
    """The ranks in ascending order, each once, runs written as ``first-last``; "" for none."""
    parts: list[str] = []
    first = last = -1
    for rank in sorted(set(ranks)):
        if rank < 0:
            raise ValueError(f"not a rank: {rank}")
        if parts and rank == last + 1:
            last = rank
            parts[-1] = f"{first}-{last}"
        else:
            first = last = rank
            parts.append(str(rank))
    return ",".join(parts)


def unfold(text: str) -> list[int]:
    """The ranks that *text* stands for, ascending, each once; ClusterError if it is no such text.

    Spaces around a part and runs that overlap are accepted: people type this.
    """
    if not text.strip():
        return []
    ranks: set[int] = set()
    for part in text.split(","):
        low, high = _bounds(part.strip(), text)
        if high - low + len(ranks) >= MOST:
            raise ClusterError(f"{_cut(text)}: more than {MOST} ranks")
        ranks.update(range(low, high + 1))
    return sorted(ranks)


def expand_hosts(text: str) -> list[str]:
    """Every name that *text* stands for, in the order of appearance.

    Names are separated by commas or blanks. A bracket holds numbers and ranges: ``n[1-3,7]``; the
    last of several counts fastest. A range whose first number begins with 0 is padded to that
    number's width, as Slurm does it. ClusterError for what can't be read.
    """
    names: list[str] = []
    for name in split_hosts(text):
        names += expand(name, MOST - len(names))
    return names


def expand(name: str, most: int = MOST) -> list[str]:
    """As :func:`expand_hosts`, of one name."""
    pieces = _BRACKET.split(name)
    fixed, inner = pieces[::2], pieces[1::2]
    choices = [_numbers(part, name, most) for part in inner]
    if math.prod(map(len, choices)) > most:
        raise ClusterError(f"{_cut(name)}: stands for too many names")
    return [
        "".join(itertools.chain(*zip(fixed, (*numbers, ""), strict=True)))
        for numbers in itertools.product(*choices)
    ]


def split_hosts(text: str) -> Iterator[str]:
    """The names in *text*, not expanded; commas and blanks in brackets don't part them."""
    depth = start = 0
    for index, character in enumerate(text):
        if character == "[":
            depth += 1
        elif character == "]":
            depth -= 1
        if depth not in (0, 1):
            raise ClusterError(f"{_cut(text)}: brackets don't match")
        if depth == 0 and (character == "," or character.isspace()):
            if index > start:
                yield text[start:index]
            start = index + 1
    if depth:
        raise ClusterError(f"{_cut(text)}: brackets don't match")
    if start < len(text):
        yield text[start:]


def _numbers(inner: str, name: str, most: int) -> list[str]:
    numbers: list[str] = []
    for part in inner.split(","):
        low, high = _bounds(part.strip(), name)
        if high - low + len(numbers) >= most:
            raise ClusterError(f"{_cut(name)}: stands for too many names")
        first = part.strip().partition("-")[0]
        width = len(first) if first.startswith("0") else 0
        numbers += (f"{number:0{width}}" for number in range(low, high + 1))
    return numbers


def _bounds(part: str, whole: str) -> tuple[int, int]:
    match = _RANKS.match(part)
    if match is None or any(len(number or "") > _DIGITS for number in match.groups()):
        raise ClusterError(f"{_cut(whole)}: {_cut(part)!r} is neither a number nor a range")
    low, high = int(match[1]), int(match[2] or match[1])
    if high < low:
        raise ClusterError(f"{_cut(whole)}: the range {part} runs backwards")
    return low, high


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
