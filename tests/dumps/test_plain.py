"""Files that claim to be pickles of plain data: nothing but that is read, whatever they hold."""

from __future__ import annotations

import json
import pickle
import random
import struct
from pathlib import Path
from typing import Any

import pytest
from support.jobs.flight_entries import entry, pending, trace

from workerserver.cluster.read.dumps import plain
from workerserver.cluster.read.dumps.plain import DumpError, load

PLAIN: dict[str, Any] = {
    "numbers": [0, 1, -1, 255, 256, 65535, 65536, 2**31 - 1, -(2**31), 2**62, 1.5, -0.0],
    "texts": ["", "x" * 300, "é\n", "a\ud800"[:1]],
    "constants": [None, True, False],
    "lists": [[], [[]], list(range(2000))],
    "nothing": {},
}


def lists(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [lists(each) for each in value]
    return {key: lists(each) for key, each in value.items()} if type(value) is dict else value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_is_read_as_pickle_reads_it(protocol: int) -> None:
    value = {**PLAIN, "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), ("a", ("b", []))]}
    if protocol > 2:  # before, Python writes bytes as a call
        value["bytes"] = [b"", b"\0" * 300]
    assert load(pickle.dumps(value, protocol=protocol)) == lists(value)


def test_json_is_read() -> None:
    assert load(json.dumps(PLAIN).encode()) == PLAIN


class Call:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.path),)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_nothing_is_imported_or_called(protocol: int, tmp_path: Path) -> None:
    made = tmp_path / "made"
    data = pickle.dumps({"entries": [], "version": Call(str(made))}, protocol=protocol)
    with pytest.raises(DumpError, match="more than plain data"):
        load(data)
    assert not made.exists()
    pickle.loads(data)  # it would have
    assert made.exists()


P = b"\x80\x02"
LIST, MARK, APPENDS, PUT, GET = b"]", b"(", b"e", b"q\x00", b"h\x00"
HOSTILE = {
    "empty": b"",
    "no instruction": P,
    "no protocol": b"\x80",
    "text protocol": b"(dp0\n.",
    "another protocol": b"\x80\x01}.",
    "global": P + b"cposix\nsystem\n.",
    "inst": P + b"(iposix\nsystem\n.",
    "obj": P + b"(o.",
    "stack_global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93.",
    "build": P + b"}}b.",
    "persistent id": P + b"X\x01\0\0\0aQ.",
    "extension": P + b"\x82\x01.",
    "a bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**62),
    "a set": b"\x80\x04\x8f.",
    "a long integer": P + b"\x8b" + struct.pack("<i", 2**31 - 1),
    "an integer of 200 bytes": P + b"\x8a\xc8" + b"\xff" * 200 + b".",
    "a text of 4 GiB": P + b"X\xff\xff\xff\xffabc.",
    "a text of 2^63 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 2**63) + b".",
    "a memo of 2^32 places": P + b"]r\xff\xff\xff\xff",
    "an unknown memo": P + b"h\x07.",
    "a list in itself": P + LIST + PUT + GET + b"a.",
    "a billion items": P + LIST + (PUT + LIST + MARK + GET * 40 + APPENDS) * 12 + b".",
    "deep": P + LIST * 100 + b"a" * 99 + b".",
    "deep JSON": b"[" * 100_000,
    "very deep": P + LIST * 100_000 + b"a" * 99_999 + b".",
    "an item of a number": P + b"K\x01K\x02a.",
    "a key without a value": P + b"}(X\x01\0\0\0au.",
    "a key that is a list": P + b"}](K\x01u.",
    "a key that is a number": P + b"}K\x01K\x01s.",
    "no mark": P + b"]e.",
    "nothing to pop": P + b"a.",
    "two values": P + b"K\x01K\x02.",
    "a mark": P + b"(.",
    "half of JSON": b'{"entries": [',
    "bad UTF-8 in JSON": b'{"a": "\xff"}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_hostile_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(DumpError) as refused:
        load(HOSTILE[name])
    text = str(refused.value)
    assert text
    assert "\n" not in text
    assert len(text) < 200


def test_too_many_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "MAX_ITEMS", 1000)
    for data in (P + b"}0" * 2000, P + LIST + MARK + b"}" * 2000 + b"e.", b"[" + b"1," * 2000):
        with pytest.raises(DumpError):
            load(data)
    monkeypatch.setattr(plain, "MAX_BYTES", 10)
    with pytest.raises(DumpError, match="MiB"):
        load(P + b"]" * 20)


def test_damaged_files_are_refused_or_are_data() -> None:
    """Each cut, and 3,000 files with some bytes changed."""
    whole = pickle.dumps(trace(entry(0, 1), pending(1, 2), frames=[{"name": "f"}]), protocol=2)
    chance = random.Random(0)
    damaged = [whole[:cut] for cut in range(len(whole))]
    for _ in range(3000):
        changed = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        damaged.append(bytes(changed))
    refused = 0
    for data in damaged:
        try:
            load(data)
        except DumpError:
            refused += 1
    assert refused > len(whole)
