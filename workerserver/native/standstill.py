"""What the flight recorders hold while the job stands still, for the black box.

No recorder can be read without the GIL: torch's functions that dump one hold it, and the answer of
torch's own server, which needs no GIL, has a megabyte that only Python could read. So the loop's
thread reads them, whenever it has the GIL anyway, and only if nothing goes on: while torch's own
counters change, they alone are asked for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from workerserver.handlers.flight_recorder import marks, own_summary

__all__ = ["Standstill"]

#: The record has room for 16 KiB.
MAX_BYTES = 15 << 10
#: To read full recorders takes 0.1 s with the GIL. After that they are not read for so many times
#: as long: a job with long pauses loses at most 0.3 %.
REST = 300


class Standstill:
    """*write* gets the record, as ASCII bytes of a JSON object: ``summary`` is as the handler
    fr_summary has it, ``since`` is when nothing had gone on for one look, in seconds since the
    epoch, ``left_out`` counts process groups for which there was no room."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._marks: tuple[str, ...] = ()
        self._record = b""
        self._next = 0.0

    def look(self) -> None:
        """At regular times, on the loop's thread. The same record is written again as long as
        nothing goes on: then its time says so."""
        now = marks()
        if now != self._marks or not now:
            self._marks = now
            self._record = b""
            return
        began = time.monotonic()
        if not self._record and began >= self._next:
            self._record = _record()
            ended = time.monotonic()
            self._next = ended + REST * (ended - began)
        if self._record:
            self._write(self._record)

    def ends(self) -> None:
        """At an exception that nobody caught. What was recorded before is better: an operation that
        fails counts as ended."""
        if marks() and not self._record:
            self._write(_record())


def _record() -> bytes:
    summary = own_summary()
    groups = sorted(summary["groups"], key=_importance)
    left_out = 0
    while True:
        told: dict[str, Any] = {
            "since": time.time(),
            "left_out": left_out,
            "summary": {**summary, "groups": groups},
        }
        data = json.dumps(told, separators=(",", ":")).encode("ascii")
        if len(data) <= MAX_BYTES or not groups:
            return data
        less = max(1, len(groups) // 8)
        left_out += less
        groups = groups[:-less]


def _importance(group: dict[str, Any]) -> tuple[bool, bool]:
    """First what waits, last what was never used."""
    return not group["pending"], group["last_issued"] is None
