"""What equal ranks do by chance. Every test here assumes nothing but this: on each occasion each
order of the ranks is equally likely. How their times are distributed does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

__all__ = ["binomial_tail", "independent", "median_interval", "places_tail", "share_interval"]

#: Of all intervals: 95 %.
Z = 1.96
#: A sum that is less than so many standard deviations out is nothing special.
CLEAR = 2.5
#: Beyond this, the largest possible sum is all that is left.
FARTHEST = 1e3


def binomial_tail(least: int, count: int, chance: float) -> float:
    """The probability of *least* or more of *count*, each with *chance*."""
    if least <= 0:
        return 1.0
    if least > count:
        return 0.0
    term = math.exp(
        math.lgamma(count + 1)
        - math.lgamma(least + 1)
        - math.lgamma(count - least + 1)
        + least * math.log(chance)
        + (count - least) * math.log1p(-chance)
    )
    total = 0.0
    for number in range(least, count + 1):
        total += term
        term *= (count - number) / (number + 1) * chance / (1 - chance)
        if term < total * 1e-12:
            break
    return min(total, 1.0)


def places_tail(places: Sequence[int], weights: Sequence[float], ranks: int, part: float) -> float:
    """The probability that a rank's *places*, from 0 (it came first) to *ranks* - 1 (it came last),
    with *weights* on them, add up to what they do, or more. *part*: that of the occasions which is
    independent.

    The approximation of Barndorff-Nielsen to the tail of such a sum, which is better than a normal
    distribution where it matters: far out, and with weights that differ.
    """
    middle = (ranks - 1) / 2
    total = sum(weight * (place - middle) for place, weight in zip(places, weights, strict=True))
    weights = [weight for weight in weights if weight > 0]
    squares = sum(weight * weight for weight in weights)
    if not weights or squares <= 0:
        return 1.0
    total -= min(weights) / 2  # a sum of equal weights has gaps
    deviation = total / math.sqrt(squares * (ranks * ranks - 1) / 12)
    if deviation < CLEAR:
        return _normal_tail(deviation * math.sqrt(part))
    low, high = 0.0, 1 / max(weights)
    while _moments(high, weights, ranks)[1] < total and high < FARTHEST / min(weights):
        low, high = high, 2 * high
    for _ in range(40):
        theta = (low + high) / 2
        low, high = (theta, high) if _moments(theta, weights, ranks)[1] < total else (low, theta)
    logarithm, _, variance = _moments(high, weights, ranks)
    root = math.sqrt(2 * (high * total - logarithm))
    return _normal_tail(
        (root + math.log(high * math.sqrt(variance) / root) / root) * math.sqrt(part)
    )


def _moments(theta: float, weights: Sequence[float], ranks: int) -> tuple[float, float, float]:
    """Of the sum's cumulant generating function at *theta* the value and two derivatives."""
    value = first = second = 0.0
    for weight in weights:
        half = theta * weight / 2
        if half < 1e-4:
            scale = (ranks * ranks - 1) / 12
            value += scale * half * half * 2
            first += scale * weight * half * 2
            second += scale * weight * weight
            continue
        whole = ranks * half
        value += _log_sinh(whole) - _log_sinh(half) - math.log(ranks)
        first += weight / 2 * (ranks / math.tanh(whole) - 1 / math.tanh(half))
        far = 0.0 if whole > 300 else (ranks / math.sinh(whole)) ** 2
        near = 0.0 if half > 300 else 1 / math.sinh(half) ** 2
        second += weight * weight / 4 * (near - far)
    return value, first, second


def _log_sinh(value: float) -> float:
    return value - math.log(2) + math.log1p(-math.exp(-2 * value))


def _normal_tail(deviation: float) -> float:
    return 0.5 * math.erfc(deviation / math.sqrt(2))


def independent(places: Sequence[float]) -> float:
    """Which part of the occasions tells something new: 1 if each does.

    Ranks of equal loads may be slow for some occasions in a row, and then the same rank comes last
    in all of them.
    """
    count = len(places)
    mean = sum(places) / count
    apart = [place - mean for place in places]
    squares = sum(each * each for each in apart)
    if squares == 0 or count < 3:
        return 1.0
    like = sum(a * b for a, b in pairwise(apart)) / squares
    if like <= 2 / math.sqrt(count):
        return 1.0
    return (1 - like) / (1 + like)


def share_interval(share: float, count: float) -> tuple[float, float]:
    """Wilson's interval for a share of *count*."""
    if count <= 0:
        return 0.0, 1.0
    middle = share + Z * Z / (2 * count)
    width = Z * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    bottom = 1 + Z * Z / count
    return max((middle - width) / bottom, 0.0), min((middle + width) / bottom, 1.0)


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """An interval for the median of *values*, which are sorted: two of them, whatever the
    distribution is."""
    count = len(values)
    off = Z * math.sqrt(count) / 2
    low = max(math.floor((count - 1) / 2 - off), 0)
    return values[low], values[count - 1 - low]
