"""The process that has imported ``diagnose`` before the watchdog needs a diagnosis."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.boxes.made import STARTED, put_box, stacks_of
from support.lifecycle import PROGRAMS, environment

if sys.platform != "linux":
    pytest.skip("black boxes need Linux", allow_module_level=True)


def test_a_process_makes_all_diagnoses(tmp_path: Path) -> None:
    folder = tmp_path / "boxes"
    folder.mkdir()
    killed = {"copied": 1.0, "ended": STARTED + 7.0, "wait_status": 9, "oom_kills": 0}
    put_box(
        folder,
        0,
        ("stacks", 5.0, stacks_of(("/job/data.py", 33, "load_batch"))),
        ("keeper", 8.0, killed),
        size=1,
    )
    outcome = subprocess.run(
        [sys.executable, str(PROGRAMS / "blackbox" / "ready_diagnosis.py"), str(folder)],
        env=environment(),
        capture_output=True,
        timeout=100,
        check=True,
    )
    told = json.loads(outcome.stdout)
    assert [each[:27] for each in told["verdicts"]] == ["rank 0 was killed (SIGKILL)"] * 2
    # Debian's libffi, of which CPython 3.14's ctypes makes a callback, keeps its own file open.
    assert [each for each in told["held"] if "/libffi.so" not in each] == ["/dev/null"]
    assert told["late"] is True
    assert "127.0.0.1:1" in told["hosts"]
    assert told["gone"] is True
    assert outcome.stderr == b""
