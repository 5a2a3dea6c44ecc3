"""torch's wait counters in the black box."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.boxes.left import await_no_keeper
from support.boxes.made import STARTED, put_box
from support.commands import answer
from support.lifecycle import PROGRAMS, environment

from workerserver.blackbox.read import read_box
from workerserver.cluster.read.boxes.counters import waited
from workerserver.native import counters
from workerserver.native.counters import MAX_BYTES, Counters

if sys.platform != "linux":
    pytest.skip("black boxes need Linux", allow_module_level=True)


def counter(active: int, calls: int, total: int = 1) -> dict[str, int]:
    return {
        "active_count": active,
        "total_calls": calls,
        "total_time_us": total,
        "max_time_us": total,
    }


class Torch:
    """In place of torch: *values* of its counters, and the time."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, int]] = {}
        self.now = 1000.0

    def body(self) -> SimpleNamespace:
        return SimpleNamespace(body=json.dumps(self.values).encode())


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Torch:
    made = Torch()
    monkeypatch.setattr(counters, "wait_counter_values", made.body)
    monkeypatch.setattr(counters, "time", SimpleNamespace(time=lambda: made.now))
    return made


def test_since_when_it_waits(torch: Torch) -> None:
    written: list[bytes] = []
    watch = Counters(written.append)
    watch.look()
    assert written == []  # torch has counted nothing yet
    seen = []
    for active, calls in ((1, 1), (1, 1), (0, 1), (1, 2), (2, 3)):
        torch.values = {"store": counter(active, calls), "compile": counter(0, 9)}
        torch.now += 5
        watch.look()
        told = json.loads(written[-1])
        assert told["counters"] == torch.values
        seen.append(told["since"].get("store"))
    assert seen == [1005, 1005, None, 1020, 1025]


def test_those_that_wait_have_room(torch: Torch) -> None:
    torch.values = {f"counter {number:03} {'x' * 200}": counter(0, 1) for number in range(100)}
    torch.values["waits"] = counter(1, 1)
    written: list[bytes] = []
    Counters(written.append).look()
    (data,) = written
    assert len(data) <= MAX_BYTES
    told = json.loads(data)
    assert told["since"] == {"waits": 1000}
    assert told["left_out"] + len(told["counters"]) == 101


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"counters": 1},
        {"counters": {"a": 1, "b": {"active_count": "1"}, "c": {"active_count": 0}}},
        {"counters": {"a": {"active_count": True}, "b": {"active_count": -1}}},
    ],
)
def test_nonsense_is_no_wait(told: dict[str, Any], tmp_path: Path) -> None:
    assert waited(read_box(str(put_box(tmp_path, 0, ("counters", 1.0, told))))) == []


def test_the_longest_wait_comes_first(tmp_path: Path) -> None:
    active = {"active_count": 1}
    told = {
        "counters": {"pytorch.wait_counter.a": active, "b\n c": active, "d": active},
        "since": {"pytorch.wait_counter.a": STARTED + 4, "b\n c": STARTED + 3, "d": "never"},
    }
    box = read_box(str(put_box(tmp_path, 0, ("counters", 5.0, told))))
    at = STARTED + 5
    assert waited(box) == [
        ("b c", 1, STARTED + 3, at),
        ("a", 1, STARTED + 4, at),
        ("d", 1, None, at),
    ]


@pytest.mark.torch
@pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")
@pytest.mark.timeout(300)
def test_a_real_wait(tmp_path: Path) -> None:
    boxes = tmp_path / "boxes"
    done = subprocess.run(
        [sys.executable, str(PROGRAMS / "blackbox" / "storing_rank.py")],
        env=environment(WORKERSERVER_BLACKBOX=str(boxes), WORKERSERVER_WATCHDOG="0"),
        stderr=subprocess.PIPE,
        timeout=200,
    )
    assert done.returncode == 7, done.stderr
    await_no_keeper(boxes)
    status, listed = answer("blackbox", str(boxes))
    assert status == 0
    ((box,),) = (run["boxes"] for run in listed["runs"])
    names = [each["counter"] for each in box["waited"]]
    assert "TCPStore__wait" in names, box
