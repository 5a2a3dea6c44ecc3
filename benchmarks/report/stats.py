"""Medians, ratios of paired rounds, and intervals."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence

__all__ = ["bootstrap", "median", "ratio", "spread"]

RESAMPLES = 5000


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, lowest, highest."""
    return statistics.median(values), min(values), max(values)


def ratio(own: Sequence[float], peer: Sequence[float]) -> tuple[float, float, float]:
    """Median, lowest and highest of the rounds' ratios. *own* and *peer* have a value per round."""
    return spread([a / b for a, b in zip(own, peer, strict=True)])


def bootstrap(
    values: Sequence[float],
    statistic: Callable[[Sequence[float]], float] = statistics.median,
    confidence: float = 0.95,
    seed: int = 1,
) -> tuple[float, float, float]:
    """*statistic* of *values* and its percentile-bootstrap interval (Efron 1979): (value, low,
    high). Resampling is seeded, so the same values give the same interval."""
    chosen = random.Random(seed)
    found = sorted(statistic(chosen.choices(values, k=len(values))) for _ in range(RESAMPLES))
    tail = (1 - confidence) / 2
    low = found[int(tail * RESAMPLES)]
    high = found[min(int((1 - tail) * RESAMPLES), RESAMPLES - 1)]
    return statistic(values), low, high
