"""A folder of black boxes as the TARGET of ``stacks``, ``fr``, ``top`` and ``slow``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.boxes.made import STARTED, put_box, stacks_of

from workerserver.cli import main
from workerserver.cluster.find.here import Here

RANKS = 4
TORCH = "/usr/lib/python3/site-packages/torch/distributed/distributed_c10d.py"
WAITS = stacks_of((TORCH, 3000, "all_reduce"), ("/job/train.py", 12, "main"))
STANDS = stacks_of(("/job/data.py", 33, "load_batch"), ("/job/train.py", 9, "main"))

Told = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """The exit status of a command, and the object that it printed."""

    def ask(command: str, *words: str) -> tuple[int, dict[str, Any]]:
        status = main([command, "--json", *words])
        return status, json.loads(capsys.readouterr().out)

    return ask


def operation(seq: int, *, ended: bool) -> dict[str, Any]:
    return {
        "seq": seq,
        "p2p_seq": 0,
        "p2p": False,
        "op": "gloo:all_reduce",
        "state": "scheduled",
        "retired": ended,
        "input_sizes": [[4]],
        "output_sizes": [[4]],
        "input_dtypes": ["Float"],
        "created_ns": int((STARTED + seq) * 1e9),
    }


def recorder(*, waits: bool) -> dict[str, Any]:
    """Since second 7, #6 waits or has not been issued."""
    last = operation(6 if waits else 5, ended=not waits)
    group = {
        "recorder": "fr",
        "id": 0,
        "name": "0",
        "desc": "default_pg",
        "ranks": f"0-{RANKS - 1}",
        "status": None,
        "pending": int(waits),
        "last_issued": last,
        "last_retired": operation(5, ended=True),
        "first_pending": last if waits else None,
        "backend": "gloo",
    }
    summary = {"rank": None, "version": "2.10", "groups": [group]}
    return {"since": STARTED + 7, "left_out": 0, "summary": summary}


def steps(seconds: float) -> dict[str, Any]:
    """300 steps, the last of which began 1 s before."""
    beats = [[number, 1 + (300 - number) * seconds] for number in range(301)]
    return {"time": STARTED + 400, "tick_s": 1e-6, "step_median_s": seconds, "beats": beats}


def hung(folder: Path, *, ranks: int = RANKS) -> list[Path]:
    """Rank 2 stands in load_batch(), and SIGTERM has ended all."""
    sigterm = {"why": "signal", "signal": 15, "code": 0, "pid": 99, "uid": 0, "thread": 4711}
    paths = []
    for rank in range(ranks):
        stacks = STANDS if rank == 2 else WAITS
        paths.append(
            put_box(
                folder,
                rank,
                ("stacks", 98.0, stacks),
                ("stacks", 100.0, stacks),
                ("recorder", 100.0, recorder(waits=rank != 2)),
                ("steps", 100.0, steps(1.2 if rank == 2 else 1.0)),
                ("end", 101.0, {**sigterm, "time": STARTED + 101}),
                ("keeper", 102.0, {"copied": STARTED + 102, "ended": STARTED + 101}),
            )
        )
    return paths


def test_stacks(tmp_path: Path, told: Told) -> None:
    hung(tmp_path)
    status, fields = told("stacks", str(tmp_path))
    assert status == 0
    assert [(each["ranks"], each["count"]) for each in fields["groups"]] == [("2", 1), ("0-1,3", 3)]
    assert "/job/data.py:33 load_batch" in fields["groups"][0]["stack"][0]
    assert fields["job"] == "train"
    assert "4 boxes" in fields["notes"][0]
    assert "motion" not in fields
    status, fields = told("stacks", "--rounds", "2", str(tmp_path))
    assert fields["motion"] == {"stuck": "0-3"}


def test_fr(tmp_path: Path, told: Told) -> None:
    hung(tmp_path)
    status, fields = told("fr", str(tmp_path))
    assert status == 1
    (wait,) = fields["process_groups"][0]["waits"]
    assert (wait["seq"], wait["waiting"], wait["absent"], wait["hangs"]) == (6, "0-1,3", "2", True)


def test_top(tmp_path: Path, told: Told, capsys: pytest.CaptureFixture[str]) -> None:
    hung(tmp_path)
    status, fields = told("top", str(tmp_path))
    assert status == 0
    assert [(row["rank"], row["state"], row["step"]) for row in fields["workers"]] == [
        (rank, "terminated", 1204) for rank in range(RANKS)
    ]
    assert "ended by SIGTERM from process 99" in fields["workers"][0]["text"]
    assert fields["status"] == 1
    assert "rank 2 has not entered all_reduce #6 of default_pg" in fields["verdict"]
    assert main(["top", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == fields["verdict"]
    assert sum("terminated" in line for line in lines) == RANKS


def test_slow(tmp_path: Path, told: Told) -> None:
    hung(tmp_path)
    status, fields = told("slow", str(tmp_path))
    assert status == 1
    assert [each["rank"] for each in fields["slow"]] == [2]
    assert any("no times of operations" in note for note in fields["notes"])
    assert not any("TORCH_FR_BUFFER_SIZE" in note for note in fields["notes"])


@pytest.mark.parametrize("command", ["stacks", "fr", "top", "slow"])
def test_what_can_not_be_read_is_said(command: str, tmp_path: Path, told: Told) -> None:
    paths = hung(tmp_path)
    paths[3].write_bytes(b"WSBLKBOX")
    status, fields = told(command, str(tmp_path))
    if command in ("stacks", "top"):
        assert status == 1  # not of all ranks
    if command != "top":
        notes = fields["notes"]
        assert any("too short for a black box" in note for note in notes), notes
        assert any("no box of ranks 3" in note for note in notes), notes


@pytest.mark.parametrize("command", ["stacks", "fr", "top", "slow"])
def test_wrong_use(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path, *others) = hung(tmp_path)
    assert main([command, str(tmp_path), "localhost:1"]) == 64
    assert "black boxes are shown by themselves" in capsys.readouterr().err
    for each in (path, *others):
        each.write_bytes(b"WSBLKBOX")
    assert main([command, str(tmp_path)]) == 2
    assert "too short for a black box" in capsys.readouterr().err


@pytest.mark.parametrize("named", [False, True])
def test_boxes_are_pointed_to_where_nobody_lives(
    named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In their folder, and where the environment of whoever asks names it."""
    folder = tmp_path / "the boxes"
    folder.mkdir()
    hung(folder)
    monkeypatch.chdir(tmp_path if named else folder)
    monkeypatch.setattr("workerserver.cluster.find.discovery.look_here", Here)
    for command in ("diagnose", "stacks", "top"):
        assert main([command]) == 3
        assert ("lack boxes lie in" in capsys.readouterr().err) is not named
    monkeypatch.setenv("WORKERSERVER_BLACKBOX", str(folder))
    assert main(["diagnose", "./gone.sock"]) == 3
    said = capsys.readouterr().out
    assert f"black boxes lie in {folder}: workerserver diagnose '{folder}'" in said
