"""On a free-threaded build of CPython training runs without a server, and the GIL stays off.

A real build is used where there is one on PATH, or in WORKERSERVER_FREE_THREADED.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import Any

import pytest
from support.lifecycle import ROOT, run_isolated

REAL = os.environ.get("WORKERSERVER_FREE_THREADED") or next(
    filter(None, (shutil.which(f"python3.{minor}t") for minor in (15, 14, 13))), None
)
WHY = "this is a free-threaded build of CPython"


def check(found: dict[str, Any]) -> None:
    assert found["compiled"] == []  # ours or others'
    assert found["trained"] == "3 steps, a trainer's own handler"
    assert (found["started"], found["handlers"], found["undone"]) == (None, [], True)
    assert found["server"].startswith(f"RuntimeError: {WHY}")
    assert found["step"].startswith("TypeError: ")
    box, server = (f"this worker runs without a {what}: {WHY}" for what in ("black box", "server"))
    for said, begins in zip(
        found["logged"], (box, server, box, server, f"torch's own server stays: {WHY}"), strict=True
    ):
        assert said.startswith(begins)


def test_as_sys_version_tells() -> None:
    done = run_isolated("process/free_threaded_scene.py", "simulated")
    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout))


@pytest.mark.skipif(REAL is None, reason="no free-threaded CPython on PATH")
def test_a_real_one() -> None:
    done = subprocess.run(
        [REAL or "", ROOT / "tests/programs/process/free_threaded_scene.py", "real"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("gil") is False
    check(found)
