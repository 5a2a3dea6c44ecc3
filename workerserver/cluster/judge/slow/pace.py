"""How long the steps of ranks take that do not wait for each other.

In a job that synchronises each step, the steps of all ranks take equally long, whoever is slow:
then nothing follows from step times.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from workerserver.cluster.judge.slow.arrivals import LAST, Occasion, Series
from workerserver.cluster.read.steps import Pace

__all__ = ["same_pace", "series_of_steps", "usual_steps"]

#: A step, or several steps together, have to take so many ticks of the clock.
TICKS = 16
MAX_TOGETHER = 64
#: Medians that differ by less are equal.
SAME = 1.05
#: If the other ranks differ by more among themselves, the ranks do different things.
MAX_UNLIKE = 1.25


def times_of(pace: Pace) -> list[float]:
    """The time of each step in seconds, the oldest first."""
    beats = pairwise(zip(pace.steps, pace.began_ns, strict=True))
    return [
        max(after - before, 0) / 1e9 / max(then - step, 1)
        for (step, before), (then, after) in beats
    ]


def usual_steps(paces: Mapping[int, Pace]) -> dict[int, float]:
    """The median time of a step of each rank, in seconds."""
    return {
        rank: pace.median_s for rank, pace in sorted(paces.items()) if pace.median_s is not None
    }


def same_pace(paces: Mapping[int, Pace]) -> bool:
    """Whether all ranks usually take equally long for a step."""
    usual = list(usual_steps(paces).values())
    return len(usual) > 1 and max(usual) <= SAME * min(usual)


def series_of_steps(paces: Mapping[int, Pace]) -> Series | None:
    """The last steps of all ranks, one beside the other. None if they can't be compared."""
    usual = usual_steps(paces)
    ordered = sorted(usual.values())
    if len(ordered) < 2 or len(usual) < len(paces) or ordered[0] <= 0:
        return None
    if len(ordered) > 2 and ordered[-2] > MAX_UNLIKE * ordered[0]:
        return None
    tick = max(pace.tick_s for pace in paces.values())
    together = 1
    while together < MAX_TOGETHER and together * ordered[0] < TICKS * tick:
        together *= 2
    times = [times_of(paces[rank]) for rank in usual]
    count = min(min(map(len, times)) // together, LAST)
    series = Series(None, tuple(usual), "steps", among=tuple(usual), resolution=tick)
    at = 0.0
    for number in range(count, 0, -1):
        took = [
            sum(each[len(each) - number * together : len(each) - (number - 1) * together])
            for each in times
        ]
        late = tuple(each - min(took) for each in took)
        series.occasions.append(Occasion(together, at, late, late))
        at += sorted(took)[len(took) // 2]
    return series if series.occasions else None
