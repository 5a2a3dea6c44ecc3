"""Waiting for a condition. Isolated scripts use this too, so no pytest in here."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["becomes", "wait_until"]


def becomes(condition: Callable[[], object], seconds: float = 10.0) -> bool:
    """Whether *condition* becomes true in time."""
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.005)
    return True


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """AssertionError unless *condition* becomes true in time."""
    if not becomes(condition, seconds):
        raise AssertionError(f"not so after {seconds:g} s: {condition}")
