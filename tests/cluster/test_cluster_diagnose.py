"""Verdicts on recordings of real jobs."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest
from support.jobs.recordings import NAMES, rounds, without_traces

from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.judge.facts import Slow
from workerserver.cluster.judge.verdict import Verdict
from workerserver.cluster.show.report import verdict_dict


def size(name: str) -> int:
    return len(rounds(name)[0].states)


IN = "it stands in"
#: The sentence, and each suspect's rank, reason, group, collective, number and place.
VERDICTS: dict[str, tuple[str, list[tuple[Any, ...]]]] = {
    "asleep": (
        f"rank 2 has not entered all_reduce #6 of default_pg; {IN} compute(), scenes.py:39",
        [(2, "behind", "default_pg", "all_reduce", 6, "compute")],
    ),
    "crossed": (
        "rank 1 waits in all_reduce #1 of second while ranks 0,2 wait in all_reduce #1 of first:"
        f" the groups were taken in different orders; {IN} torch.distributed.all_reduce,"
        " from crossed(), scenes.py:120",
        [(1, "order", "second", "all_reduce", 1, "crossed")],
    ),
    "dataloader": (
        "rank 1 has not entered all_reduce #5 of default_pg; it waits for its DataLoader in"
        " dataloader(), scenes.py:198",
        [(1, "dataloader", "default_pg", "all_reduce", 5, "dataloader")],
    ),
    "dtypes": (
        "rank 2 issued all_reduce of Int as #4 of default_pg where ranks 0-1 issued all_reduce of"
        f" Float; {IN} compute(), scenes.py:39",
        [(2, "mismatch", "default_pg", "all_reduce", 4, "compute")],
    ),
    "gave_up": (
        "rank 2 has not entered all_reduce #5 of default_pg;"
        f" {IN} wait_for_the_end(), scenes.py:238",
        [(2, "behind", "default_pg", "all_reduce", 5, "wait_for_the_end")],
    ),
    "gil": (
        "rank 1 has not entered all_reduce #4 of default_pg; it holds the GIL in gil(),"
        " scenes.py:170",
        [(1, "gil held", "default_pg", "all_reduce", 4, "gil")],
    ),
    "lock": (
        "rank 1 has not entered all_reduce #4 of default_pg; it waits for a lock or a condition in"
        " lock(), scenes.py:180",
        [(1, "lock", "default_pg", "all_reduce", 4, "lock")],
    ),
    "mixture": (
        f"rank 1 has not entered barrier #17 of default_pg; {IN} compute(), scenes.py:39",
        [(1, "behind", "default_pg", "barrier", 17, "compute")],
    ),
    "operations": (
        "rank 1 issued broadcast as #4 of default_pg where ranks 0,2 issued all_reduce;"
        f" {IN} torch.distributed.broadcast, from operations(), scenes.py:93",
        [(1, "mismatch", "default_pg", "broadcast", 4, "operations")],
    ),
    "order": (
        "rank 1 issued all_gather as #4 of default_pg where ranks 0,2 issued all_reduce, in another"
        f" order; {IN} order(), scenes.py:109",
        [(1, "order", "default_pg", "all_gather", 4, "order")],
    ),
    "shapes": (
        "rank 2 issued all_reduce of [6] as #4 of default_pg where ranks 0-1 issued all_reduce of"
        f" [4]; {IN} torch.distributed.all_reduce, from shapes(), scenes.py:128",
        [(2, "mismatch", "default_pg", "all_reduce", 4, "shapes")],
    ),
    "stopped": (
        "rank 1 does not answer (timeout); ranks 0,2 wait for it in all_reduce #331 of default_pg",
        [(1, "unreachable", "default_pg", "all_reduce", 331, None)],
    ),
    "subgroup": (
        f"rank 1 has not entered all_reduce #2 of left; {IN} compute(), scenes.py:39",
        [(1, "behind", "left", "all_reduce", 2, "compute")],
    ),
    "swallowed": (
        "rank 2 issued barrier as #8 of default_pg where ranks 0-1 issued all_reduce, a step ahead"
        f" (8, not 7): it has left out a collective; {IN} torch.distributed.barrier,"
        " from evaluate(), scenes.py:219",
        [(2, "swallowed", "default_pg", "barrier", 8, "evaluate")],
    ),
    "two_asleep": (
        "rank 3 has not entered all_reduce #6 of default_pg; it waits for a lock or a condition in"
        " two_asleep(), scenes.py:85. Rank 1 has not entered all_reduce #6 of default_pg;"
        f" {IN} compute(), scenes.py:39. Rank 2 does not answer (timeout); rank 0 waits for it in"
        " all_reduce #6 of default_pg",
        [
            (3, "lock", "default_pg", "all_reduce", 6, "two_asleep"),
            (1, "behind", "default_pg", "all_reduce", 6, "compute"),
            (2, "unreachable", "default_pg", "all_reduce", 6, None),
        ],
    ),
    "unwaited": (
        f"rank 1 has not entered all_reduce #5 of default_pg; {IN} compute(), scenes.py:39",
        [(1, "behind", "default_pg", "all_reduce", 5, "compute")],
    ),
}


def suspects(verdict: Verdict) -> list[tuple[Any, ...]]:
    return [
        (
            each.rank,
            each.reason,
            each.process_group,
            each.collective,
            each.seq,
            each.location.function if each.location is not None else None,
        )
        for each in verdict.suspects
    ]


@pytest.mark.parametrize("scene", sorted(VERDICTS))
def test_recorded_faults(scene: str) -> None:
    verdict = diagnose(rounds(f"{scene}-ours"), size(f"{scene}-ours"))
    assert (verdict.sentence, suspects(verdict)) == VERDICTS[scene]
    assert verdict.status == 1
    assert verdict.problems == ()


@pytest.mark.parametrize("rounds_", [1, 2])
def test_most_ranks_in_a_recv_are_not_accused(rounds_: int) -> None:
    """No recorder of gloo's holds it, and its peer isn't known: they may be the victims."""
    verdict = diagnose(rounds("receive-ours")[-rounds_:])
    assert (verdict.status, verdict.suspects) == (2, ())
    assert "ranks 0-1 have not entered all_reduce #4 of default_pg" in verdict.sentence
    assert "and may themselves wait for other ranks, in what no recorder holds" in verdict.sentence
    assert verdict.again_s is not None


#: In these, the recorder of the rank that holds the GIL can't be read.
@pytest.mark.parametrize("scene", sorted(set(VERDICTS) - {"gil"}))
def test_summaries_alone_are_enough(scene: str) -> None:
    given = without_traces(rounds(f"{scene}-ours"))
    verdict = diagnose(given)
    assert suspects(verdict) == VERDICTS[scene][1]
    assert verdict.sentence == VERDICTS[scene][0]


def test_gil_holder_without_a_word_of_its_recorder() -> None:
    verdict = diagnose(without_traces(rounds("gil-ours")), 3)
    assert verdict.sentence == (
        "rank 1 has not come to all_reduce #4 of default_pg, it seems (its recorder gave no"
        " answer); it holds the GIL in gil(), scenes.py:170"
    )
    (suspect,) = verdict.suspects
    assert suspect.gil_holder
    assert "the GIL is held, for 4.8 s, by MainThread in gil(), scenes.py:170" in suspect.evidence


#: One look can't tell these from a lock.
ONE_ROUND = {"lock": "behind"}


@pytest.mark.parametrize("scene", sorted(set(VERDICTS) - {"two_asleep"}))
def test_one_round_is_enough_where_ages_tell(scene: str) -> None:
    verdict = diagnose(rounds(f"{scene}-ours")[-1:])
    expected = [each[0] for each in VERDICTS[scene][1]]
    assert [each.rank for each in verdict.suspects] == expected
    reasons = {each.reason for each in verdict.suspects}
    assert reasons == {ONE_ROUND.get(scene, VERDICTS[scene][1][0][1])}


#: Without heartbeats, no step shows that a rank has left out a collective. And nothing says who
#: holds the GIL, because even the stacks are missing.
STOCK = {
    "swallowed": (
        1,
        "rank 2 issued barrier as #8 of default_pg where ranks 0-1 issued all_reduce;"
        f" {IN} torch.distributed.barrier, from evaluate(), scenes.py:219",
    ),
    "gil": (1, "rank 1 has not entered all_reduce #4 of default_pg"),
    # torch doesn't record the ranks of gloo's groups.
    "crossed": (
        2,
        "could not tell: its known ranks have entered all_reduce #1 of first, which does not end"
        " (ranks 0,2 in it); its known ranks have entered all_reduce #1 of second, which does not"
        " end (rank 1 in it)",
    ),
    "healthy": (0, "no rank is stuck"),
    "stopped": (
        1,
        "rank 1 does not answer (timeout); ranks 0,2 wait for it in all_reduce #326 of default_pg",
    ),
    "straggler": (0, "no rank is stuck"),
}


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("-torch")])
def test_stock_workers(name: str) -> None:
    scene = name.removesuffix("-torch")
    verdict = diagnose(rounds(name), size(name))
    status, sentence = STOCK.get(scene) or (1, VERDICTS[scene][0])
    assert (verdict.status, verdict.sentence) == (status, sentence)


@pytest.mark.parametrize("last", [1, 2])
@pytest.mark.parametrize("traces", [True, False])
def test_healthy_job(last: int, traces: bool) -> None:
    given = rounds("healthy-ours")[-last:]
    verdict = diagnose(given if traces else without_traces(given), 3)
    assert (verdict.status, verdict.suspects, verdict.stragglers) == (0, (), ())
    assert verdict.sentence == "no rank is stuck; at steps 368 to 371"
    assert (verdict.ranks, verdict.responded, verdict.unreachable) == (3, 3, ())


@pytest.mark.parametrize("last", [1, 2])
def test_six_operations_make_no_straggler(last: int) -> None:
    """Rank 1 came last to all of them. Of three equal ranks one does in 243 jobs."""
    verdict = diagnose(rounds("straggler-ours")[-last:], 3)
    assert (verdict.status, verdict.suspects, verdict.stragglers) == (0, (), ())
    assert verdict.sentence == "no rank is stuck; at step 6"


def longer(flight: Any, like: Any, late_ns: int) -> Any:
    """*flight* with 60 more operations before its first one, each *late_ns* after the moment that
    follows from the trace *like*."""
    flight = copy.deepcopy(flight)
    known = like["entries"][0]
    first = flight["entries"][0]
    for entry in flight["entries"]:
        entry["record_id"] += 60
    earlier = []
    for ago in range(60, 0, -1):
        seq = first["collective_seq_id"] - ago
        came = known["time_created_ns"] + (seq - known["collective_seq_id"]) * 15_000_000 + late_ns
        changed = {"collective_seq_id": seq, "time_created_ns": came}
        earlier.append({**first, **changed, "record_id": first["record_id"] - ago})
    flight["entries"][:0] = earlier
    return flight


def test_straggler_is_slow_not_stuck() -> None:
    given = rounds("healthy-ours")[-2:]
    like = given[-1].states[0].flight
    for state, late_ns in zip(given[-1].states, (0, 4_000_000, 1000), strict=True):
        state.flight = longer(state.flight, like, late_ns)
    verdict = diagnose(given, 3)
    assert (verdict.status, verdict.suspects) == (0, ())
    (slow,) = verdict.stragglers
    assert (slow.rank, slow.process_group, slow.share > 0.9) == (1, "default_pg", True)
    assert slow.text == (
        f"rank 1 is slow: it came last in {slow.share * 100:.0f} % of the last 58 all_reduces,"
        " by 4 ms (median)"
    )
    assert slow.text in verdict.sentence
    for state in given[-1].states:  # of one rank there is no trace: nobody is compared
        if state.rank == 2:
            state.flight = None
    assert diagnose(given, 3).stragglers == ()
    known = diagnose(given, 3, slow=[Slow(2, "default_pg", 0.4, 500, 500, "all_reduce", 0.61)])
    assert [each.text for each in known.stragglers] == [
        "rank 2 is slow: it came last in 61 % of the last 500 all_reduces, by 0.4 s (median)"
    ]


def test_as_json() -> None:
    verdict = verdict_dict(diagnose(rounds("asleep-ours"), 4))
    assert json.loads(json.dumps(verdict)) == verdict
    (suspect,) = verdict.pop("suspects")
    evidence = suspect.pop("evidence")
    assert suspect == {
        "rank": 2,
        "host": None,
        "address": "/run/rank2.sock",
        "reason": "behind",
        "process_group": "default_pg",
        "collective": "all_reduce",
        "seq": 6,
        "location": "/home/user/scenes.py:39 compute",
        "call": "sleep",
        "gil_holder": False,
        "step": 5,
        "step_age_s": 6.491528,
        "waits_for": None,
        "deadlock": [],
    }
    assert evidence == [
        "ranks 0-1,3 wait for it in all_reduce #6 of default_pg, for 6.5 s",
        "its last operation of default_pg: all_reduce #5, ended",
        "main thread: compute(), scenes.py:39 < asleep(), scenes.py:64 < main(), scenes.py:282"
        " < <module>, scenes.py:288",
        "in the kernel: hrtimer_nanosleep",
        "at the same line in two rounds, 1.5 s apart",
        "last heartbeat: step 5, 6.5 s ago",
    ]
    (small, large) = verdict.pop("groups")
    assert (small["ranks"], small["count"], large["ranks"], large["count"]) == ("2", 1, "0-1,3", 3)
    assert small["stack"][0] == "/home/user/scenes.py:39 compute"
    assert verdict == {
        "verdict": VERDICTS["asleep"][0],
        "status": 1,
        "ranks": 4,
        "responded": 4,
        "unreachable": [],
        "stragglers": [],
        "problems": [],
        "progress": [],
        "again_s": None,
        "not_looked_at": [],
        "process_groups": [
            {
                "name": "0",
                "desc": "default_pg",
                "backend": "gloo",
                "ranks": "0-3",
                "complete": True,
                "positions": [
                    {
                        "ranks": "0-1,3",
                        "last_issued": {"collective": "all_reduce", "seq": 6},
                        "last_retired": {"collective": "all_reduce", "seq": 5},
                    },
                    {
                        "ranks": "2",
                        "last_issued": {"collective": "all_reduce", "seq": 5},
                        "last_retired": {"collective": "all_reduce", "seq": 5},
                    },
                ],
                "waits": [
                    {
                        "collective": "all_reduce",
                        "seq": 6,
                        "waiting": "0-1,3",
                        "absent": "2",
                        "silent": "",
                        "hangs": True,
                    }
                ],
                "mismatch": None,
            }
        ],
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_answers_changes_no_byte(name: str) -> None:
    plain = json.dumps(verdict_dict(diagnose(rounds(name), size(name))))
    for seed in range(3):
        given = rounds(name)
        for each in given:
            random.Random(seed).shuffle(each.states)
        assert json.dumps(verdict_dict(diagnose(given, size(name)))) == plain
