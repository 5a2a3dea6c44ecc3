"""The black box's file, as bytes: a header, and lanes of records with checksums.

docs/blackbox.md has the format, native/box/box.c writes it. Nothing that is read here is trusted:
every number is checked against the file's own size, and no size against more than MAX_BYTES.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

__all__ = [
    "HEADER_BYTES",
    "LANES",
    "LEAST_BYTES",
    "MAX_BYTES",
    "SLOT_BYTES",
    "VERSION",
    "BoxError",
    "Contents",
    "Lane",
    "LaneName",
    "Record",
    "header",
    "parse",
    "record_bytes",
]

VERSION = 3
MAGIC = b"WSBLKBOX"
SLOT_MAGIC = 0x43525357  # "WSRC"
HEADER_BYTES = 4096
#: No box is smaller or larger.
LEAST_BYTES = 512 << 10
MAX_BYTES = 2 << 20
MAX_SLOTS = 64

LaneName = Literal[
    "identity", "state", "steps", "stacks", "end", "last", "keeper", "recorder", "counters"
]
#: In the order of their numbers.
LANES: tuple[LaneName, ...] = get_args(LaneName)

_HEAD = struct.Struct("<8sIIQQ")
_LANE = struct.Struct("<IIQQ")
_CRC = struct.Struct("<I")
_SLOT = struct.Struct("<IIQqqII")
#: What stands before each payload.
SLOT_BYTES = _SLOT.size
#: Where the checksum begins, behind the magic number, and where it is itself.
_FROM, _TO = 4, SLOT_BYTES - 4


class BoxError(ValueError):
    """It is no black box that can be read. The text is one line."""


class Lane(NamedTuple):
    slots: int
    offset: int
    slot_bytes: int


class Record(NamedTuple):
    """*sequence* counts from 1 in its lane. *wall_ns*: since the epoch; *monotonic_ns*: by the
    clock of the machine, which starts when the machine starts."""

    sequence: int
    wall_ns: int
    monotonic_ns: int
    payload: bytes


@dataclass(slots=True)
class Contents:
    """*records*: of each lane, the oldest first. *torn*: slots that hold something without a right
    checksum: the writer died in the middle of a record, or the file was damaged. *short*: bytes
    that the file lacks."""

    pid: int
    size: int
    lanes: dict[LaneName, Lane]
    records: dict[LaneName, list[Record]] = field(default_factory=dict)
    torn: int = 0
    short: int = 0

    def newest(self, lane: LaneName) -> Record | None:
        found = self.records.get(lane)
        return found[-1] if found else None


def parse(data: bytes | bytearray) -> Contents:
    """The records of a box. BoxError if *data* has no header of a box of this version."""
    contents = header(data)
    contents.short = max(0, contents.size - len(data))
    for number, name in enumerate(LANES):
        lane = contents.lanes[name]
        found = []
        for slot in range(lane.slots):
            record = _record(data, lane, number, slot)
            if record is None:
                contents.torn += 1
            elif record.sequence:
                found.append(record)
        contents.records[name] = sorted(found)
    return contents


def header(data: bytes | bytearray) -> Contents:
    """What the header tells, without records. BoxError as parse()."""
    if len(data) < HEADER_BYTES:
        raise BoxError(f"too short for a black box: {len(data)} bytes")
    magic, version, count, size, pid = _HEAD.unpack_from(data)
    if magic != MAGIC:
        empty = not any(data[:HEADER_BYTES])
        raise BoxError("it holds nothing yet" if empty else "it is no black box")
    if version != VERSION:
        raise BoxError(f"a black box of version {version}; version {VERSION} can be read")
    end = _HEAD.size + count * _LANE.size
    if count != len(LANES) or zlib.crc32(data[:end]) != _CRC.unpack_from(data, end)[0]:
        raise BoxError("its header is damaged")
    lanes: dict[LaneName, Lane] = {}
    for number, name in enumerate(LANES):
        kind, slots, offset, each = _LANE.unpack_from(data, _HEAD.size + number * _LANE.size)
        if (
            kind != number
            or not 0 < slots <= MAX_SLOTS
            or each <= SLOT_BYTES
            or offset < HEADER_BYTES
            or offset + slots * each > size
        ):
            raise BoxError("its header is damaged")
        lanes[name] = Lane(slots, offset, each)
    if not LEAST_BYTES <= size <= MAX_BYTES:
        raise BoxError(f"no black box has {size} bytes")
    return Contents(pid, size, lanes)


_NOTHING = Record(0, 0, 0, b"")


def _record(data: bytes | bytearray, lane: Lane, number: int, slot: int) -> Record | None:
    """The record in a slot, _NOTHING if none was written there; None if it can't be right."""
    at = lane.offset + slot * lane.slot_bytes
    if at + SLOT_BYTES > len(data):
        return _NOTHING
    magic, kind, sequence, wall, monotonic, length, checksum = _SLOT.unpack_from(data, at)
    if magic == 0 and kind == 0 and sequence == 0:
        return _NOTHING
    payload = data[at + SLOT_BYTES : at + SLOT_BYTES + length]
    if (
        magic != SLOT_MAGIC
        or kind != number
        or length > lane.slot_bytes - SLOT_BYTES
        or len(payload) != length
        or sequence == 0
        or sequence % lane.slots != slot
        or zlib.crc32(payload, zlib.crc32(data[at + _FROM : at + _TO])) != checksum
    ):
        return None
    return Record(sequence, wall, monotonic, bytes(payload))


def record_bytes(lane: LaneName, record: Record) -> bytes:
    """A whole slot's beginning, as box.c writes it."""
    head = _SLOT.pack(
        SLOT_MAGIC,
        LANES.index(lane),
        record.sequence,
        record.wall_ns,
        record.monotonic_ns,
        len(record.payload),
        0,
    )
    checksum = zlib.crc32(record.payload, zlib.crc32(head[_FROM:_TO]))
    return head[:_TO] + _CRC.pack(checksum) + record.payload
