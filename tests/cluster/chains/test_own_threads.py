"""Ranks that wait for threads of their own: a slow pool is no hang."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from support.jobs.flight_entries import trace
from support.jobs.recordings import Round
from test_cluster_waits import NOW, looks, main, reasons, reducing, state, user

from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.model import Frame, Thread

PYTHON = "/usr/lib/python3.11"
FUTURE = (
    Frame(f"{PYTHON}/threading.py", 327, "wait"),
    Frame(f"{PYTHON}/concurrent/futures/_base.py", 451, "result"),
    user("save", 25),
)
QUEUE = (
    Frame(f"{PYTHON}/threading.py", 327, "wait"),
    Frame(f"{PYTHON}/queue.py", 171, "get"),
    user("next_batch", 25),
)
POOL = Frame(f"{PYTHON}/concurrent/futures/thread.py", 81, "_worker")
MAP = (
    Frame(f"{PYTHON}/threading.py", 327, "wait"),
    Frame(f"{PYTHON}/multiprocessing/pool.py", 765, "wait"),
    Frame(f"{PYTHON}/multiprocessing/pool.py", 768, "get"),
    Frame(f"{PYTHON}/multiprocessing/pool.py", 367, "map"),
    user("save", 25),
)
MAPPED = Frame(f"{PYTHON}/multiprocessing/pool.py", 125, "worker")


def waiting(frames: Sequence[Frame]) -> Thread:
    return replace(main("save"), frames=tuple(frames))


def helper(number: int, line: int, switches: int | None, pool: Frame | None = POOL) -> Thread:
    frames = (user("upload", line),) if pool is None else (user("upload", line), pool)
    return Thread(
        frames, f"helper-{number}", native_id=number, state="S", wchan="hrtimer_nanosleep",
        switches=switches,
    )  # fmt: skip


def judged(waits: Sequence[Frame], *each_look: Sequence[Thread]) -> Any:
    """Rank 0 waits, with other threads in each look; ranks 1 and 2 are in a collective."""
    rounds = []
    for number, others in enumerate(each_look):
        states = [state(0, [waiting(waits), *others], trace()), reducing(1), reducing(2)]
        rounds.append(Round(states, NOW - 60.0 * (len(each_look) - 1 - number)))
    return diagnose(rounds, 3)


def two(line: int, switches: int | None, pool: Frame | None = POOL) -> list[Thread]:
    return [helper(number, line, switches, pool) for number in (8, 9)]


@pytest.mark.parametrize(("waits", "pool"), [(FUTURE, POOL), (MAP, MAPPED)], ids=["futures", "map"])
def test_a_pool_that_goes_on(waits: Sequence[Frame], pool: Frame) -> None:
    """It sleeps at one line in both looks, and has run in between."""
    found = judged(waits, two(16, 5, pool), two(16, 9, pool))
    assert (found.status, reasons(found)) == (2, [])
    assert (
        "rank 0 has not entered all_reduce #1 of default_pg, in which ranks 1-2 wait for"
        in found.sentence
    )
    assert (
        "it waits for threads of its own, which work or may work, and may only be slow in save(),"
        " train.py:25" in found.sentence
    )


@pytest.mark.parametrize("waits", [FUTURE, QUEUE], ids=["futures", "queue"])
def test_a_helper_that_came_to_another_line(waits: Sequence[Frame]) -> None:
    pool = POOL if waits is FUTURE else None
    found = judged(waits, two(16, 5, pool), two(17, 9, pool))
    assert (found.status, reasons(found)) == (2, [])


@pytest.mark.parametrize(("waits", "pool"), [(FUTURE, POOL), (MAP, MAPPED)], ids=["futures", "map"])
def test_a_pool_that_stands_still(waits: Sequence[Frame], pool: Frame) -> None:
    found = judged(waits, two(16, 5, pool), two(16, 5, pool))
    assert reasons(found) == [(0, "lock")]


def test_stock_workers_tell_no_native_id_and_no_switches() -> None:
    """A thread is known again by its ident; one at the same line stands still, as elsewhere."""
    told = [replace(each, native_id=None, ident=each.native_id) for each in two(16, None)]
    moved = [replace(each, native_id=None, ident=each.native_id) for each in two(17, None)]
    assert reasons(judged(FUTURE, told, told)) == [(0, "lock")]
    assert reasons(judged(FUTURE, told, moved)) == []


def test_one_of_the_pool_goes_on() -> None:
    found = judged(FUTURE, two(16, 5), [helper(8, 16, 5), helper(9, 16, 9)])
    assert (found.status, reasons(found)) == (2, [])


def test_one_look_tells_nothing_of_a_pool() -> None:
    assert reasons(judged(FUTURE, two(16, 5))) == []


def test_a_monitor_puts_nothing_into_the_queue() -> None:
    """Two threads look around each few seconds, whatever the main thread does."""
    found = judged(QUEUE, two(16, 5, None), two(16, 9, None))
    assert reasons(found) == [(0, "lock")]


def test_a_monitor_is_none_of_the_pool() -> None:
    moved = helper(7, 40, 9, None)
    found = judged(FUTURE, [*two(16, 5), helper(7, 41, 5, None)], [*two(16, 5), moved])
    assert reasons(found) == [(0, "lock")]


def test_idle_pools_hold_nobody() -> None:
    idle = (Frame(f"{PYTHON}/queue.py", 171, "get"), POOL)
    threads = [
        Thread(idle, f"idle-{number}", native_id=number, state="S", switches=number)
        for number in (8, 9)
    ]
    assert reasons(judged(QUEUE, threads, threads)) == [(0, "lock")]
    assert reasons(diagnose(looks(state(0, [waiting(QUEUE)], trace()), reducing(1)), 2)) != []
