"""Target: the reader of black boxes, and the verdict on them."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import tempfile
import zlib
from functools import cache
from pathlib import Path

from support.boxes.made import SLOTS, STARTED, box_bytes, stacks_of
from workerserver.blackbox.format import LANES, BoxError, LaneName, Record, parse, record_bytes
from workerserver.blackbox.read import decode
from workerserver.cli.blackbox import judge_boxes
from workerserver.cluster.ask.boxes.samples import rounds_of
from workerserver.cluster.judge.ends import who_ended
from workerserver.cluster.read.boxes.endings import ending

__all__ = ["one_box", "pack"]

#: A record of the input: its lane, its slot, and the size of its payload.
HEAD = struct.Struct("<BBH")
#: Patches of the bytes, whatever they are: where, and how many bytes follow.
PATCH = struct.Struct("<IB")


@cache
def good(rank: int) -> bytes:
    """A box with nothing wrong in it."""
    identity = {"job": "j", "rank": rank, "world_size": 2, "host": "h", "started": STARTED}
    return box_bytes(
        [
            ("identity", 0, identity),
            ("stacks", 1, stacks_of(("/a.py", 3, "train"))),
            ("stacks", 2, stacks_of(("/a.py", 3, "train"))),
            ("end", 3, {"why": "exit", "time": STARTED + 3}),
        ]
    )


@cache
def empty() -> tuple[bytes, dict[LaneName, int]]:
    """A box without a record, and where its lanes begin."""
    places, offset = {}, 4096
    for name, (slots, size) in SLOTS.items():
        places[name] = offset
        offset += slots * size
    return box_bytes([]), places


def made(raw: bytes) -> bytes:
    """An odd first byte: records with right checksums. An even one: patches of a good box."""
    if not raw[0] & 1:
        data, at = bytearray(good(0)), 1
        while at + PATCH.size <= len(raw):
            where, size = PATCH.unpack_from(raw, at)
            at += PATCH.size
            where %= len(data)
            patch = raw[at : at + size][: len(data) - where]
            data[where : where + len(patch)] = patch
            at += size
        if raw[0] & 2:  # a header with a right checksum, so that its numbers are looked at
            end = 32 + len(LANES) * 24
            data[end : end + 4] = struct.pack("<I", zlib.crc32(data[:end]))
        return bytes(data)
    blank, places = empty()
    data, at = bytearray(blank), 1
    while at + HEAD.size <= len(raw):
        lane, number, size = HEAD.unpack_from(raw, at)
        at += HEAD.size
        name = LANES[lane % len(LANES)]
        slots, slot_bytes = SLOTS[name]
        payload = raw[at : at + size][: slot_bytes - 64]
        at += size
        wall = int((STARTED + number) * 1e9)
        slot = record_bytes(name, Record(number + 1, wall, wall, payload))
        where = places[name] + (number + 1) % slots * slot_bytes
        data[where : where + len(slot)] = slot
    return bytes(data)


def pack(records: list[tuple[LaneName, int, object]], verdict: bool = True) -> bytes:
    """The input that makes a box of these records: lane, number in the lane, what it says."""
    parts = [b"\r" if verdict else b"\1"]
    for lane, number, value in records:
        payload = json.dumps(value, separators=(",", ":")).encode()
        parts += [HEAD.pack(LANES.index(lane), number, len(payload)), payload]
    return b"".join(parts)


@cache
def folder() -> tuple[Path, tempfile.TemporaryDirectory[str]]:
    place = tempfile.TemporaryDirectory(prefix="ws-fuzz-")
    path = Path(place.name)
    (path / "rank1-1.box").write_bytes(good(1))
    return path, place


def one_box(raw: bytes) -> None:
    """A box is read, or refused in one line. Where the first byte asks for it, also the verdict on
    two boxes ends with one of its statuses, and both of its forms are whole."""
    if not raw:
        return
    data = made(raw)
    try:
        box = decode(parse(data), "/rank0-2.box")
    except BoxError as error:
        said = str(error)
    else:
        said = ""
        assert isinstance(box.time, float | None)
        assert box.rank is None or 0 <= box.rank < 1 << 31
        assert "\n" not in who_ended(ending(box))  # what is printed spells out the rest
        for each in rounds_of([box]):
            assert len(each.states) == 1
    assert "\n" not in said
    if raw[0] & 12 == 12:
        _judge(data)


def _judge(data: bytes) -> None:
    path, _ = folder()
    (path / "rank0-2.box").write_bytes(data)
    said = {}
    for as_json in (True, False):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            said[as_json] = (judge_boxes([str(path)], as_json=as_json), out.getvalue())
    status, text = said[True]
    assert status in (0, 1, 2, 3), status  # 3: the job has ended
    fields = json.loads(text)
    assert fields["status"] == status == said[False][0]
    assert 1 <= len(fields["boxes"]) + len(fields["unreadable"]) <= 2, fields
    assert said[False][1].startswith(fields["verdict"][:40])
