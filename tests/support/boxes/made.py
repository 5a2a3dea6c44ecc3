"""Black boxes made of given records, as box.c would have written them."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workerserver.blackbox.format import LANES, LEAST_BYTES, VERSION, LaneName, Record, record_bytes

__all__ = ["STARTED", "box_bytes", "put_box", "stacks_of"]

SLOTS: dict[LaneName, tuple[int, int]] = {
    "identity": (2, 16 << 10),
    "state": (4, 8 << 10),
    "steps": (2, 52 << 10),
    "stacks": (3, 44 << 10),
    "end": (4, 16 << 10),
    "last": (2, 44 << 10),
    "keeper": (1, 4 << 10),
    "recorder": (2, 16 << 10),
    "counters": (2, 8 << 10),
}
#: When the made processes began: seconds since the epoch.
STARTED = 1_700_000_000.0


def box_bytes(records: Sequence[tuple[LaneName, float, Mapping[str, Any]]]) -> bytes:
    """*records*: the lane, seconds after STARTED, and the payload, each lane's oldest first."""
    header = struct.pack("<8sIIQQ", b"WSBLKBOX", VERSION, len(LANES), LEAST_BYTES, 4711)
    offset = 4096
    places = {}
    for number, (name, (slots, size)) in enumerate(SLOTS.items()):
        header += struct.pack("<IIQQ", number, slots, offset, size)
        places[name] = offset
        offset += slots * size
    data = bytearray(LEAST_BYTES)
    header += struct.pack("<I", zlib.crc32(header))
    data[: len(header)] = header
    counts = dict.fromkeys(SLOTS, 0)
    for lane, after, value in records:
        counts[lane] += 1
        slots, size = SLOTS[lane]
        wall = int((STARTED + after) * 1e9)
        slot = record_bytes(lane, Record(counts[lane], wall, wall, json.dumps(value).encode()))
        assert len(slot) <= size
        at = places[lane] + counts[lane] % slots * size
        data[at : at + len(slot)] = slot
    return bytes(data)


def stacks_of(*frames: tuple[str, int, str], native: int = 4711) -> dict[str, Any]:
    """A sample with one thread, the main one; *frames* newest first."""
    thread = {
        "ident": 1,
        "native_id": native,
        "name": "MainThread",
        "daemon": False,
        "current": False,
        "state": "S",
        "wchan": None,
        "truncated": False,
        "unstable": False,
        "frames": [
            {"file": file, "line": line, "function": function, "qualname": function}
            for file, line, function in frames
        ],
    }
    stacks = {
        "version": 1,
        "pid": 4711,
        "mode": "nogil",
        "time": STARTED,
        "gil_holder": None,
        "truncated": False,
        "threads": [thread],
    }
    digest = f"{zlib.crc32(repr(frames).encode()):08x}"
    return {"digest": {"digest": digest, "main": digest}, "headers": "", "stacks": stacks}


def put_box(
    folder: Path,
    rank: int,
    *records: tuple[LaneName, float, Mapping[str, Any]],
    size: int = 4,
    step: int = 1204,
    host: str = "node7",
    began: float = 0.0,
    job: str = "train",
) -> Path:
    """The box of *rank*, copied by a keeper, with an identity and one state."""
    identity = {
        "job": job,
        "restart": 0,
        "world_size": size,
        "rank": rank,
        "host": host,
        "started": STARTED + began,
        "agent": "98:1",
    }
    health = {"status": "ok", "pid": 4711, "rank": rank, "step": step, "world_size": size}
    run = folder / f"20260101T000000-{job}@{host}-{int(began) + 1}"
    run.mkdir(exist_ok=True, parents=True)
    path = run / f"rank{rank}-4711.box"
    path.write_bytes(
        box_bytes(
            [
                ("identity", began, identity),
                ("state", began + 1, {"health": health, "files": {}}),
                *((lane, began + after, value) for lane, after, value in records),
            ]
        )
    )
    return path
