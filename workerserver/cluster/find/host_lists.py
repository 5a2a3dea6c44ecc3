"""Host names with ranges in them (``node[001-128]:25[000-007]``)."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator

from workerserver import ranks
from workerserver.cluster.errors import ClusterError
from workerserver.ranks import bounds, cut

__all__ = ["MAX_HOSTS", "expand", "expand_hosts", "split_hosts", "unfold"]

#: Hosts that one text may stand for.
MAX_HOSTS = ranks.MAX_RANKS

#: A bracket with other characters inside (``[::1]``) is no range.
_BRACKET = re.compile(r"\[([0-9][0-9,\- ]*)\]")


def unfold(text: str) -> list[int]:
    """:func:`workerserver.ranks.unfold`; ClusterError if *text* is no list of ranks."""
    try:
        return ranks.unfold(text)
    except ValueError as error:
        raise ClusterError(str(error)) from None


def expand_hosts(text: str) -> list[str]:
    """Every name that *text* stands for, in the order of appearance.

    Commas or blanks separate names. A bracket holds numbers and ranges: ``n[1-3,7]``. If a name has
    several brackets, the last one counts fastest. If the first number of a range begins with 0, all
    numbers of the range are padded to its width, as in Slurm. ClusterError if *text* can't be read.
    """
    names: list[str] = []
    for name in split_hosts(text):
        names += expand(name, MAX_HOSTS - len(names))
    return names


def expand(name: str, most: int = MAX_HOSTS) -> list[str]:
    """As :func:`expand_hosts`, for one name."""
    pieces = _BRACKET.split(name)
    fixed, inner = pieces[::2], pieces[1::2]
    choices = [_numbers(part, name, most) for part in inner]
    if math.prod(map(len, choices)) > most:
        raise ClusterError(f"{cut(name)}: stands for too many names")
    return [
        "".join(itertools.chain(*zip(fixed, (*numbers, ""), strict=True)))
        for numbers in itertools.product(*choices)
    ]


def split_hosts(text: str) -> Iterator[str]:
    """The names in *text*, not expanded. Commas and blanks in brackets don't separate names."""
    depth = start = 0
    for index, character in enumerate(text):
        if character == "[":
            depth += 1
        elif character == "]":
            depth -= 1
        if depth not in (0, 1):
            raise ClusterError(f"{cut(text)}: brackets don't match")
        if depth == 0 and (character == "," or character.isspace()):
            if index > start:
                yield text[start:index]
            start = index + 1
    if depth:
        raise ClusterError(f"{cut(text)}: brackets don't match")
    if start < len(text):
        yield text[start:]


def _numbers(inner: str, name: str, most: int) -> list[str]:
    numbers: list[str] = []
    for part in inner.split(","):
        try:
            low, high = bounds(part.strip(), name)
        except ValueError as error:
            raise ClusterError(str(error)) from None
        if high - low + len(numbers) >= most:
            raise ClusterError(f"{cut(name)}: stands for too many names")
        first = part.strip().partition("-")[0]
        width = len(first) if first.startswith("0") else 0
        numbers += (f"{number:0{width}}" for number in range(low, high + 1))
    return numbers
