"""How often a request takes the GIL, counted by gdb in CPython itself."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from _lifecycle import ROOT, environment

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the native I/O thread is Linux's")


@pytest.mark.slow
def test_once_for_an_inline_handler() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.acquisitions", "--json", "ours"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if done.returncode == 3:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    counted = json.loads(done.stdout)["ours"]
    # A timer of somebody's may fall among the forty requests of each kind.
    assert {name: round(number, 1) for name, number in counted.items()} == {
        "ping": 0,
        "dump_traceback?mode=nogil": 0,
        "inline": 1,
        "dump_traceback?mode=gil": 1,
    }
