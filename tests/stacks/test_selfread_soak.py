"""Snapshots without the GIL, at full speed beside everything that moves: no crash, no garbage."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from support.lifecycle import PROGRAMS
from support.parking import where_it_works

#: A number of snapshots or a time. "make long" asks for more.
AMOUNT = os.environ.get("WORKERSERVER_SELFREAD_SOAK", "2s")

pytestmark = [pytest.mark.cpython, where_it_works]


@pytest.mark.parametrize(
    "beside", ["python", "locks", pytest.param("torch", marks=pytest.mark.torch)]
)
def test_soak(beside: str) -> None:
    if beside == "torch":
        pytest.importorskip("torch")
    script = PROGRAMS / "stacks/selfread_soak.py"
    done = subprocess.run(
        [sys.executable, str(script), AMOUNT, beside], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["snapshots"] > 20
    # Threads that wait for the GIL stand still, and most stacks belong to such threads.
    assert found["unstable"] < found["stacks"] / 2
    print(beside, done.stdout, end="")  # what "make long" shows
