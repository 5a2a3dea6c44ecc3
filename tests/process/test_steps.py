"""The last heartbeats: the handler ``steps``, and how long a step usually takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.served import Served
from support.wire import ask, message, post

from workerserver import heartbeat
from workerserver.process._pulse import beat_at, health, reset, set_rank, step_median, steps

SECOND = 1_000_000_000
#: More than any tick of the clock takes.
LONG = SECOND


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    reset()
    yield
    reset()


def told() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(steps())
    return found


def play(durations: Sequence[int], first: int = 0) -> None:
    """A loop whose steps take *durations*, in nanoseconds."""
    now = SECOND
    beat_at(first, now)
    for step, duration in enumerate(durations, first + 1):
        now += duration
        beat_at(step, now)


# --- the handler ----------------------------------------------------------------------------------


def test_nothing_yet() -> None:
    before = time.time()
    found = told()
    assert list(found) == ["version", "pid", "rank", "time", "tick_s", "step_median_s", "beats"]
    assert (found["version"], found["pid"], found["rank"]) == (1, os.getpid(), None)
    assert before - 0.001 <= found["time"] <= time.time() + 0.001
    assert 0 < found["tick_s"] <= 0.01
    assert (found["step_median_s"], found["beats"]) == (None, [])


def test_forgotten() -> None:
    """As in a forked child: the parent's steps are not its own."""
    play([LONG] * 20)
    reset()
    assert (told()["step_median_s"], told()["beats"]) == (None, [])
    heartbeat(5)
    assert [step for step, _ in told()["beats"]] == [5]


def test_steps_and_ages() -> None:
    set_rank(5)
    now = time.monotonic_ns()
    for step, ago in ((3, 500), (-4, 20), (2**63 - 1, 1), (-(2**63), 0)):
        beat_at(step, now - ago * SECOND)
    found = told()
    passed = (time.monotonic_ns() - now) / SECOND
    assert found["rank"] == 5
    assert [step for step, _ in found["beats"]] == [3, -4, 2**63 - 1, -(2**63)]
    for (_, age), ago in zip(found["beats"], (500, 20, 1, 0), strict=True):
        assert ago <= age <= ago + passed + 1e-6


@pytest.mark.parametrize("count", [1, 2, 1024, 1025, 1026, 2047, 2048, 2049, 5000])
def test_the_last_1025_heartbeats(count: int) -> None:
    for step in range(count):
        heartbeat(step)
    beats = told()["beats"]
    assert [step for step, _ in beats] == list(range(max(count - 1025, 0), count))
    ages = [age for _, age in beats]
    assert ages == sorted(ages, reverse=True)


def test_the_longest_answer_fits() -> None:
    for _ in range(1100):
        beat_at(-(2**63), 1)
    assert len(told()["beats"]) == 1025


def test_a_heartbeat_while_it_is_read() -> None:
    """Each pair belongs together, and none is skipped, however fast the loop runs."""
    ended = threading.Event()

    def train() -> None:
        step = 1
        while not ended.is_set():
            beat_at(step, step)
            step += 1

    thread = threading.Thread(target=train)
    thread.start()
    try:
        for _ in range(300):
            found = [step for step, _ in told()["beats"]]
            assert found == list(range(found[0], found[0] + len(found))) if found else True
    finally:
        ended.set()
        thread.join()


def test_a_forked_child_starts_anew() -> None:
    code = """
import os, workerserver
from workerserver.process import _pulse
for step in range(100):
    _pulse.beat_at(step, 1 + step * 10**9)
print(_pulse.step_median(), flush=True)
if os.fork() == 0:
    print(_pulse.step_median(), flush=True)
    workerserver.heartbeat(7)
    print(_pulse.steps().decode(), flush=True)
    os._exit(0)
os.wait()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    parent, child, answer = done.stdout.splitlines()
    assert (parent, child) == ("1.0", "None")
    assert [step for step, _ in json.loads(answer)["beats"]] == [7]


# --- how long a step usually takes ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "duration", "known"),
    [(7, LONG, False), (8, LONG, True), (63, SECOND // 1000, False), (64, SECOND // 1000, True)],
)
def test_how_many_steps_it_takes(count: int, duration: int, known: bool) -> None:
    play([duration] * count)
    assert step_median() == (pytest.approx(duration / SECOND) if known else None)


def test_healthz_has_it() -> None:
    play([LONG] * 20)
    assert json.loads(health(0)[0])["step_median_s"] == 1.0
    assert told()["step_median_s"] == 1.0
    beat_at(21, 22 * SECOND + SECOND // 2)  # one that was longer: the median stays
    assert json.loads(health(0)[0])["step_median_s"] == 1.0
    reset()
    assert json.loads(health(0)[0])["step_median_s"] is None


@given(durations=st.lists(st.integers(LONG, 100 * LONG), min_size=8, max_size=1300))
def test_the_median_of_long_steps(durations: list[int]) -> None:
    reset()
    play(durations)
    last = sorted(durations[-1024:])
    assert step_median() == pytest.approx(last[len(last) // 2] / SECOND, abs=1e-9)


@given(micros=st.integers(100, 20_000), phase=st.integers(0, 3_999))
def test_short_steps_on_a_clock_that_ticks(micros: int, phase: int) -> None:
    """Single times would be 0 or 4 ms."""
    reset()
    tick = 4_000_000
    for step in range(1025):
        now = SECOND + phase * 1000 + step * micros * 1000
        beat_at(step, now // tick * tick)
    assert step_median() == pytest.approx(micros / 1e6, rel=0.02, abs=tick / 64 / SECOND)


def test_a_checkpoint_changes_nothing() -> None:
    usual = [10_000_000] * 1000
    usual[100] = usual[900] = 60 * SECOND
    play(usual)
    assert step_median() == pytest.approx(0.01)


def test_repeated_and_skipped_steps() -> None:
    """A heartbeat that repeats its step is no step; every tenth step gives the time of one."""
    now = SECOND
    for step in range(20):
        for _ in range(3):
            beat_at(step, now)
            now += LONG
    assert step_median() == 3.0
    reset()
    for index in range(20):
        beat_at(index * 10, SECOND + index * 10 * LONG)
    assert step_median() == 1.0
    reset()
    for step in [*range(15), *range(15)]:  # a second epoch
        now += LONG
        beat_at(step, now)
    assert step_median() == 1.0


@given(
    beats=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), max_size=60),
)
def test_times_as_a_plain_reading_has_them(beats: list[tuple[int, int]]) -> None:
    reset()
    now, began = SECOND, list[tuple[int, int]]()
    for step, wait in beats:
        now += wait * LONG
        beat_at(step, now)
        if not began or began[-1][0] != step:
            began.append((step, now))
    times = [
        (after - before) // max(then - step, 1) for (step, before), (then, after) in pairwise(began)
    ]
    usual = sorted(times)[len(times) // 2] if times else 0
    if len(times) < 8 or usual < LONG:
        return
    assert step_median() == pytest.approx(usual / SECOND, abs=1e-9)


# --- over the wire --------------------------------------------------------------------------------


def test_over_the_wire(served: Served) -> None:
    heartbeat(17)
    reply = ask(served.address, post("steps"))
    assert (reply.status, reply.header("content-type")) == (200, "application/json")
    assert json.loads(reply.body)["beats"][0][0] == 17
    assert ask(served.address, post("steps/")).status == 200
    assert ask(served.address, message("GET", "/handler/steps")).status == 405
    refused = ask(served.address, post("steps?last=5"))
    assert (refused.status, refused.text[:22]) == (400, "Unknown parameter last")
    for step in range(2000):
        heartbeat(step)
    beats = json.loads(ask(served.address, post("steps")).body)["beats"]
    assert [step for step, _ in beats] == list(range(975, 2000))
