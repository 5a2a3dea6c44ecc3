"""The probabilities, beside an exact count and beside equal ranks that are played."""

from __future__ import annotations

import math
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerserver.cluster.judge.slow.chance import (
    binomial_tail,
    independent,
    median_interval,
    places_tail,
    share_interval,
)


@given(count=st.integers(1, 60), ranks=st.integers(2, 20), least=st.integers(-2, 62))
def test_the_binomial_tail(count: int, ranks: int, least: int) -> None:
    chance = 1 / ranks
    exact = sum(
        math.comb(count, each) * chance**each * (1 - chance) ** (count - each)
        for each in range(max(least, 0), count + 1)
    )
    assert binomial_tail(least, count, chance) == pytest.approx(exact, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize(("ranks", "count"), [(2, 12), (2, 50), (3, 20), (4, 12), (8, 30)])
def test_places_of_equal_weight(ranks: int, count: int) -> None:
    """Exactly, by all sums that there are; what is given is never much too small."""
    sums = Counter({0: 1})
    for _ in range(count):
        sums = sum(
            (
                Counter({each + place: times for each, times in sums.items()})
                for place in range(ranks)
            ),
            Counter[int](),
        )
    for total in range(count * (ranks - 1) // 2 + 1, count * (ranks - 1) + 1):
        exact = sum(times for each, times in sums.items() if each >= total) / ranks**count
        whole, rest = divmod(total, ranks - 1)
        places = [ranks - 1] * whole + [rest] * (rest > 0)
        places += [0] * (count - len(places))
        given = places_tail(places, [1.0] * count, ranks, 1.0)
        if exact < 0.005:
            assert 0.9 * exact <= given <= 3 * exact


def test_places_of_different_weight() -> None:
    """Of 20,000 runs of equal ranks, one in a hundred has a probability of one in a hundred."""
    random = Random(1)
    weights = [abs(random.gauss(0.3, 0.5)) for _ in range(40)]
    found = [
        places_tail([random.randrange(3) for _ in weights], weights, 3, 1.0) for _ in range(4000)
    ]
    for level in (0.05, 0.01):
        seen = sum(each <= level for each in found) / len(found)
        assert 0.5 * level < seen < 1.5 * level


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1e-12, 1.0, 1e6], [0.0, 5.0], [1e300, 1.0]])
def test_any_weights_end(weights: list[float]) -> None:
    assert 0.0 <= places_tail([3] * len(weights), weights, 4, 1.0) <= 1.0


def test_occasions_that_hang_together() -> None:
    random = Random(2)
    once = [random.randrange(4) for _ in range(300)]
    assert independent(once) == 1.0
    assert independent([each for each in once for _ in range(4)]) < 0.35
    assert independent([3] * 50) == 1.0  # the slowest each time: that is what is looked for


def test_intervals() -> None:
    low, high = share_interval(0.61, 500)
    assert (round(low, 3), round(high, 3)) == (0.567, 0.652)
    assert share_interval(0.0, 0) == (0.0, 1.0)
    random = Random(3)
    inside = 0
    for _ in range(500):
        values = sorted(random.expovariate(1.0) for _ in range(30))
        low, high = median_interval(values)
        inside += low <= math.log(2) <= high
    assert inside >= 0.93 * 500
    assert median_interval([7.0]) == (7.0, 7.0)
