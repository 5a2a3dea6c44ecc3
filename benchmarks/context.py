"""What a suite is given to work with."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

__all__ = ["Context"]


@dataclass(frozen=True)
class Context:
    """*folder* is empty at first and goes away behind the suite; its path is short enough for Unix
    sockets. *quick*: fewer requests and shorter runs in each round; what is compared, and the keys
    of ``Report.ratios``, stay the same.
    """

    rounds: int
    quick: bool
    folder: Path
    name: str = ""  # of the suite
    log: TextIO = field(default_factory=lambda: sys.stderr)
    began: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """Progress, on a line of its own, behind the suite's seconds so far."""
        seconds = time.monotonic() - self.began
        print(f"{self.name or 'bench'} {seconds:5.0f} s  {text}", file=self.log, flush=True)
