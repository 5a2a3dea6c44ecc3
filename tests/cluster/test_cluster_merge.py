"""Groups, the tree, and what several looks tell: nobody lost, nobody twice, nobody wronged."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.lifecycle import environment

from workerserver.cluster.find.host_lists import unfold
from workerserver.cluster.model import Frame, Health, RankState, Thread, Worker
from workerserver.cluster.read.groups import (
    compare,
    groups,
    normal,
    observe,
    render_group,
    render_tree,
    tree,
)
from workerserver.cluster.read.stacks import parse_json
from workerserver.cluster.show.tree import Node, short_fold, short_frames
from workerserver.ranks import fold

MODULE = Frame("/job/train.py", 90, "<module>")
STEP = Frame("/job/train.py", 40, "step")
LOAD = Frame("/job/data.py", 7, "load")
SITE = "/v/lib/python3.11/site-packages"
C10D = Frame(f"{SITE}/torch/distributed/distributed_c10d.py", 3252, "all_reduce")
LOGGER = Frame(f"{SITE}/torch/distributed/c10d_logger.py", 83, "wrapper")
THREADING = "/usr/lib/python3.11/threading.py"
WAIT = Frame(THREADING, 327, "wait")
REDUCE = (C10D, LOGGER, STEP, MODULE)
POOL = Thread((Frame("/usr/lib/python3.11/concurrent/futures/thread.py", 81, "_worker"),), "pool_0")
BUSY = Thread((Frame("/job/data.py", 3, "prefetch"), Frame(THREADING, 1002, "_bootstrap")), "mine")


def main(*frames: Frame, **more: Any) -> Thread:
    return Thread(frames, "MainThread", main=True, **more)


def state(rank: int | None, *threads: Thread, **more: Any) -> RankState:
    worker = Worker(f"/r{rank}.sock", True, rank)
    return RankState(worker, rank, threads=threads, responded=True, **more)


# ---- groups


def test_groups() -> None:
    same = (main(*REDUCE), POOL)
    states = [state(rank, *same) for rank in range(4096) if rank != 2]
    states.insert(7, state(2, main(LOAD, STEP, MODULE), POOL))
    odd, crowd = groups(states)
    assert (odd.ranks, odd.count, odd.folded) == ([2], 1, "2")
    assert (crowd.count, crowd.folded) == (4095, "0-1,3-4095")
    assert crowd.ranks == unfold("0-1,3-4095")
    assert (crowd.threads, crowd.roles) == ((main(*REDUCE),), ("main",))
    assert crowd.idle == {"pool": (1, 1)}
    assert render_group(odd) == [
        "1 x 2",
        "  main",
        "    /job/data.py:7 load",
        "    /job/train.py:40 step",
        "    /job/train.py:90 <module>",
        "  idle: pool 1",
    ]
    assert render_group(crowd)[:4] == [
        "4095 x 0-1,3-4095",
        "  main",
        "    torch/distributed/distributed_c10d.py:3252 all_reduce",
        "    (1 library frame: torch.distributed.c10d_logger.wrapper)",
    ]


def test_the_smallest_first_then_the_lowest_rank() -> None:
    places = {9: LOAD, 8: LOAD, 3: STEP, 4: STEP, 5: MODULE, 1: WAIT, 0: MODULE, 7: MODULE}
    found = groups([state(rank, main(frame)) for rank, frame in places.items()])
    assert [group.ranks for group in found] == [[1], [3, 4], [8, 9], [0, 5, 7]]


def test_what_parts_ranks_and_what_does_not() -> None:
    base = state(0, main(*REDUCE), POOL)
    moved = Frame(
        f"/opt/conda/lib/python3.11/site-packages/{C10D.file[len(SITE) + 1 :]}", *C10D[1:]
    )
    same = [
        state(1, main(*REDUCE)),  # no pool at all
        state(2, POOL, main(*REDUCE, state="S", wchan="x"), POOL),
        state(3, main(moved, *REDUCE[1:])),  # another folder of the same library
        state(4, Thread((), "pt_autograd_0"), main(*REDUCE)),
    ]
    other = [
        state(5, main(C10D._replace(line=1), *REDUCE[1:])),
        state(6, main(*REDUCE), BUSY),
        state(7, main(*REDUCE), Thread((WAIT, STEP))),
        state(8, Thread(REDUCE)),  # none is the main thread
        state(9, main(*REDUCE[:-1], MODULE._replace(file="/other/train.py"))),
        state(10, main(*REDUCE), Thread(POOL.frames, "pool_0", holds_gil=True)),
        state(11, main(state="S", wchan="futex_wait")),  # mode "kernel"
        state(12, main(state="D", wchan="nfs_wait")),
    ]
    found = groups([base, *same, *other])
    assert [group.ranks for group in found] == [[n] for n in range(5, 13)] + [[0, 1, 2, 3, 4]]
    assert found[-1].idle == {"autograd": (0, 1), "pool": (0, 2)}
    # How many threads share a stack doesn't count, nor their order.
    assert (
        len(groups([state(0, main(*REDUCE), BUSY, POOL), state(1, BUSY, BUSY, main(*REDUCE))])) == 1
    )


def test_a_thread_that_never_held_still_parts_nobody() -> None:
    odd = [Thread((Frame("/job/a.py", n, "spin"), MODULE), "spin", unstable=True) for n in range(3)]
    (group,) = groups([state(n, main(*REDUCE), odd[n]) for n in range(3)])
    assert group.threads == (main(*REDUCE), odd[0])
    assert "  other (spin) unstable" in render_group(group)


def test_workers_of_unknown_rank() -> None:
    lost = RankState(Worker("b:1", False), threads=[main(*REDUCE)])
    also = RankState(Worker("a:1", False), threads=[main(*REDUCE)])
    (group,) = groups([lost, state(3, main(*REDUCE)), also])
    assert (group.ranks, group.unranked, group.count) == ([3], ["a:1", "b:1"], 3)
    assert render_group(group)[0] == "3 x 3, 2 of unknown rank"
    root = tree([lost, state(3, main(*REDUCE)), also])
    assert (root.ranks, root.count) == ([3], 3)
    assert render_tree(tree([lost]))[0] == "1 x unknown rank"


def test_workers_without_stacks() -> None:
    """Left out, but for those whose digest is that of somebody with stacks."""
    silent = RankState(Worker("/x", True, 5), 5)
    shared = state(6, digest="d", mode="gil")
    full = state(7, main(*REDUCE), digest="d", mode="gil")
    other = state(8, digest="d", mode="nogil")
    (group,) = groups([silent, shared, full, other])
    assert group.ranks == [6, 7]
    assert tree([silent, shared, full, other]).ranks == [6, 7]
    assert groups([]) == []
    assert render_tree(tree([])) == ["0 x unknown rank"]


FRAMES = st.lists(st.sampled_from([MODULE, STEP, LOAD, C10D, LOGGER, WAIT]), max_size=5).map(tuple)
THREADS = st.builds(
    Thread,
    FRAMES,
    st.sampled_from([None, "MainThread", "QueueFeederThread"]),
    main=st.booleans(),
    holds_gil=st.booleans(),
    unstable=st.booleans(),
)
JOBS = st.lists(st.lists(THREADS, max_size=3), max_size=12)


def job(threads: Sequence[Sequence[Thread]]) -> list[RankState]:
    return [state(rank, *each) for rank, each in enumerate(threads)]


@given(JOBS, st.randoms(use_true_random=False))
def test_everybody_is_in_one_group(threads: list[list[Thread]], chance: random.Random) -> None:
    states = job(threads)
    found = groups(states)
    ranks = [rank for group in found for rank in group.ranks]
    assert sorted(ranks) == [rank for rank, each in enumerate(threads) if each]
    assert all(group.count == len(group.ranks) == len(unfold(group.folded)) for group in found)
    order = [(group.count, group.ranks[0]) for group in found]
    assert order == sorted(order)
    assert all(group.threads or group.idle for group in found)
    # Of the states' order nothing depends.
    shuffled = list(states)
    chance.shuffle(shuffled)
    assert groups(shuffled) == found
    for group in found:
        render_group(group)


def walk(node: Node) -> Iterable[Node]:
    yield node
    for child in node.children:
        yield from walk(child)


@given(JOBS, st.randoms(use_true_random=False))
def test_the_tree_s_counts_add_up(threads: list[list[Thread]], chance: random.Random) -> None:
    states = job(threads)
    root = tree(states)
    assert root.ranks == [rank for rank, each in enumerate(threads) if each]
    stacks: Counter[tuple[Frame, ...]] = Counter()

    def check(node: Node, above: tuple[Frame, ...]) -> None:
        assert node.count == len(node.ranks)
        assert node.ended >= 0
        inner = [rank for child in node.children for rank in child.ranks]
        assert len(inner) == len(set(inner))
        assert set(inner) <= set(node.ranks)
        assert node is root or node.frames
        # A chain ends only where somebody ends, or where ranks part.
        assert node is root or node.ended or len(node.children) > 1
        assert len({child.frames[0] for child in node.children}) == len(node.children)
        stack = above + node.frames
        stacks[stack] += node.ended
        for child in node.children:
            check(child, stack)

    check(root, ())
    expected: Counter[tuple[Frame, ...]] = Counter()
    for each in threads:
        if each:
            mains = [thread.frames for thread in each if thread.main]
            expected[normal(mains[0], {})[::-1] if mains else ()] += 1
    assert +stacks == expected
    chance.shuffle(states)
    assert tree(states) == root
    lines = render_tree(root)
    assert len(lines) == len(list(walk(root)))


def test_render_tree() -> None:
    states = [state(rank, main(*REDUCE)) for rank in (0, 1, 3)]
    states += [state(2, main(LOAD, STEP, MODULE)), state(4, main(STEP, MODULE))]
    states += [state(5), state(6, POOL)]
    assert render_tree(tree(states)) == [
        "6 x 0-4,6 (1 without a Python stack)",
        "  5 x 0-4: train.py:90 <module> > train.py:40 step (1 end here)",
        "    1 x 2: data.py:7 load",
        "    3 x 0-1,3: torch.distributed.distributed_c10d.all_reduce (+1)",
    ]


def test_long_texts_are_cut() -> None:
    deep = [Frame("/job/" + "d" * 500, n, "f" * 500) for n in range(1000)]
    (_, line) = render_tree(tree([state(0, main(*deep))]))
    assert "... 988 more ..." in line
    assert len(line) < 2000
    lines = short_frames(tuple(deep))
    assert (len(lines), lines[20]) == (41, "... 960 lines ...")
    # Each stack a beginning of the next one: as deep a tree as there can be.
    states = [state(n, main(*deep[n:])) for n in range(1000)]
    lines = render_tree(tree(states))
    assert len(lines) == 1001
    assert max(map(len, lines)) < 500
    assert short_fold(range(0, 100_000, 2)).endswith(",38,40,...")
    assert short_fold(range(100_000)) == "0-99999"
    assert short_fold([*range(4000), 5000]) == "0-3999,5000"


def test_many_ranks() -> None:
    """In seconds even if each is another; nothing here is timed, but the hang timeout holds."""
    different = [
        state(rank, main(Frame("/job/a.py", rank, "f"), *REDUCE, *[WAIT] * 20), BUSY)
        for rank in range(16_384)
    ]
    found = groups(different)
    assert (len(found), found[5].ranks) == (16_384, [5])
    root = tree(different)
    assert (len(root.children), len(root.children[0].children)) == (1, 16_384)
    same = [state(rank, main(*REDUCE, *[WAIT] * 20), BUSY, POOL) for rank in range(16_384)]
    (group,) = groups(same)
    assert fold(group.ranks) == "0-16383"


# ---- several looks


@dataclass
class Look:
    states: list[RankState]


def looks(*each: RankState | None) -> list[Look]:
    return [Look([] if one is None else [one]) for one in each]


def health(step: int | None = None, age: float | None = None, **more: Any) -> Health:
    return Health("ok", pid=more.pop("pid", 1), step=step, step_age_s=age, **more)


def at(*frames: Frame, step: int | None = None, age: float | None = None, **more: Any) -> RankState:
    told = {name: more.pop(name) for name in ("pid", "uptime_s") if name in more}
    thread = {name: more.pop(name) for name in ("unstable", "state", "wchan") if name in more}
    return state(0, main(*frames, **thread), health=health(step, age, **told), **more)


def summary(issued: int, retired: int = 0, **status: int) -> dict[str, Any]:
    return {
        "groups": [
            {
                "name": "0", "recorder": "fr", "status": status or None, "pending": 1,
                "last_issued": {"seq": issued, "p2p_seq": 0},
                "last_retired": {"seq": retired, "p2p_seq": 0},
            }
        ]
    }  # fmt: skip


def trace(*numbers: int, **more: Any) -> dict[str, Any]:
    entries = [
        {"process_group": ["0", "default_pg"], "collective_seq_id": n, "p2p_seq_id": 0}
        for n in numbers
    ]
    return {"entries": entries, **more}


SPIN = [(Frame("/job/train.py", line, "wait_for_file"), MODULE) for line in (10, 11, 12)]
GET = Frame("/usr/lib/python3.11/queue.py", 180, "get")
SELECT = [Frame("/usr/lib/python3.11/selectors.py", line, "select") for line in (415, 416)]
NEXT = Frame(f"{SITE}/torch/utils/data/dataloader.py", 725, "__next__")
ADAM = [(Frame(f"{SITE}/torch/optim/adam.py", line, "step"), MODULE) for line in (1, 2)]


@pytest.mark.parametrize(
    ("rounds", "motion", "reason"),
    [
        (looks(at(*REDUCE)), "unknown", "looked at only once"),
        # Nothing is counted: the stack is all there is.
        (looks(at(*REDUCE), at(*REDUCE)), "stuck", "the same line in 2 looks"),
        (looks(at(*SPIN[0]), at(*SPIN[1])), "busy", "its stack changes"),
        (looks(at(STEP, MODULE), at(LOAD, MODULE)), "moving", "its functions change"),
        # Steps.
        (looks(at(*REDUCE, step=5), at(*REDUCE, step=5)), "stuck", "no step and no operation"),
        (looks(at(*REDUCE, step=5), at(*REDUCE, step=6)), "moving", "step 5 -> 6"),
        (looks(at(*REDUCE, step=5, age=9.0), at(*REDUCE, step=5, age=0.5)), "moving", "heartbeat"),
        (looks(at(*REDUCE, step=5, age=8.0), at(*REDUCE, step=5, age=9.0)), "stuck", "no step"),
        (looks(at(*SPIN[0], step=5), at(*SPIN[1], step=5)), "busy", "no step and no operation"),
        (looks(at(STEP, MODULE, step=5), at(LOAD, MODULE, step=5)), "busy", "its stack changes"),
        (looks(at(*REDUCE, step=5), at(*REDUCE, step=5), at(*REDUCE, step=6)), "moving", "step"),
        # A wait with a timeout goes through several lines of the library.
        (looks(at(WAIT, GET, STEP), at(GET, STEP)), "stuck", "waits in queue.get"),
        (looks(at(WAIT, GET, STEP), at(GET, STEP._replace(line=1))), "busy", "its stack"),
        (looks(at(SELECT[0], NEXT, STEP), at(SELECT[1], NEXT, STEP)), "stuck", "DataLoader"),
        (looks(at(*ADAM[0], step=1), at(*ADAM[1], step=1)), "busy", "its stack changes"),
        # The flight recorder.
        (
            looks(at(*REDUCE, flight_summary=summary(5)), at(*REDUCE, flight_summary=summary(5))),
            "stuck",
            "no step and no operation",
        ),
        (
            looks(at(*REDUCE, flight_summary=summary(5)), at(*REDUCE, flight_summary=summary(6))),
            "moving",
            "process group 0 (fr)",
        ),
        (
            looks(
                at(*REDUCE, flight_summary=summary(5, 4)), at(*REDUCE, flight_summary=summary(5, 5))
            ),
            "moving",
            "operations went on",
        ),
        (
            looks(
                at(*REDUCE, flight_summary=summary(5, completed=4)),
                at(*REDUCE, flight_summary=summary(5, completed=5)),
            ),
            "moving",
            "operations went on",
        ),
        (looks(at(*REDUCE, flight=trace(5)), at(*REDUCE, flight=trace(5))), "stuck", "no step"),
        (looks(at(*REDUCE, flight=trace(5)), at(*REDUCE, flight=trace(6))), "moving", "group 0"),
        (looks(at(*REDUCE, flight=trace(5)), at(*REDUCE, flight=trace())), "moving", "group 0"),
        (looks(at(*REDUCE, flight=trace()), at(*REDUCE, flight=trace())), "stuck", "neither"),
        (
            looks(
                at(*REDUCE, flight={"pg_status": {"0": {"last_started_collective": "3"}}}),
                at(*REDUCE, flight={"pg_status": {"0": {"last_started_collective": "4"}}}),
            ),
            "moving",
            "status 0",
        ),
        # Too early: a step usually takes (80 - 1) / 10 s.
        (
            looks(
                at(*REDUCE, step=10, age=0.5, uptime_s=79.5),
                at(*REDUCE, step=10, age=1.0, uptime_s=80.0),
            ),
            "unknown",
            "the last step was 1.0 s ago, and one takes about 7.9 s",
        ),
        (
            looks(
                at(*REDUCE, step=10, age=19.0, uptime_s=99.0),
                at(*REDUCE, step=10, age=20.0, uptime_s=100.0),
            ),
            "stuck",
            "the same line",
        ),
        (
            looks(
                at(*REDUCE, step=1, age=1.0, uptime_s=100.0),
                at(*REDUCE, step=1, age=2.0, uptime_s=101.0),
            ),
            "stuck",
            "the same line",
        ),
        # What can't be compared.
        (looks(at(*REDUCE), None), "unknown", "no answer in look 2 of 2"),
        (looks(at(*REDUCE, pid=1), at(*REDUCE, pid=2)), "unknown", "restarted"),
        (looks(at(*REDUCE), at(*REDUCE, unstable=True)), "unknown", "while it was read"),
        (looks(at(*REDUCE, step=1), at(*REDUCE, unstable=True, step=2)), "moving", "step 1 -> 2"),
        (looks(at(state="S"), at(state="S")), "unknown", "could not be read"),
        # Digests will do where the stacks themselves weren't fetched.
        (looks(at(main_digest="a"), at(main_digest="a")), "stuck", "the same stack"),
        (looks(at(main_digest="a"), at(main_digest="b")), "busy", "its stack changes"),
    ],
)  # fmt: skip
def test_one_rank(rounds: list[Look], motion: str, reason: str) -> None:
    observation = observe(rounds)[0]
    assert (observation.motion, observation.reason) == (motion, observation.reason)
    assert reason in observation.reason
    assert compare(rounds) == {0: motion}


def test_looks_at_a_job() -> None:
    first = [
        state(0, main(*REDUCE)),
        state(1, main(*REDUCE)),
        state(2),
        RankState(Worker("b", True)),
    ]
    second = [state(0, main(*REDUCE)), state(1, main(LOAD, STEP)), state(3, main(*REDUCE))]
    assert compare([Look(first), Look(second)]) == {
        0: "stuck",
        1: "moving",
        2: "unknown",
        3: "unknown",
    }
    assert compare([]) == {}


def test_two_workers_of_one_rank() -> None:
    both = [state(0, main(*REDUCE)), state(0, main(LOAD))]
    assert observe([Look(both), Look(both)])[0].reason.startswith("more than one worker")
    moved = RankState(Worker("elsewhere", True), 0, threads=[main(*REDUCE)], responded=True)
    assert observe(looks(both[0], moved))[0].reason == "the rank moved to another worker"


@pytest.mark.parametrize(
    "odd", [{"groups": 3}, {"groups": [3]}, {"groups": [{"last_issued": 3, "status": []}]}, {}]
)
def test_odd_flight_recorders(odd: dict[str, Any]) -> None:
    """They came over the wire."""
    rounds = looks(at(*REDUCE, flight_summary=odd), at(*REDUCE, flight_summary=odd))
    assert compare(rounds) == {0: "stuck"}
    for entries in (3, [3], [{"process_group": 3, "collective_seq_id": "x"}]):
        told = {"entries": entries, "pg_status": {"0": 3}}
        assert compare(looks(at(*REDUCE, flight=told), at(*REDUCE, flight=told))) == {0: "stuck"}
    assert compare(looks(at(*REDUCE, flight={"pg_status": 3}), at(*REDUCE))) == {0: "stuck"}


# ---- a real process


LOOKED_AT = """
import sys, threading
from workerserver.stacks._stacks import snapshot

go = threading.Event()
here, on = threading.Lock(), threading.Lock()
here.acquire()
on.acquire()

def stuck():
    go.wait()

# Both calls are in one line: wherever a look meets the thread from the first one on, it is there.
def spin():
    while not go.is_set():
        here.release(); on.acquire()
        here.release(); on.acquire()

def slow():
    while not go.is_set():
        middle()

def middle():
    first()
    second()

def first():
    here.release(); on.acquire()

def second():
    here.release(); on.acquire()

def waits(stacks):
    return b'"stuck"' in stacks and b'"wait"' in stacks

def look():
    while sys.argv[1] == "stuck" and not waits(snapshot().render("json")):
        pass
    for number in range(20):
        if sys.argv[1] != "stuck":
            here.acquire()
        print(snapshot().render("json").decode(), flush=True)
        if number == 19:
            go.set()
        if sys.argv[1] != "stuck":
            on.release()

threading.Thread(target=look).start()
globals()[sys.argv[1]]()
"""


@pytest.mark.parametrize(
    ("what", "expected"), [("stuck", "stuck"), ("spin", "busy"), ("slow", "moving")]
)
def test_a_real_process(what: str, expected: str, tmp_path: Any) -> None:
    path = tmp_path / "looked_at.py"
    path.write_text(LOOKED_AT)
    done = subprocess.run(
        [sys.executable, str(path), what],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    rounds = looks(*(state(0, *parse_json(line)) for line in done.stdout.splitlines()))
    assert len(rounds) == 20
    assert compare(rounds) == {0: expected}
