"""Who came last, how often and by how much; and who is named for it.

A rank is named if chance would name any rank of the job with a probability of at most ALPHA, and if
it is late by a time that matters. Two tests look for two kinds of slow ranks: one that comes last
too often, and one that is always among the later ones.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from workerserver.cluster.judge.flight import Group
from workerserver.cluster.judge.slow import chance
from workerserver.cluster.judge.slow.arrivals import LAST, Occasion, Series, Source, all_series

__all__ = ["ALPHA", "Finding", "Standing", "Study", "compare", "study"]

#: With which probability a rank of a job with equal ranks is named.
ALPHA = 0.001
#: Fewer operations tell nothing.
MIN_OPERATIONS = 8
#: A rank that is late by less than this part of the time between two occasions, or by fewer
#: seconds, does no harm.
MIN_PART = 0.05
MIN_SECONDS = 0.0005
#: The occasions that count are the longest waits, which together are this part of all waiting.
TELLING = 0.95
#: If most occasions are of that kind, all are counted for what is told.
MIN_TELLING = 0.5
#: Seconds, of sums of times.
ROUNDING = 1e-9
#: So many of the longest waits may be accidents: none of them counts for more than the next one.
ACCIDENTS = 7


@dataclass(frozen=True, slots=True)
class Standing:
    """One rank in one series. It came last on *last* occasions: on *share* of them. *late_s*: by
    how much, then, after the middle one of the others; the median. *behind_s*: by how much it
    usually comes after that one through its own work; below 0 if it comes earlier. The pairs are
    95 % intervals. *chance*: the probability that any of the job's ranks would stand out so."""

    rank: int
    last: int
    share: float
    share_interval: tuple[float, float]
    late_s: float | None
    late_interval: tuple[float, float] | None
    behind_s: float
    chance: float
    slow: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """What a series shows. *occasions*: those that are counted; *all_waits*: they are all, and not
    only those on which a rank kept the others waiting. *every_s*: the time from one of them to the
    next. *enough*: a rank that always came last would be named."""

    series: Series
    occasions: tuple[Occasion, ...]
    all_waits: bool
    every_s: float
    enough: bool
    standings: tuple[Standing, ...]

    @property
    def slow(self) -> list[Standing]:
        return [each for each in self.standings if each.slow]


@dataclass(frozen=True, slots=True)
class Study:
    findings: tuple[Finding, ...]

    @property
    def named(self) -> list[tuple[Finding, Standing]]:
        """Each slow rank once, the one that keeps the others waiting longest first."""
        best: dict[int, tuple[Finding, Standing]] = {}
        for finding in self.findings:
            for standing in finding.slow:
                known = best.get(standing.rank)
                if known is None or _harm(finding, standing) > _harm(*known):
                    best[standing.rank] = (finding, standing)
        return sorted(best.values(), key=lambda each: (-_harm(*each), each[1].rank))


def _harm(finding: Finding, standing: Standing) -> float:
    """The part of the time for which the others wait for it."""
    return standing.behind_s / finding.every_s if finding.every_s > 0 else standing.behind_s


def study(
    groups: Sequence[Group], sources: Mapping[int, Source] | None = None, last: int = LAST
) -> Study:
    """What the traces of *groups* show, of the *last* operations of each. *sources*: where the
    ranks are, and their heartbeats."""
    return compare(all_series(groups, sources or {}, last))


def compare(found: Sequence[Series]) -> Study:
    tests = 2 * sum(len(series.ranks) for series in found)
    return Study(tuple(_finding(series, tests) for series in found))


def _finding(series: Series, tests: int) -> Finding:
    telling, weights = _telling(series.occasions)
    ranks = len(series.ranks)
    everything = len(telling) >= MIN_TELLING * len(series.occasions)
    counted = series.occasions if everything else telling
    trials = _Trials.of_all(telling, series.resolution, weights)
    shown = _Trials.of_all(counted, series.resolution, []) if everything else trials
    times = [each.at for each in telling]
    every = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
    enough = (
        series.operations >= MIN_OPERATIONS
        and chance.binomial_tail(len(telling), len(telling), 1 / ranks) * tests <= ALPHA
    )
    standings = [_standing(series, index, trials, shown, every, tests) for index in range(ranks)]
    return Finding(series, tuple(counted), everything, every, enough, tuple(standings))


class _Trials(NamedTuple):
    """Of all occasions the *weights*, and for each rank its *places* and how far it came *late*
    behind the middle one of the others, with all that it waited for and by its *own* work."""

    weights: Sequence[float]
    places: Sequence[Sequence[int]]
    late: Sequence[Sequence[float]]
    own: Sequence[Sequence[float]]

    @classmethod
    def of_all(
        cls, occasions: Sequence[Occasion], resolution: float, weights: Sequence[float]
    ) -> _Trials:
        return cls(
            weights,
            [_places(each, resolution) for each in occasions],
            [_behind(each.late) for each in occasions],
            [_behind(each.own) for each in occasions],
        )

    def of(self, index: int) -> list[int]:
        return [each[index] for each in self.places]


def _telling(occasions: Sequence[Occasion]) -> tuple[list[Occasion], list[float]]:
    """Those on which some rank kept the others waiting, and for how long. Which rank that was makes
    no difference here, so chance is the same on them."""
    waits = [max(each.late) - _middle(each.late) for each in occasions]
    ordered = sorted(waits, reverse=True)
    most = ordered[min(ACCIDENTS, len(ordered) // 8)] if ordered else 0.0
    left = TELLING * sum(min(wait, most) for wait in ordered)
    least = most
    for wait in ordered:
        if left <= 0:
            break
        least = min(wait, most)
        left -= least
    kept = [(each, wait) for each, wait in zip(occasions, waits, strict=True) if wait >= least]
    return [each for each, _ in kept], [min(wait, most) for _, wait in kept]


def _middle(values: Sequence[float]) -> float:
    """The middle one, of an even number the earlier one."""
    return sorted(values)[(len(values) - 1) // 2]


def _places(occasion: Occasion, resolution: float) -> list[int]:
    """For each rank: after how many others it came, and would have come without waiting for anybody
    else before."""
    places = [0] * len(occasion.late)
    own: list[float] = []
    waiting: list[int] = []  # those whose lateness is within the resolution
    order = sorted(range(len(places)), key=occasion.late.__getitem__)
    least = resolution - ROUNDING if resolution else 0.0
    done = 0
    for index in order:
        limit = occasion.late[index] - least
        while done < len(waiting) and occasion.late[waiting[done]] < limit:
            insort(own, occasion.own[waiting[done]])
            done += 1
        places[index] = bisect_left(own, occasion.own[index] - least)
        waiting.append(index)
    return places


def _standing(
    series: Series, index: int, trials: _Trials, shown: _Trials, every: float, tests: int
) -> Standing:
    most = len(series.ranks) - 1
    part, probability = _chance(trials, index, most + 1)
    probability = min(probability * tests, 1.0)
    own = sorted(each[index] for each in trials.own)
    late = sorted(each[index] for each in trials.late)
    behind = min(_median(own), _median(late))
    when_last = sorted(
        each[index]
        for each, place in zip(shown.late, shown.of(index), strict=True)
        if place == most
    )
    count = len(shown.places)
    share = len(when_last) / count if count else 0.0
    matters = max(MIN_SECONDS, series.resolution, MIN_PART * every)
    return Standing(
        rank=series.ranks[index],
        last=len(when_last),
        share=share,
        share_interval=chance.share_interval(share, count * part),
        late_s=_median(when_last) if when_last else None,
        late_interval=chance.median_interval(when_last) if when_last else None,
        behind_s=behind,
        chance=probability,
        slow=(series.operations >= MIN_OPERATIONS and probability <= ALPHA and behind >= matters),
    )


def _chance(trials: _Trials, index: int, ranks: int) -> tuple[float, float]:
    """Which part of the trials is independent, and the probability that a rank does as this one, or
    worse, in the better one of two tests."""
    places = trials.of(index)
    if not places:
        return 1.0, 1.0
    last = sum(place == ranks - 1 for place in places)
    part = chance.independent(places)
    count = max(int(len(places) * part), 1)
    probability = min(
        chance.binomial_tail(int(last * part), count, 1 / ranks),
        chance.places_tail(places, trials.weights, ranks, part),
    )
    return part, probability


def _behind(values: Sequence[float]) -> list[float]:
    """By how much each came after the middle one of the others; of an even number the earlier."""
    order = sorted(range(len(values)), key=values.__getitem__)
    middle = (len(values) - 2) // 2
    behind = [0.0] * len(values)
    for place, index in enumerate(order):
        other = order[middle + 1] if place <= middle else order[middle]
        behind[index] = values[index] - values[other]
    return behind


def _median(ordered: Sequence[float]) -> float:
    return ordered[len(ordered) // 2] if ordered else 0.0
