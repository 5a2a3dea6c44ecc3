"""Ranks in different calls that take all of them: what stacks alone prove."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from support.jobs.flight_entries import entry, trace
from test_cluster_waits import ASLEEP, looks, main, reasons, state

from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.model import Health, Thread, WaitsFor

EVERYBODY = (0, 1, 2)


def inside(op: str, ranks: tuple[int, ...] = EVERYBODY, group: str = "default_pg") -> Thread:
    waits = WaitsFor("operation", "locals", 0, op=op, group=group, ranks=ranks)
    return main(f".{op}", "step", waits=waits)


NEW_GROUP = main(".new_group", "setup")
REDUCING, SENDING = inside("all_reduce"), inside("broadcast")


def verdict(*threads: Thread, flight: Any = None) -> Any:
    states = [state(number, [thread], flight) for number, thread in enumerate(threads)]
    return diagnose(looks(*states), len(threads))


def test_who_is_in_another_operation() -> None:
    found = verdict(REDUCING, SENDING, REDUCING)
    assert reasons(found) == [(1, "mismatch")]
    assert found.sentence == (
        "rank 1 waits in broadcast of default_pg while ranks 0,2 wait in all_reduce of default_pg:"
        " each takes all of these ranks; it stands in torch.distributed.broadcast of default_pg,"
        " from step(), train.py:10"
    )
    (suspect,) = found.suspects
    assert (suspect.process_group, suspect.collective, suspect.seq) == (
        "default_pg",
        "broadcast",
        None,
    )
    assert "from stacks alone: no flight recorder tells who waits" in suspect.evidence


def test_of_two_nobody_knows_who_is_wrong() -> None:
    pair = (0, 1)
    found = verdict(inside("all_reduce", pair), inside("all_gather", pair))
    assert reasons(found) == [(0, "mismatch"), (1, "mismatch")]
    assert "no side has the majority" in found.suspects[0].evidence
    assert verdict(inside("all_reduce", pair), inside("broadcast", pair)).status == 2


def test_a_call_that_takes_the_whole_job() -> None:
    assert reasons(verdict(NEW_GROUP, NEW_GROUP, REDUCING)) == [(2, "mismatch")]
    assert reasons(verdict(REDUCING, NEW_GROUP, REDUCING)) == [(1, "mismatch")]


@pytest.mark.parametrize(
    "threads",
    [
        (SENDING, SENDING, REDUCING),  # who sends a broadcast goes on before the others have come
        (REDUCING, REDUCING, REDUCING),
        (REDUCING, inside("all_gather"), inside("barrier")),
        (REDUCING, SENDING, ASLEEP),  # the others may wait for that one
        (REDUCING, inside("broadcast", (1, 2), "pair"), REDUCING),
        (REDUCING, inside("recv"), REDUCING),
        (REDUCING, main(".broadcast", "step"), REDUCING),  # of which group is not told
    ],
)
def test_what_proves_nothing(threads: tuple[Thread, ...]) -> None:
    found = verdict(*threads)
    assert not [each for each in found.suspects if each.reason == "mismatch"]


def test_who_has_run_in_between_may_be_in_the_next_one() -> None:
    """A loop of two operations is met twice in the same ones."""
    before = [state(n, [each]) for n, each in enumerate((REDUCING, SENDING, REDUCING))]
    for ran in range(3):
        now = list(before)
        thread = now[ran].threads[0]
        now[ran] = replace(now[ran], threads=(replace(thread, switches=6),))
        rounds = looks(*before)
        rounds[-1].states = now
        assert diagnose(rounds, 3).status == 2
    unknown = [replace(each, threads=(replace(each.threads[0], switches=None),)) for each in before]
    assert diagnose(looks(*unknown), 3).status == 2


def test_a_recorder_tells_more() -> None:
    assert verdict(REDUCING, SENDING, REDUCING, flight=trace(entry(0, 1))).status == 2


def test_a_step_of_usual_length_is_not_over() -> None:
    health = Health("ok", step=40, step_age_s=12.0, step_median_s=10.0, uptime_s=600.0)
    states = [state(n, [each]) for n, each in enumerate((REDUCING, SENDING, REDUCING))]
    young = [replace(each, health=health) for each in states]
    assert not diagnose(looks(*young, apart=2.0), 3).suspects
