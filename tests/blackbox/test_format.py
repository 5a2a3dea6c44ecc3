"""The reader of black boxes: it trusts nothing, and says in one line what is wrong."""

from __future__ import annotations

import os
import random
import struct
import zlib
from pathlib import Path

import pytest
from support.boxes.left import await_box
from support.lifecycle import talking

from workerserver.blackbox import format as box_format
from workerserver.blackbox.format import (
    LANES,
    MAX_BYTES,
    VERSION,
    BoxError,
    Record,
    parse,
    record_bytes,
)
from workerserver.blackbox.read import Box, read_box

pytestmark = pytest.mark.timeout(400)

#: A run of the fuzzer changes so many boxes.
CHANGED = 400


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A real box, of a process that has ended by an exception."""
    folder = tmp_path_factory.mktemp("boxes")
    with talking("blackbox/ending_rank.py", "exception", str(folder)) as rank:
        pid = int(rank.hear())
        rank.say("end")
        rank.process.wait(60)
    return Path(await_box(folder, pid).path).read_bytes()


def put(folder: Path, data: bytes) -> str:
    path = folder / "rank0-1.box"
    path.write_bytes(data)
    return str(path)


def test_a_whole_box(whole: bytes, tmp_path: Path) -> None:
    box = read_box(put(tmp_path, whole))
    assert box.torn == box.short == 0
    assert box.health["step"] == 2
    assert [end.value["why"] for end in box.ends] == ["exception", "exit"]
    assert box.steps is not None
    assert [step for step, _ in box.steps.value["beats"]] == [0, 1, 2]


def read(folder: Path, data: bytes) -> Box | str:
    """The box, or the one line that says why there is none."""
    try:
        return read_box(put(folder, data))
    except BoxError as error:
        text = str(error)
    assert text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 40_000, 300_000])
def test_truncated(whole: bytes, tmp_path: Path, size: int) -> None:
    found = read(tmp_path, whole[:size])
    if size < 4096:
        assert isinstance(found, str)
    else:
        assert isinstance(found, Box)
        assert found.short == len(whole) - size


def test_a_box_that_is_not_written_yet(whole: bytes, tmp_path: Path) -> None:
    assert read(tmp_path, bytes(len(whole))) == "it holds nothing yet"


def test_another_version(whole: bytes, tmp_path: Path) -> None:
    data = bytearray(whole)
    struct.pack_into("<I", data, 8, VERSION + 1)
    said = f"a black box of version {VERSION + 1}; version {VERSION} can be read"
    assert read(tmp_path, bytes(data)) == said


def test_lanes_that_lie_elsewhere(whole: bytes, tmp_path: Path) -> None:
    """With a right checksum: somebody has made it so."""
    for offset, value in ((32 + 4, 1 << 31), (32 + 8, 1 << 62), (32 + 16, 1 << 62), (32 + 16, 0)):
        data = bytearray(whole)
        struct.pack_into("<I" if value == 1 << 31 else "<Q", data, offset, value)
        end = 32 + 24 * len(LANES)
        struct.pack_into("<I", data, end, zlib.crc32(data[:end]))
        assert read(tmp_path, bytes(data)) == "its header is damaged"


def test_flipped_bits(whole: bytes, tmp_path: Path) -> None:
    """Each changed record is gone, the others stay, and nothing else happens."""
    contents = parse(whole)
    records = sum(map(len, contents.records.values()))
    for seed in range(CHANGED):
        chance = random.Random(seed)
        data = bytearray(whole)
        for _ in range(chance.choice((1, 3, 100))):
            data[chance.randrange(len(data) if seed % 2 else 40_000)] ^= 1 << chance.randrange(8)
        found = read(tmp_path, bytes(data))
        if isinstance(found, Box):
            after = parse(bytes(data))
            assert sum(map(len, after.records.values())) <= records
            for lane, kept in after.records.items():
                assert set(kept) <= set(contents.records[lane])


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"[]", b"[" * 15_000, b"\xff\xfe", b'{"rank": 1e999}', b"1" * 15_000],
    ids=["empty", "cut", "list", "deep", "bytes", "huge", "digits"],
)
def test_payloads_that_are_no_object(whole: bytes, tmp_path: Path, payload: bytes) -> None:
    """The checksum is right: the writer itself is hostile."""
    data = bytearray(whole)
    lane = parse(whole).lanes["identity"]
    slot = record_bytes("identity", Record(1_000_001, 0, 0, payload))
    at = lane.offset + 1_000_001 % lane.slots * lane.slot_bytes
    data[at : at + len(slot)] = slot
    box = read(tmp_path, bytes(data))
    assert isinstance(box, Box)
    assert box.rank is None


def test_records_are_written_as_c_writes_them(whole: bytes) -> None:
    contents = parse(whole)
    for name, lane in contents.lanes.items():
        for record in contents.records[name]:
            at = lane.offset + record.sequence % lane.slots * lane.slot_bytes
            slot = record_bytes(name, record)
            assert whole[at : at + len(slot)] == slot


def test_what_is_no_file_of_ours(whole: bytes, tmp_path: Path) -> None:
    path = put(tmp_path, whole)
    link = tmp_path / "link.box"
    link.symlink_to(path)
    fifo = tmp_path / "fifo.box"
    os.mkfifo(fifo)
    for each, reason in (
        (link, "it is a symbolic link"),
        (fifo, "it is no file"),
        (tmp_path, "it is no file"),
        (tmp_path / "none.box", "it can't be opened: No such file or directory"),
    ):
        with pytest.raises(BoxError, match=reason):
            read_box(str(each))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file away")
def test_another_owner(whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, whole)
    os.chown(path, 12345, -1)
    with pytest.raises(BoxError, match=r"it belongs to another user \(12345\)"):
        read_box(path)
    assert read_box(path, owner=12345).rank is None  # the folder's owner may be said


def test_a_file_that_grows(whole: bytes, tmp_path: Path) -> None:
    """No more than the largest box is read, however long the file is."""
    path = put(tmp_path, whole)
    os.truncate(path, 1 << 40)
    box = read_box(path)
    assert box.ends
    assert len(box_format.MAGIC) == 8
    assert MAX_BYTES == 2 << 20
