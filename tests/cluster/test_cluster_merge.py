"""Groups and the tree: nobody lost, nobody twice."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence

from hypothesis import given
from hypothesis import strategies as st
from support.jobs.ranks import (
    C10D,
    LOAD,
    LOGGER,
    MODULE,
    REDUCE,
    SITE,
    STEP,
    THREADING,
    WAIT,
    main,
    state,
)

from workerserver.cluster.find.host_lists import unfold
from workerserver.cluster.model import Frame, RankState, Thread, Worker
from workerserver.cluster.read.groups import groups, normal
from workerserver.cluster.read.tree import Node, tree
from workerserver.cluster.show.groups import render_group
from workerserver.cluster.show.tree import render_tree, short_fold, short_frames
from workerserver.ranks import fold

POOL = Thread((Frame("/usr/lib/python3.11/concurrent/futures/thread.py", 81, "_worker"),), "pool_0")
BUSY = Thread((Frame("/job/data.py", 3, "prefetch"), Frame(THREADING, 1002, "_bootstrap")), "mine")


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
        state(1, main(*REDUCE)),  # these are no pool
        state(2, POOL, main(*REDUCE, state="S", wchan="x"), POOL),
        state(3, main(moved, *REDUCE[1:])),  # a file in another folder of the library
        state(4, Thread((), "pt_autograd_0"), main(*REDUCE)),
    ]
    other = [
        state(5, main(C10D._replace(line=1), *REDUCE[1:])),
        state(6, main(*REDUCE), BUSY),
        state(7, main(*REDUCE), Thread((WAIT, STEP))),
        state(8, Thread(REDUCE)),  # no thread is the main thread
        state(9, main(*REDUCE[:-1], MODULE._replace(file="/other/train.py"))),
        state(10, main(*REDUCE), Thread(POOL.frames, "pool_0", holds_gil=True)),
        state(11, main(state="S", wchan="futex_wait")),  # mode "kernel"
        state(12, main(state="D", wchan="nfs_wait")),
    ]
    found = groups([base, *same, *other])
    assert [group.ranks for group in found] == [[n] for n in range(5, 13)] + [[0, 1, 2, 3, 4]]
    assert found[-1].idle == {"autograd": (0, 1), "pool": (0, 2)}
    # Neither the number of threads with one stack nor their order counts.
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
    """Workers without stacks are left out, unless their digest equals that of another worker."""
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
    # The order of the states changes nothing.
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
        # A chain ends only where a stack ends, or where the stacks of two ranks differ.
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
    # Each stack is the beginning of the next one. No tree is deeper than this one.
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
