"""The short form of ``make native``: our frames beside gdb's, where gdb is installed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.parking import untraced, where_it_works
from support.unwind.beside_gdb import compare, compiled_frames, waiting

pytestmark = [untraced, where_it_works]


@pytest.mark.skipif(shutil.which("gdb") is None, reason="needs gdb")
def test_no_wrong_frame(short_path: Path, tmp_path: Path) -> None:
    made = compiled_frames(tmp_path)
    with waiting(short_path / "s", *([str(made)] if made is not None else [])) as pid:
        try:
            found = compare(pid, short_path / "s", 2, tmp_path / "out", 110)
        except AssertionError as error:
            if "ptrace" in str(error) or "not permitted" in str(error):
                pytest.skip("gdb may not attach here")
            raise
    assert found.wrong == []
    # A thread that is still on its way when we look has moved when gdb looks.
    assert found.samples >= 4
    cut = {end: count for end, count in found.cut.items() if end != "late"}  # a crowded machine
    assert sum(cut.values()) <= 1, found.cut
