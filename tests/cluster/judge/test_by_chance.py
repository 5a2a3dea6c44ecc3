"""What looks may meet by chance, or what may still end: nobody is accused for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from support.jobs.flight_entries import entry, pending, trace
from support.jobs.recordings import Round

from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.judge.verdict import Verdict
from workerserver.cluster.model import (
    Failure,
    Frame,
    Health,
    Hold,
    Own,
    RankState,
    Thread,
    WaitsFor,
    Worker,
)

NOW = 2_000_000_000.0
CODE = "/home/user/train.py"
C10D = "/usr/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py"
LOADER = "/usr/lib/python3.11/site-packages/torch/utils/data/dataloader.py"
REDUCE = Frame(C10D, 3000, "all_reduce")


def thread(*frames: Frame | str, wchan: str = "futex_do_wait", **more: Any) -> Thread:
    """The main thread. Names are functions of the user's."""
    stack = tuple(Frame(CODE, 10, each) if isinstance(each, str) else each for each in frames)
    told: dict[str, Any] = {"state": "S", "switches": 7, **more}
    return Thread(stack, "MainThread", native_id=4711, main=True, wchan=wchan, **told)


def rank(number: int, its: Thread | None, flight: Any = None, **more: Any) -> RankState:
    worker = Worker(f"/run/rank{number}.sock", True, number)
    threads = () if its is None else (its,)
    told: dict[str, Any] = {"responded": True, "kind": "workerserver", **more}
    return RankState(worker, number, threads=threads, flight=flight, **told)


def looks(*states: RankState, apart: float = 10.0, ran: Sequence[int] = ()) -> list[Round]:
    """Two looks. The main threads of the ranks in *ran* have run in between."""
    later = [
        replace(each, threads=tuple(replace(one, switches=99) for one in each.threads))
        if each.rank in ran
        else each
        for each in states
    ]
    return [Round(list(states), NOW - apart), Round(later, NOW)]


def named(verdict: Verdict) -> list[tuple[int | None, str]]:
    return [(each.rank, each.reason) for each in verdict.suspects]


NEXT_BATCH = thread(Frame(LOADER, 1275, "_try_get_data"), "load", wchan="poll_schedule_timeout")
REDUCING = thread(REDUCE, "train")
ASLEEP = thread("load_cache", wchan="hrtimer_nanosleep")


# --- met there again, or standing there


def test_a_slow_loader_is_not_accused_while_the_others_come_and_go() -> None:
    """Each look meets one rank in its loader and the others in the all_reduce. No recorder and no
    heartbeat tells of steps, but these threads have run in between."""
    states = [rank(0, NEXT_BATCH), rank(1, REDUCING)]
    found = diagnose(looks(*states, ran=(0, 1)), 2)
    assert (found.status, found.suspects) == (2, ())


def test_a_loader_that_keeps_the_others_in_one_wait_is_accused() -> None:
    """The loader's wait has a timeout, so its thread runs; the others' threads have not run."""
    states = [rank(0, NEXT_BATCH), rank(1, REDUCING)]
    assert named(diagnose(looks(*states, ran=(0,)), 2)) == [(0, "dataloader")]


def test_who_computes_is_not_seen_to_wait() -> None:
    spins = thread("log", wchan="", state="R")
    found = diagnose(looks(rank(0, NEXT_BATCH), rank(1, spins), ran=(0, 1)), 2)
    assert (found.status, found.suspects) == (2, ())


def test_heartbeats_tell_that_the_others_stand() -> None:
    told = Health("ok", uptime_s=900.0, step=40, step_age_s=300.0, step_median_s=1.0)
    states = [rank(0, NEXT_BATCH, health=told), rank(1, REDUCING, health=told)]
    rounds = looks(*states, ran=(0, 1))
    for state in rounds[1].states:
        state.health = replace(told, step_age_s=310.0)
    assert named(diagnose(rounds, 2)) == [(0, "dataloader")]


# --- several that sleep


@pytest.mark.parametrize(("apart", "named_"), [(10.0, []), (130.0, [0, 1])])
def test_several_that_sleep_may_only_be_late(apart: float, named_: list[int]) -> None:
    """One may be on its way to what the other one has. Nothing tells how long a step takes."""
    states = [rank(0, ASLEEP), rank(1, ASLEEP), *(rank(each, REDUCING) for each in (2, 3, 4))]
    found = diagnose(looks(*states, apart=apart), 5)
    assert [each.rank for each in found.suspects] == named_
    if not named_:
        assert found.status == 2
        assert "ranks 0-1 stand apart from the others; they sleep" in found.sentence
        assert found.again_s == 110.0


def test_one_that_sleeps_is_accused() -> None:
    states = [rank(0, ASLEEP), *(rank(each, REDUCING) for each in (1, 2))]
    assert named(diagnose(looks(*states), 3)) == [(0, "behind")]


@pytest.mark.parametrize(("told", "accused"), [(7, [0, 1]), (None, [1])])
def test_a_loop_that_sleeps_may_look_for_what_another_one_has(
    told: int | None, accused: list[int]
) -> None:
    """Rank 1 sleeps with a file's lock, for which rank 0 asks again and again. Where a worker does
    not tell how often its thread has run, its loop looks as one long sleep."""
    polls = thread("ask_for_lock", wchan="hrtimer_nanosleep", switches=told)
    states = [rank(0, polls), rank(1, ASLEEP), *(rank(each, REDUCING) for each in (2, 3, 4))]
    assert [each.rank for each in diagnose(looks(*states, apart=130.0), 5).suspects] == accused


# --- what stock workers don't tell


def test_a_place_in_c_may_wait_for_a_rank_that_can_not_be_seen() -> None:
    done = entry(0, 1)
    place = thread("load_cache", wchan="", state=None, switches=None)
    states = [
        rank(0, REDUCING, trace(done, pending(1, 2, time_created_ns=1)), kind="torch"),
        rank(1, place, trace(done), kind="torch"),
        rank(2, REDUCING, trace(done, pending(1, 2, time_created_ns=1)), kind="torch"),
    ]
    unseen = RankState(Worker("/run/rank3.sock", True, 3), 3)
    unseen.failures["stacks"] = Failure("unreachable", "no connection")
    assert 1 not in [each.rank for each in diagnose(looks(*states, unseen), 4).suspects]
    assert named(diagnose(looks(*states), 3)) == [(1, "behind")]


def test_who_has_an_operation_under_way_on_its_gpu_waits() -> None:
    """Two ranks poll at one line, and a third one is in item() elsewhere, all with operations of
    NCCL's of which the rings have lost the ones before."""
    queued: dict[str, Any] = {"state": "scheduled", "time_created_ns": 1}
    lost = trace(pending(8, 9, **queued), pending(9, 10, **queued))
    polls, item = (thread(each, wchan="", state=None, switches=None) for each in ("finish", "log"))
    states = [rank(0, polls, lost), rank(1, polls, lost), rank(2, item, lost)]
    found = diagnose(looks(*states), 3)
    assert (found.status, found.suspects) == (2, ())


# --- steps of different kinds


def test_who_counts_in_threes_has_left_out_nothing() -> None:
    """After two steps of both, one says 6 and the other 2: two steps don't tell how long one
    takes."""
    done = entry(0, 1, time_created_ns=int((NOW - 700) * 1e9))
    waits = trace(done, pending(1, 2, time_created_ns=int((NOW - 600) * 1e9)), ranks="[0, 1]")
    beats = [Health("ok", step=step, step_age_s=600.0, uptime_s=900.0) for step in (2, 6)]
    states = [
        rank(0, REDUCING, waits, health=beats[0]),
        rank(1, ASLEEP, trace(done), health=beats[1]),
    ]
    assert named(diagnose(looks(*states), 2)) == [(1, "behind")]


# --- what a loop may be met at


def released(*asleep: RankState) -> list[RankState]:
    """Rank 0 waits in the second all_reduce for *asleep*, who have done one."""
    done = entry(0, 1, time_created_ns=int((NOW - 60) * 1e9))
    ahead = trace(done, pending(1, 2, time_created_ns=int((NOW - 59) * 1e9)))
    for each in asleep:
        each.flight = trace(done)
    return [rank(0, REDUCING, ahead), *asleep]


POLL = Frame("/usr/lib/python3.11/site-packages/portalocker/utils.py", 290, "acquire")


def test_one_look_does_not_tell_a_library_that_polls() -> None:
    """A lock file that is asked for every 50 ms."""
    polls = thread(POLL, "lock_cache", wchan="hrtimer_nanosleep")
    states = released(rank(1, polls), rank(2, polls))
    found = diagnose([Round(states, NOW)], 3)
    assert not found.sure
    assert diagnose(looks(*states, ran=(1, 2)), 3).suspects == ()
    assert [each.rank for each in diagnose(looks(*states), 3).suspects] == [1, 2]


def test_ranks_with_the_same_stack_are_seen_in_one_of_them() -> None:
    """One of them was asked for its own stack, and it has run."""
    polls = thread(POLL, "lock_cache", wchan="hrtimer_nanosleep")
    untold = replace(polls, switches=None)
    states = released(rank(1, polls), rank(2, untold))
    rounds = looks(*states, ran=(1,))
    rounds[1].states[2] = states[2]
    assert diagnose(rounds, 3).suspects == ()
    assert [each.rank for each in diagnose(looks(*states), 3).suspects] == [1, 2]


@pytest.mark.parametrize(
    ("file", "function"),
    [("filelock/_api.py", "acquire"), ("torch/utils/file_baton.py", "wait")],
)
def test_a_lock_file_may_be_another_rank_s(file: str, function: str) -> None:
    asks = Frame(f"/usr/lib/python3.11/site-packages/{file}", 290, function)
    polls = thread(asks, "lock_cache", wchan="hrtimer_nanosleep", switches=None)
    states = released(rank(1, polls), rank(2, polls))
    assert diagnose(looks(*states), 3).suspects == ()


def test_who_waits_for_nobody_is_named_before_those_of_whom_that_is_a_guess() -> None:
    """gloo's recorder holds no isend, and work.wait() looks as a lock of the user's own."""
    done = entry(0, 1, time_created_ns=int((NOW - 60) * 1e9))
    told = Health("ok", uptime_s=900.0, step=40, step_age_s=59.0, step_median_s=0.1)
    get = Frame("/usr/lib/python3.11/queue.py", 171, "get")
    taking = thread(get, "next_batch")
    states = [
        rank(number, taking if number == 2 else thread(f"stage{number}"), trace(done), health=told)
        for number in range(4)
    ]
    assert named(diagnose(looks(*states), 4)) == [(2, "lock")]
    waits = trace(done, pending(1, 2, time_created_ns=int((NOW - 59) * 1e9)), ranks="[0, 1, 2, 3]")
    states[3] = rank(3, REDUCING, waits, health=told)
    states[0] = rank(0, REDUCING, waits, health=told)
    assert named(diagnose(looks(*states), 4)) == [(2, "lock")]


def test_one_look_does_not_tell_whether_joined_threads_are_a_circle() -> None:
    """Where it does, the rank is named for a deadlock, and not for a lock."""
    join = Frame("/usr/lib/python3.11/threading.py", 1112, "join")
    saver = replace(
        thread("save", waits=WaitsFor("lock", holder=4711, item="0x7f00")),
        name="saver",
        native_id=4712,
        main=False,
    )
    joins = thread(
        join,
        "joins_the_saver",
        waits=WaitsFor("thread", joined=4712),
        holds=(Hold("lock", "0x7f00", 1),),
    )
    states = released(rank(1, joins), rank(2, REDUCING))
    states[1].threads = (joins, saver)
    states[2].flight = states[0].flight
    assert not diagnose([Round(states, NOW)], 3).sure
    for each in (0, 1, 2):
        states[each].own = Own("nogil", 100 + each, 1, ())
    assert named(diagnose(looks(*states), 3)) == [(1, "deadlock")]
