"""Scenes on a machine of their own: programs that start jobs in namespaces (see machine.py)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from support.jobs.machine import Said
from support.lifecycle import PROGRAMS, environment

__all__ = ["NO_NAMESPACES", "SANDBOX", "needs_machine", "planted_line", "scene"]

SANDBOX = ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "--kill-child"]
NO_NAMESPACES = "no namespaces here"

needs_machine = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare"
)


def scene(program: str, name: str) -> Said:
    """The object that tests/programs/*program* prints for *name*; skips where there are no
    namespaces."""
    done = subprocess.run(
        [*SANDBOX, sys.executable, str(PROGRAMS / program), name],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare failed" in done.stderr or "mount" in done.stderr.partition(":")[0]:
        print(done.stderr)
        pytest.skip(NO_NAMESPACES)
    assert done.returncode == 0, done.stderr
    found: Said = json.loads(done.stdout)
    return found


def planted_line(program: str) -> int:
    """Where the rank that hangs stands in tests/programs/*program*."""
    source = (PROGRAMS / program).read_text().splitlines()
    return next(n for n, text in enumerate(source, 1) if "time.sleep(10_000)" in text)
