"""Ranks that wait for their GPUs, without a recorder: only heartbeats tell that a wait lasts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from support.jobs.recordings import Round

from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.judge.verdict import Verdict
from workerserver.cluster.model import Frame, Health, RankState, Thread, Worker

Threads = Callable[[int], tuple[Thread, ...]]

NOW = 2_000_000_000.0
APART = 2.0
CODE = "/home/user/train.py"
EVENT = Frame("/usr/lib/python3.11/site-packages/torch/cuda/streams.py", 254, "synchronize")


def rank(number: int, threads: tuple[Thread, ...], age: float) -> RankState:
    """One whose steps take a second, and of which the last one is *age* seconds old."""
    told = Health("ok", uptime_s=900.0, step=40, step_age_s=age, step_median_s=1.0)
    worker = Worker(f"/run/rank{number}.sock", True, number)
    return RankState(worker, number, "workerserver", threads=threads, health=told, responded=True)


def thread(state: str, switches: int, *frames: Frame, wchan: str) -> tuple[Thread, ...]:
    return (
        Thread(
            frames,
            "MainThread",
            native_id=4711,
            main=True,
            state=state,
            wchan=wchan,
            switches=switches,
        ),
    )


def on_device(switches: int) -> tuple[Thread, ...]:
    """A blocking event: the thread sleeps, and wakes up in turns."""
    return thread("S", switches, EVENT, Frame(CODE, 58, "log"), wchan="futex_do_wait")


def asleep(switches: int) -> tuple[Thread, ...]:
    return thread("S", switches, Frame(CODE, 64, "prepare"), wchan="hrtimer_nanosleep")


def beside_lock(switches: int) -> tuple[Thread, ...]:
    """The main thread waits for a queue, and a thread beside it looks around each ten seconds."""
    get = Frame("/usr/lib/python3.11/queue.py", 171, "get")
    (main,) = thread("S", switches, get, Frame(CODE, 70, "train"), wchan="futex_do_wait")
    (other,) = thread("S", switches, Frame(CODE, 64, "refresh"), wchan="hrtimer_nanosleep")
    return main, replace(other, name="Thread-1", native_id=4712, main=False)


def verdict(age: float, ran: bool = False, victims: int = 1, asleep: Threads = asleep) -> Verdict:
    """Of a job in which rank 0 sleeps and the others wait for their GPUs. *ran*: rank 0 has run
    between the looks."""
    looks = []
    for number, before in enumerate((APART, 0.0)):
        states = [rank(0, asleep(7 + (number if ran else 0)), age - before)]
        states += [
            rank(1 + each, on_device(100 + 9 * number), age - before) for each in range(victims)
        ]
        looks.append(Round(states, NOW - before))
    return diagnose(looks, 1 + victims)


@pytest.mark.parametrize("victims", [1, 3])
def test_who_sleeps_while_the_others_wait_for_their_gpus(victims: int) -> None:
    found = verdict(100.0, victims=victims)
    assert [(each.rank, each.reason) for each in found.suspects] == [(0, "behind")]


@pytest.mark.parametrize("victims", [1, 3])
def test_who_may_only_be_late_is_not_accused(victims: int) -> None:
    """A pause of 20 steps."""
    found = verdict(20.0, victims=victims)
    assert (found.status, found.suspects) == (2, ())


def test_who_polls_is_not_accused() -> None:
    """It may wait for what another rank does."""
    found = verdict(100.0, ran=True)
    assert (found.status, found.suspects) == (2, ())


@pytest.mark.parametrize("victims", [1, 3])
def test_a_thread_that_looks_around_is_not_taken_for_the_one_that_acts(victims: int) -> None:
    found = verdict(100.0, victims=victims, asleep=beside_lock)
    assert all(
        each.location is None or each.location.function != "refresh" for each in found.suspects
    )


def test_who_goes_on_is_not_accused() -> None:
    """Every step waits for the GPU at one line, and each look meets it there."""
    looks = [
        Round(
            [
                replace(each, health=replace(each.health, step=40 + number, step_age_s=0.5))
                for each in (rank(0, asleep(7 + number), 0.5), rank(1, on_device(9 + number), 0.5))
                if each.health is not None
            ],
            NOW + APART * number,
        )
        for number in range(2)
    ]
    assert diagnose(looks, 2).status == 0
