"""What flight recorders say together: on recordings of real gloo jobs, and on synthetic entries in
NCCL's documented format for what gloo doesn't record (point-to-point, coalesced, started)."""

from __future__ import annotations

import copy
import json
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.jobs.flight_entries import entry, json_values, peer, pending, trace
from support.jobs.recordings import NAMES, flights, recording

from workerserver.cluster.judge.flight import Analysis, analyse
from workerserver.cluster.judge.waits import Need, resolve, terminals
from workerserver.cluster.read import flight_records
from workerserver.cluster.read.flight_records import read
from workerserver.cluster.read.recorder import MAX_RANKS, Key, Shared

GLOO = Key("0", "default_pg", "gloo")
NCCL = Key("0", "default_pg", "nccl")


def waits(analysis: Analysis) -> list[tuple[str, str, tuple[int, ...], tuple[int, ...]]]:
    return [(each.group.label, each.name, each.waiting, each.absent) for each in analysis.waits]


def mismatches(analysis: Analysis) -> list[tuple[str, int, str, tuple[int, ...]]]:
    return [(each.group.label, each.seq, each.kind, each.suspects) for each in analysis.mismatches]


# --- recordings ---------------------------------------------------------------------------------

#: For each scene: which ranks wait for which ranks, where, and what differs. torch's workers give
#: no summary. So the known members of a group are the ranks that have issued an operation.
FOUND: dict[str, tuple[list[Any], list[Any]]] = {
    "asleep": ([("default_pg", "all_reduce #6", (0, 1, 3), (2,))], []),
    "crossed": (
        [("first", "all_reduce #1", (0, 2), (1,)), ("second", "all_reduce #1", (1,), (0, 2))],
        [],
    ),
    "dataloader": ([("default_pg", "all_reduce #5", (0,), (1,))], []),
    "dtypes": ([], [("default_pg", 4, "dtype", (2,))]),
    "gave_up": ([("default_pg", "all_reduce #5", (0, 1), (2,))], []),
    "gil": ([("default_pg", "all_reduce #4", (0, 2), (1,))], []),
    "lock": ([("default_pg", "all_reduce #4", (0, 2), (1,))], []),
    "mixture": ([("default_pg", "barrier #17", (0,), (1,))], []),
    "operations": (
        [("default_pg", "all_reduce #4", (0, 1, 2), ())],
        [("default_pg", 4, "operation", (1,))],
    ),
    "order": (
        [("default_pg", "all_reduce #4", (0, 1, 2), ())],
        [("default_pg", 4, "order", (1,))],
    ),
    "receive": ([("default_pg", "all_reduce #4", (2,), (0, 1))], []),
    "shapes": (
        [("default_pg", "all_reduce #4", (2,), ())],
        [("default_pg", 4, "size", (2,))],
    ),
    "subgroup": (
        [
            ("default_pg", "all_reduce #4", (2, 3), (0, 1)),
            ("left", "all_reduce #2", (0,), (1,)),
        ],
        [],
    ),
    "swallowed": (
        [("default_pg", "all_reduce #8", (0, 1, 2), ())],
        [("default_pg", 8, "operation", (2,))],
    ),
    "unwaited": ([("default_pg", "all_reduce #5", (0,), (1,))], []),
}


def both(name: str) -> Analysis:
    ranks = recording(name)["rounds"][-1]["ranks"]
    summaries = {
        rank: answers["fr_summary"]
        for rank, answers in enumerate(ranks)
        if "failure" not in answers.get("fr_summary", {"failure": ""})
    }
    return analyse(flights(name), len(ranks), summaries)


@pytest.mark.parametrize("scene", sorted(FOUND))
def test_recordings(scene: str) -> None:
    analysis = both(f"{scene}-ours")
    assert (waits(analysis), mismatches(analysis)) == FOUND[scene]
    assert analysis.problems == {}


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("-torch")])
def test_stock_workers_tell_the_same_of_the_default_group(name: str) -> None:
    scene = name.removesuffix("-torch")
    if scene not in FOUND:
        pytest.skip("the job moves, or a rank is missing")
    analysis = both(name)
    expected = [each for each in FOUND[scene][0] if each[0] == "default_pg"]
    assert [each for each in waits(analysis) if each[0] == "default_pg"] == expected
    assert mismatches(analysis) == FOUND[scene][1]


def test_ranks_in_order_wait_for_each_other_across_groups() -> None:
    assert both("crossed-ours").cycles == ((0, 1, 2),)
    assert both("crossed-ours").behind() == {}


def test_who_waits_in_a_subgroup_is_a_victim() -> None:
    behind = both("subgroup-ours").behind()
    assert {rank: [wait.group.label for wait in each] for rank, each in behind.items()} == {
        1: ["default_pg", "left"]
    }


def test_a_rank_without_an_answer_is_silent_not_absent() -> None:
    analysis = both("stopped-ours")
    (wait,) = analysis.waits
    assert (wait.waiting, wait.absent, wait.silent) == ((0, 2), (), (1,))
    assert list(analysis.behind()) == [1]


def test_last_issued_and_last_retired() -> None:
    (group,) = both("unwaited-ours").groups
    record = group.records[0]
    assert record.last_issued is not None
    assert record.last_retired is not None
    assert record.first_pending is not None
    assert (record.last_issued.name, record.last_retired.name) == ("all_reduce #6", "all_reduce #4")
    assert record.first_pending.name == "all_reduce #5"
    assert (group.key, group.ranks, group.complete) == (GLOO, (0, 1), True)


# --- torch's own analyser -----------------------------------------------------------------------

KINDS = {
    "COLLECTIVE_TYPE_MISMATCH": ("operation", "order"),
    "SIZE_OR_SYNTAX_MISMATCH": ("size",),
    "COLLECTIVE_DTYPE_MISMATCH": ("dtype",),
}


def torchs_verdict(name: str) -> dict[str, Any]:
    """By group: the first operation that torch's analyser finds wrong, and the kind of mistake."""
    from torch.distributed.flight_recorder.components import builder, utils

    traces = flights(name)
    members: dict[str, tuple[str, set[int]]] = {}
    for answers in recording(name)["rounds"][-1]["ranks"]:
        for group in answers["fr_summary"].get("groups", ()):
            members[group["name"]] = (group["desc"], set(group["ranks"]))
    config = {
        rank: {
            pg: {"name": pg, "desc": desc, "ranks": str(sorted(ranks))}
            for pg, (desc, ranks) in members.items()
            if rank in ranks
        }
        for rank in traces
    }
    entries = {rank: copy.deepcopy(each["entries"]) for rank, each in traces.items()}
    entries = utils.align_trace_from_beginning(entries)
    _, groups, _, memberships, guids = builder.build_groups_memberships(config)
    try:
        _, collectives, _ = builder.build_collectives(entries, groups, memberships, guids, "2.10")
    except AssertionError as error:
        if "name formatting error" in str(error):
            pytest.skip("this torch's analyser knows no operations of gloo")  # 2.10
        raise
    found: dict[str, Any] = {}
    for each in sorted(collectives, key=lambda one: one.collective_seq_id):
        label = each.pg_desc.partition(":")[2]
        if label in found:
            continue
        if each.missing_ranks:
            found[label] = (each.collective_seq_id, "missing", set(each.missing_ranks))
        elif each.mismatch_collectives:
            states = {one.type_of_mismatch.state.name for one in each.mismatch_collectives.values()}
            found[label] = (each.collective_seq_id, *sorted(states))
    return found


@pytest.mark.torch
@pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")
@pytest.mark.parametrize("scene", sorted(set(FOUND) - {"gil"}))
def test_torchs_own_analyser_says_the_same(scene: str) -> None:
    pytest.importorskip("torch.distributed.flight_recorder.components.builder")
    theirs = torchs_verdict(f"{scene}-ours")
    ours = both(f"{scene}-ours")
    labels = set()
    for mismatch in ours.mismatches:
        labels.add(mismatch.group.label)
        seq, state = theirs[mismatch.group.label]
        assert seq == mismatch.seq
        assert mismatch.kind in KINDS[state]
    for wait in ours.waits:
        if wait.absent:
            labels.add(wait.group.label)
            assert theirs[wait.group.label] == (wait.seq, "missing", set(wait.absent))
    assert set(theirs) == labels


# --- NCCL's format ------------------------------------------------------------------------------


def test_completed_but_not_yet_retired_is_done_and_retired_but_not_completed_is_not() -> None:
    (group,) = analyse(
        {
            0: trace(entry(0, 1, retired=False), pending(1, 2, retired=True)),
            1: trace(entry(0, 1), pending(1, 2)),
        },
    ).groups
    first = group.records[0].first_pending
    assert first is not None
    assert first.seq == 2


def test_ranks_come_from_the_configuration() -> None:
    analysis = analyse({0: trace(entry(0, 1), pending(1, 2)), 1: trace(entry(0, 1))})
    (wait,) = analysis.waits
    assert (wait.waiting, wait.absent, wait.silent) == ((0,), (1,), (2,))


def test_member_that_has_issued_nothing_yet() -> None:
    flights = {0: trace(pending(0, 1)), 1: trace(pending(0, 1)), 2: trace()}
    (wait,) = analyse(flights).waits
    assert (wait.name, wait.waiting, wait.absent) == ("all_reduce #1", (0, 1), (2,))


def test_recorder_that_is_switched_off_is_silent_not_absent() -> None:
    """Others have ended operations with it, so it has issued some."""
    flights = {rank: trace(entry(0, 1), pending(1, 2)) for rank in (0, 1)}
    (wait,) = analyse({**flights, 2: {"version": "2.10", "pg_config": {}}}, 3).waits
    assert (wait.absent, wait.silent) == ((), (2,))
    status = {"0": {"last_enqueued_collective": "7"}}
    (wait,) = analyse(
        {0: trace(pending(0, 1)), 1: trace(pending(0, 1)), 2: trace(pg_status=status)}
    ).waits
    assert (wait.absent, wait.silent) == ((), (2,))


def test_overwritten_entries_do_not_look_like_a_mismatch() -> None:
    """The ring begins at another place on each rank, even within a coalesced operation."""
    first = [entry(8, 5, "all_reduce"), entry(9, 5, "broadcast"), entry(10, 6)]
    flights = {0: trace(*first), 1: trace(*first[1:]), 2: trace(first[2])}
    assert analyse(flights).mismatches == ()


def test_coalesced_operations_are_compared_as_a_whole() -> None:
    alike = [entry(0, 1, "all_reduce"), entry(1, 1, "broadcast"), entry(2, 1, "coalesced")]
    other = [entry(0, 1, "all_reduce"), entry(1, 1, "reduce"), entry(2, 1, "coalesced")]
    analysis = analyse({0: trace(*alike), 1: trace(*alike), 2: trace(*other)})
    assert mismatches(analysis) == [("default_pg", 1, "operation", (2,))]


def test_summaries_know_only_a_part_of_a_coalesced_operation() -> None:
    alike = [entry(0, 1, "all_reduce"), entry(1, 1, "broadcast"), entry(2, 1, "coalesced")]
    last = {"seq": 1, "p2p_seq": 0, "p2p": False, "op": "nccl:coalesced", "state": "completed"}
    group = {"name": "0", "desc": "default_pg", "ranks": [0, 1], "last_issued": last}
    analysis = analyse({0: trace(*alike)}, 2, {1: {"groups": [group]}})
    assert analysis.mismatches == ()


def test_without_a_majority_everybody_is_suspect() -> None:
    flights = {0: trace(pending(0, 1, "all_reduce")), 1: trace(pending(0, 1, "broadcast"))}
    (mismatch,) = analyse(flights, 2).mismatches
    assert mismatch.suspects == (0, 1)
    assert mismatch.parties == (((0,), "all_reduce"), ((1,), "broadcast"))


def test_only_the_first_mismatch_of_a_group_is_told() -> None:
    flights = {
        0: trace(entry(0, 1, "broadcast"), entry(1, 2, "reduce")),
        1: trace(entry(0, 1), entry(1, 2)),
        2: trace(entry(0, 1), entry(1, 2)),
    }
    assert mismatches(analyse(flights)) == [("default_pg", 1, "operation", (0,))]


@pytest.mark.parametrize(
    "op", ["gather", "scatter", "all_to_all", "alltoall_base", "_all_gather_v"]
)
def test_operations_of_which_ranks_bring_different_sizes(op: str) -> None:
    root = entry(0, 1, op, input_sizes=[[4], [4]], output_sizes=[[4], [4]])
    rest = entry(0, 1, op, input_sizes=[[4], [4]], output_sizes=[[4], [4]])
    key = "output_sizes" if op == "gather" else "input_sizes"
    rest[key] = []
    assert analyse({0: trace(root), 1: trace(rest), 2: trace(rest)}).mismatches == ()


def test_equal_numbers_of_elements_in_other_shapes_are_no_mismatch() -> None:
    other: dict[str, Any] = {"input_sizes": [[2, 2]], "output_sizes": [[2, 2]]}
    assert analyse({0: trace(entry(0, 1)), 1: trace(entry(0, 1, **other))}).mismatches == ()


def test_groups_of_one_name_with_other_ranks_are_two() -> None:
    """As torch makes them by splitting."""
    left, right = trace(pending(0, 1), ranks="[0, 1]"), trace(pending(0, 2), ranks="[2, 3]")
    analysis = analyse({0: left, 1: left, 2: right, 3: right})
    assert [group.ranks for group in analysis.groups] == [(0, 1), (2, 3)]
    assert all(wait.absent == () for wait in analysis.waits)


def test_rank_that_lies_about_its_group_is_its_own_problem() -> None:
    honest = trace(pending(0, 1))
    analysis = analyse({0: honest, 1: honest, 2: trace(pending(0, 1), ranks="[1, 2]")})
    assert [group.ranks for group in analysis.groups] == [(0, 1, 2)]
    assert list(analysis.problems) == [2]
    assert "default_pg has ranks 1-2; others say otherwise" in analysis.problems[2][0]


# --- point-to-point, in NCCL's format ------------------------------------------------------------


def test_receives_from_each_other_are_a_cycle() -> None:
    analysis = analyse(
        {
            0: trace(peer(0, 1, "recv 0<-1")),
            1: trace(peer(0, 1, "recv 1<-0")),
            2: trace(),
        }
    )
    assert analysis.cycles == ((0, 1),)
    assert analysis.behind() == {}


def test_a_posted_send_meets_its_receive() -> None:
    flights = {0: trace(peer(0, 1, "send 0->1")), 1: trace(peer(0, 1, "recv 1<-0")), 2: trace()}
    assert analyse(flights).waits == ()


def test_a_chain_of_receives_leads_to_its_end() -> None:
    """A pipeline: each stage waits for the one before it, the first does something else."""
    flights = {rank: trace(peer(0, 1, f"recv {rank}<-{rank - 1}")) for rank in (1, 2)}
    analysis = analyse({0: trace(entry(0, 1)), **flights})
    assert {rank: each[0].name for rank, each in analysis.behind().items()} == {
        0: "recv from rank 0"
    }


def test_peers_are_ranks_within_the_group() -> None:
    stages = {"1": {"name": "1", "desc": "pp", "ranks": "[4, 8, 9]"}}
    waiting = peer(0, 1, "recv 1<-0", process_group=["1", "pp"])
    analysis = analyse({8: {"pg_config": stages, "entries": [waiting]}, 4: {"pg_config": stages}})
    assert waits(analysis) == [("pp", "recv from rank 4", (8,), (4,))]


def test_a_batch_waits_with_all_its_operations_and_later_ones_behind_it() -> None:
    batch = [peer(0, 1, "recv 0<-1"), peer(1, 1, "recv 0<-2"), peer(2, 1, "coalesced")]
    later = peer(3, 2, "recv 0<-1")
    names = [wait.name for wait in analyse({0: trace(*batch, later)}, 3).waits]
    assert names == ["recv from rank 1", "recv from rank 2"]


def test_a_peer_that_can_not_be_is_a_problem_of_that_rank() -> None:
    analysis = analyse({0: trace(peer(0, 1, "recv 0<-7")), 1: trace()})
    assert analysis.waits == ()
    assert analysis.problems == {0: ("recv 0<-7: no such ranks in default_pg",)}


# --- who waits for whom -------------------------------------------------------------------------


def test_terminals() -> None:
    assert terminals({1: [2], 2: [1], 3: [1], 4: []}) == [(1, 2), (4,)]
    assert terminals({number: [number + 1] for number in range(20_000)} | {20_000: []}) == [
        (20_000,)
    ]


def test_a_rank_that_is_known_to_do_something_else_breaks_the_ring() -> None:
    needs = [Need((0,), (1,)), Need((1,), (0,))]
    assert resolve(needs).rings == (((0, 1), (0, 1)),)
    assert resolve(needs, free={1}).ends == {1: (0,)}
    assert resolve(needs, unsure={1}).ends == {1: (0,)}
    assert resolve(needs, unsure={0, 1}).rings == (((0, 1), (0, 1)),)


def test_an_unsure_rank_counts_as_waiting_where_that_explains_it() -> None:
    needs = [Need((0,), (1,)), Need((1,), (2,))]
    assert resolve(needs, unsure={1}).ends == {2: (1,)}


# --- bad input ----------------------------------------------------------------------------------


@given(json_values, json_values, st.none() | st.integers(0, 5))
def test_no_json_makes_it_raise(flight: Any, summary: Any, size: int | None) -> None:
    good = trace(entry(0, 1), pending(1, 2))
    analysis = analyse({0: flight, 1: good}, size, {0: summary, 2: summary})
    assert 1 in analysis.recorded


def damage(value: Any, draw: st.DataObject) -> Any:
    """*value* with one of its parts replaced by something else."""
    if isinstance(value, dict) and value and draw.draw(st.integers(0, 9)):
        key = draw.draw(st.sampled_from(sorted(value)))
        return {**value, key: damage(value[key], draw)}
    if isinstance(value, list) and value and draw.draw(st.integers(0, 9)):
        index = draw.draw(st.integers(0, len(value) - 1))
        return [*value[:index], damage(value[index], draw), *value[index + 1 :]]
    return draw.draw(json_values)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.data())
def test_a_damaged_trace_is_one_ranks_problem(draw: st.DataObject) -> None:
    """The others' part of the finding stays as it is."""
    everybody = "[0, 1, 2, 3, 4]"
    honest = trace(entry(0, 1), pending(1, 2), ranks=everybody)
    flights = dict.fromkeys((0, 1, 3, 4), honest)
    damaged = damage(trace(entry(0, 1), entry(1, 2), ranks=everybody), draw)
    analysis = analyse({**flights, 2: damaged}, 5)
    assert {0, 1, 3, 4} <= analysis.recorded
    suspects = {rank for each in analysis.mismatches for rank in each.suspects}
    assert suspects <= {2}
    assert {rank for wait in analysis.waits for rank in (*wait.absent, *wait.silent)} <= {2}


@given(st.permutations(range(4)))
def test_the_order_of_answers_changes_nothing(order: list[int]) -> None:
    traces = flights("subgroup-ours")
    shuffled = analyse({rank: traces[rank] for rank in order}, 4)
    plain = analyse(traces, 4)
    assert waits(shuffled) == waits(plain)
    assert [group.key for group in shuffled.groups] == [group.key for group in plain.groups]


def test_counts_and_lengths_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight_records, "MAX_ENTRIES", 3)
    record = read({"entries": [entry(number, number) for number in range(5)]})
    assert list(record.groups[NCCL].collectives) == [2, 3, 4]
    assert record.problems == ["more than 3 entries: the first ones were left out"]
    monkeypatch.setattr(flight_records, "MAX_GROUPS", 1)
    record = read({"entries": [entry(0, 1), entry(1, 1, process_group=["1", "tp"])]})
    assert list(record.groups) == [NCCL]
    assert record.problems == ["more than 1 process groups"]
    assert read({"entries": [entry(0, 1, process_group=["x" * 10_000, ""])]}).groups == {}
    record = read({"entries": [entry(0, 1, input_sizes=[[1] * 1000])]})
    assert record.groups[NCCL].collectives[1][0].inputs.shapes is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"collective_seq_id": "7"}, "an entry without a sequence number or a name"),
        ({"collective_seq_id": True}, "an entry without a sequence number or a name"),
        ({"collective_seq_id": -1}, "an entry without a sequence number or a name"),
        ({"profiling_name": None}, "an entry without a sequence number or a name"),
        ({"process_group": "0"}, "an entry without a process group"),
    ],
)
def test_entry_with_a_wrong_field_is_left_out_and_named(change: Any, problem: str) -> None:
    record = read({"entries": [entry(0, 1, **change), entry(1, 2)]})
    assert list(record.groups[NCCL].collectives) == [2]
    assert record.problems == [problem]


def test_nesting_as_deep_as_json_goes() -> None:
    deep: Any = json.loads("[" * 900 + "]" * 900)
    assert read(deep, deep).problems == [
        "the summary has no list of groups",
        "the trace is no object",
    ]
    config = {"0": {"desc": "default_pg", "ranks": "[" * 100_000}}
    assert read({"pg_config": config}).groups == {}


def described(*ranks: str | list[int]) -> dict[str, Any]:
    groups = [
        {"name": str(number), "desc": "tp", "ranks": each} for number, each in enumerate(ranks)
    ]
    return {"groups": groups}


def test_packed_ranks_of_summaries() -> None:
    shared = Shared()
    record = read(None, described("0-6:2,9", [0, 2, 4, 6, 9]), shared)
    packed, listed = record.groups.values()
    assert packed.ranks == (0, 2, 4, 6, 9)
    assert packed.ranks is listed.ranks
    assert record.problems == []


def test_few_characters_are_no_endless_list() -> None:
    """A worker that names many huge groups costs one such list. Other workers' groups are kept."""
    shared = Shared()
    huge = read(None, described("0-4095", *(f"0-{MAX_RANKS - i}" for i in range(1, 99))), shared)
    known = [group.ranks for group in huge.groups.values() if group.ranks is not None]
    assert sum(map(len, known)) <= MAX_RANKS
    assert huge.problems == ["the ranks of a group can't be read, or are too many"]
    honest = read(None, described(f"0-{MAX_RANKS - 1}", "3", "x"), shared)
    first, second, third = honest.groups.values()
    assert (len(first.ranks or ()), second.ranks, third.ranks) == (MAX_RANKS, None, None)
