"""Faults in the server's own threads beside a real job: training loses the same losses, to the bit.

``make chaos`` does it for minutes, and compares with a job that never heard of us; ``make soak``
for an hour, and judges memory.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from support.chaos.faults import INJECTED, OUTSIDE
from support.chaos.run import chaos

pytestmark = [
    pytest.mark.torch,
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux", reason="a preload library, and /proc"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler"),
]


@pytest.mark.timeout(400)
def test_every_fault_once(short_path: Path) -> None:
    story = chaos(short_path, 1, 0.0, "twice", fault_seconds=0.2)
    assert not story.wrong, "\n".join(story.lines())
    assert set(story.faults) | story.absent == {*INJECTED, *OUTSIDE}
    assert all(int(str(each["forked"])) > 0 for each in story.results)
    assert story.tally.replies["200"] > 0
