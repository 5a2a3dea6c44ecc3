"""Summaries that are equal but for ranks and times are one shape, and are read as if each was read
by itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from workerserver.cluster.judge.flight import Analysis, combine
from workerserver.cluster.read.columns.rows import Part, Records, Row
from workerserver.cluster.read.columns.summaries import FIRST_TIME, Summary, summary_of
from workerserver.cluster.read.flight_records import read, read_shape
from workerserver.cluster.read.recorder import RankRecord, Shared
from workerserver.cluster.read.summary import positions, rank_of, recorders

NOW = 1_795_951_236_760_866_964
RANKS = 12


def operation(seq: int, created: int | None, *, done: bool, op: str, p2p: bool) -> dict[str, Any]:
    return {
        "seq": seq,
        "p2p_seq": seq if p2p else 0,
        "p2p": p2p,
        "op": op,
        "state": "completed" if done else "scheduled",
        "retired": done,
        "input_sizes": [[4, 4]],
        "input_dtypes": ["Float"],
        "output_sizes": [[4, 4]],
        "created_ns": created,
        "started_ns": None,
        "completed_ns": created + 7 if created and done else None,
    }


def told(rank: int, behind: bool = False, *, backend: str = "gloo", p2p: bool = False) -> bytes:
    """A summary as our workers send it. Times differ on each rank."""
    late = NOW + rank * 1_000_003
    name = f"{backend}:send {rank}->{(rank + 1) % RANKS}" if p2p else f"{backend}:all_reduce"
    ended = operation(64, late, done=True, op=name, p2p=p2p)
    issued = ended if behind else operation(65, late + 5_000_000, done=False, op=name, p2p=p2p)
    group = {
        "recorder": "nccl" if backend == "nccl" else "fr",
        "id": 0,
        "name": "0",
        "desc": "default_pg",
        "ranks": f"0-{RANKS - 1}",
        "status": {"enqueued": 64, "started": -1, "completed": 64},
        "pending": int(not behind),
        "last_issued": issued,
        "last_retired": ended,
        "first_pending": None if behind else issued,
        "backend": backend,
    }
    fields = {"rank": rank, "version": "2.10", "groups": [group]}
    return json.dumps(fields, separators=(",", ":")).encode()


def row(body: bytes) -> Summary:
    found = summary_of(body)
    assert isinstance(found, Summary)
    return found


def test_equal_but_for_rank_and_times_is_one_shape() -> None:
    shapes = {id(row(told(rank, rank == 3)).shape) for rank in range(RANKS)}
    assert len(shapes) == 2
    assert row(told(0)).times == (NOW + 5_000_000, NOW, NOW + 7)
    assert row(told(0)) == row(told(0))
    assert row(told(0)) != row(told(1))


def test_nothing_is_lost() -> None:
    for rank in range(RANKS):
        body = told(rank, rank == 3)
        summary = row(body)
        assert summary == json.loads(body)
        assert dict(summary) == json.loads(body)
        assert list(summary) == ["rank", "version", "groups"]
        assert len(summary) == 3
        assert rank_of(summary) == rank
        assert recorders(summary) == recorders(json.loads(body)) == {"gloo"}
        assert [*positions(summary)] == [*positions(json.loads(body))]


#: What is no summary of ours, but JSON: nothing in it may be taken for a time or for the rank.
STRANGE = [
    b"{}",
    b'{"rank":3}',
    b'{"rank":12345678,"a":1}',
    b'{"rank":null,"groups":[]}',
    b'{"rank":3,"rank":4}',
    b'{"rank":3,"a_ns":1,"rank":4}',
    b'{"rank":3,"a":4611686018427387904,"b_ns":5}',
    b'{"rank":3,"a":{"b_ns":0},"c_ns":-1,"d_ns":1.5,"e_ns":2e3,"f_ns":12345678901234567890}',
    b'{"rank":3,"a":"\\"created_ns\\":7,","created_ns":8}',
    b'{"rank":3,"\\"created_ns":7,"created_ns":7}',
    b' {"rank":3,"created_ns":8 }\n',
    b'{"rank":3,"created_ns":8,"created_ns":9}',
    '{"rank":3,"created_ns":8,"a":"\N{SNOWMAN}"}'.encode(),
]


@pytest.mark.parametrize("body", STRANGE)
def test_strange_summaries(body: bytes) -> None:
    summary = summary_of(body)
    assert summary == json.loads(body)
    assert dict(summary) == json.loads(body)
    assert summary.get("rank") == json.loads(body).get("rank")
    assert bool(summary) == bool(json.loads(body))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "not JSON"),
        (b'{"rank":3,"a_ns":5', "not JSON"),
        (b'{"rank":03,"a":1}', "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"rank":3,"a":NaN}', "NaN is no JSON"),
        (b'{"rank":3,"a":"\xff"}', "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_no_summaries(body: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        summary_of(body)


def test_a_time_that_could_be_a_number_of_a_time_stays_itself() -> None:
    body = told(0).replace(str(NOW + 5_000_000).encode(), str(FIRST_TIME).encode())
    summary = summary_of(body)
    assert summary == json.loads(body)
    (group,) = read(None, summary).groups.values()
    assert group.collectives[65][0].created_ns == FIRST_TIME


def test_a_row_has_the_record_of_each_rank() -> None:
    shared = Shared()
    for rank in range(RANKS):
        body = told(rank, rank == 3)
        summary = row(body)
        assert read(None, summary, shared) == read(None, json.loads(body), shared)
        assert read_shape(summary.shape, shared) is read_shape(summary.shape, shared)


JOBS = {
    "gloo": [told(rank, rank == 3) for rank in range(RANKS)],
    "nccl": [told(rank, rank in (3, 4), backend="nccl") for rank in range(RANKS)],
    "p2p": [told(rank, rank == 3, backend="nccl", p2p=True) for rank in range(RANKS)],
    "moves": [told(rank, behind=True) for rank in range(RANKS)],
    "strange": [*STRANGE[:5], *(told(rank, rank == 7) for rank in range(5, RANKS))],
}


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("size", [None, RANKS + 2])
def test_rows_are_judged_as_each_rank_by_itself(job: str, size: int | None) -> None:
    shared = Shared()
    alone: dict[int, RankRecord] = {}
    rows: dict[int, Row] = {}
    for rank, body in enumerate(JOBS[job]):
        alone[rank] = read(None, json.loads(body), shared)
        summary = summary_of(body)
        if not isinstance(summary, Summary):
            rows[rank] = Row(alone[rank], [rank])
            continue
        first = next(
            (
                each
                for each in rows.values()
                if each.times is not None and each.record is read_shape(summary.shape, shared)
            ),
            None,
        )
        if first is None:
            first = rows[rank] = Row(read_shape(summary.shape, shared), [], {})
        assert isinstance(first.ranks, list)
        assert isinstance(first.times, dict)
        first.ranks.append(rank)
        first.times[rank] = summary.times
    together = Records(list(rows.values()))
    assert len(together.rows) < len(alone) or job == "p2p"
    assert dict(together) == alone
    assert described(combine(together, size)) == described(combine(alone, size))


def described(analysis: Analysis) -> list[Any]:
    groups = [
        (group.key, group.ranks, group.complete, dict(group.records), group.one_of, group.lossy)
        for group in analysis.groups
    ]
    waits = [
        (wait.name, wait.waiting, wait.absent, wait.silent, wait.since_ns, wait.queued)
        for wait in analysis.waits
    ]
    mismatches = [(each.seq, each.kind, each.parties) for each in analysis.mismatches]
    rest = [analysis.cycles, analysis.recorded, analysis.problems]
    return [groups, waits, mismatches, *rest]


def test_members_are_a_mapping() -> None:
    (group,) = combine({0: read(None, json.loads(told(0)))}).groups
    (part,) = group.parts
    assert isinstance(part, Part)
    assert 0 in group.records
    assert 1 not in group.records
    assert group.records.get(1) is None
    assert len(group.records) == 1
