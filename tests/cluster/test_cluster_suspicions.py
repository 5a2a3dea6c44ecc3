"""Suspicions about states made by hand, for what gloo and a healthy machine can't show; what must
change nothing; bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.jobs.flight_entries import entry, json_values, peer, pending, trace
from support.jobs.recordings import Round, rounds

from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.judge.reasons import STRENGTH
from workerserver.cluster.judge.verdict import Verdict
from workerserver.cluster.model import Failure, Frame, Health, RankState, Thread, Worker
from workerserver.cluster.show.report import verdict_dict

NOW = 2_000_000_000.0

CODE = "/home/user/train.py"
C10D = "/usr/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py"


def main(*functions: str, wchan: str | None = None, gil: bool = False) -> tuple[Thread, ...]:
    """The main thread: functions of the user's, or of torch.distributed's with a leading dot."""
    frames = tuple(
        Frame(C10D, 3000, name[1:]) if name.startswith(".") else Frame(CODE, 10, name)
        for name in functions
    )
    return (Thread(frames, "MainThread", wchan=wchan, main=True, state="S", holds_gil=gil),)


WAITING = main(".all_reduce", "train", wchan="futex_do_wait")
COMPUTING = main("compute", "train", wchan="hrtimer_nanosleep")


def rank(number: int, flight: Any = None, threads: Any = (), **more: Any) -> RankState:
    return RankState(
        Worker(f"node{number // 2}:{8900 + number}", False, number, host=f"node{number // 2}"),
        number,
        "workerserver",
        threads=threads,
        flight=flight,
        **{"responded": True, **more},
    )


def gone(number: int, reason: Any = "unreachable", text: str = "refused") -> RankState:
    return rank(number, responded=False, failures={"healthz": Failure(reason, text)})


def twice(*states: RankState, apart: float = 10.0) -> list[Round]:
    return [Round(list(states), NOW - apart), Round(list(states), NOW)]


def health(step: int | None = None, age: float | None = None, gil: float = 0.0) -> Health:
    return Health("ok", step=step, step_age_s=age, gil_unavailable_s=gil)


def reasons(verdict: Verdict) -> list[tuple[int | None, str]]:
    return [(each.rank, each.reason) for each in verdict.suspects]


def test_ranks_that_receive_from_each_other() -> None:
    """In NCCL's format; gloo doesn't record them."""
    verdict = diagnose(
        twice(
            rank(0, trace(peer(0, 1, "recv 0<-1")), main("step")),
            rank(1, trace(peer(0, 1, "recv 1<-0")), main("step")),
            rank(2, trace(pending(0, 1)), WAITING),
        ),
        3,
    )
    assert reasons(verdict) == [(0, "p2p cycle"), (1, "p2p cycle")]
    assert verdict.sentence == (
        "ranks 0-1 wait for each other: rank 0 in recv from rank 1, rank 1 in recv from rank 0;"
        " they stand in step(), train.py:10"
    )


def test_end_of_a_chain_of_receives() -> None:
    verdict = diagnose(
        twice(
            rank(0, trace(entry(0, 1)), main("load", "train")),
            rank(1, trace(peer(0, 1, "recv 1<-0")), main("step")),
            rank(2, trace(peer(0, 1, "recv 2<-1")), main("step")),
        ),
        3,
    )
    assert reasons(verdict) == [(0, "behind")]
    assert verdict.sentence == (
        "rank 0 owes a send: rank 1 waits in recv from rank 0; it stands in load(), train.py:10"
    )


def test_asleep_with_an_operation_of_its_own_under_way() -> None:
    """Each rank waits for the other one. If one of them sleeps, only that one is to blame."""
    groups = {name: {"name": name, "desc": name, "ranks": "[0, 1]"} for name in ("first", "second")}
    flights = [
        {
            "pg_config": groups,
            "entries": [pending(0, 1, process_group=[name, name], time_created_ns=1)],
        }
        for name in groups
    ]
    both = [rank(0, flights[0], main("train")), rank(1, flights[1], main("train"))]
    assert reasons(diagnose(twice(*both))) == [(0, "order"), (1, "order")]
    both[1] = rank(1, flights[1], main("train", wchan="hrtimer_nanosleep"))
    assert reasons(diagnose(twice(*both))) == [(1, "behind")]


def test_a_wait_that_moved_on_between_rounds_is_none() -> None:
    def states(first: int) -> list[RankState]:
        ahead = trace(*(entry(each, each) for each in range(first)), pending(first, first))
        behind = trace(*(entry(each, each) for each in range(first)))
        return [rank(0, ahead, WAITING), rank(1, behind, COMPUTING), rank(2, ahead, WAITING)]

    given = [Round(states(5), NOW - 60), Round(states(6), NOW)]
    assert (diagnose(given, 3).status, diagnose(given, 3).suspects) == (0, ())
    given = [Round(states(6), NOW - 60), Round(states(6), NOW)]
    assert reasons(diagnose(given, 3)) == [(1, "behind")]


def test_a_wait_that_has_just_begun_is_none_whatever_the_clocks_say() -> None:
    ended = trace(entry(0, 1), ranks="[0, 1]")
    ahead = trace(entry(0, 1), pending(1, 2, time_created_ns=1), ranks="[0, 1]")
    behind = rank(1, ended, COMPUTING)
    given = [
        Round([rank(0, ended, COMPUTING), behind], NOW - 10),
        Round([rank(0, ahead, WAITING), behind], NOW),
    ]
    assert diagnose(given, 2).status == 0
    assert reasons(diagnose(given[1:], 2)) == [(1, "behind")]


def test_who_waits_in_what_no_recorder_holds_is_a_victim_too() -> None:
    ahead = trace(entry(0, 1), pending(1, 2, time_created_ns=1))
    behind = trace(entry(0, 1))
    receiving = main(".recv", "step", wchan="futex_do_wait")
    states = [rank(0, ahead, WAITING), rank(1, behind, receiving), rank(2, behind, COMPUTING)]
    assert reasons(diagnose(twice(*states), 3)) == [(2, "behind")]


def test_in_the_kernel_as_if_for_a_lock() -> None:
    """A computing thread waits there too, while a snapshot of it holds the GIL."""

    def looks(used: float) -> list[Round]:
        held = main("compute", "train", wchan="futex_do_wait")
        ahead, behind = trace(entry(0, 1), pending(1, 2)), trace(entry(0, 1))
        return [
            Round(
                [
                    rank(0, ahead, WAITING),
                    rank(1, behind, held, health=Health("ok", 7, uptime_s=at, cpu_s=50.0 + cpu)),
                    rank(2, ahead, WAITING),
                ],
                NOW + at - 70.0,
            )
            for at, cpu in ((30.0, 0.0), (70.0, used))
        ]

    assert reasons(diagnose(looks(0.1), 3)) == [(1, "lock")]
    assert reasons(diagnose(looks(39.0), 3)) == [(1, "behind")]


@pytest.mark.parametrize(
    ("inside", "suspects"),
    [([0, 2], [1]), ([1], [1]), ([0, 1], [2])],
)
def test_a_call_that_takes_all_ranks(inside: list[int], suspects: list[int]) -> None:
    """No recorder has new_group. A rank that is alone, inside or outside of it, is to blame."""
    meeting = main(".new_group", "make_groups", wchan="poll_schedule_timeout")
    states = [
        rank(number, trace(entry(0, 1)), meeting)
        if number in inside
        else rank(number, trace(entry(0, 1), pending(1, 2)), WAITING)
        for number in range(3)
    ]
    verdict = diagnose(twice(*states), 3)
    assert reasons(verdict) == [(number, "order") for number in suspects]
    assert "in torch.distributed.new_group" in verdict.sentence
    assert "in all_reduce #2 of default_pg" in verdict.sentence


def test_two_that_meet_in_different_calls() -> None:
    ahead = trace(entry(0, 1), pending(1, 2), ranks="[0, 1]")
    states = [
        rank(0, trace(entry(0, 1), ranks="[0, 1]"), main(".new_group", "make_groups")),
        rank(1, ahead, WAITING),
    ]
    assert reasons(diagnose(twice(*states), 2)) == [(0, "order"), (1, "order")]


def test_no_recorder_and_yet_in_the_collective() -> None:
    ahead = trace(entry(0, 1), pending(1, 2, time_created_ns=1), ranks="[0, 1]")
    verdict = diagnose(twice(rank(0, ahead, WAITING), rank(1, None, WAITING)), 2)
    assert (verdict.status, verdict.suspects) == (2, ())
    assert verdict.sentence == (
        "could not tell: its known ranks have entered all_reduce #2 of default_pg, which does not"
        " end (rank 0 in it)"
    )


def test_a_wait_is_judged_by_the_jobs_own_pace() -> None:
    """Steps of 20 s: to wait for 30 s is usual, for 70 s it isn't."""

    def states(now: float) -> list[RankState]:
        start = NOW - 100
        entries = [
            entry(each, each + 1, time_created_ns=int((start + 20 * each) * 1e9))
            for each in range(5)
        ]
        entries.append(pending(5, 6, time_created_ns=int(NOW * 1e9)))
        return [
            rank(0, trace(*entries, ranks="[0, 1]"), WAITING),
            rank(1, trace(*entries[:-1], ranks="[0, 1]"), COMPUTING),
        ]

    verdict = diagnose([Round(states(NOW), NOW + 20), Round(states(NOW), NOW + 30)])
    assert (verdict.status, verdict.suspects) == (0, ())
    assert verdict.sentence == (
        "no rank is stuck; rank 0 waits in all_reduce #6 of default_pg for 30.0 s, no longer than"
        " usual"
    )
    verdict = diagnose([Round(states(NOW), NOW + 60), Round(states(NOW), NOW + 70)])
    assert reasons(verdict) == [(1, "behind")]


def test_a_rank_without_recorder_is_judged_by_its_stack() -> None:
    ahead = trace(entry(0, 1), pending(1, 2, time_created_ns=1))
    states = [rank(0, ahead, WAITING), rank(1, None, WAITING), rank(2, None, COMPUTING)]
    verdict = diagnose(twice(*states), 3)
    assert reasons(verdict) == [(2, "behind")]
    assert "it seems" in verdict.sentence


def test_stacks_alone() -> None:
    states = [rank(0, None, WAITING), rank(1, None, COMPUTING), rank(2, None, WAITING)]
    verdict = diagnose(twice(*states), 3)
    assert verdict.sentence == (
        "rank 1 seems to keep the others waiting: ranks 0,2 stand in torch.distributed.all_reduce;"
        " it stands in compute(), train.py:10"
    )
    assert reasons(verdict) == [(1, "behind")]
    verdict = diagnose(twice(*states, apart=2.0), 3)
    assert verdict.status == 2
    assert "if the job is stuck, rank 1 keeps the others waiting" in verdict.sentence
    assert diagnose(twice(*states)[-1:], 3).status == 2


def test_stacks_alone_that_move() -> None:
    before = [rank(0, None, WAITING), rank(1, None, COMPUTING), rank(2, None, WAITING)]
    after = [rank(0, None, main("log")), rank(1, None, WAITING), rank(2, None, main("log"))]
    verdict = diagnose([Round(before, NOW - 10), Round(after, NOW)], 3)
    assert (verdict.status, verdict.sentence) == (0, "no rank is stuck")


def test_without_a_frame_of_torch_the_crowd_is_what_most_share() -> None:
    """``work.wait()`` is C++: all stand in a line of the user's."""
    states = [rank(each, None, main("wait", "train")) for each in range(3)]
    states.append(rank(3, None, main("compute", "train")))
    verdict = diagnose(twice(*states), 4)
    assert reasons(verdict) == [(3, "behind")]
    assert "ranks 0-2 stand together in wait(), train.py:10" in verdict.sentence


def test_every_rank_in_one_collective() -> None:
    everybody = [rank(each, trace(pending(0, 1, time_created_ns=1)), WAITING) for each in range(3)]
    verdict = diagnose(twice(*everybody), 3)
    assert (verdict.status, verdict.sentence) == (
        2,
        "could not tell: all its ranks have entered all_reduce #1 of default_pg, which does not end"
        " (ranks 0-2 in it)",
    )


def test_a_gil_that_is_kept_though_nobody_waits() -> None:
    holder = main("parse", "train", gil=True)
    states = [
        rank(0, trace(entry(0, 1), ranks="[0]"), holder, health=health(gil=12.5), mode="nogil")
    ]
    verdict = diagnose(twice(*states), 1)
    assert (
        verdict.sentence
        == "rank 0 has not released the GIL for 12.5 s; it holds the GIL in parse(), train.py:10"
    )
    states = [replace(states[0], health=health(gil=2.0))]
    assert diagnose(twice(*states), 1).status == 2  # nothing shows that it goes on


def test_no_step_for_long() -> None:
    states = [rank(0, trace(entry(0, 1), ranks="[0]"), main("read"), health=health(7, 400.0))]
    verdict = diagnose(twice(*states), 1)
    assert verdict.sentence == (
        "rank 0 has made no step for 400 s, since step 7; it stands in read(), train.py:10"
    )
    assert reasons(verdict) == [(0, "stalled")]


def test_a_step_ahead_of_those_who_wait() -> None:
    """The rank goes on without the collective: its loop swallows an exception before it."""
    ahead = trace(entry(0, 1), pending(1, 2, time_created_ns=1), ranks="[0, 1]")
    verdict = diagnose(
        twice(
            rank(0, ahead, WAITING, health=health(5, 60.0)),
            rank(1, trace(entry(0, 1), ranks="[0, 1]"), COMPUTING, health=health(9, 0.1)),
        ),
        2,
    )
    assert reasons(verdict) == [(1, "swallowed")]
    assert verdict.sentence == (
        "rank 1 has not entered all_reduce #2 of default_pg, and is at step 9, not 5;"
        " it stands in compute(), train.py:10"
    )


def test_a_collective_in_another_thread() -> None:
    """The main thread joins the thread that waits: it is a victim, not stuck in a lock."""
    joined = Thread(
        (Frame("/usr/lib/python3.11/threading.py", 1112, "join"), Frame(CODE, 5, "train")),
        "MainThread",
        main=True,
    )
    helper = Thread((Frame(C10D, 3000, "all_reduce"), Frame(CODE, 9, "sync")), "sync")
    ahead = trace(pending(0, 1, time_created_ns=1), ranks="[0, 1]")
    states = [rank(0, ahead, (joined, helper)), rank(1, trace(ranks="[0, 1]"), COMPUTING)]
    assert reasons(diagnose(twice(*states), 2)) == [(1, "behind")]


# --- ranks that don't answer ---------------------------------------------------------------------


def test_dead_rank_for_which_others_wait() -> None:
    ahead = trace(entry(0, 1), pending(1, 2, time_created_ns=1))
    verdict = diagnose(twice(rank(0, ahead, WAITING), rank(1, ahead, WAITING), gone(2)), 3)
    assert reasons(verdict) == [(2, "unreachable")]
    assert verdict.suspects[0].host == "node1"
    assert verdict_dict(verdict)["unreachable"] == [
        {
            "rank": 2,
            "host": "node1",
            "address": "node1:8902",
            "reason": "unreachable",
            "text": "refused",
        }
    ]


def test_silent_rank_of_a_job_that_goes_on_is_no_suspect() -> None:
    given = rounds("healthy-ours")
    for each in given:
        each.states[1] = gone(1, "timeout", "no answer in 3 s")
    verdict = diagnose(given, 3)
    assert (verdict.status, verdict.suspects) == (2, ())
    assert verdict.sentence == (
        "could not tell: rank 1 does not answer (timeout), but the job goes on"
    )


def test_rank_of_which_no_worker_is_known() -> None:
    ahead = trace(entry(0, 1), pending(1, 2, time_created_ns=1))
    verdict = diagnose(twice(rank(0, ahead, WAITING), rank(1, ahead, WAITING)), 3)
    assert (verdict.status, reasons(verdict)) == (2, [])
    assert "rank 2 has not entered all_reduce #2 of default_pg, in which ranks 0-1 wait" in (
        verdict.sentence
    )
    assert "no worker of it is known: it may have ended, hang or work" in verdict.sentence
    assert verdict.unreachable[0].reason == "missing"
    assert (verdict.ranks, verdict.responded) == (3, 2)


def test_nobody_answers() -> None:
    verdict = diagnose(twice(gone(0), gone(1, "timeout")), 2)
    assert (verdict.status, verdict.sentence) == (2, "could not tell: no rank gave a usable answer")
    assert [each.rank for each in verdict.unreachable] == [0, 1]
    assert diagnose([], None).status == 2


def test_a_lie_is_that_ranks_problem() -> None:
    given = rounds("asleep-ours")
    for each in given:
        each.states[3].failures["healthz"] = Failure("lied", "it says that it is rank 0")
    verdict = diagnose(given, 4)
    assert reasons(verdict) == [(2, "behind"), (3, "unreachable")]
    assert verdict.unreachable[0].text == "it says that it is rank 0"


def test_workers_without_a_rank() -> None:
    """Stock workers on Unix sockets: nothing tells their ranks, but stacks can be compared."""
    states = [
        replace(rank(each, None, COMPUTING if each == 1 else WAITING), rank=None)
        for each in range(3)
    ]
    for number, each in enumerate(states):
        each.worker = Worker(f"/run/{number}.sock", True)
    verdict = diagnose(twice(*states))
    assert [(each.rank, each.address) for each in verdict.suspects] == [(None, "/run/1.sock")]
    assert verdict.sentence.startswith("worker /run/1.sock seems to keep the others waiting")


@pytest.mark.parametrize(
    ("number", "world", "named"),
    [
        (None, None, "the process (pid 4711) has made no step"),
        (None, 1, "the process (pid 4711) has made no step"),
        (None, 2, "worker node0:8900 has made no step"),
        (0, None, "rank 0 has made no step"),
    ],
)
def test_a_process_alone(number: int | None, world: int | None, named: str) -> None:
    told = Health("ok", pid=4711, step=90, step_age_s=400.0, uptime_s=490.0, world_size=world)
    state = replace(rank(0, None, COMPUTING, health=told), rank=number)
    state.worker = replace(state.worker, rank=number)
    assert diagnose(twice(state)).sentence.startswith(named)


# --- determinism, bad input ---------------------------------------------------------------------


@given(st.permutations(range(4)))
def test_suspects_follow_their_ranks(numbers: list[int]) -> None:
    """The verdict doesn't depend on the rank's number."""
    ahead = trace(entry(0, 1), pending(1, 2, time_created_ns=1), ranks="[0, 1, 2, 3]")
    behind = trace(entry(0, 1), ranks="[0, 1, 2, 3]")
    states = [
        rank(numbers[0], ahead, WAITING),
        rank(numbers[1], behind, COMPUTING),
        rank(numbers[2], ahead, WAITING),
        gone(numbers[3]),
    ]
    verdict = diagnose(twice(*states), 4)
    assert reasons(verdict) == [(numbers[1], "behind"), (numbers[3], "unreachable")]


frames = st.builds(
    Frame, st.text(max_size=5) | st.just(C10D), st.none() | st.integers(0, 9), st.text(max_size=5)
)
threads = st.builds(
    Thread,
    st.lists(frames, max_size=3).map(tuple),
    name=st.none() | st.text(max_size=5),
    wchan=st.none() | st.text(max_size=5),
    main=st.booleans(),
    holds_gil=st.booleans(),
)
healths = st.builds(
    Health,
    st.just("ok"),
    step=st.none() | st.integers(-5, 5),
    step_age_s=st.none() | st.floats(0, 1e6),
    gil_unavailable_s=st.none() | st.floats(0, 1e6),
)
failures = st.builds(
    Failure, st.sampled_from(["timeout", "malformed", "lied"]), st.text(max_size=5)
)
states = st.builds(
    RankState,
    st.builds(Worker, st.text(max_size=3), st.booleans(), st.none() | st.integers(0, 3)),
    rank=st.none() | st.integers(0, 3),
    health=st.none() | healths,
    main_digest=st.none() | st.text(max_size=2),
    mode=st.sampled_from([None, "gil", "nogil"]),
    threads=st.lists(threads, max_size=3),
    flight_summary=st.none() | json_values,
    flight=st.none() | json_values,
    failures=st.dictionaries(st.sampled_from(["healthz", "stacks"]), failures, max_size=2),
    responded=st.booleans(),
)
looks = st.builds(Round, st.lists(states, max_size=4), st.floats(0, 4e9))


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(looks, max_size=3), st.none() | st.integers(0, 5))
def test_nothing_makes_it_raise(given: list[Round], world_size: int | None) -> None:
    for each in given:  # two workers never have the same address
        for number, state in enumerate(each.states):
            state.worker = replace(state.worker, address=f"/run/{number}.sock")
    verdict = diagnose(given, world_size)
    text = json.dumps(verdict_dict(verdict))
    for each in given:
        each.states.reverse()
    assert json.dumps(verdict_dict(diagnose(given, world_size))) == text
    assert (verdict.status == 1) == bool(verdict.suspects)
    assert all(each.reason in STRENGTH for each in verdict.suspects)
