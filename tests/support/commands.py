"""A command of ours in a process of its own, and what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from support.lifecycle import environment

__all__ = ["answer"]


def answer(command: str, *words: str, timeout: float = 100.0) -> tuple[int, dict[str, Any]]:
    """The exit status of ``workerserver COMMAND --json``, and the object that it printed. It has to
    print nothing on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "workerserver", command, "--json", *words],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.stderr == ""
    fields: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, fields
