"""The settings and the folder that every suite gets."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

__all__ = ["BUDGETS", "Context"]

#: A server would slow clients down that ask as fast as they can, and the suites measure the server.
BUDGETS = {"WORKERSERVER_GIL_SHARE": "1", "WORKERSERVER_SNAPSHOTS": "1000000"}


@dataclass(frozen=True)
class Context:
    """*folder* is empty at first and is removed after the suite. Its path is short enough for Unix
    sockets. *quick* means fewer requests and shorter runs in each round, but the same comparisons
    and the same keys of ``Report.ratios``.
    """

    rounds: int
    quick: bool
    folder: Path
    name: str = ""  # of the suite
    log: TextIO = field(default_factory=lambda: sys.stderr)
    began: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """Print progress on a line, after the suite's name and its seconds so far."""
        seconds = time.monotonic() - self.began
        print(f"{self.name or 'bench'} {seconds:5.0f} s  {text}", file=self.log, flush=True)
