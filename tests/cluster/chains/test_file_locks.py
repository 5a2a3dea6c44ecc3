"""A file lock that closes a ring of ranks: with a collective that no recorder holds, and with a
holder of which another thread may give the lock back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.jobs.flight_entries import trace
from support.jobs.recordings import Round
from test_cluster_waits import ASLEEP, NOW, file_lock, looks, main, reasons, reducing, state, user

from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.model import Frame, Thread, WaitsFor

WANTS = file_lock(100)
SAVER = Thread(
    (user("send", 20), user("upload", 30)), "saver", native_id=9, state="S",
    wchan="hrtimer_nanosleep", switches=5,
)  # fmt: skip


def inside(
    op: str, ranks: tuple[int, ...] = (0, 1, 2, 3), group: str = "default_pg", **more: Any
) -> Thread:
    waits = WaitsFor("operation", "locals", 0, op=op, group=group, ranks=ranks)
    return replace(main(f".{op}", "step", waits=waits), **more)


def verdict(*threads: Thread) -> Any:
    states = [state(number, [thread]) for number, thread in enumerate(threads)]
    return diagnose(looks(*states), len(threads))


MEETING = inside("barrier")


def test_the_holder_waits_in_a_collective_for_all_who_want_the_lock() -> None:
    found = verdict(MEETING, WANTS, WANTS, WANTS)
    assert reasons(found) == [(0, "deadlock"), (1, "deadlock"), (2, "deadlock"), (3, "deadlock")]
    assert found.sentence == (
        "deadlock in ranks 0-3: ranks 1-3 wait for the file lock on /data/cache.lock, which rank 0"
        " holds, and rank 0 waits in barrier of default_pg for ranks 1-3"
    )


def test_who_is_in_the_same_collective_is_a_victim() -> None:
    assert reasons(verdict(MEETING, WANTS, MEETING, MEETING)) == [(0, "deadlock"), (1, "deadlock")]


@pytest.mark.parametrize(
    "other",
    [
        ASLEEP,  # it may be the one for which the holder waits
        inside("all_reduce"),
        inside("barrier", (2, 3), "pair"),
        file_lock(999),  # a process outside of the job has that one
    ],
    ids=["elsewhere", "operation", "group", "lock"],
)
def test_another_rank_may_be_the_one_that_is_awaited(other: Thread) -> None:
    found = verdict(MEETING, WANTS, other, MEETING)
    assert "deadlock" not in {reason for _, reason in reasons(found)}
    assert not {0, 1} & {rank for rank, _ in reasons(found)}


@pytest.mark.parametrize("op", ["broadcast", "reduce", "gather", "scatter"])
def test_an_operation_that_need_not_wait_for_all(op: str) -> None:
    found = verdict(inside(op), WANTS, inside(op), inside(op))
    assert (found.status, reasons(found)) == (2, [])


def test_a_rank_that_does_not_answer_may_be_awaited() -> None:
    states = [state(0, [MEETING]), state(1, [WANTS]), state(2, [MEETING])]
    assert (0, "deadlock") not in reasons(diagnose(looks(*states), 4))


@pytest.mark.parametrize("ran", [0, 1], ids=["holder", "waiter"])
def test_one_that_has_run_in_between_is_in_another_wait(ran: int) -> None:
    threads = [MEETING, WANTS, MEETING, MEETING]
    then = [state(number, [thread]) for number, thread in enumerate(threads)]
    threads[ran] = replace(threads[ran], switches=6)
    now = [state(number, [thread]) for number, thread in enumerate(threads)]
    found = diagnose([Round(then, NOW - 10), Round(now, NOW)], 4)
    assert (found.status, reasons(found)) == (2, [])


def test_one_look_proves_nothing() -> None:
    states = [state(number, [each]) for number, each in enumerate((MEETING, WANTS))]
    assert reasons(diagnose([Round(states, NOW)], 2)) == []


def test_another_thread_of_the_holder_may_have_the_lock() -> None:
    """The kernel names a process, and no thread: a saver that is only slow gives the lock back."""
    holder = reducing(0)
    holder.threads = (*holder.threads, SAVER)
    found = diagnose(looks(holder, state(1, [WANTS], trace()), reducing(2)), 3)
    assert (found.status, reasons(found)) == (2, [])
    assert found.sentence.startswith(
        "could not tell: rank 1 waits for 10 s for the file lock on /data/cache.lock, which rank 0"
        " holds; rank 0 stands in train(), train.py:10, and has a thread that may hold the lock and"
        " may only be slow"
    )


def test_the_same_without_recorders() -> None:
    holder = state(0, [inside("barrier", (0, 1)), SAVER])
    found = diagnose(looks(holder, state(1, [WANTS])), 2)
    assert (found.status, reasons(found)) == (2, [])


def test_a_thread_that_waits_for_work_has_no_lock() -> None:
    python = "/usr/lib/python3.11"
    frames = (
        Frame(f"{python}/queue.py", 171, "get"),
        Frame(f"{python}/concurrent/futures/thread.py", 81, "_worker"),
    )
    idle = Thread(frames, "pool", native_id=9, state="S", wchan="futex_do_wait", switches=5)
    holder = reducing(0)
    holder.threads = (*holder.threads, idle)
    found = diagnose(looks(holder, state(1, [WANTS], trace()), reducing(2)), 3)
    assert reasons(found) == [(0, "deadlock"), (1, "deadlock")]
