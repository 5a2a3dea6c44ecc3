"""torch's dumps beside black boxes: the later one counts of each rank."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.boxes.made import STARTED, put_box, stacks_of
from support.jobs.flight_entries import entry, pending, trace

from workerserver.cli import main

TORCH = "/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py"
WAITS = stacks_of((TORCH, 3000, "all_reduce"), ("/job/t.py", 12, "main"))
STANDS = stacks_of(("/job/data.py", 33, "load_batch"), ("/job/t.py", 9, "main"))
RANKS = 3
#: What no stack tells.
ENTERED = "rank 2 has not entered all_reduce #4 of default_pg"
Told = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def diagnosed(capsys: pytest.CaptureFixture[str]) -> Told:
    def ask(*words: object) -> tuple[int, dict[str, Any]]:
        status = main(["diagnose", "--json", *map(str, words)])
        return status, json.loads(capsys.readouterr().out)

    return ask


def put_boxes(folder: Path, seqs: Mapping[int, int] | None = None, until: float = 401.0) -> None:
    """Of ranks that SIGTERM has ended at second 410, when rank 2 stood in a function of its own.
    *seqs*: what each box's recorder has issued last, and waits in, as recorded *until* a second."""
    for rank in range(RANKS):
        health = {"status": "ok", "pid": 4711, "rank": rank, "world_size": RANKS, "step": 7}
        records: list[Any] = []
        for after in (100.0, 400.0):
            aged = {**health, "step_age_s": after - 10, "step_median_s": 0.1, "uptime_s": after}
            records.append(("state", after, {"health": aged, "files": {}}))
            records.append(("stacks", after, STANDS if rank == 2 else WAITS))
        if seqs is not None:
            operation = {"seq": seqs[rank], "op": "nccl:all_reduce"}
            group = {
                "name": "0",
                "desc": "default_pg",
                "ranks": list(range(RANKS)),
                "pending": 1,
                "last_issued": operation,
                "first_pending": operation,
                "last_completed": {**operation, "seq": seqs[rank] - 1},
            }
            told = {"since": STARTED + until - 5, "left_out": 0}
            summary = {"rank": rank, "version": "2.10", "groups": [group]}
            records.append(("recorder", until, {**told, "summary": summary}))
        sent = {"why": "signal", "signal": 15, "pid": 99, "thread": 4711, "time": STARTED + 410}
        gone = {"copied": 1.0, "ended": STARTED + 410.5, "wait_status": 15, "oom_kills": 0}
        put_box(folder, rank, *records, ("end", 410.0, sent), ("keeper", 411.0, gone))


def put_dumps(prefix: Path, began: float = STARTED) -> None:
    """Rank 2 has not come to #4, in which the others wait since second 10."""
    for rank in range(RANKS):
        made = [entry(n, n + 1, time_created_ns=int((began + n) * 1e9)) for n in range(3)]
        if rank != 2:
            made.append(pending(3, 4, time_created_ns=int((began + 10) * 1e9)))
        path = prefix.parent / f"{prefix.name}{rank}"
        path.write_bytes(pickle.dumps(trace(*made), protocol=2))
        os.utime(path, (began + 405, began + 405))


def notes(told: dict[str, Any], words: str) -> list[str]:
    return [line for line in told["notes"] if words in line]


@pytest.mark.parametrize("apart", [False, True])
def test_a_box_without_a_recorder_takes_the_dump(
    apart: bool, tmp_path: Path, diagnosed: Told
) -> None:
    """Whether the dumps lie in the folder of the boxes, or are named beside it."""
    boxes = tmp_path / "boxes"
    boxes.mkdir()
    put_boxes(boxes)
    _, told = diagnosed(boxes)
    assert ENTERED not in told["verdict"]
    assert told["notes"] == []
    prefix = tmp_path / "trace_" if apart else boxes / "trace_"
    put_dumps(prefix)
    (boxes / "verdict-20260101T000000Z-train@node7-4711.json").write_text("{}")
    status, told = diagnosed(boxes, *([prefix] if apart else []))
    assert status == 1, told["verdict"]
    assert ENTERED in told["verdict"]
    assert notes(told, "torch's dumps count of ranks 0-2: they are later")


@pytest.mark.parametrize(
    ("seqs", "until", "words"),
    [
        # Rank 2 has come after the dump.
        ({0: 4, 1: 4, 2: 4}, 401.0, "the black boxes count of ranks 0-2"),
        # An earlier pause was recorded, and the job went on.
        ({0: 3, 1: 3, 2: 2}, 9.0, "torch's dumps count of ranks 0-2"),
    ],
)
def test_the_later_one_counts(
    seqs: Mapping[int, int], until: float, words: str, tmp_path: Path, diagnosed: Told
) -> None:
    put_boxes(tmp_path, seqs, until)
    put_dumps(tmp_path / "trace_")
    status, told = diagnosed(tmp_path)
    assert notes(told, words), told["notes"]
    assert (ENTERED in told["verdict"]) is ("dumps count" in words), (status, told["verdict"])


def test_a_dump_of_another_run_does_not_count(tmp_path: Path, diagnosed: Told) -> None:
    put_boxes(tmp_path)
    put_dumps(tmp_path / "trace_", STARTED - 100_000)
    _, told = diagnosed(tmp_path)
    assert ENTERED not in told["verdict"]
    assert notes(told, "torch's dumps of ranks 0-2 are not counted: no operation in them")


def test_of_several_prefixes_none_counts(tmp_path: Path, diagnosed: Told) -> None:
    put_boxes(tmp_path)
    for name in ("old_", "trace_"):
        put_dumps(tmp_path / name)
    _, told = diagnosed(tmp_path)
    assert told["notes"] == []
    assert ENTERED not in told["verdict"]
    status, told = diagnosed(tmp_path, tmp_path / "trace_")
    assert status == 1, told["verdict"]
    assert ENTERED in told["verdict"]
