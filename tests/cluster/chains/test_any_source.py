"""A receive of which nobody knows the sender, while all other ranks are in a collective."""

from __future__ import annotations

from typing import Any

import pytest
from support.jobs.flight_entries import pending, trace
from test_cluster_waits import WAITING, looks, main, reasons, state

from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.model import WaitsFor

GLOO = pending(0, 1, profiling_name="gloo:all_reduce")
FROM_ANY = main(
    ".recv", "collect", waits=WaitsFor("operation", "locals", 0, op="recv", group="default_pg")
)


def counted(enqueued: int) -> Any:
    return {"0": {"last_enqueued_collective": str(enqueued)}}


def judged(*enqueued: int) -> Any:
    """Rank 0 receives; each other rank is in its first collective, and torch has counted so many
    operations of it."""
    others = [
        state(number, [WAITING], trace(GLOO, pg_status=counted(each)))
        for number, each in enumerate(enqueued, 1)
    ]
    return diagnose(looks(state(0, [FROM_ANY], trace()), *others, apart=60.0), len(enqueued) + 1)


def test_nobody_else_has_sent_anything() -> None:
    """So it receives what no rank has in its program."""
    found = judged(1, 1)
    assert reasons(found) == [(0, "p2p")]


@pytest.mark.parametrize("enqueued", [(1, 8), (8, 8)], ids=["one", "all"])
def test_one_that_sends_may_have_sent_too_few(enqueued: tuple[int, ...]) -> None:
    """A worker went to the barrier without its last result: the collector is its victim."""
    found = judged(*enqueued)
    assert (found.status, reasons(found)) == (2, [])
    assert "rank 0 has not entered all_reduce #1 of default_pg" in found.sentence
    assert "may itself wait for another rank" in found.sentence
