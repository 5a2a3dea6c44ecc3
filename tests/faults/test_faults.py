"""The verdict on real jobs, each with one planted fault."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import pytest
from running import HUNG_S, JOB, Verdict, diagnose, diagnose_hung, job

pytest.importorskip("torch")
pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.torch]


class Suspect(NamedTuple):
    """*function*: where it stands; None if its stacks are out of reach."""

    rank: int
    reason: str
    process_group: str | None
    collective: str | None
    seq: int | None
    function: str | None


def late(rank: int, function: str | None, reason: str = "behind") -> list[Suspect]:
    """It alone has not come to the all_reduce after the first five."""
    return [Suspect(rank, reason, "default_pg", "all_reduce", 6, function)]


def apart(rank: int, operation: str, function: str, reason: str = "mismatch") -> list[Suspect]:
    """It has issued something else than the others as number 6."""
    return [Suspect(rank, reason, "default_pg", operation, 6, function)]


#: Without a fault that is to be found.
FINE = {"healthy": 3, "straggler": 3, "saves_often": 3}

#: How many ranks the job has, and whom the verdict has to name.
FAULTS: dict[str, tuple[int, list[Suspect]]] = {
    "asks_pool": (2, late(1, "asks_pool", "lock")),
    "awaits": (2, late(1, "awaits")),
    "backward": (2, [Suspect(1, "behind", "default_pg", "all_reduce", 9, "log_gradient")]),
    "broadcasts_alone": (3, apart(1, "broadcast", "broadcasts_alone")),
    "chain": (3, [Suspect(2, "behind", "two", "all_reduce", 1, "prepare")]),
    "collects_garbage": (2, late(1, "collects_garbage")),
    "crosses_groups": (3, [Suspect(1, "order", "second", "all_reduce", 1, "crosses_groups")]),
    # The others have given the collective up, and wait in code of their own.
    "dies": (3, [Suspect(2, "unreachable", None, None, None, None)]),
    "dies_before_group": (3, [Suspect(2, "unreachable", None, None, None, None)]),
    "dtypes": (3, apart(2, "all_reduce", "wait_for_the_end")),
    "fetches": (2, late(1, "fetches")),
    "finalizes": (2, late(1, "__del__")),
    "first_step": (3, [Suspect(1, "behind", "default_pg", "all_reduce", 1, "compile_model")]),
    "gathers_objects": (3, [Suspect(1, "behind", "default_pg", "all_gather", 6, "measure")]),
    "gives_up": (3, late(2, "wait_for_the_end")),
    "joins": (2, late(1, "joins", "lock")),
    "load_batch": (4, late(2, "load_batch")),
    "loads": (2, [Suspect(1, "dataloader", "default_pg", "all_reduce", 11, "loads")]),
    "locks_crosswise": (2, late(1, "locks_crosswise", "lock")),
    "locks_twice": (3, late(1, "locks_twice", "lock")),
    "logs_alone": (3, apart(0, "all_reduce", "reduce")),
    "makes_group_again": (3, [Suspect(1, "behind", "pair", "all_reduce", 2, "prepare")]),
    "matches": (3, late(1, "matches", "gil held")),
    "one_batch_fewer": (3, apart(2, "barrier", "evaluate")),
    "opens_fifo": (2, late(1, "opens_fifo")),
    "receives": (3, late(1, "receives", "p2p")),
    "reorders": (3, apart(1, "all_gather", "reorders", "order")),
    "saves_checkpoint": (3, [Suspect(0, "behind", "default_pg", "barrier", 6, "save")]),
    "shapes": (3, apart(2, "all_reduce", "reduce")),
    # Only stacks tell that the other two wait in new_group for the rank that left it out.
    "skips_group": (3, [Suspect(1, "order", "default_pg", "all_reduce", 6, "reduce")]),
    # No recorder of gloo's holds monitored_barrier; the other two wait there for who skipped it.
    "skips_monitored_barrier": (
        3,
        [Suspect(2, "order", "default_pg", "all_reduce", 6, "reduce")],
    ),
    "sleeps_in_c": (2, late(1, "sleeps_in_c")),
    "sleeps_with_gil": (3, late(1, "sleeps_with_gil", "gil held")),
    "spins": (2, late(1, "spins")),
    # gloo doesn't record send and recv: who stands elsewhere is told by stacks alone.
    "starves_pipeline": (4, [Suspect(0, "behind", None, None, None, "prepare")]),
    "stops": (3, late(1, None, "unreachable")),
    "subgroup": (4, [Suspect(1, "behind", "left", "all_reduce", 2, "prepare")]),
    "swallows": (3, [Suspect(2, "swallowed", "default_pg", "barrier", 10, "evaluate")]),
    "takes": (2, late(1, "takes", "lock")),
    "trains_in_polled_thread": (3, late(1, "prepare")),
    "trains_in_thread": (3, late(1, "prepare")),
    "two_at_once": (4, late(3, "locks_twice", "lock") + late(1, "prepare")),
    "unwaited": (2, [Suspect(1, "behind", "default_pg", "all_reduce", 7, "prepare")]),
    "waits_for_child": (2, late(1, "waits_for_child")),
}

#: Ranks that stand still though nobody can be named, or that may be slow: how many the job has, and
#: a part of the sentence.
UNCLEAR: dict[str, tuple[int, str]] = {
    # Most ranks are in a recv of which no recorder tells the peer.
    "receives_crosswise": (3, "in what no recorder holds"),
    "validates_unevenly": (3, "goes on, and may only be slow"),
    "waits_for_file_lock": (2, "nothing has moved for"),
}

#: Run by every `make test`.
QUICK = {"load_batch", "locks_twice", "loads", "sleeps_with_gil", "subgroup", "swallows"}

#: Who does not answer takes the whole deadline.
SILENT = {"stops"}


def suspects(verdict: Verdict) -> list[Suspect]:
    found = []
    for each in verdict["suspects"]:
        file, _, function = (each["location"] or "").rpartition(" ")
        assert file.rpartition(":")[0] == (str(JOB) if function else "")
        found.append(
            Suspect(
                each["rank"],
                each["reason"],
                each["process_group"],
                each["collective"],
                each["seq"],
                function or None,
            )
        )
    return found


def told(verdict: Verdict) -> Any:
    """What pytest shows of a wrong one."""
    return verdict["verdict"], verdict["process_groups"], verdict["groups"], verdict["problems"]


@pytest.mark.parametrize(
    "scene",
    [pytest.param(each, marks=[pytest.mark.quick] * (each in QUICK)) for each in sorted(FAULTS)],
)
def test_fault(scene: str) -> None:
    ranks, expected = FAULTS[scene]
    with job(scene, ranks) as sockets:
        deadline = ("--deadline", "3") if scene in SILENT else ()
        status, verdict = diagnose_hung(sockets, ranks, *deadline)
    print(verdict["verdict"])
    assert (status, suspects(verdict)) == (1, expected), told(verdict)
    assert verdict["ranks"] == ranks
    assert [each["rank"] for each in verdict["unreachable"]] == [
        each.rank for each in expected if each.reason == "unreachable"
    ]
    assert verdict["stragglers"] == []
    for each in verdict["suspects"]:
        assert each["gil_holder"] == (each["reason"] == "gil held")


@pytest.mark.parametrize("scene", sorted(UNCLEAR))
def test_nobody_is_accused_and_nothing_called_healthy(scene: str) -> None:
    ranks, part = UNCLEAR[scene]
    with job(scene, ranks) as sockets:
        time.sleep(HUNG_S)
        verdicts = [diagnose(sockets, ranks) for _ in range(2)]
    for _, verdict in verdicts:
        print(verdict["verdict"])
        assert suspects(verdict) == [], told(verdict)
    status, verdict = verdicts[-1]
    assert (status, part in verdict["verdict"]) == (2, True), told(verdict)


@pytest.mark.parametrize("scene", sorted(FINE))
@pytest.mark.parametrize("kind", ["workerserver", "torch"])
def test_nothing_is_stuck(kind: str, scene: str) -> None:
    with job(scene, FINE[scene], kind) as sockets:
        verdicts = [diagnose(sockets, FINE[scene]) for _ in range(3)]
    for status, verdict in verdicts:
        assert (status, suspects(verdict)) == (0, []), told(verdict)
        assert verdict["verdict"].startswith("no rank is stuck")
    slow = [each["rank"] for each in verdicts[-1][1]["stragglers"]]
    if scene != "saves_often":
        assert slow == ([1] if scene == "straggler" else [])


@pytest.mark.parametrize("run", range(20))
def test_healthy_again_and_again(run: int) -> None:
    """Jobs of their own, each looked at from its first steps on."""
    with job("healthy", 3) as sockets:
        for _ in range(2):
            status, verdict = diagnose(sockets, 3, "--interval", "1")
            assert (status, suspects(verdict)) == (0, []), told(verdict)


#: What stock workers can't tell: who holds the GIL, what a thread waits for in the kernel, that a
#: rank is a step ahead, and which ranks gloo's groups have.
STOCK: dict[str, list[Suspect]] = {
    "crosses_groups": [],
    "locks_twice": late(1, "locks_twice"),
    "sleeps_with_gil": late(1, None, "unreachable"),
    "swallows": [Suspect(2, "mismatch", "default_pg", "barrier", 10, "evaluate")],
    "two_at_once": late(1, "prepare") + late(3, "locks_twice"),
}


@pytest.mark.parametrize(
    "scene",
    sorted(
        {*QUICK, *STOCK}
        | {"dies", "first_step", "reorders", "saves_checkpoint", "shapes", "stops", "two_at_once"}
    ),
)
def test_fault_on_stock_workers(scene: str) -> None:
    ranks, expected = FAULTS[scene]
    expected = STOCK.get(scene, expected)
    with job(scene, ranks, "torch") as sockets:
        patience = 45 if expected else 0
        status, verdict = diagnose_hung(sockets, ranks, "--deadline", "3", patience=patience)
    print(verdict["verdict"])
    assert (status, suspects(verdict)) == (1 if expected else 2, expected), told(verdict)
