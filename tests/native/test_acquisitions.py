"""How often a request takes the GIL, counted by gdb in CPython itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.context import BUDGETS
from benchmarks.suites import acquisitions

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the native I/O thread is Linux's")


@pytest.mark.slow
def test_once_for_an_inline_handler(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # gdb makes each request so dear that the budget of the loop would be spent.
    for name, value in BUDGETS.items():
        monkeypatch.setenv(name, value)
    try:
        counted = acquisitions.measure("ours", short_path)
    except acquisitions.CantCount as reason:
        pytest.skip(str(reason))
    # Another part's timer may run between the forty requests of each kind.
    assert {name: round(number, 1) for name, number in counted.items()} == {
        "ping": 0,
        "dump_traceback?mode=nogil": 0,
        "inline": 1,
        "dump_traceback?mode=gil": 1,
    }
