"""What threads wait for: hostile forms, circles of threads, deadlocks, and chains between ranks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.jobs.flight_entries import entry, json_values, pending, trace
from support.jobs.recordings import Round

from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.judge.verdict import Verdict
from workerserver.cluster.model import Frame, Health, Hold, Own, RankState, Thread, WaitsFor, Worker
from workerserver.cluster.read.acting import acting
from workerserver.cluster.read.stacks import parse_json
from workerserver.cluster.read.waits_for import (
    by_id,
    circles,
    follow,
    in_words,
    read_holds,
    read_switches,
    read_waits,
    tells,
    without_facts,
)
from workerserver.cluster.show.report import verdict_dict

NOW = 2_000_000_000.0
CODE = "/home/user/train.py"
LIBRARY = "/usr/lib/python3.11/threading.py"
C10D = "/usr/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py"

# --- the reader --------------------------------------------------------------------------------


def dump(**more: Any) -> bytes:
    thread = {
        "ident": 1, "native_id": 7, "name": "MainThread", "daemon": False, "current": False,
        "state": "S", "wchan": None, "truncated": False, "unstable": False, "frames": [],
    }  # fmt: skip
    value = {
        "version": 1, "pid": 7, "mode": "gil", "time": 1.0, "gil_holder": 1, "truncated": False,
        "threads": [{**thread, **more}],
    }  # fmt: skip
    return json.dumps(value).encode()


def test_every_field() -> None:
    (thread,) = parse_json(
        dump(
            waits_for={
                "kind": "operation", "source": "locals", "frame": 1, "op": "recv", "peer": 2,
                "group": {"name": "0", "description": "default_pg", "ranks": [2, 0, 1]}, "tag": 3,
                "object": "0x00007F12", "holder": None, "keys": ["a"], "path": "/x", "pid": 12,
                "descriptor": 5, "syscall": "read", "target": "pipe:[1]",
                "thread": {"native_id": 9, "name": "saver"},
            },
            holds=[{"kind": "rlock", "object": "0x7f12", "frame": 2}],
            switches=8,
        )
    )  # fmt: skip
    assert thread.waits == WaitsFor(
        "operation", "locals", 1, "0x7f12", None, 9, "saver", 12, "recv", 2, "default_pg",
        (0, 1, 2), 3, ("a",), "/x", "pipe:[1]", 5, "read",
    )  # fmt: skip
    assert thread.holds == (Hold("rlock", "0x7f12", 2),)
    assert thread.switches == 8


BAD: list[Any] = [None, True, -1, 1 << 40, 1.5, "", "x" * 2000, [], {}, [[]], float(1 << 40)]


@pytest.mark.parametrize("bad", BAD, ids=repr)
def test_a_field_that_is_wrong_is_left_out(bad: Any) -> None:
    kind = {"kind": "lock"}
    alone = WaitsFor("lock")
    for name in ("source", "frame", "object", "holder", "thread", "pid", "op", "peer", "tag"):
        assert read_waits({**kind, name: bad}) == alone
    for name in ("group", "keys", "path", "descriptor", "syscall", "target"):
        assert read_waits({**kind, name: bad}) == alone
    assert read_waits({**kind, "group": {"ranks": bad}}) == alone
    assert read_waits({**kind, "thread": {"native_id": bad, "name": bad}}) == alone
    assert read_waits({"kind": bad}) is None
    assert read_waits(bad) is None
    assert read_holds(bad) == ()
    assert read_holds([{"kind": "lock", "object": bad}, bad]) == ()
    (thread,) = parse_json(dump(waits_for=bad, holds=bad, switches=bad))
    assert (thread.waits, thread.holds) == (None, ())


@pytest.mark.parametrize(
    "text", ["0x", "0x0", "7f", "0x7g", "0x_7", "0x 7", "0x-7", "0x" + "f" * 17]
)
def test_what_is_no_address(text: str) -> None:
    assert read_waits({"kind": "lock", "object": text}) == WaitsFor("lock")


def test_bounds() -> None:
    waits = read_waits({"kind": "store", "keys": ["k"] * 1000})
    assert waits is not None
    assert len(waits.keys) == 16
    assert len(read_holds([{"kind": "lock", "object": "0x1"}] * 10_000)) == 64
    told = read_waits({"kind": "operation", "group": {"ranks": "0-1,3"}})
    assert told == WaitsFor("operation", ranks=(0, 1, 3))
    wrong: list[Any] = [[70000], [-1], [0, True], [0, "1"], [0, 1.0]]
    for ranks in ("0-70000", "0-2000000000", "0," * 1000, "3-1", "x", "0-", *wrong):
        found = read_waits({"kind": "operation", "group": {"ranks": ranks}})
        assert found == WaitsFor("operation")


@given(json_values, json_values, json_values)
def test_any_json_is_read(waits: Any, holds: Any, switches: Any) -> None:
    found, held = read_waits(waits), read_holds(holds)
    if found is not None:
        assert isinstance(in_words(found), str)
    assert len(held) <= 64
    thread = Thread((), waits=found, holds=held, switches=read_switches(switches))
    assert without_facts([thread]) == (Thread(()),)


def test_a_copy_only_where_there_are_facts() -> None:
    plain = (Thread(()),)
    assert without_facts(plain) is plain
    assert not tells(plain)
    assert tells([Thread((), waits=WaitsFor("file_lock"))])
    assert tells([Thread((), waits=WaitsFor("operation", op="recv"))])
    assert not tells([Thread((), waits=WaitsFor("operation", op="all_reduce"))])
    assert not tells([Thread((), waits=WaitsFor("queue"))])


@pytest.mark.parametrize(
    ("waits", "text"),
    [
        (WaitsFor("operation", op="recv", peer=2, group="default_pg"),
         "torch.distributed.recv from rank 2 of default_pg"),
        (WaitsFor("operation", op="isend", peer=0), "torch.distributed.isend to rank 0"),
        (WaitsFor("operation", op="monitored_barrier", group="left"),
         "torch.distributed.monitored_barrier of left"),
        (WaitsFor("operation"), ""),
        (WaitsFor("store", keys=("ckpt/7\n", "b")), "the store, for key 'ckpt/7\\n' and 1 more"),
        (WaitsFor("store"), "the store"),
        (WaitsFor("file_lock", path="/x", pid=4), "the file lock on /x, which process 4 holds"),
        (WaitsFor("file_lock"), "a file lock"),
        (WaitsFor("process", pid=4), "process 4, its child"),
        (WaitsFor("thread", name="saver"), "thread saver"),
        (WaitsFor("descriptor", syscall="openat", path="/fifo"), "openat of /fifo"),
        (WaitsFor("descriptor", syscall="read", target="pipe:[1]"), ""),
        (WaitsFor("queue"), ""),
    ],
)  # fmt: skip
def test_in_words(waits: WaitsFor, text: str) -> None:
    assert in_words(waits) == text


# --- circles of threads ------------------------------------------------------------------------


def user(name: str, line: int = 10) -> Frame:
    return Frame(CODE, line, name)


def thread(number: int, waits: WaitsFor | None = None, *held: int, **more: Any) -> Thread:
    holds = tuple(Hold("lock", hex(each), 0) for each in held)
    more = {"name": f"t{number}", "main": number == 1, "switches": 5, **more}
    return Thread((user(f"f{number}"),), native_id=number, waits=waits, holds=holds, **more)


def lock(item: int, holder: int | None = None) -> WaitsFor:
    return WaitsFor("lock", "with", 0, hex(item), holder)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=1, max_size=8),
    st.sets(st.integers(1, 8)),
)
def test_a_circle_is_found_only_if_there_is_one(
    graph: list[tuple[bool, int]], forgets: set[int]
) -> None:
    """Thread n waits for a lock that only thread *target* holds (none: 0), or joins that one;
    threads in *forgets* do not say that they hold anything."""
    numbers = range(1, len(graph) + 1)
    edges: dict[int, int] = {}
    threads = []
    for number, (joins, target) in zip(numbers, graph, strict=True):
        waits = WaitsFor("thread", joined=target) if joins else lock(number, target or None)
        holds = [
            other
            for other, (joined, wanted) in zip(numbers, graph, strict=True)
            if wanted == number and not joined and number not in forgets
        ]
        threads.append(thread(number, waits if target else None, *holds))
        if target in numbers and (target != number if joins else target not in forgets):
            edges[number] = target
    on_circles = set()
    for number in numbers:
        at, seen = number, []
        while at in edges and at not in seen:
            seen.append(at)
            at = edges[at]
        if at in seen:
            on_circles |= set(seen[seen.index(at) :])
    found = circles(threads)
    assert {each.native_id for circle in found for each in circle} == on_circles
    assert sum(map(len, found)) == len(on_circles)
    for circle in found:
        for each, after in zip(circle, (*circle[1:], circle[0]), strict=True):
            assert each.native_id is not None
            assert edges[each.native_id] == after.native_id
        assert circle[0].main or not any(each.main for each in circle)


def test_ids_that_two_threads_claim_are_nobodys() -> None:
    threads = [thread(1, lock(1, 2), 2), thread(2, lock(2, 1), 1), thread(2)]
    assert circles(threads) == []
    assert len(circles(threads[:2])) == 1
    assert follow(threads[0], by_id(threads)) == [threads[0]]


def test_the_joined_thread_acts() -> None:
    """Several other threads are in user code: only the join tells which one counts."""
    main = thread(1, WaitsFor("thread", "locals", 0, joined=3))
    others = [thread(2, main=False), thread(3, main=False), thread(4, main=False)]
    assert acting([main, *others]) is others[1]
    library = replace(others[1], frames=(Frame(LIBRARY, 1, "run"),))
    assert acting([main, others[0], library]) is main


def test_of_threads_that_wait_for_each_other_none_acts_more() -> None:
    main = thread(1, WaitsFor("thread", "locals", 0, joined=2), 0xA)
    saver = thread(2, lock(0xA, 1), main=False)
    assert acting([main, saver]) is main
    assert acting([main, saver], [(CODE, "f1")]) is main


# --- verdicts ----------------------------------------------------------------------------------


def state(
    number: int,
    threads: Sequence[Thread],
    flight: Any = None,
    mode: str | None = "gil",
    **more: Any,
) -> RankState:
    pid = 100 + number
    return RankState(
        Worker(f"/run/rank{number}.sock", True, number),
        number,
        "workerserver",
        threads=tuple(threads),
        own=Own(mode, pid, 4026531836) if mode is not None else None,
        flight=flight,
        health=Health("ok", pid=pid, rank=number),
        responded=True,
        **more,
    )


def looks(*states: RankState, count: int = 2, apart: float = 10.0) -> list[Round]:
    return [Round(list(states), NOW - apart * (count - 1 - each)) for each in range(count)]


def reasons(verdict: Verdict) -> list[tuple[int | None, str]]:
    return [(each.rank, each.reason) for each in verdict.suspects]


def main(*functions: str, waits: WaitsFor | None = None, wchan: str = "futex_do_wait") -> Thread:
    frames = tuple(
        Frame(C10D, 3000, name[1:]) if name.startswith(".") else user(name) for name in functions
    )
    return Thread(
        frames, "MainThread", native_id=1, state="S", wchan=wchan, main=True, waits=waits,
        switches=5,
    )  # fmt: skip


def receiving(peer: int, op: str = "recv", group: str | None = "default_pg") -> Thread:
    waits = WaitsFor("operation", "locals", 0, op=op, peer=peer, group=group)
    return main(f".{op}", "stage", waits=waits)


WAITING = main(".all_reduce", "train")
ASLEEP = main("prepare", "train", wchan="hrtimer_nanosleep")
LATE = trace(pending(0, 1))


def reducing(number: int) -> RankState:
    return state(number, [WAITING], LATE)


CROSSWISE = (
    thread(1, lock(0xB, 2), 0xA, main=True),
    thread(2, lock(0xA, 1), 0xB, name="saver"),
)


def test_a_deadlock_is_told_at_once() -> None:
    verdict = diagnose([Round([state(3, CROSSWISE)], NOW)])
    assert reasons(verdict) == [(3, "deadlock")]
    assert verdict.sentence == (
        "deadlock in rank 3: main holds a lock (f1(), train.py:10) and waits for another,"
        " which saver holds (f2(), train.py:10)"
    )
    assert verdict.sure
    (suspect,) = verdict_dict(verdict)["suspects"]
    assert suspect["deadlock"] == [
        {"thread": "main", "waits_for": "0xb", "holds": "0xa", "took": f"{CODE}:10 f1",
         "stands": f"{CODE}:10 f1"},
        {"thread": "saver", "waits_for": "0xa", "holds": "0xb", "took": f"{CODE}:10 f2",
         "stands": f"{CODE}:10 f2"},
    ]  # fmt: skip


def test_a_deadlock_is_not_all_while_another_rank_may_be_late() -> None:
    """Two ranks owe the operation: the second one is accused once it is late enough."""
    young = trace(pending(0, 1, time_created_ns=int((NOW - 4) * 1e9)))
    states = [state(3, CROSSWISE, trace()), state(1, [ASLEEP], trace())]
    states += [state(number, [WAITING], young) for number in (0, 2)]
    first = diagnose([Round(states, NOW)], 4)
    assert reasons(first) == [(3, "deadlock")]
    assert (first.sure, first.again_s is not None) == (False, True)
    last = diagnose(looks(*states, apart=60.0), 4)
    assert reasons(last) == [(3, "deadlock"), (1, "behind")]
    assert last.again_s is None


def test_a_lock_taken_twice() -> None:
    verdict = diagnose([Round([state(0, [thread(1, lock(0xA, 1), 0xA)])], NOW)])
    assert verdict.sentence == (
        "deadlock in rank 0: main holds a lock (f1(), train.py:10) and waits for it itself"
    )
    inner = replace(thread(1, lock(0xA, 1), 0xA), frames=(user("inner", 20), user("f1")))
    elsewhere = replace(inner, holds=tuple(replace(each, frame=1) for each in inner.holds))
    verdict = diagnose([Round([state(0, [elsewhere])], NOW)])
    assert verdict.sentence.endswith(
        " (f1(), train.py:10) and waits for it itself in inner(), train.py:20"
    )
    again = replace(lock(0xA, 1), kind="rlock")  # its owner may take it as often as it likes
    verdict = diagnose([Round([state(0, [thread(1, again, 0xA)])], NOW)])
    assert reasons(verdict) == []


def test_three_threads_and_a_join() -> None:
    three = [
        thread(1, WaitsFor("thread", joined=2), 0xC),
        thread(2, lock(0xB, 3), name="saver"),
        thread(3, lock(0xC, 1), 0xB, name="logger"),
    ]
    one = diagnose([Round([state(0, three)], NOW)])
    assert reasons(one) == []  # a join may have a limit
    verdict = diagnose(looks(state(0, three)))
    assert reasons(verdict) == [(0, "deadlock")]
    assert verdict.sentence == (
        "deadlock in rank 0: main holds a lock (f1(), train.py:10) and joins saver, which waits"
        " for another, which logger holds (f3(), train.py:10), which waits for the lock of main"
    )


@pytest.mark.parametrize("mode", ["nogil", None])
def test_without_the_gil_two_looks_are_needed(mode: str | None) -> None:
    now = state(3, CROSSWISE, mode=mode)
    assert reasons(diagnose([Round([now], NOW)])) == []
    expected = [(3, "deadlock")] if mode is not None else []  # else it is another rank's stack
    assert reasons(diagnose(looks(now))) == expected
    ran = state(3, [replace(CROSSWISE[0], switches=6), CROSSWISE[1]], mode=mode)
    assert reasons(diagnose([Round([now], NOW - 10), Round([ran], NOW)])) == []
    untold = [replace(each, switches=None) for each in CROSSWISE]
    assert reasons(diagnose(looks(state(3, untold, mode=mode)))) == []
    elsewhere = state(3, [replace(CROSSWISE[0], frames=(user("f1", 11),)), CROSSWISE[1]], mode=mode)
    assert reasons(diagnose([Round([now], NOW - 10), Round([elsewhere], NOW)])) == []


def test_a_mutex_needs_two_looks() -> None:
    mutex = [
        replace(each, holds=(), waits=replace(each.waits, kind="mutex"))
        for each in CROSSWISE
        if each.waits is not None
    ]
    assert reasons(diagnose([Round([state(3, mutex)], NOW)])) == []
    assert reasons(diagnose(looks(state(3, mutex)))) == [(3, "deadlock")]


def test_a_holder_that_does_not_say_so_is_none() -> None:
    silent = [replace(each, holds=()) for each in CROSSWISE]
    assert reasons(diagnose(looks(state(3, silent)))) == []


def test_victims_of_a_deadlock_are_not_accused() -> None:
    verdict = diagnose(looks(reducing(0), state(1, CROSSWISE, trace()), reducing(2)), 3)
    assert reasons(verdict) == [(1, "deadlock")]
    (suspect,) = verdict.suspects
    assert (suspect.process_group, suspect.collective) == ("default_pg", "all_reduce")


def test_idle_consumers_hold_nothing() -> None:
    """As the dump has 20 consumers of a queue: each stands inside the block of a free lock."""
    consumers = [thread(each, WaitsFor("queue", "locals"), main=False) for each in range(2, 22)]
    waits = [thread(each, WaitsFor("condition"), main=False) for each in range(22, 42)]
    going = [
        state(0, [thread(1), *consumers, *waits]),
        state(0, [replace(thread(1), frames=(user("other"),)), *consumers, *waits]),
    ]
    verdict = diagnose([Round([going[0]], NOW - 10), Round([going[1]], NOW)])
    assert (verdict.status, reasons(verdict)) == (0, [])


# --- chains between ranks


def test_ranks_that_receive_from_each_other() -> None:
    verdict = diagnose(looks(state(0, [receiving(1)]), state(1, [receiving(0)]), reducing(2)), 3)
    assert reasons(verdict) == [(0, "p2p cycle"), (1, "p2p cycle")]
    assert verdict.sentence.startswith(
        "ranks 0-1 wait for each other: rank 0 in recv from rank 1, rank 1 in recv from rank 0"
    )


def test_the_head_of_a_pipeline_owes_a_send() -> None:
    stages = [state(each, [receiving(each - 1)]) for each in (1, 2, 3)]
    verdict = diagnose(looks(state(0, [ASLEEP]), *stages), 4)
    assert reasons(verdict) == [(0, "behind")]
    assert verdict.sentence == (
        "rank 0 owes a send: rank 1 waits in recv from rank 0; it stands in prepare(), train.py:10"
    )


def test_one_send_too_few() -> None:
    """The first stage is already in the collective at the end of the step."""
    stages = [state(each, [receiving(each - 1)], trace()) for each in (1, 2, 3)]
    verdict = diagnose(looks(reducing(0), *stages), 4)
    assert reasons(verdict) == [(0, "order")]
    assert verdict.sentence.startswith(
        "rank 0 owes a send: rank 1 waits in recv from rank 0, while it waits in all_reduce #1 of"
    )


@pytest.mark.parametrize("others", [2, 4])
def test_a_receive_from_one_that_is_in_the_collective(others: int) -> None:
    """Rank 0 has sent too few, or the last one asks for too many. How many others are in the
    collective tells nothing of that."""
    ranks = str([*range(others + 1)])
    rest = [state(each, [WAITING], trace(pending(0, 1), ranks=ranks)) for each in range(others)]
    last = state(others, [receiving(0)], trace(ranks=ranks))
    verdict = diagnose(looks(*rest, last), others + 1)
    assert (verdict.status, reasons(verdict)) == (2, [])
    assert "ranks wait for each other" in verdict.sentence


def test_a_receive_of_the_step_after_the_collective() -> None:
    """It is a step ahead: it has left out the collective."""
    beats = [
        Health("ok", pid=100 + n, step=step, step_age_s=60.0) for n, step in enumerate((7, 7, 8))
    ]
    states = [reducing(0), reducing(1), state(2, [receiving(0)], trace())]
    states = [replace(each, health=beat) for each, beat in zip(states, beats, strict=True)]
    verdict = diagnose(looks(*states), 3)
    assert reasons(verdict) == [(2, "swallowed")]
    assert "has not entered all_reduce #1 of" in verdict.sentence
    assert "and is at step 8, not 7" in verdict.sentence


def test_one_of_each_accuses_nobody() -> None:
    config = {"0": {"name": "0", "desc": "default_pg", "ranks": "[0, 1]"}}
    first = state(0, [WAITING], {"pg_config": config, "entries": LATE["entries"]})
    second = state(1, [receiving(0)], {"pg_config": config, "entries": []})
    verdict = diagnose(looks(first, second), 2)
    assert (verdict.status, reasons(verdict)) == (2, [])
    assert "ranks wait for each other" in verdict.sentence


def file_lock(pid: int | None) -> Thread:
    waits = WaitsFor("file_lock", "kernel", path="/data/cache.lock", pid=pid)
    return main("load", "train", waits=waits, wchan="locks_lock_inode_wait")


def test_a_file_lock_that_another_rank_holds() -> None:
    verdict = diagnose(looks(state(0, [ASLEEP]), state(1, [file_lock(100)])), 2)
    assert reasons(verdict) == [(0, "behind")]
    assert verdict.sentence == (
        "rank 0 holds the file lock on /data/cache.lock, for which rank 1 waits;"
        " it stands in prepare(), train.py:10"
    )


def test_a_file_lock_and_a_collective() -> None:
    verdict = diagnose(looks(reducing(0), state(1, [file_lock(100)], trace()), reducing(2)), 3)
    assert reasons(verdict) == [(0, "deadlock"), (1, "deadlock")]
    assert verdict.sentence == (
        "deadlock in ranks 0-1: rank 1 waits for the file lock on /data/cache.lock, which rank 0"
        " holds, and rank 0 waits in all_reduce #1 of default_pg for rank 1"
    )


def test_all_who_want_a_file_lock_are_told_together() -> None:
    wanting = [state(number, [file_lock(100)], trace()) for number in (1, 2)]
    assert diagnose(looks(reducing(0), *wanting), 3).sentence == (
        "deadlock in ranks 0-2: ranks 1-2 wait for the file lock on /data/cache.lock, which rank 0"
        " holds, and rank 0 waits in all_reduce #1 of default_pg for ranks 1-2"
    )


def test_a_process_id_means_nothing_elsewhere() -> None:
    """On another host, in another namespace, or if two ranks claim it."""
    waits = state(1, [file_lock(100)])
    there = replace_worker(state(0, [ASLEEP]), "node7")
    assert reasons(diagnose(looks(there, waits), 2)) == []
    other = state(0, [ASLEEP])
    other.own = Own("gil", 100, 17)
    assert reasons(diagnose(looks(other, waits), 2)) == []
    twin = state(2, [ASLEEP])
    twin.own = Own("gil", 100, 4026531836)
    assert reasons(diagnose(looks(state(0, [ASLEEP]), waits, twin), 3)) == []


def replace_worker(found: RankState, host: str) -> RankState:
    found.worker = replace(found.worker, host=host)
    return found


@pytest.mark.parametrize(
    "waits",
    [WaitsFor("store", keys=("ckpt/7",)), WaitsFor("rendezvous"), WaitsFor("operation", op="recv")],
)
def test_an_unknown_end_accuses_nobody(waits: WaitsFor) -> None:
    """Not the ranks that wait for it either."""
    end = main("train", waits=waits, wchan="poll_schedule_timeout")
    verdict = diagnose(looks(state(0, [end], trace()), state(1, [end], trace()), reducing(2)), 3)
    assert (verdict.status, reasons(verdict)) == (2, [])
    verdict = diagnose(looks(state(0, [end]), *(state(n, [receiving(n - 1)]) for n in (1, 2))), 3)
    assert (verdict.status, reasons(verdict)) == (2, [])


def test_the_one_rank_for_which_all_others_wait() -> None:
    """Whoever should set the key: none of the ranks that wait for this one can."""
    end = main("train", waits=WaitsFor("store"), wchan="poll_schedule_timeout")
    verdict = diagnose(looks(state(0, [end], trace()), reducing(1), reducing(2)), 3)
    assert reasons(verdict) == [(0, "behind")]
    assert verdict.sentence.endswith("; it stands in the store, from train(), train.py:10")


def test_one_look_accuses_nobody_of_a_debt() -> None:
    states = [state(0, [ASLEEP]), *(state(n, [receiving(n - 1)]) for n in (1, 2, 3))]
    assert reasons(diagnose([Round(states, NOW)], 4)) == []


@pytest.mark.parametrize("flight", [None, trace(entry(0, 1))], ids=["no record", "old record"])
def test_a_wait_that_ran_in_between_accuses_nobody(flight: Any) -> None:
    """A pipeline that goes on is met in the same receive each time, and nothing is counted."""
    sleeping = state(0, [ASLEEP], flight)
    stages = [state(n, [receiving(n - 1)], flight) for n in (1, 2)]
    later = [state(n, [replace(receiving(n - 1), switches=6)], flight) for n in (1, 2)]
    rounds = [Round([sleeping, *stages], NOW - 10), Round([sleeping, *later], NOW)]
    assert reasons(diagnose(rounds, 3)) == []
    rounds = [Round([sleeping, *stages], NOW - 10), Round([sleeping, *stages], NOW)]
    assert reasons(diagnose(rounds, 3)) == [(0, "behind")]


def test_without_counts_of_switches_a_rank_must_not_have_gone_on() -> None:
    untold = [state(n, [replace(receiving(n - 1), switches=None)]) for n in (1, 2)]
    assert reasons(diagnose(looks(state(0, [ASLEEP]), *untold), 3)) == []
    for each in untold:
        each.health = Health(
            "ok", pid=100, rank=each.rank, step=4, step_age_s=500.0, uptime_s=501.0
        )
    verdict = diagnose(looks(state(0, [ASLEEP]), *untold, apart=100.0), 3)
    assert reasons(verdict) == [(0, "behind")]


Job = tuple[int, list[int | None]]


@st.composite
def jobs(draw: st.DrawFn) -> Job:
    """How many ranks, and for which rank each waits; itself: it stands elsewhere; None: for what
    has no known owner."""
    world = draw(st.integers(2, 8))
    waits = draw(st.lists(st.none() | st.integers(0, world - 1), min_size=world, max_size=world))
    return world, waits


@settings(deadline=None)
@given(jobs())
def test_random_chains(job: Job) -> None:
    """Whoever is accused stands elsewhere, or is on a ring; a rank of which the chain ends at an
    unknown owner is never accused, and no rank that waits outside of a ring."""
    world, waits = job
    states = []
    for rank, peer in enumerate(waits):
        if peer is None:
            threads = [main("train", waits=WaitsFor("store"), wchan="poll_schedule_timeout")]
        else:
            threads = [ASLEEP if peer == rank else receiving(peer)]
        states.append(state(rank, threads))
    verdict = diagnose(looks(*states, apart=130.0), world)
    rings, ends = set(), set()
    for rank in range(world):
        path = [rank]
        while (after := waits[path[-1]]) is not None and after not in path:
            path.append(after)
        if after is None:
            continue
        if after == path[-1] and after != rank:
            ends.add(after)
        elif after != path[-1]:
            rings |= set(path[path.index(after) :])
    accused = {each.rank: each.reason for each in verdict.suspects}
    assert accused.keys() <= rings | {rank for rank in range(world) if waits[rank] == rank}
    assert {rank for rank, reason in accused.items() if reason == "p2p cycle"} == rings
    if rings or ends:
        assert verdict.status == 1
        assert accused.keys() >= rings | ends
