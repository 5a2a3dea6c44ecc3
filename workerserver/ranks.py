"""Lists of ranks as text.

Two notations. People read and write runs (``0-1,3-4095``): ``fold`` and ``unfold``. Between
workers a run may have a step as well, as Slurm writes it (``3-59:8``): ``pack`` and ``unpack``. A
process group of a large job has thousands of ranks, and each of them is asked for the list. The
groups of data, tensor and pipeline parallelism are runs with a step, so each is a few characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["MAX_RANKS", "bounds", "cut", "fold", "named", "pack", "unfold", "unpack"]

#: One text that a person wrote stands for so many ranks at most: a typing error must not eat the
#: memory.
MAX_RANKS = 1 << 18
#: Digits of a number, so that it stays one.
_MAX_DIGITS = 12
_PART = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9})(?::([1-9][0-9]{0,8}))?)?\Z")
_RUN = re.compile(r"([0-9]+)(?:-([0-9]+))?\Z")


def pack(ranks: Sequence[int]) -> str:
    """*ranks*, ascending and each once, as text; "" for none."""
    parts: list[str] = []
    start, count = 0, len(ranks)
    while start < count:
        first = ranks[start]
        step = ranks[start + 1] - first if start + 1 < count else 1
        end = count
        # As a rule all that is left is one run, which is seen without a step of Python for each.
        if ranks[-1] != first + step * (count - start - 1) or any(
            map(int.__ne__, ranks[start:], range(first, ranks[-1] + 1, step))
        ):
            end = start + 1
            while end < count and ranks[end] - ranks[end - 1] == step:
                end += 1
        if end - start == 1 or (end - start == 2 and step > 1):
            parts.append(str(first))
            start += 1
        else:
            parts.append(f"{first}-{ranks[end - 1]}" + (f":{step}" if step > 1 else ""))
            start = end
    return ",".join(parts)


def unpack(text: str, most: int) -> list[int]:
    """The ranks that *text* stands for, in its order; ValueError if it is no such text, or stands
    for more than *most*."""
    ranks: list[int] = []
    for part in text.split(",") if text else ():
        match = _PART.match(part)
        if match is None:
            raise ValueError(f"{part[:40]!r} is neither a rank nor a run of ranks")
        run = range(int(match[1]), int(match[2] or match[1]) + 1, int(match[3] or 1))
        if not run:
            raise ValueError(f"the run {part} goes backwards")
        if len(ranks) + len(run) > most:
            raise ValueError(f"more than {most} ranks")
        ranks += run
    return ranks


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


def named(ranks: Sequence[int]) -> str:
    """``rank 3``, or ``ranks 0-2,5``."""
    return f"rank{'s' if len(ranks) > 1 else ''} {fold(ranks)}"


def unfold(text: str) -> list[int]:
    """The ranks that *text* stands for, ascending, each once; ValueError if it is no such text, or
    stands for more than MAX_RANKS.

    Spaces around a part and runs that overlap are accepted: people type this.
    """
    if not text.strip():
        return []
    ranks: set[int] = set()
    for part in text.split(","):
        low, high = bounds(part.strip(), text)
        if high - low + len(ranks) >= MAX_RANKS:
            raise ValueError(f"{cut(text)}: more than {MAX_RANKS} ranks")
        ranks.update(range(low, high + 1))
    return sorted(ranks)


def bounds(part: str, whole: str) -> tuple[int, int]:
    """The first and the last number of *part*, a number or a run of numbers.

    ValueError, with a text that names *whole*, if it is neither.
    """
    match = _RUN.match(part)
    if match is None or any(len(number or "") > _MAX_DIGITS for number in match.groups()):
        raise ValueError(f"{cut(whole)}: {cut(part)!r} is neither a number nor a range")
    low, high = int(match[1]), int(match[2] or match[1])
    if high < low:
        raise ValueError(f"{cut(whole)}: the range {part} runs backwards")
    return low, high


def cut(text: str) -> str:
    """*text* as an error's line repeats it."""
    return text if len(text) <= 60 else f"{text[:57]}..."
