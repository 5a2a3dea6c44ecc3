"""torch's wait counters, for the black box: what it waits for now, and how often it has waited.

torch gives them to Python alone, so they are read on the loop's thread, whenever it has the GIL
anyway, and at the process's end. To read them takes 0.1 ms.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from workerserver.handlers.wait_counters import wait_counter_values

__all__ = ["Counters"]

#: The record has room for 8 KiB.
MAX_BYTES = 7 << 10


class Counters:
    """*write* gets the record, as ASCII bytes of a JSON object: ``counters`` is as the handler
    wait_counter_values has it, and of each that waits ``since`` says since when, in seconds since
    the epoch, as exactly as it is looked at; ``left_out`` counts those without room."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._since: dict[str, tuple[int, float]] = {}

    def look(self) -> None:
        """At regular times, on the loop's thread; and when the process ends. No record, as long as
        torch has counted nothing."""
        with contextlib.suppress(Exception):  # torch may be in the middle of its import
            counters = json.loads(wait_counter_values().body)
            if counters:
                self._write(self._record(counters, time.time()))

    def _record(self, counters: Mapping[str, Mapping[str, Any]], now: float) -> bytes:
        since: dict[str, tuple[int, float]] = {}
        for name, each in counters.items():
            if each["active_count"]:
                # The same number of calls: none of them has begun since.
                calls, begun = self._since.get(name, (-1, now))
                since[name] = (each["total_calls"], begun if calls == each["total_calls"] else now)
        self._since = since
        names = sorted(counters, key=lambda name: _importance(counters[name]))
        while True:
            told = {
                "left_out": len(counters) - len(names),
                "since": {name: since[name][1] for name in names if name in since},
                "counters": {name: counters[name] for name in names},
            }
            data = json.dumps(told, separators=(",", ":")).encode("ascii")
            if len(data) <= MAX_BYTES or not names:
                return data
            names = names[: -max(1, len(names) // 8)]


def _importance(counter: Mapping[str, Any]) -> tuple[bool, float]:
    """First what waits now, then what has waited longest."""
    return not counter["active_count"], -float(counter["total_time_us"])
