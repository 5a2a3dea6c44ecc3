"""The histogram against sorted lists, and against the definitions of HdrHistogram."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workerserver.loadgen._loadgen import Histogram

LONGEST = 2**42 - 1
#: A percentile is the top of a bucket. Half of a bucket's width, as a part of its values, is less
#: than this.
ERROR = 1 / 1024

durations = st.one_of(
    st.integers(0, 5000),
    st.integers(0, LONGEST),
    st.integers(0, 41).map(lambda bit: 1 << bit),
    st.integers(1, 42).map(lambda bit: (1 << bit) - 1),
)
lists = st.lists(durations, min_size=1, max_size=200)
percentiles = st.one_of(
    st.sampled_from([0.0, 50.0, 90.0, 99.0, 99.9, 100.0]), st.floats(0.0, 100.0)
)


def histogram(values: list[int]) -> Histogram:
    made = Histogram()
    for value in values:
        made.record(value)
    return made


def contents(values: Histogram) -> list[object]:
    facts: list[object] = [values.points(50), values.count]
    if values.count:
        facts += [values.min, values.max]
    return facts


def ranked(values: list[int], percentile: float) -> int:
    """HdrHistogram's definition on the values themselves."""
    rank = math.ceil(math.nextafter(percentile, -1.0) / 100.0 * len(values))
    return sorted(values)[max(rank, 1) - 1]


def omitted(values: list[int], interval: int) -> list[int]:
    """The values that copyCorrectedForCoordinatedOmission adds."""
    return [
        missing for value in values for missing in range(value - interval, interval - 1, -interval)
    ]


@given(lists, percentiles)
@example([*range(1, 1001)], 99.9)
@example([LONGEST], 0.0)
def test_a_percentile_is_that_of_the_sorted_values(values: list[int], percentile: float) -> None:
    right = ranked(values, percentile)
    found = histogram(values).percentile(percentile)
    assert right <= found <= right * (1 + ERROR)
    if right < 2048:
        assert found == right


@given(lists)
def test_the_extremes_are_exact_and_so_is_the_mean(values: list[int]) -> None:
    found = histogram(values)
    assert (found.count, found.min, found.max) == (len(values), min(values), max(values))
    assert found.mean == pytest.approx(sum(values) / len(values), rel=1e-12)
    assert found.percentile(0) == found.min
    assert found.percentile(100) == found.max


def test_a_thousand_values_have_999_below_the_percentile_99_9() -> None:
    found = histogram([1] * 999 + [1000])
    assert [found.percentile(p) for p in (99.9, 99.91, 100)] == [1, 1000, 1000]


@given(lists, lists)
def test_merged_is_as_if_recorded_in_one(one: list[int], other: list[int]) -> None:
    merged = histogram(one)
    merged.merge(histogram(other))
    merged.merge(Histogram())
    both = histogram(one + other)
    assert contents(merged) == contents(both)
    assert merged.mean == pytest.approx(both.mean)


def test_merging_into_an_empty_one_and_into_itself() -> None:
    found = Histogram()
    found.merge(histogram([5, 7]))
    assert contents(found) == contents(histogram([5, 7]))
    found.merge(found)
    assert contents(found) == contents(histogram([5, 7, 5, 7]))


def test_a_copy_goes_its_own_way() -> None:
    first = histogram([10])
    second = first.copy()
    second.record(20)
    assert (first.count, first.max, second.count, second.max) == (1, 10, 2, 20)


# Below 2048 ns a bucket is one nanosecond, so that HdrHistogram's result is the exact one.
@given(st.lists(st.integers(0, 2047), min_size=1, max_size=30), st.integers(1, 2500))
def test_the_correction_is_hdrhistograms(values: list[int], interval: int) -> None:
    corrected = histogram(values).corrected(interval)
    right = histogram(values + omitted(values, interval))
    assert contents(corrected) == contents(right)
    assert corrected.mean == pytest.approx(right.mean)


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=5), st.integers(10**6, 10**9))
def test_the_correction_of_long_values_is_right_to_a_bucket(
    values: list[int], interval: int
) -> None:
    found = histogram(values)
    corrected = found.corrected(interval)
    right = values + omitted(values, interval)
    # The top of a bucket stands for all its values, and may be one step above them.
    assert len(right) <= corrected.count <= len(right) * (1 + ERROR) + len(values)
    assert corrected.max == max(values)
    assert corrected.count >= found.count
    assert found.count == len(values)


def test_a_stall_that_a_closed_loop_hid_is_put_back() -> None:
    found = Histogram()
    found.record(1_000_000, 9_900)  # what was measured: a server of one millisecond
    found.record(1_000_000_000)  # that stood still once, for a second
    assert found.percentile(99.9) < 1_100_000
    corrected = found.corrected(10_000_000)
    assert corrected.count == 9_901 + 99
    assert corrected.percentile(99.9) > 890_000_000


def test_a_short_interval_takes_no_time() -> None:
    found = histogram([LONGEST])
    corrected = found.corrected(1)
    assert corrected.count == LONGEST
    assert corrected.percentile(50) == pytest.approx(LONGEST / 2, rel=ERROR)
    assert corrected.mean == pytest.approx(LONGEST / 2, rel=1e-6)
    assert corrected.min == 1


@given(lists, st.integers(1, 20))
def test_points_rise_from_the_shortest_to_the_longest(values: list[int], ticks: int) -> None:
    found = histogram(values)
    points = found.points(ticks)
    assert points[0] == (0.0, min(values))
    assert points[-1] == (100.0, max(values))
    assert points == sorted(points)
    assert [ns for _, ns in points] == [found.percentile(p) for p, _ in points]
    assert len(points) <= 2 + ticks * (math.log2(len(values)) + 1)


def test_points_stand_closer_towards_the_end() -> None:
    levels = [level for level, _ in histogram(list(range(1000))).points(1)]
    assert levels[:5] == [0.0, 50.0, 75.0, 87.5, 93.75]


@given(durations, durations)
def test_above_counts_what_is_longer(value: int, limit: int) -> None:
    found = histogram([value]).above(limit)
    if value <= limit:
        assert found == 0
    elif value > limit * (1 + ERROR):
        assert found == 1
    assert histogram([value]).above(-1) == 1


def test_longer_than_the_longest_counts_as_it() -> None:
    found = histogram([LONGEST, LONGEST + 1, 2**63 - 1])
    assert (found.count, found.min, found.max, found.percentile(50)) == (3, *[LONGEST] * 3)


def test_without_values_there_is_no_figure() -> None:
    found = Histogram()
    assert (found.count, found.points(), found.above(0)) == (0, [], 0)
    assert found.corrected(10).count == 0
    for name in ("min", "max", "mean"):
        with pytest.raises(ValueError, match="holds no value"):
            getattr(found, name)
    with pytest.raises(ValueError, match="holds no value"):
        found.percentile(50)
    found.record(5, 0)
    assert found.count == 0


def test_what_can_not_be_is_refused() -> None:
    found = histogram([5])
    for percentile in (-0.1, 100.1, math.nan):
        with pytest.raises(ValueError, match="no percentile"):
            found.percentile(percentile)
    with pytest.raises(ValueError, match="-1 ns"):
        found.record(-1)
    with pytest.raises(ValueError, match="0 ns"):
        found.corrected(0)
    with pytest.raises(ValueError, match="0 ticks"):
        found.points(0)
    with pytest.raises(TypeError):
        found.merge(None)  # type: ignore[arg-type]
    with pytest.raises(OverflowError):
        found.record(2**63)
    assert found.count == 1


def test_it_says_what_it_holds() -> None:
    assert repr(Histogram()) == "<Histogram, empty>"
    assert repr(histogram([5])) == "<Histogram of 1: p50 5 ns, p99 5 ns, max 5 ns>"
