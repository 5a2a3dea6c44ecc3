"""What a process waited for last, as torch's wait counters in its black box tell it."""

from __future__ import annotations

from typing import NamedTuple

from workerserver.blackbox.read import Box

__all__ = ["Waited", "waited"]

#: What most of torch's own counters begin with.
PREFIX = "pytorch.wait_counter."
MAX_NAME = 100
#: Of one process.
MAX_WAITS = 8


class Waited(NamedTuple):
    """*counter*: its name, without torch's prefix. *calls*: how many threads waited. *since*: in
    seconds since the epoch, late by 5 s at most; None: nobody knows. *at*: when that was seen."""

    counter: str
    calls: int
    since: float | None
    at: float


def waited(box: Box) -> list[Waited]:
    """What was waited for when the counters were read last, the longest wait first."""
    told = box.counters
    counters = told.value.get("counters") if told is not None else None
    begun = told.value.get("since") if told is not None else None
    if told is None or not isinstance(counters, dict):
        return []
    found = []
    for name, each in counters.items():
        calls = each.get("active_count") if isinstance(each, dict) else None
        if type(calls) is not int or not 0 < calls < 1 << 31:
            continue
        since = begun.get(name) if isinstance(begun, dict) else None
        if not isinstance(since, int | float) or not 0 < since < 1e12:
            since = None
        shown = " ".join(name.removeprefix(PREFIX)[:MAX_NAME].split())
        found.append(Waited(shown, calls, since, told.time))
    return sorted(found, key=lambda each: (each.since or told.time, each.counter))[:MAX_WAITS]
