"""Where an operation was issued, as torch's own dumps tell it: their entries have stacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workerserver.cluster.model import Frame
from workerserver.cluster.read.library_calls import by_frames
from workerserver.cluster.read.recorder import Key, integer

__all__ = ["issued_at"]

MAX_FRAMES = 256
MAX_TEXT = 1000


def issued_at(trace: Mapping[str, Any], key: Key, seq: int) -> Frame | None:
    """The user's line that issued collective *seq* of the group *key*; None if it isn't told."""
    entries = trace.get("entries")
    for entry in reversed(entries) if isinstance(entries, list) else ():
        if (
            isinstance(entry, dict)
            and entry.get("collective_seq_id") == seq
            and entry.get("process_group") == [key.name, key.desc]
            and entry.get("is_p2p") is not True
        ):
            frames = _frames(entry.get("frames"))
            return frames[by_frames(frames).line] if frames else None
    return None


def _frames(value: Any) -> tuple[Frame, ...]:
    """torch's list has the newest frame first, as ours."""
    found = []
    for each in value[:MAX_FRAMES] if isinstance(value, list) else ():
        if not isinstance(each, dict):
            return ()
        name, file = each.get("name"), each.get("filename")
        if not isinstance(name, str) or not isinstance(file, str):
            return ()
        found.append(Frame(file[:MAX_TEXT], integer(each.get("line")), name[:MAX_TEXT]))
    return tuple(found)
