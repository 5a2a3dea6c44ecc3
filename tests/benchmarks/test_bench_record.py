"""The suite record of benchmarks/: whether it measures what it says."""

from __future__ import annotations

import io
import json
import random
import sys
from pathlib import Path

import pytest
from support.parking import untraced, where_it_works

from benchmarks.context import Context
from benchmarks.suites import record
from benchmarks.suites.record import Slowed
from workerserver.stacks.profiles.recorded import parse

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks are Linux's"),
]


@pytest.mark.parametrize(
    "lines",
    [
        "MainThread;main (a.py:1);seven (a.py:2);spin (a.py:3) 710\n"
        "MainThread;main (a.py:1);three (a.py:4) 290\nidle threads;orders (a.py:9) 1000\n",
        "main (a.py:50);seven (a.py:2) 710\nmain (a.py:50);three (a.py:4);spin (a.py:5) 290\n",
    ],
)
def test_the_share_of_folded_stacks(lines: str, tmp_path: Path) -> None:
    path = tmp_path / "folded"
    path.write_text(lines)
    share, weight = record.share(path)
    assert share == pytest.approx(71.0)
    assert weight == 1000
    path.write_text("main (a.py:1) 5\n")
    with pytest.raises(RuntimeError, match="neither"):
        record.share(path)


@untraced
@where_it_works
def test_the_split_is_what_the_program_measured(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "QUICK_SECONDS", 0.5)
    (error,) = record.split(Context(1, True, short_path, log=io.StringIO()), ["ours"])["ours"]
    assert abs(error) < 33  # seven standard deviations of 50 samples


def test_simulated_ranks_tell_different_recordings() -> None:
    told = {
        **dict.fromkeys(("time", "missed", "unstable", "cut", "cost_seconds"), 0),
        "version": 1, "mode": "wall", "hz": 100, "seconds": 1, "samples": 100,
        "functions": [["a.py", "f", 1]], "threads": [["MainThread", 1, 1]],
        "nodes": [[-1, 0, 0, 0], [0, 0, 50, 50]],
    }  # fmt: skip
    chosen = random.Random(1)
    answers = {record.varied(told, chosen) for _ in range(30)}
    assert len(answers) > 5
    for answer in answers:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}" in head.decode()
        nodes = parse(body).nodes
        assert nodes[0] == (-1, 0, 0, 0)
        assert abs(nodes[1].active - 50) <= 2
        assert abs(nodes[1].idle - 50) <= 2


def test_targets() -> None:
    facts = {"ours": Slowed(core=[1.0, 3.0, 1.5])}
    core, error = record.targets({"ours": [1.0, -2.0], "py-spy": [0.2, -0.2]}, facts)
    assert (core.figure, core.met) == (1.5, True)
    assert (error.figure, error.met) == (1.3, False)
    assert len(list(record.targets({"ours": [1.0]}, facts))) == 1
    json.dumps([core.figure, error.figure])
