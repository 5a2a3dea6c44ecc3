"""A rank that waits for a process of its own: while that works, nobody is accused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.jobs.flight_entries import entry, pending, trace
from support.jobs.recordings import Round

from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.judge.verdict import Verdict
from workerserver.cluster.model import (
    Child,
    Frame,
    Health,
    Own,
    RankState,
    Thread,
    WaitsFor,
    Worker,
)
from workerserver.cluster.read.stacks import read_json
from workerserver.cluster.read.waits_for import read_children

NOW = 2_000_000_000.0
CODE = "/home/user/train.py"
STD = "/usr/lib/python3.11/"
C10D = STD + "site-packages/torch/distributed/distributed_c10d.py"
LOADER = STD + "site-packages/torch/utils/data/dataloader.py"

QUIET = Child(4711, "gzip", "S", 1, "S", 0.5, 4096)


def main(*frames: Frame, waits: WaitsFor | None = None, wchan: str = "do_wait") -> Thread:
    own = (Frame(CODE, 12, "save"), Frame(CODE, 40, "train"))
    return Thread(
        (*frames, *own), "MainThread", native_id=1, state="S", wchan=wchan, main=True,
        waits=waits, switches=5,
    )  # fmt: skip


#: subprocess.run()
FOR_ONE = main(
    Frame(STD + "subprocess.py", 1264, "wait"),
    Frame(STD + "subprocess.py", 550, "run"),
    waits=WaitsFor("process", "locals", 0, pid=4711, name="gzip"),
)
#: os.wait()
FOR_ANY = main(waits=WaitsFor("process", "kernel", syscall="wait4"))
FOR_BATCH = main(Frame(LOADER, 725, "__next__"), wchan="poll_schedule_timeout")
#: for line in child.stdout
FOR_BYTES = main(wchan="anon_pipe_read")
#: Pool.map(), and queue.get()
FOR_POOL = main(
    Frame(STD + "threading.py", 327, "wait"),
    Frame(STD + "multiprocessing/pool.py", 768, "wait"),
    Frame(STD + "multiprocessing/pool.py", 367, "map"),
    wchan="futex_do_wait",
)
FOR_QUEUE = main(Frame(STD + "queue.py", 171, "get"), wchan="futex_do_wait")
#: Future.result(), of threads or of processes
FOR_RESULT = main(
    Frame(STD + "threading.py", 327, "wait"),
    Frame(STD + "concurrent/futures/_base.py", 451, "result"),
    wchan="futex_do_wait",
)
IN_LOCK = main(waits=WaitsFor("lock", "with", 0, item="0x1"), wchan="futex_do_wait")
WAITING = main(Frame(C10D, 3000, "all_reduce"), wchan="futex_do_wait")


def state(number: int, thread: Thread, flight: Any, *children: Child) -> RankState:
    return RankState(
        Worker(f"/run/rank{number}.sock", True, number),
        number,
        "workerserver",
        threads=(thread,),
        own=Own("gil", 100 + number, 1, children),
        flight=flight,
        health=Health("ok", pid=100 + number, rank=number),
        responded=True,
    )


def verdict(
    thread: Thread,
    before: tuple[Child, ...],
    now: tuple[Child, ...],
    looks: int = 2,
    since: float = 600.0,
    more: tuple[Thread, ...] = (),
) -> Verdict:
    """Of rank 1, in *thread* and *more* threads; for so long the others have waited for it."""
    old: dict[str, Any] = {"time_created_ns": int((NOW - since) * 1e9)}
    done = entry(0, 1, time_created_ns=int((NOW - since - 1) * 1e9))
    others = [state(number, WAITING, trace(done, pending(1, 2, **old))) for number in (0, 2)]
    rounds = []
    for children, apart in ((before, 2.0), (now, 0.0)):
        mine = state(1, thread, trace(done), *children)
        rounds.append(Round([*others, replace(mine, threads=(thread, *more))], NOW - apart))
    return diagnose(rounds[-looks:], 3)


def works(found: Verdict) -> bool:
    if found.status == 1:
        assert [each.rank for each in found.suspects] == [1]
        return False
    assert found.status == 2, found.sentence
    assert "may only be slow" in found.sentence
    return True


def later(**changes: Any) -> tuple[Child, ...]:
    return (replace(QUIET, **changes),)


def test_a_child_that_computes() -> None:
    found = verdict(FOR_ONE, (QUIET,), later(cpu_s=1.9))
    assert found.status == 2
    assert found.sentence == (
        "could not tell: rank 1 has not entered all_reduce #2 of default_pg, in which ranks 0,2"
        " wait for 600 s; it waits for its child gzip (process 4711), which works, and may only be"
        " slow in save(), train.py:12; nothing has moved for 2 s: rank 1 stands in process 4711"
        " (gzip), its child, from save(), train.py:12; ranks 0,2 stand in"
        " torch.distributed.all_reduce, from save(), train.py:12"
    )


def test_a_child_that_does_nothing_is_named() -> None:
    found = verdict(FOR_ONE, (QUIET,), (QUIET,))
    assert found.sentence == (
        "rank 1 has not entered all_reduce #2 of default_pg; it stands in process 4711 (gzip), its"
        " child, from save(), train.py:12"
    )
    (suspect,) = found.suspects
    assert suspect.waits_for == "process 4711 (gzip), its child"
    line = "its child gzip (process 4711): it has neither computed nor read nor written in 2.0 s"
    assert line in suspect.evidence


@pytest.mark.parametrize(
    ("changes", "moves"),
    [
        ({"cpu_s": 0.52}, True),
        ({"cpu_s": 0.504}, True),  # as who copies a little from a socket
        ({"cpu_s": 0.501}, False),  # as who only looks around now and then
        ({"io_bytes": 4097}, True),  # a copy from a slow store
        ({"processes": 2, "states": "S"}, True),  # a build starts one compiler after the other
        ({"state": "R", "states": "R"}, True),  # it would run if the machine were not so busy
        ({"states": "SR", "processes": 1}, True),
        ({"state": "T", "states": "T"}, False),
        ({"state": "Z", "states": "Z"}, False),
    ],
)
def test_what_shows_that_it_works(changes: dict[str, Any], moves: bool) -> None:
    assert works(verdict(FOR_ONE, (QUIET,), later(**changes))) == moves


def test_a_stopped_child() -> None:
    stopped = replace(QUIET, state="T", states="T")
    (suspect,) = verdict(FOR_ONE, (stopped,), (stopped,)).suspects
    assert "its child gzip (process 4711): it is stopped by a signal" in suspect.evidence


def test_one_look_does_not_tell_whether_it_works() -> None:
    """Nor do two of which the first has not seen it."""
    assert works(verdict(FOR_ONE, (), (QUIET,), looks=1))
    assert works(verdict(FOR_ONE, (), (QUIET,)))
    assert not works(verdict(FOR_ONE, (), later(state="Z", states="Z"), looks=1))


@pytest.mark.parametrize("told", [(), later(state="D", states="D")])
def test_who_may_work_is_given_time(told: tuple[Child, ...]) -> None:
    """A worker that tells nothing of its children; one that waits for a disk: no hang for thirty
    seconds, and thirty usual pauses."""
    assert works(verdict(FOR_ONE, told, told, since=20.0))
    assert not works(verdict(FOR_ONE, told, told))


def test_only_the_child_that_it_waits_for_counts() -> None:
    busy = Child(4712, "monitor", "R", 1, "R", 1.0, 0)
    assert not works(verdict(FOR_ONE, (QUIET, busy), (QUIET, replace(busy, cpu_s=3.0))))


@pytest.mark.parametrize("thread", [FOR_ANY, FOR_BATCH, FOR_BYTES])
def test_any_child_may_be_meant(thread: Thread) -> None:
    """A little work of one of several proves nothing: it may be a monitor."""
    monitor = Child(4712, "monitor", "S", 1, "S", 1.0, 0)
    busy, glances = replace(monitor, cpu_s=1.5), replace(monitor, cpu_s=1.05, io_bytes=900)
    assert works(verdict(thread, (QUIET, monitor), (QUIET, busy)))
    assert not works(verdict(thread, (QUIET, monitor), (QUIET, glances)))
    copies = replace(monitor, io_bytes=1 << 20)
    assert works(verdict(thread, (QUIET, monitor), (QUIET, copies)))


def test_workers_of_a_dataloader_are_known_by_name() -> None:
    loader = Child(4712, "pt_data_worker", "S", 1, "S", 1.0, 0)
    monitor = Child(4713, "monitor", "R", 1, "R", 1.0, 0)
    others = replace(monitor, cpu_s=2.9)
    assert not works(verdict(FOR_BATCH, (loader, monitor), (loader, others)))
    assert works(verdict(FOR_BATCH, (loader, monitor), (replace(loader, cpu_s=1.1), others)))


def test_who_waits_for_a_lock_waits_for_no_child() -> None:
    busy = Child(4712, "monitor", "R", 1, "R", 1.0, 0)
    assert not works(verdict(IN_LOCK, (busy,), (replace(busy, cpu_s=2.9),)))


def test_the_processes_of_a_pool() -> None:
    """Each may work a little. A monitor beside them is none of them."""
    workers = [Child(pid, "python", "S", 1, "S", 0.5, 4096) for pid in (4712, 4713)]
    monitor = Child(4714, "monitor", "S", 1, "S", 1.0, 0)
    before = (*workers, monitor)
    glances = (*workers, replace(monitor, cpu_s=1.05))
    worked = (workers[0], replace(workers[1], cpu_s=0.53), monitor)
    assert works(verdict(FOR_POOL, before, worked))
    assert works(verdict(FOR_POOL, before, worked, looks=1))
    assert not works(verdict(FOR_POOL, before, glances))
    assert not works(verdict(FOR_RESULT, before, worked))  # it may be of threads


def test_the_processes_of_an_executor() -> None:
    """A thread of the rank's own looks after them."""
    file = STD + "concurrent/futures/process.py"
    watching = replace(
        FOR_RESULT, frames=(Frame(file, 431, "run"),), name="Thread-1", native_id=2, main=False
    )
    before, now = (replace(QUIET, name="python"),), later(name="python", cpu_s=0.53)
    assert works(verdict(FOR_RESULT, before, now, more=(watching,)))
    assert not works(verdict(FOR_RESULT, before, now))


def test_one_look_at_a_child_that_may_be_meant_is_not_enough() -> None:
    busy = Child(4712, "feeder", "R", 1, "R", 1.0, 0)
    assert verdict(FOR_QUEUE, (), (), looks=1).sure
    assert not verdict(FOR_QUEUE, (), (busy,), looks=1).sure
    assert works(verdict(FOR_QUEUE, (busy,), (replace(busy, cpu_s=2.9),)))


def test_one_process_that_waits_for_long() -> None:
    """Ten minutes without a step: that is no fault of who waits for its child."""
    health = Health("ok", pid=100, rank=0, step=7, step_age_s=600.0, uptime_s=700.0)
    states = [
        replace(state(0, FOR_ONE, None, child), health=health)
        for child in (QUIET, replace(QUIET, cpu_s=2.0))
    ]
    looks = [Round([each], NOW + 2.0 * number) for number, each in enumerate(states)]
    assert diagnose(looks, 1).status == 2
    assert diagnose([looks[0], replace(looks[0], started=NOW + 2.0)], 1).status == 1


# --- what workers tell


def test_what_is_read() -> None:
    told = {
        "pid": 5, "name": "make", "state": "S", "processes": 3, "states": "SR", "cpu_s": 0.25,
        "io_bytes": 77, "more": [],
    }  # fmt: skip
    assert read_children([told]) == (Child(5, "make", "S", 3, "SR", 0.25, 77),)
    assert read_children([{**told, "io_bytes": None}])[0].io_bytes is None
    assert read_children([{"pid": 5, "state": "S", "cpu_s": 1}]) == (
        Child(5, "?", "S", 1, "S", 1.0, None),
    )


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        {},
        "abc",
        [None, 5, []],
        [{}],
        [{"pid": -1, "state": "S", "cpu_s": 1.0}],
        [{"pid": True, "state": "S", "cpu_s": 1.0}],
        [{"pid": 1, "state": "SS", "cpu_s": 1.0}],
        [{"pid": 1, "state": "S", "cpu_s": float("nan")}],
        [{"pid": 1, "state": "S", "cpu_s": -1.0}],
        [{"pid": 1, "state": "S", "cpu_s": "1"}],
    ],
)
def test_nonsense_is_left_out(wrong: Any) -> None:
    assert read_children(wrong) == ()


def test_who_waits_for_a_child_knows_its_name() -> None:
    body = (
        '{"version":1,"pid":1,"mode":"gil","time":1.0,"gil_holder":null,"truncated":false,'
        '"threads":[{"ident":1,"native_id":1,"name":null,"state":"S","wchan":"do_wait",'
        '"current":false,"truncated":false,"unstable":false,"frames":[],'
        '"waits_for":{"kind":"process","source":"locals","pid":7}}],'
        '"children":[{"pid":7,"name":"gzip","state":"S","processes":1,"states":"S","cpu_s":0.1}]}'
    )
    found = read_json(body)
    (thread,) = found.threads
    assert thread.waits == WaitsFor("process", "locals", pid=7, name="gzip")
    assert found.children == (Child(7, "gzip", "S", 1, "S", 0.1, None),)
