"""Lists of ranks as text: runs with a step, as Slurm writes them (``0-4095``, ``3-59:8,64``).

A process group of a large job has thousands of ranks, and each of them is asked for the list. The
groups of data, tensor and pipeline parallelism are runs with a step, so each is a few characters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["pack", "unpack"]

_PART = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9})(?::([1-9][0-9]{0,8}))?)?\Z")


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
