"""The rule of ``make bench-check``."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.report import gate

# Below that, SLACK decides.
medians = st.floats(0.02, 100)
spreads = st.floats(1.0, 3.0)


@st.composite
def triples(draw: st.DrawFn) -> gate.Triple:
    middle = draw(medians)
    return middle, middle / draw(spreads), middle * draw(spreads)


recordings = st.lists(triples(), min_size=1, max_size=5).map(gate.Recorded)
# These runs agree within a third, although their rounds vary more.
agreeing = st.builds(
    lambda triple, factors: gate.Recorded([scaled(triple, factor) for factor in factors]),
    triples(),
    st.lists(st.floats(1.0, 1.3), min_size=1, max_size=5),
)


def verdict(recorded: gate.Recorded, *attempts: gate.Triple) -> gate.Verdict:
    (found,) = gate.judge(
        gate.Baseline({"s": {"k": recorded}}), {"s": [{"k": a} for a in attempts]}
    )
    return found


def scaled(triple: gate.Triple, factor: float) -> gate.Triple:
    return triple[0] * factor, triple[1] * factor, triple[2] * factor


@given(recordings)
def test_what_was_recorded_is_the_same(recorded: gate.Recorded) -> None:
    found = verdict(recorded, recorded.whole)
    assert (found.word, found.open) == ("same", False)


@given(agreeing, st.floats(1.5, 10))
def test_half_as_much_again_is_worse_however_noisy(recorded: gate.Recorded, factor: float) -> None:
    """However noisy its rounds are: they don't widen the limit without end."""
    worse = scaled(recorded.whole, factor)
    assert verdict(recorded, worse).open
    found = verdict(recorded, *[worse] * 3)
    assert (found.word, found.open) == ("worse", False)


@given(medians, st.lists(st.floats(0.85, 1.18), min_size=1, max_size=gate.ATTEMPTS))
def test_noise_inside_the_recorded_spread_passes(middle: float, factors: list[float]) -> None:
    recorded = gate.Recorded([(middle, middle * 0.8, middle * 1.2)] * 3)
    found = verdict(recorded, *(scaled(recorded.whole, factor) for factor in factors))
    assert found.word == "same"


@given(recordings)
def test_no_whole_run_that_was_recorded_is_worse(recorded: gate.Recorded) -> None:
    for run in recorded.runs:
        assert verdict(recorded, *[run] * gate.ATTEMPTS).word != "worse"
    assert recorded.noisy == (recorded.tolerance > gate.CEILING)


def test_a_key_that_was_too_noisy_is_named() -> None:
    noisy = gate.Recorded([(0.5, 0.1, 0.9), (0.6, 0.1, 0.9), (1.0, 0.2, 2.0)])
    shown = gate.table([verdict(noisy, (0.9, 0.5, 1.0))])
    assert any("noisy" in note and note.endswith(": k") for note in shown.notes)
    assert shown.rows[0][-1] == "same"


@given(recordings, st.integers(0, gate.ATTEMPTS - 1), st.floats(1.5, 10))
def test_one_bad_moment_is_not_enough(recorded: gate.Recorded, when: int, factor: float) -> None:
    attempts = [recorded.whole] * gate.ATTEMPTS
    attempts[when] = scaled(recorded.whole, factor)
    found = verdict(recorded, *attempts)
    assert (found.word, found.open) == ("same", False)


@given(recordings, st.lists(triples(), min_size=1, max_size=gate.ATTEMPTS))
def test_the_verdict_after_all_attempts_is_that_of_their_median(
    recorded: gate.Recorded, attempts: list[gate.Triple]
) -> None:
    attempts = [*attempts, *[attempts[-1]] * (gate.ATTEMPTS - len(attempts))]
    found = verdict(recorded, *attempts)
    assert not found.open
    assert found.now is not None
    assert (found.word == "worse") == (found.now[0] > recorded.limit)


def test_nearly_nothing_may_become_a_little_more() -> None:
    assert verdict(gate.Recorded([(0.0, 0.0, 0.0)]), (0.004, 0.0, 0.1)).word == "same"
    assert verdict(gate.Recorded([(0.0, 0.0, 0.0)]), *[(1.0, 1.0, 1.0)] * 3).word == "worse"


def test_simulated_regressions_are_found_and_noise_is_not() -> None:
    """The docstring's claim, roughly."""
    chosen = random.Random(7)
    for noise in (0.02, 0.05, 0.1):
        calm = sum(gate.simulated(chosen, noise, 1.0, 5, 3) for _ in range(200))
        slow = sum(gate.simulated(chosen, noise, 1.5, 5, 3) for _ in range(200))
        assert calm <= 2
        assert slow >= 190


@given(
    suites=st.dictionaries(
        st.text(min_size=1), st.dictionaries(st.text(), recordings, max_size=3), max_size=3
    )
)
def test_a_baseline_is_read_as_it_was_written(suites: dict[str, dict[str, gate.Recorded]]) -> None:
    machine = {"cpu": "a [2, 3] b", "cores": 2, "packages": {"torch": None}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "baseline.json")
        gate.Baseline(suites, 5, True, machine).write(path)
        again = gate.Baseline.read(path)
    assert (again.rounds, again.quick, again.machine) == (5, True, machine)
    assert {name: set(keys) for name, keys in again.suites.items()} == {
        name: set(keys) for name, keys in suites.items()
    }
    for name, keys in suites.items():
        for key, recorded in keys.items():
            for run, old in zip(again.suites[name][key].runs, recorded.runs, strict=True):
                assert run == pytest.approx(old, rel=1e-4)


def test_the_baseline_of_this_repository_can_be_read() -> None:
    baseline = gate.Baseline.read(gate.BASELINE)
    for keys in baseline.suites.values():
        for recorded in keys.values():
            assert 0 <= recorded.median <= recorded.limit
