"""What a job's watchdog has told: lines in a log, and verdicts beside the boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["MARK", "lines_in", "verdicts_in"]

MARK = "workerserver watchdog: "


def lines_in(log: Path) -> list[str]:
    """Each line of a watchdog, without its mark."""
    text = log.read_text(errors="replace")
    return [line.removeprefix(MARK) for line in text.splitlines() if MARK in line]


def verdicts_in(boxes: Path) -> list[dict[str, Any]]:
    """In the order in which they were told."""
    return [json.loads(path.read_bytes()) for path in sorted(boxes.glob("verdict-*.json"))]
