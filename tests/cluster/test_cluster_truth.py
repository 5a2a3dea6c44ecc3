"""Verdicts that were wrong on real jobs, as answers made by hand: a status that is not earned, an
innocent rank, the wrong thread."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.jobs.flight_entries import entry, pending, trace
from support.jobs.recordings import Round, rounds
from test_cluster_suspicions import C10D, CODE, NOW, WAITING, health, main, rank, reasons, twice

from workerserver.cluster.ask.rounds import settle_ranks
from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.judge.facts import Accusation, GoesOn, NoStep
from workerserver.cluster.judge.grounds import invariants
from workerserver.cluster.judge.grounds.status import Conclusion, conclude
from workerserver.cluster.judge.job import Job
from workerserver.cluster.judge.suspicions import Suspicions
from workerserver.cluster.model import Frame, Health, RankState, Thread, WaitsFor, Worker
from workerserver.cluster.read.acting import acting, roots_of_waits
from workerserver.cluster.read.blocked_on import blocked_on
from workerserver.cluster.read.waits_for import with_beats

THREADING = "/usr/lib/python3.11/threading.py"
JOIN = Frame(THREADING, 1112, "join")
RECEIVING = main(".recv", "stage", wchan="futex_do_wait")
ASLEEP = main("prepare", "train", wchan="hrtimer_nanosleep")


def thread(*functions: str, wchan: str | None = None) -> Thread:
    """One that the user's code has started."""
    frames = main(*functions)[0].frames
    started = (*frames, Frame(THREADING, 982, "run"), Frame(THREADING, 1002, "_bootstrap"))
    return Thread(started, "trainer", wchan=wchan, state="S")


def joining(trainer: Thread) -> tuple[Thread, ...]:
    frames = (JOIN, Frame(CODE, 90, "<module>"))
    return (Thread(frames, "MainThread", main=True, wchan="futex_do_wait", state="S"), trainer)


def polling(trainer: Thread) -> tuple[Thread, ...]:
    frames = (Frame(CODE, 95, "watch"), Frame(CODE, 99, "<module>"))
    return (Thread(frames, "MainThread", main=True, wchan="hrtimer_nanosleep", state="S"), trainer)


# --- hung, and called healthy


@pytest.mark.parametrize("around", [joining, polling])
def test_the_training_loop_runs_in_a_thread(around: Any) -> None:
    ahead, behind = trace(entry(0, 1), pending(1, 2)), trace(entry(0, 1))
    victim = around(thread(".all_reduce", "step", "loop", wchan="futex_do_wait"))
    guilty = around(thread("prepare", "step", "loop", wchan="hrtimer_nanosleep"))
    states = [rank(0, ahead, victim), rank(1, behind, guilty), rank(2, ahead, victim)]
    verdict = diagnose(twice(*states), 3)
    assert reasons(verdict) == [(1, "behind")]
    assert verdict.suspects[0].location == Frame(CODE, 10, "prepare")


def test_two_stages_of_a_pipeline() -> None:
    """gloo records neither send nor recv: one waits, and the other stands elsewhere."""
    verdict = diagnose(twice(rank(0, None, ASLEEP), rank(1, None, RECEIVING)), 2)
    assert reasons(verdict) == [(0, "behind")]
    both = diagnose(twice(rank(0, None, RECEIVING), rank(1, None, RECEIVING)), 2)
    assert (both.status, both.suspects) == (2, ())


@pytest.mark.parametrize("wchan", ["locks_lock_inode_wait", "pipe_write", "poll_schedule_timeout"])
def test_all_ranks_stand_in_one_place(wchan: str) -> None:
    """An old operation in a recorder is no proof of health."""
    done = trace(entry(0, 1), ranks="[0, 1]")
    here = main("open_cache", "train", wchan=wchan)
    verdict = diagnose(twice(rank(0, done, here), rank(1, done, here), apart=30.0), 2)
    assert (verdict.status, verdict.progress) == (2, ())
    assert "nothing has moved for 30 s: ranks 0-1 stand in" in verdict.sentence


def test_processor_time_is_no_progress() -> None:
    """A rank that waits for its GPU spins."""
    spinning = main("log", "train", wchan=None)
    looks = []
    for at in (0.0, 10.0):
        told = Health("ok", pid=1, uptime_s=100.0 + at, cpu_s=50.0 + at)
        looks.append(Round([rank(0, None, spinning, health=told)], NOW + at))
    assert diagnose(looks, 1).status == 2


def test_every_component_has_to_go_on() -> None:
    """Ranks 0-1 and ranks 2-3 never meet; of the second pair nothing shows that it goes on."""

    def look(step: int, at: float) -> Round:
        pairs = [trace(entry(0, 1), ranks=ranks) for ranks in ("[0, 1]", "[2, 3]")]
        goes = [rank(each, pairs[0], ASLEEP, health=health(step, 0.1)) for each in (0, 1)]
        return Round([*goes, *(rank(each, pairs[1], ASLEEP) for each in (2, 3))], NOW + at)

    verdict = diagnose([look(5, 0.0), look(9, 10.0)], 4)
    assert verdict.status == 2
    assert verdict.progress == (GoesOn("heartbeat", (0, 1)),)
    assert "nothing shows that ranks 2-3 go on" in verdict.sentence


def test_a_main_thread_that_joins_one_of_several_threads() -> None:
    """A stock worker does not tell which one. It may be the one that waits for a key of a store."""
    trainer, refresher = (
        Thread((Frame(CODE, line, name), Frame(THREADING, 982, "run")), name)
        for line, name in ((20, "meet"), (40, "refresh"))
    )
    joins = Thread((JOIN, Frame(CODE, 90, "<module>")), "MainThread", main=True)
    waits = rank(0, None, WAITING)
    alone = rank(1, None, (joins,))
    assert reasons(diagnose(twice(waits, alone, apart=30.0), 2)) == [(1, "lock")]
    beside = rank(1, None, (joins, trainer, refresher))
    verdict = diagnose(twice(waits, beside, apart=30.0), 2)
    assert (verdict.status, verdict.suspects) == (2, ())


# --- an innocent rank


def test_a_rank_whose_heartbeat_goes_on_is_slow() -> None:
    """Its validation is longer than the others'."""
    ahead, behind = trace(entry(0, 1), pending(1, 2)), trace(entry(0, 1))

    def look(step: int, at: float) -> Round:
        slow = rank(1, behind, ASLEEP, health=health(step, 0.1))
        return Round([rank(0, ahead, WAITING, health=health(5, 20.0 + at)), slow], NOW + at)

    verdict = diagnose([look(5, 0.0), look(20, 10.0)], 2)
    assert (verdict.status, verdict.suspects) == (2, ())
    assert "rank 1 has not entered all_reduce #2 of default_pg" in verdict.sentence
    assert "it goes on, and may only be slow" in verdict.sentence


def test_who_skips_a_monitored_barrier() -> None:
    inside = main(".monitored_barrier", "evaluate", wchan="futex_do_wait")
    done, ahead = trace(entry(0, 1)), trace(entry(0, 1), pending(1, 2))
    states = [rank(0, done, inside), rank(1, done, inside), rank(2, ahead, WAITING)]
    verdict = diagnose(twice(*states), 3)
    assert reasons(verdict) == [(2, "order")]
    assert "in torch.distributed.monitored_barrier" in verdict.sentence


def test_most_ranks_wait_in_recv() -> None:
    """The first stage has sent one microbatch too few, and gone on."""
    done, ahead = trace(entry(0, 1)), trace(entry(0, 1), pending(1, 2))
    states = [rank(0, ahead, WAITING), rank(1, done, RECEIVING), rank(2, done, RECEIVING)]
    verdict = diagnose(twice(*states), 3)
    assert (verdict.status, verdict.suspects) == (2, ())


def test_heartbeats_that_count_each_ranks_own_samples() -> None:
    ahead, behind = trace(entry(0, 1), pending(1, 2)), trace(entry(0, 1))
    states = [
        rank(0, ahead, WAITING, health=health(128, 60.0)),
        rank(1, behind, ASLEEP, health=health(192, 60.0)),
        rank(2, ahead, WAITING, health=health(96, 60.0)),
    ]
    assert reasons(diagnose(twice(*states), 3)) == [(1, "behind")]


def test_a_group_that_was_made_again() -> None:
    """Its numbers begin anew: they can't be compared with those of the one before."""

    def flight(*entries: dict[str, Any]) -> dict[str, Any]:
        return trace(*entries, ranks="[0, 1]")

    first = [entry(each, each + 1) for each in range(5)]
    ahead = flight(*first, entry(5, 1, pg_id=3), pending(6, 2, pg_id=3))
    behind = flight(*first, entry(5, 1, pg_id=3))
    both = twice(rank(0, ahead, WAITING), rank(1, behind, ASLEEP))
    verdict = diagnose(both, 2)
    (suspect,) = verdict.suspects
    assert (suspect.rank, suspect.seq) == (1, 2)
    still = diagnose(twice(rank(0, ahead, WAITING), rank(1, flight(*first), ASLEEP)), 2)
    assert reasons(still) == [(1, "behind")]


def test_a_ring_that_has_lost_all_of_a_group() -> None:
    """What the others have ended it has issued, too, whatever its ring still holds."""
    other = [entry(each, each, process_group=["1", "other"]) for each in (7, 8)]
    ahead = trace(entry(0, 1), pending(1, 2))
    states = [rank(0, ahead, WAITING), rank(1, trace(*other), WAITING), rank(2, ahead, WAITING)]
    verdict = diagnose(twice(*states), 3)
    assert (verdict.status, verdict.suspects) == (2, ())


def test_workers_that_do_not_know_their_rank() -> None:
    """The recorder does. Nobody is missing if others can't be told."""
    states = []
    for number in range(2):
        state = RankState(Worker(f"/run/{number}.sock", True), None, "workerserver")
        state.flight_summary = {"rank": 1 - number, "groups": []}
        state.responded = True
        states.append(state)
    settle_ranks(states)
    assert [state.rank for state in states] == [1, 0]
    verdict = diagnose([Round(states, NOW)], 2)
    assert (verdict.ranks, verdict.responded, verdict.unreachable) == (2, 2, ())
    nameless = [replace(state, rank=None, flight_summary={"groups": []}) for state in states]
    assert diagnose([Round(nameless, NOW)], 2).unreachable == ()


def test_a_restarted_rank_waits_in_init_process_group() -> None:
    """It has not come to what the others are in."""
    starts = main(".init_process_group", "setup", wchan="poll_schedule_timeout")
    ahead = trace(entry(0, 1), pending(1, 2))
    states = [rank(0, ahead, WAITING), rank(1, None, starts), rank(2, ahead, WAITING)]
    assert reasons(diagnose(twice(*states), 3)) == [(1, "order")]


def test_a_rank_that_computes_waits_for_the_gil() -> None:
    """Each look holds the GIL: a thread that runs Python is seen to wait for it, and a machine that
    is busy with other things leaves it little time. It may only be slow."""
    ahead, behind = trace(entry(0, 1), pending(1, 2)), trace(entry(0, 1))
    counts = main("count_words", "train", wchan="futex_do_wait")
    wants = (replace(counts[0], waits=WaitsFor("gil")),)
    states = [rank(0, ahead, WAITING), rank(2, ahead, WAITING)]
    assert reasons(diagnose(twice(*states, rank(1, behind, counts)), 3)) == [(1, "lock")]
    verdict = diagnose(twice(*states, rank(1, behind, wants)), 3)
    assert (verdict.status, verdict.suspects) == (2, ())
    assert "it computes or writes, and may only be slow in count_words()" in verdict.sentence


def test_a_trainer_waits_for_its_sampler() -> None:
    """Rank 0 waits for rank 1 in the trainers' group, rank 1 and rank 2 for messages, of which
    nothing is recorded. Only rank 3 may be to blame: a rank that only waits is a victim."""
    own: dict[str, Any] = {"process_group": ["1", "trainers"]}
    config = {"1": {"name": "1", "desc": "trainers", "ranks": "[0, 1]"}}
    ahead, behind = ({**trace(*each), "pg_config": config} for each in (
        (entry(0, 1, **own), pending(1, 2, **own)), (entry(0, 1, **own),)
    ))  # fmt: skip
    states = [rank(0, ahead, WAITING), rank(1, behind, RECEIVING), rank(2, None, RECEIVING)]
    verdict = diagnose(twice(*states, rank(3, None, ASLEEP)), 4)
    assert reasons(verdict) == [(3, "behind")]
    assert "ranks 0-2 stand in calls that need other ranks" in verdict.sentence
    samples = main("sample", "train")
    busy = [rank(3, None, samples), rank(3, None, main("pack", "train"))]
    looks = [Round([*states, each], NOW - 10.0 * (1 - n)) for n, each in enumerate(busy)]
    verdict = diagnose(looks, 4)  # it goes on: so rank 1 has nothing to answer for
    assert (verdict.status, verdict.suspects) == (2, ())
    # Without rank 3, rank 1 may wait for rank 2 or for rank 0: nothing tells.
    verdict = diagnose(twice(*states), 3)
    assert (verdict.status, verdict.suspects) == (2, ())


# --- the thread that acts


def test_the_thread_that_owes_what_the_victims_wait_for() -> None:
    victim = joining(thread(".all_reduce", "step", "loop"))
    guilty = joining(thread("prepare", "step", "loop", wchan="hrtimer_nanosleep"))
    logger = thread("flush", "log", wchan="hrtimer_nanosleep")
    roots = roots_of_waits([victim, (*guilty, logger)])
    assert roots == ((CODE, "loop"),)
    assert acting((*guilty, logger), roots) is guilty[1]
    assert acting(guilty) is guilty[1]
    assert acting((*guilty, logger)) is guilty[0]  # nothing tells which thread main waits for
    assert acting(main("step", "train")) is not None


def test_the_thread_that_made_the_last_heartbeat() -> None:
    """Of several that work. What other ranks are seen to wait for goes before it."""
    first, trainer = joining(thread("prepare", "step", "loop", wchan="hrtimer_nanosleep"))
    logger = thread("flush", "log", wchan="hrtimer_nanosleep")
    trainer, logger = replace(trainer, ident=5), replace(logger, ident=6)
    beating = with_beats((first, trainer, logger), 5)
    assert acting((first, trainer, logger)) is first
    assert acting(beating) is beating[1]
    polls = replace(first, frames=(Frame(CODE, 7, "watch"),))
    assert acting((polls, *beating[1:])) is beating[1]
    assert acting(beating, [(CODE, "log")]) is beating[2]
    in_operation = replace(first, frames=WAITING[0].frames)
    assert acting((in_operation, *beating[1:])) is in_operation
    assert with_beats((first, trainer), 7) == (first, trainer)
    assert with_beats((first, trainer), None) == (first, trainer)


POOL = "/usr/lib/python3.11/concurrent/futures/thread.py"
FUTURE = "/usr/lib/python3.11/concurrent/futures/_base.py"


@pytest.mark.parametrize(
    ("file", "function", "joined"),
    [
        (THREADING, "join", 77),
        (THREADING, "_shutdown", None),
        ("/usr/lib/python3.11/queue.py", "join", None),
        (FUTURE, "result", None),
        (POOL, "shutdown", None),
    ],
)
def test_a_thread_that_the_guilty_one_joins(file: str, function: str, joined: int | None) -> None:
    """The others wait in their main threads, and this one's main thread waits for its saver."""
    roots = roots_of_waits([WAITING, WAITING])
    saver = replace(thread("write", "save", wchan="pipe_write"), native_id=77)
    saver = replace(saver, frames=(*saver.frames[:2], Frame(POOL, 83, "_worker")))
    frames = (Frame(file, 7, function), Frame(CODE, 90, "save"), *WAITING[0].frames[1:])
    waits = WaitsFor("thread", joined=joined) if joined is not None else None
    joins = Thread(frames, "MainThread", main=True, wchan="futex_do_wait", state="S", waits=waits)
    assert acting((joins, saver), roots) is saver
    another = replace(saver, native_id=78, frames=saver.frames[1:])
    found = acting((joins, saver, another), roots)
    assert found is (saver if joined else joins)  # which of them it waits for is not told
    gets = replace(
        joins, frames=(Frame("/usr/lib/python3.11/queue.py", 7, "get"), *frames[1:]), waits=None
    )
    assert acting((gets, saver), roots) is gets  # it waits for an item, and not for the saver


def test_a_task_that_waits_for_another_one_of_its_pool() -> None:
    """The pool's only thread runs the first task, so the second one never begins."""
    loop = WAITING[0].frames[1:]
    waits = (Frame(THREADING, 327, "wait"), Frame(FUTURE, 451, "result"))
    main = replace(WAITING[0], frames=(*waits, *loop))
    task = (*waits, Frame(CODE, 50, "outer"), Frame(POOL, 58, "run"), Frame(POOL, 83, "_worker"))
    outer = Thread(task, "ThreadPoolExecutor-0_0", wchan="futex_do_wait", state="S")
    roots = roots_of_waits([WAITING, WAITING])
    assert acting((main, outer), roots) is outer
    assert acting((main, outer, replace(outer, name="ThreadPoolExecutor-0_1")), roots) is main
    idle = replace(outer, frames=(Frame(POOL, 81, "_worker"),))
    assert acting((main, idle), roots) is main


def test_a_debugger_is_called_one() -> None:
    frames = (
        Frame("/usr/lib/python3.11/bdb.py", 90, "trace_dispatch"),
        Frame(CODE, 12, "step"),
        Frame(CODE, 99, "<module>"),
    )
    blocked = blocked_on((Thread(frames, "MainThread", main=True),))
    assert (blocked.kind, blocked.call) == ("debugger", "a debugger")
    assert blocked.location == Frame(CODE, 12, "step")


# --- how sure the verdict is, and its evidence


def test_one_look_does_not_tell_a_loop_that_sleeps_from_a_rank_that_hangs() -> None:
    """However old the wait is: it may write a checkpoint, with a pause after each part."""
    ended = int((NOW - 60) * 1e9)
    issued = pending(1, 2, time_created_ns=ended + 10**9)
    ahead = trace(entry(0, 1, time_created_ns=ended), issued, ranks="[0, 1]")
    behind = trace(entry(0, 1, time_created_ns=ended), ranks="[0, 1]")
    once = [Round([rank(0, ahead, WAITING), rank(1, behind, ASLEEP)], NOW)]
    assert (diagnose(once, 2).status, diagnose(once, 2).sure) == (1, False)
    child = (replace(ASLEEP[0], waits=WaitsFor("process", pid=7), wchan="do_wait"),)
    once = [Round([rank(0, ahead, WAITING), rank(1, behind, child)], NOW)]
    assert not diagnose(once, 2).sure


@pytest.mark.parametrize("state", ["S", "D"])
def test_a_rank_that_ran_between_two_looks_is_not_accused(state: str) -> None:
    """At the same line in both looks: it writes, syncs and sleeps there, or starts one child after
    the other."""
    ended = int((NOW - 60) * 1e9)
    issued = pending(1, 2, time_created_ns=ended + 10**9)
    ahead = trace(entry(0, 1, time_created_ns=ended), issued, ranks="[0, 1]")
    behind = trace(entry(0, 1, time_created_ns=ended), ranks="[0, 1]")
    for waits in (None, WaitsFor("process", pid=7)):
        for switches, expected in ((7, 1), (9, 2)):
            looks = [
                Round(
                    [
                        rank(0, ahead, WAITING),
                        rank(
                            1,
                            behind,
                            (replace(ASLEEP[0], state=state, switches=count, waits=waits),),
                        ),
                    ],
                    time,
                )
                for count, time in ((7, NOW - 30), (switches, NOW))
            ]
            assert diagnose(looks, 2).status == expected


def test_what_was_not_looked_at() -> None:
    told = diagnose(rounds("healthy-torch"), 3).not_looked_at
    assert any("torch's own server" in line for line in told)
    ahead = trace(entry(0, 1, time_created_ns=int((NOW + 100) * 1e9)), ranks="[0, 1]")
    lines = diagnose(twice(rank(0, ahead, WAITING), rank(1, None, WAITING)), 2).not_looked_at
    assert lines == (
        "rank 1: no flight recorder holds anything: nothing was issued, or TORCH_FR_BUFFER_SIZE is"
        " 0 (before torch 2.13 gloo is recorded only if it is set)",
        "ranks 0-1: no heartbeat",
        "rank 0: a clock that is ahead of this machine's; ages are by each worker's own clock"
        " (by 100 s)",
    )


# --- the invariants


def test_a_status_that_is_not_earned_raises() -> None:
    job = Job(twice(rank(0, trace(entry(0, 1), ranks="[0]"), ASLEEP)), 1)
    suspicions = Suspicions(job)
    suspicions.weigh()
    fair = conclude(job, suspicions)
    invariants.check(job, suspicions, fair)
    assert fair.status == 2
    with pytest.raises(AssertionError):
        invariants.check(job, suspicions, Conclusion(0, (), fair.parts))
    with pytest.raises(AssertionError):
        invariants.check(job, suspicions, Conclusion(1, (), fair.parts))
    waiting = Job(twice(rank(0, None, WAITING)), 1)
    victims = Suspicions(waiting)
    victims.accused[0] = Accusation(0, "behind", NoStep(1.0, None))
    with pytest.raises(AssertionError):
        invariants.check(waiting, victims, Conclusion(1, (), ((0,),)))


def test_c10d_is_torch_s() -> None:
    assert blocked_on(WAITING).thread is not None
    assert WAITING[0].frames[0].file == C10D
