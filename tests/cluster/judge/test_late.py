"""Who may only be late, and in what order ranks took their operations: verdicts that the simulator
found wrong, as answers made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.jobs.flight_entries import entry, peer, pending, trace
from support.jobs.recordings import Round

from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.judge.flight import analyse
from workerserver.cluster.judge.order.conflicts import contrary
from workerserver.cluster.judge.verdict import Verdict
from workerserver.cluster.model import Frame, Health, RankState, Thread, Worker
from workerserver.cluster.read.flight_records import read
from workerserver.handlers.flight_recorder import summarize

NOW = 2_000_000_000.0
CODE = "/home/user/train.py"
C10D = "/usr/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py"
HERE = Worker("/run/rank.sock", True)
QUEUED: dict[str, Any] = {"state": "scheduled"}


def main(*functions: str, wchan: str | None = None) -> tuple[Thread, ...]:
    """The main thread: functions of the user's, or of torch.distributed's with a leading dot."""
    frames = tuple(
        Frame(C10D, 3000, name[1:]) if name.startswith(".") else Frame(CODE, 10, name)
        for name in functions
    )
    return (Thread(frames, "MainThread", wchan=wchan, main=True, state="S"),)


WAITING = main(".all_reduce", "train", wchan="futex_do_wait")
COMPUTING = main("compute", "train", wchan="hrtimer_nanosleep")


def rank(number: int, flight: Any = None, threads: Any = (), **more: Any) -> RankState:
    worker = Worker(f"node{number // 2}:{8900 + number}", False, number, host=f"node{number // 2}")
    told: dict[str, Any] = {"responded": True, **more}
    return RankState(worker, number, "workerserver", threads=threads, flight=flight, **told)


def twice(*states: RankState, apart: float = 10.0) -> list[Round]:
    return [Round(list(states), NOW - apart), Round(list(states), NOW)]


def reasons(verdict: Verdict) -> list[tuple[int | None, str]]:
    return [(each.rank, each.reason) for each in verdict.suspects]


def at(seconds: float) -> dict[str, Any]:
    return {"time_created_ns": int((NOW + seconds) * 1e9)}


def beating(number: int, flight: Any, threads: Any, age: float, usual: float) -> Any:
    told = Health("ok", uptime_s=900.0, step=40, step_age_s=age, step_median_s=usual)
    return replace(rank(number, flight, threads, health=told), worker=replace(HERE, rank=number))


# --- several that may be wrong


def test_who_counts_in_twos_has_left_out_nothing() -> None:
    """After two steps of both, one says 4 and the other 2."""
    done = entry(0, 1, **at(-700))
    waits = trace(done, pending(1, 2, **at(-600)), ranks="[0, 1]")
    beats = [Health("ok", step=step, step_age_s=600.0, uptime_s=900.0) for step in (2, 4)]
    states = [
        rank(0, waits, WAITING, health=beats[0]),
        rank(1, trace(done), COMPUTING, health=beats[1]),
    ]
    assert reasons(diagnose(twice(*states), 2)) == [(1, "behind")]
    later = [replace(beat, step=step) for beat, step in zip(beats, (5, 6), strict=True)]
    states = [replace(each, health=beat) for each, beat in zip(states, later, strict=True)]
    assert reasons(diagnose(twice(*states), 2)) == [(1, "swallowed")]


@pytest.mark.parametrize(
    ("inside", "waits_for", "suspects"),
    [
        ((0, 1, 2), {3: 2}, [3]),  # rank 2 is only one of those that have come
        ((2,), {3: 2, 0: 3, 1: 3}, [2]),
        ((1, 3), {0: 1, 2: 0}, [0, 1]),  # one's word, and two on each side
    ],
)
def test_who_meets_and_who_does_not(
    inside: tuple[int, ...], waits_for: dict[int, int], suspects: list[int]
) -> None:
    """Each of the others waits in a group of two for one rank."""
    meeting = main(".new_group", "setup", wchan="poll_schedule_timeout")
    config: dict[str, Any] = {
        str(number): {"name": str(number), "desc": f"pair{number}", "ranks": str(sorted(pair))}
        for number, pair in ((each, (each, other)) for each, other in waits_for.items())
    }
    states = []
    for number in range(4):
        group: dict[str, Any] = {"process_group": [str(number), f"pair{number}"], **at(-600)}
        entries = [] if number in inside else [pending(0, 1, **group)]
        own = {key: each for key, each in config.items() if str(number) in each["ranks"]}
        flight = {"version": "2.10", "pg_config": own, "entries": entries}
        states.append(rank(number, flight, meeting if number in inside else WAITING))
    assert sorted(reasons(diagnose(twice(*states), 4))) == [(each, "order") for each in suspects]


def test_a_lock_though_another_thread_computes() -> None:
    """The thread itself has not run since: so it doesn't want the GIL."""
    done, ahead = entry(0, 1, **at(-700)), pending(1, 2, **at(-600))
    (thread,) = main("prepare", "train", wchan="futex_do_wait")
    for switches, reason in ((5, "lock"), (None, "behind")):
        threads = (replace(thread, native_id=7, switches=switches),)
        looks = []
        for seconds in (0.0, 10.0):
            health = Health("ok", uptime_s=900.0 + seconds, cpu_s=100.0 + 0.2 * seconds)
            states = [
                rank(0, trace(done, ahead), WAITING),
                rank(1, trace(done), threads, health=health),
                rank(2, trace(done, ahead), WAITING),
            ]
            looks.append(Round(states, NOW - 10.0 + seconds))
        assert reasons(diagnose(looks, 3)) == [(1, reason)]


# --- a pause


@pytest.mark.parametrize(("age", "status"), [(30.0, 2), (130.0, 1)])
def test_a_pause_of_some_usual_steps_is_no_hang(age: float, status: int) -> None:
    """A step takes two seconds. For so long nobody knows whether the rank comes back."""
    done = entry(0, 1, **at(-age - 2))
    ahead, behind = trace(done, pending(1, 2, **at(-age)), ranks="[0, 1]"), trace(done)
    states = [beating(0, ahead, WAITING, age, 2.0), beating(1, behind, COMPUTING, age, 2.0)]
    verdict = diagnose(twice(*states, apart=2.0), 2)
    assert verdict.status == status
    if status == 2:
        assert "rank 1 has not entered all_reduce #2 of default_pg" in verdict.sentence
        assert "it pauses, and may only be late" in verdict.sentence
        assert verdict.again_s is not None


def test_a_pause_as_long_as_the_job_has_made_is_no_hang() -> None:
    """Nothing but the recorder tells how long a step takes: 9 s, of which it saw one."""
    times = (-20.0, -11.0, -10.99, -10.98)
    first = [entry(number, number + 1, **at(when)) for number, when in enumerate(times)]
    ahead = trace(*first, pending(4, 5, **at(-10.97)), ranks="[0, 1]")
    behind = trace(*first, ranks="[0, 1]")
    states = [
        replace(rank(number, flight, threads), worker=replace(HERE, rank=number))
        for number, flight, threads in ((0, ahead, WAITING), (1, behind, COMPUTING))
    ]
    assert diagnose(twice(*states, apart=2.0), 2).suspects == ()
    later = [Round(states, NOW + 20.0), Round(states, NOW + 22.0)]
    assert reasons(diagnose(later, 2)) == [(1, "behind")]


def test_the_clock_of_another_host_is_not_believed_to_the_second() -> None:
    """It may be three seconds behind; what the looks have seen is certain."""
    flights = trace(pending(0, 1, **at(-7)), ranks="[0, 1]"), trace(ranks="[0, 1]")
    states = [rank(0, flights[0], WAITING), rank(1, flights[1], COMPUTING)]
    near = [replace(each, worker=replace(HERE, rank=each.rank)) for each in states]
    assert reasons(diagnose(twice(*near, apart=2.0), 2)) == [(1, "behind")]
    assert diagnose(twice(*states, apart=2.0), 2).suspects == ()


def test_a_rank_without_a_server_may_work_for_long() -> None:
    """In a process of its own, perhaps: nobody has seen it stand still."""
    done = entry(0, 1, **at(-32))
    ahead = trace(done, pending(1, 2, **at(-30)), ranks="[0, 1, 2]")
    states = [beating(number, ahead, WAITING, 30.0, 2.0) for number in (0, 2)]
    assert diagnose(twice(*states, apart=2.0), 3).suspects == ()
    quick = [beating(number, ahead, WAITING, 30.0, 0.1) for number in (0, 2)]
    verdict = diagnose(twice(*quick, apart=2.0), 3)
    assert (verdict.status, verdict.suspects) == (2, ())


def test_a_short_loop_that_is_met_at_one_line_does_not_stand() -> None:
    """It has run between the looks, as the kernel's count says."""
    receiving = main(".recv", "stage", wchan="futex_do_wait")
    looks = []
    for number, switches in enumerate((10, 99)):
        (sleeping,) = main("microbatch", "train", wchan="hrtimer_nanosleep")
        moving = (replace(sleeping, switches=switches, native_id=7),)
        states = [rank(0, None, receiving), rank(1, None, receiving), rank(2, None, moving)]
        looks.append(Round(states, NOW + 10 * number))
    assert diagnose(looks, 3).suspects == ()
    assert reasons(diagnose([looks[0], replace(looks[0], started=NOW + 10)], 3)) == [(2, "behind")]


def test_two_places_in_c_of_stock_workers_may_wait_for_each_other() -> None:
    """Nothing is told of the kernel: one of them may hold a file's lock."""
    done = entry(0, 1)
    ahead, behind = trace(done, pending(1, 2, time_created_ns=1)), trace(done)
    (place,) = main("load_cache", "train")
    unknown = (replace(place, state=None),)
    states = [rank(0, ahead, WAITING), rank(1, behind, unknown), rank(2, behind, unknown)]
    assert diagnose(twice(*states), 3).suspects == ()


def test_who_spins_without_a_recorder_may_wait_for_its_gpu() -> None:
    """item() leaves no frame."""
    ahead = trace(entry(0, 1, **at(-601)), pending(1, 2, **at(-600)))
    (place,) = main("log", "train")
    spins = (replace(place, state="R"),)
    states = [beating(each, ahead, WAITING, 600.0, 0.1) for each in (0, 2)]
    spinning = beating(1, None, spins, 600.0, 0.1)
    assert diagnose(twice(*states, spinning, apart=10.0), 3).suspects == ()


# --- NCCL's order


def test_an_operation_behind_another_one_is_not_waited_in() -> None:
    """Rank 1 has put #2 of the default group on its stream behind a recv that never ends."""
    asks = peer(1, 1, "recv 1<-2", **at(-60))
    behind = trace(entry(0, 1, **at(-61)), asks, pending(2, 2, **at(-59), **QUEUED))
    waits = trace(entry(0, 1, **at(-61)), pending(1, 2, **at(-59), **QUEUED))
    analysis = analyse({0: waits, 1: behind, 2: trace(entry(0, 1, **at(-61)))}, 3)
    found = {wait.name: (wait.waiting, wait.absent, wait.queued) for wait in analysis.waits}
    assert found == {
        "all_reduce #2": ((0,), (2,), (1,)),
        "recv from rank 2": ((1,), (2,), ()),
    }


def test_a_ring_that_may_have_lost_the_oldest_operation_tells_of_no_wait() -> None:
    """All that it holds is pending, and may stand behind what it has lost."""
    lost = trace(peer(7, 5, "recv 0<-1", **at(-9)), peer(8, 6, "send 0->1", **at(-8)))
    assert analyse({0: lost, 1: trace()}, 3).waits == ()
    whole = trace(entry(6, 4, **at(-10)), peer(7, 5, "recv 0<-1", **at(-9)))
    assert [wait.name for wait in analyse({0: whole, 1: trace()}, 3).waits] == ["recv from rank 1"]


def test_what_closes_a_batch_ends_its_parts() -> None:
    """NCCL's recorder leaves the parts scheduled for ever."""
    parts = [peer(0, 1, "send 0->1"), peer(1, 1, "recv 0<-1")]
    closing = peer(2, 1, "coalesced", state="completed", retired=True)
    flight = trace(*parts, closing, peer(3, 2, "send 0->1"))
    (group,) = read(flight).groups.values()
    assert [(each.op, each.done) for each in group.p2p] == [
        ("send 0->1", True),
        ("recv 0<-1", True),
        ("coalesced", True),
        ("send 0->1", False),
    ]
    (told,) = summarize({"nccl": flight}, {})["groups"]
    assert (told["pending"], told["first_pending"]["p2p_seq"]) == (1, 2)
    (open_,) = summarize({"nccl": trace(*parts, peer(2, 1, "coalesced"))}, {})["groups"]
    assert (open_["pending"], open_["first_pending"]["p2p_seq"]) == (3, 1)


def flights(**groups: tuple[str, dict[int, tuple[int, int]]]) -> dict[int, Any]:
    """Of each group its ranks, and of each rank the number of its last operation and when."""
    made: dict[int, Any] = {}
    for name, (members, each) in groups.items():
        for number, (seq, when) in each.items():
            flight = made.setdefault(number, {"pg_config": {}, "entries": []})
            flight["pg_config"][name] = {"name": name, "desc": name, "ranks": members}
            last = pending(len(flight["entries"]), seq, process_group=[name, name], **at(when))
            flight["entries"].append({**last, **QUEUED})
    return made


def test_two_witnesses_against_one() -> None:
    """Ranks 0 and 2 wait in the pair's group for rank 1, which waits for them in the world's."""
    told = flights(
        pair=("[0, 1, 2]", {0: (1, -50), 2: (1, -50)}),
        world=("[0, 1, 2, 3]", {1: (1, -50), 3: (1, -50)}),
    )
    waits = analyse(told, 4).waits
    assert list(contrary(waits, 0)) == [1]


def test_word_against_word() -> None:
    told = flights(
        pair=("[0, 1]", {0: (1, -50)}),
        world=("[0, 1, 2, 3]", {1: (1, -50), 2: (1, -50), 3: (1, -50)}),
    )
    assert sorted(contrary(analyse(told, 4).waits, 0)) == [0, 1]


def test_the_one_rank_that_explains_two_conflicts() -> None:
    """Rank 2 waits for all; ranks 0 and 1 wait for it in two groups of their own."""
    told = flights(
        first=("[0, 2]", {0: (1, -50)}), second=("[1, 2]", {1: (1, -50)}),
        world=("[0, 1, 2]", {2: (1, -50)}),
    )  # fmt: skip
    assert list(contrary(analyse(told, 3).waits, 0)) == [2]


DECODER = Frame("/usr/lib/python3.11/json/decoder.py", 353, "raw_decode")
PARSE = Frame(CODE, 12, "parse_index")


@pytest.mark.parametrize(
    ("frames", "seconds", "accused"),
    [
        pytest.param((PARSE,), 20, False, id="own line, not for long"),
        pytest.param((PARSE,), 60, True, id="own line"),
        pytest.param((DECODER, PARSE), 60, False, id="parser"),
        pytest.param((DECODER, PARSE), 400, True, id="parser that never ends"),
    ],
)
def test_a_call_of_a_library_gets_through_its_work(
    frames: tuple[Frame, ...], seconds: int, accused: bool
) -> None:
    """It computes at one place: a loop of the user's own may have no end."""
    busy = (Thread(frames, "MainThread", main=True, state="R"),)
    done = entry(0, 1, **at(-seconds - 1))
    ahead = trace(done, pending(1, 2, **at(-seconds)), ranks="[0, 1, 2]")
    states = [
        beating(number, ahead, WAITING, seconds, 0.2)
        if number != 1
        else beating(1, trace(done, ranks="[0, 1, 2]"), busy, seconds, 0.2)
        for number in range(3)
    ]
    found = reasons(diagnose(twice(*states, apart=2.0), 3))
    assert found == ([(1, "behind")] if accused else [])
