"""Ranks that wait for what processes share: perhaps for each other, without torch."""

from __future__ import annotations

import pytest
from support.jobs.flight_entries import entry, pending, trace
from support.jobs.recordings import Round

from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.judge.verdict import Verdict
from workerserver.cluster.model import Child, Frame, Own, RankState, Thread, Worker

NOW = 2_000_000_000.0
CODE = "/home/user/train.py"
LIBRARY = "/usr/lib/python3.11"
C10D = f"{LIBRARY}/site-packages/torch/distributed/distributed_c10d.py"
REDUCES = (Frame(C10D, 2800, "all_reduce"), Frame(CODE, 40, "step"))
#: Of the ranks that have not come: multiprocessing's Barrier, Event and Queue, and a pipe.
WAITS = {
    "barrier": Frame(f"{LIBRARY}/multiprocessing/synchronize.py", 271, "wait"),
    "queue": Frame(f"{LIBRARY}/multiprocessing/queues.py", 103, "get"),
    "pipe": Frame(f"{LIBRARY}/multiprocessing/connection.py", 379, "_recv"),
}


def verdict(waits: Frame, many: int, children: tuple[Child, ...] = ()) -> Verdict:
    """The last *many* of four ranks have not come to the all_reduce of the others, and are in
    *waits*."""
    done = entry(0, 1, time_created_ns=int((NOW - 101) * 1e9))
    ahead = trace(done, pending(1, 2, time_created_ns=int((NOW - 100) * 1e9)), ranks="[0, 1, 2, 3]")
    states = []
    for number in range(4):
        absent = number >= 4 - many
        frames = (waits, Frame(CODE, 50, "meet")) if absent else REDUCES
        thread = Thread(
            frames, "MainThread", main=True, state="S", wchan="futex_do_wait", switches=5
        )
        state = RankState(
            Worker(f"/run/rank{number}.sock", True, number),
            number,
            "workerserver",
            threads=(thread,),
            flight=trace(done, ranks="[0, 1, 2, 3]") if absent else ahead,
            responded=True,
        )
        state.own = Own("gil", 4000 + number, 1, children if absent else ())
        states.append(state)
    return diagnose([Round(states, NOW - 2.0), Round(states, NOW)], 4)


@pytest.mark.parametrize("waits", WAITS.values(), ids=WAITS)
@pytest.mark.parametrize("many", [2, 3])
def test_who_may_wait_for_another_rank_is_not_accused(waits: Frame, many: int) -> None:
    """As with a Barrier of multiprocessing's, to which rank 0 has not come."""
    found = verdict(waits, many)
    assert (found.status, found.suspects) == (2, ())


@pytest.mark.parametrize("waits", WAITS.values(), ids=WAITS)
def test_who_alone_has_not_come_is_accused(waits: Frame) -> None:
    """Whoever is to end its wait, all other ranks wait for it."""
    found = verdict(waits, 1)
    assert [(each.rank, each.reason) for each in found.suspects] == [(3, "behind")]
