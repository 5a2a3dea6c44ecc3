"""What the flight recorders held, in the black box."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.boxes.left import await_box, await_no_keeper
from support.boxes.made import put_box
from support.commands import answer
from support.lifecycle import PROGRAMS, environment, free_port
from support.torchrun import end
from support.waiting import wait_until

from workerserver.blackbox.format import LEAST_BYTES, parse
from workerserver.blackbox.read import read_box
from workerserver.cluster.ask.boxes.samples import rounds_of
from workerserver.native import standstill
from workerserver.native.standstill import MAX_BYTES, REST, Standstill

if sys.platform != "linux":
    pytest.skip("black boxes need Linux", allow_module_level=True)

PROGRAM = PROGRAMS / "blackbox" / "hanging_rank.py"
RANKS = 3


class Recorder:
    """In place of torch's: *groups* of a summary. The time moves only when it is read."""

    def __init__(self, groups: int = 1) -> None:
        self.marks: tuple[str, ...] = ("1",)
        self.groups = [self._group(number) for number in range(groups)]
        self.now = 0.0
        self.reads = 0

    def _group(self, number: int) -> dict[str, Any]:
        waits = number == 1
        return {"name": str(number), "pending": int(waits), "last_issued": None, "fill": "x" * 900}

    def summary(self) -> dict[str, Any]:
        self.now += 0.1
        self.reads += 1
        return {"rank": 0, "version": "2.10", "groups": self.groups}


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(standstill, "marks", lambda: made.marks)
    monkeypatch.setattr(standstill, "own_summary", made.summary)
    clocks = SimpleNamespace(monotonic=lambda: made.now, time=time.time)
    monkeypatch.setattr(standstill, "time", clocks)
    return made


def test_a_job_that_goes_on_is_only_counted(recorder: Recorder) -> None:
    written: list[bytes] = []
    watch = Standstill(written.append)
    for number in range(10):
        recorder.marks = (str(number),)
        watch.look()
    recorder.marks = ()  # no recorder
    watch.look()
    watch.look()
    watch.ends()
    assert (recorder.reads, written) == (0, [])


def test_a_standstill_is_read_once_and_written_as_long_as_it_lasts(recorder: Recorder) -> None:
    written: list[bytes] = []
    watch = Standstill(written.append)
    for _ in range(5):
        watch.look()
    watch.ends()  # what was recorded before the exception is better
    assert recorder.reads == 1
    assert len(written) == 4
    assert set(written) == {written[0]}
    # Short standstills one after another: not read again before it has cost enough.
    for number in range(2, 10):
        recorder.marks = (str(number),)
        watch.look()
        watch.look()
    assert (recorder.reads, len(written)) == (1, 4)
    watch.ends()
    assert recorder.reads == 2
    recorder.now += REST
    watch.look()
    assert recorder.reads == 3


def test_of_many_groups_those_that_wait_are_kept(recorder: Recorder) -> None:
    recorder.groups = Recorder(50).groups
    written: list[bytes] = []
    watch = Standstill(written.append)
    watch.look()
    watch.look()
    (data,) = written
    assert len(data) <= MAX_BYTES
    told = json.loads(data)
    assert told["summary"]["groups"][0]["name"] == "1"
    assert told["left_out"] + len(told["summary"]["groups"]) == 50


@pytest.mark.parametrize(
    ("since", "until", "counts"), [(90, 110, True), (20, 40, False), (130, 140, False)]
)
def test_a_record_counts_for_its_time_only(
    since: int, until: int, counts: bool, tmp_path: Path
) -> None:
    stacks = ("stacks", 100.0, {"digest": {}, "headers": "", "stacks": {}})
    summary = {"rank": 0, "version": "2.10", "groups": []}
    told = {"since": 1_700_000_000.0 + since, "left_out": 0, "summary": summary}
    path = put_box(tmp_path, 0, stacks, ("recorder", float(until), told))  # type: ignore[arg-type]
    (state,) = rounds_of([read_box(str(path))])[-1].states
    assert state.flight_summary == (summary if counts else None)
    assert ("fr_summary" in state.failures) is not counts


@pytest.mark.parametrize("told", [{}, {"since": "x", "summary": {}}, {"since": 1, "summary": []}])
def test_nonsense_is_no_record(told: dict[str, Any], tmp_path: Path) -> None:
    box = read_box(str(put_box(tmp_path, 0, ("recorder", 1.0, told))))
    (state,) = rounds_of([box])[-1].states
    assert state.flight_summary is None
    assert "fr_summary" in state.failures


def recorded(folder: Path, started: Sequence[subprocess.Popen[bytes]]) -> bool:
    boxes = [await_box(folder, each.pid, ended=False) for each in started]
    return all(box.recorder is not None for box in boxes)


@pytest.mark.torch
@pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")
@pytest.mark.timeout(400)
def test_a_hang_names_the_operation(tmp_path: Path) -> None:
    """torchrun's SIGTERM ends a real gloo job that hangs."""
    folder = tmp_path / "boxes"
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    log = (tmp_path / "log").open("wb")
    started = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM)],
            env=environment(
                OMP_NUM_THREADS="1",
                WORKERSERVER_BLACKBOX=str(folder),
                WORKERSERVER_BLACKBOX_INTERVAL="1",
                WORKERSERVER_JOB="hanging",
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(RANKS),
                LOCAL_WORLD_SIZE=str(RANKS),
                **place,
            ),
            stdout=log,
            stderr=log,
        )
        for rank in range(RANKS)
    ]
    try:
        wait_until(lambda: recorded(folder, started), 120)
        for each in started:
            os.kill(each.pid, signal.SIGTERM)
        for each in started:
            assert each.wait(60) == -signal.SIGTERM
        await_no_keeper(folder)
    finally:
        log.close()
        for each in started:
            end(each)
        await_no_keeper(folder)
    status, told = answer("diagnose", str(folder))
    assert status == 1, (told, (tmp_path / "log").read_text())
    assert "rank 1 has not entered all_reduce #6 of default_pg" in told["verdict"]
    (group,) = told["process_groups"]
    (wait,) = group["waits"]
    assert (wait["waiting"], wait["absent"]) == ("0,2", "1")


def test_the_lane_fits_into_the_smallest_box(tmp_path: Path) -> None:
    data = put_box(tmp_path, 0).read_bytes()
    assert len(data) == LEAST_BYTES
    last = parse(data).lanes["recorder"]
    assert last.offset + last.slots * last.slot_bytes <= LEAST_BYTES
