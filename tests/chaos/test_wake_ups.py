"""Between the I/O thread and the loop no wake-up is lost, also where a write is interrupted."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from support.chaos.faults import Control, built
from support.lifecycle import talking
from support.wire import Client, message

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="a preload library"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler"),
]


def test_an_interrupted_write_loses_no_wake_up(short_path: Path) -> None:
    """Linux interrupts no write to an eventfd. Other kernels do, and so does the library."""
    library = built(short_path)
    path = str(short_path / "s")
    settings = {"LD_PRELOAD": str(library), "CHAOS_CONTROL": str(short_path / "control")}
    with talking("stacks/parked_server.py", path, "0", **settings) as rank:
        assert rank.hear() == "ready"
        control = Control(short_path / f"control.{rank.pid}")
        with Client(path, 60.0) as client:
            control.arm(("intr",), 512, 1)
            for _ in range(100):  # the loop has to answer each of them
                assert client.ask(message("GET", "/nothing")).status == 404
        assert control.injected()["intr"] > 100
        control.close()
