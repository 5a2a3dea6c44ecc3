"""What is known of a process's end from outside, as a record in its black box."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any

from workerserver.blackbox.format import BoxError, Contents, Record, parse, record_bytes
from workerserver.blackbox.read import decode, read_bytes

__all__ = ["is_clean", "keeper_slot", "mark_end"]


def keeper_slot(contents: Contents, told: Mapping[str, Any]) -> tuple[int, bytes]:
    """Where in the box what the keeper knows is written, and its bytes. BoxError."""
    lane = contents.lanes["keeper"]
    text = json.dumps({"copied": time.time(), **told}).encode("ascii")
    # One slot: its only record has number 1, as far as a ring of one counts.
    slot = record_bytes("keeper", Record(1, time.time_ns(), time.monotonic_ns(), text))
    if len(slot) > lane.slot_bytes:
        raise BoxError("its header is damaged")
    return lane.offset, slot


def mark_end(path: str, ended: float, **more: int | None) -> bool:
    """Write into the box of a process that is gone when it was seen to be gone, in seconds since
    the epoch, and what *more* is known: nobody could copy it. Whether that was a clean end, as the
    box tells. OSError, BoxError."""
    data = read_bytes(path)
    contents = parse(data)
    box = decode(contents, path)
    if box.keeper is None:
        offset, slot = keeper_slot(contents, {"ended": ended, **more})
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.pwrite(descriptor, slot, offset)
        finally:
            os.close(descriptor)
    return is_clean(frozenset(str(moment.value.get("why")) for moment in box.ends), None)


def is_clean(ends: frozenset[str], status: int | None) -> bool:
    """Whether a process has ended as a program does that is done. *ends*: the reasons that it gave
    itself. *status*: its wait status, if that is known."""
    return "exit" in ends and not ends & {"signal", "exception"} and not status
