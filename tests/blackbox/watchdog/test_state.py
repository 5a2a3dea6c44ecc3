"""What a watchdog shows to the collector of its host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("black boxes need Linux", allow_module_level=True)

from workerserver.blackbox.place import SHARED_MEMORY, folder_of
from workerserver.blackbox.watchdog import state
from workerserver.blackbox.watchdog.state import State, forget, living_states, write


@pytest.fixture
def boxes() -> Path:
    """The folder of the boxes of a job that nobody has started."""
    return Path(folder_of(SHARED_MEMORY, f"{os.getpid()}:state", None))


def mine(name: str) -> list[State]:
    return [each for each in living_states() if each.job == name]


def test_it_is_read_as_it_was_written(boxes: Path) -> None:
    shown = State("job-of-state", 2, 3, 4, 12.5)
    try:
        write(str(boxes), shown)
        assert mine("job-of-state") == [shown]
        write(str(boxes), State("job-of-state", 0, 3, 4, 13.5))
        assert [each.status for each in mine("job-of-state")] == [0]
        forget(str(boxes))
        assert mine("job-of-state") == []
    finally:
        forget(str(boxes))
        boxes.rmdir()


def test_what_is_no_state_of_a_living_watchdog(boxes: Path) -> None:
    """Its status would be an all-clear that nobody gives."""
    file = boxes / state.STATE
    ended = subprocess.Popen(["true"])
    ended.wait()
    try:
        write(str(boxes), State("job-of-state"))
        good = json.loads(file.read_bytes())
        assert len(mine("job-of-state")) == 1
        wrong = [
            {"pid": ended.pid},
            {"ticks": good["ticks"] + 1},
            {"status": -1},
            {"status": "0"},
            {"looked": 1e300},
            {"stall": 1 << 60},
            {"more": 1},
            {"pid": None},
        ]
        for each in wrong:
            file.write_text(json.dumps({**good, **each}))
            assert mine("job-of-state") == [], each
        for text in ("", "[]", "{", "[" * 5000, "\0" * 100, json.dumps({"pid": 1})):
            file.write_text(text)
            assert mine("job-of-state") == [], text[:20]
        file.write_text(json.dumps(good))
        assert len(mine("job-of-state")) == 1
        file.unlink()
        os.mkfifo(file)
        assert mine("job-of-state") == []
        file.unlink()
        file.symlink_to(boxes / "elsewhere")
        (boxes / "elsewhere").write_text(json.dumps(good))
        assert mine("job-of-state") == []
        (boxes / "elsewhere").unlink()
    finally:
        forget(str(boxes))
        boxes.rmdir()
