"""What torch.distributed waits for. gloo records little of it; the locals of its functions tell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.lifecycle import PROGRAMS
from support.parking import untraced, where_it_works

pytestmark = [pytest.mark.torch, untraced, where_it_works]

SCRIPT = str(PROGRAMS / "stacks/torch_waits.py")
DEFAULT = {"name": "0", "description": "default_pg", "ranks": [0, 1]}
PAIR = {"name": "1", "description": "the pair", "ranks": [0, 1]}


def waits(file: Path, case: str) -> dict[str, Any]:
    """By mode."""
    pytest.importorskip("torch")
    pipes: Any = {"stdin": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    alone = case == "rendezvous"
    other = None if alone else subprocess.Popen([sys.executable, SCRIPT, "1", file, case], **pipes)
    try:
        done = subprocess.run(
            [sys.executable, SCRIPT, "0", str(file), case],
            capture_output=True,
            text=True,
            timeout=110,
        )
    finally:
        if other is not None:
            other.kill()
            other.communicate()
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("recv", {"op": "recv", "peer": 1, "group": DEFAULT, "tag": 5}),
        ("recv in a group", {"op": "recv", "peer": 1, "group": PAIR, "tag": 0}),
        ("monitored_barrier", {"op": "monitored_barrier", "group": DEFAULT}),
        ("broadcast_object_list", {"op": "broadcast", "peer": 1, "group": DEFAULT}),
        ("all_reduce", {"op": "all_reduce", "group": PAIR}),
    ],
)
def test_an_operation(tmp_path: Path, case: str, expected: dict[str, Any]) -> None:
    found = waits(tmp_path / "store", case)
    assert found["gil"] == found["nogil"]
    assert found["gil"].pop("frame") >= 0
    assert found["gil"] == {"kind": "operation", "source": "locals", **expected}


def test_a_rendezvous(tmp_path: Path) -> None:
    found = waits(tmp_path / "store", "rendezvous")
    for mode in ("gil", "nogil"):
        assert (found[mode]["kind"], found[mode]["op"]) == ("rendezvous", "init_process_group")
