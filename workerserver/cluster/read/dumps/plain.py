"""Pickles of plain data, read without unpickling: numbers, strings, bytes, lists, tuples, dicts.

A pickle is a program. This reader knows the instructions that build plain data, and refuses a file
that holds any other one, so nothing is ever imported or called. Nor does a file decide how much
memory is taken: there are bounds for its bytes, its items and its depth, also where the file names
one object many times.

torch writes protocol 2 (seen in its ``c10d/FlightRecorder``), Python up to 5.
"""

from __future__ import annotations

import json
import struct
from typing import Any

__all__ = ["MAX_BYTES", "DumpError", "load"]

#: Of one file: 20,000 operations with their stacks take some 30 MB.
MAX_BYTES = 64 << 20
#: Instructions, or values, in one file; each value counts as often as it is named. 20,000
#: operations take 2,000,000.
MAX_ITEMS = 4_000_000
#: torch nests five deep.
MAX_DEPTH = 16
#: Of an integer, in bytes.
MAX_INTEGER = 16


class DumpError(Exception):
    """The file is no such data. The text is one line."""


def load(data: bytes) -> Any:
    """What *data*, a pickle or JSON text, holds; tuples become lists. DumpError."""
    if len(data) > MAX_BYTES:
        raise DumpError(f"more than {MAX_BYTES >> 20} MiB")
    try:
        value = _pickle(data) if data[:1] == b"\x80" else _json(data)
    except (IndexError, struct.error):
        raise DumpError("the file ends in the middle") from None
    except RecursionError:
        raise DumpError("nested too deep") from None
    except (ValueError, TypeError) as error:
        raise DumpError(f"neither a pickle nor JSON: {' '.join(str(error).split())[:80]}") from None
    _measure(value)
    return value


def _json(data: bytes) -> Any:
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_ITEMS:
        raise DumpError(f"more than {MAX_ITEMS} values")
    return json.loads(data)


def _measure(root: Any) -> None:
    """A small file may name one list many times, or put a list into itself."""
    items = 0
    level = [root]
    for _ in range(MAX_DEPTH):
        items += len(level)
        if items > MAX_ITEMS:
            raise DumpError(f"more than {MAX_ITEMS} values")
        below: list[Any] = []
        for each in level:
            if type(each) is dict:
                items += len(each)
                below += [one for one in each.values() if type(one) in (dict, list)]
            elif type(each) is list:
                items += len(each)
                below += [one for one in each if type(one) in (dict, list)]
            if items + len(below) > MAX_ITEMS:
                raise DumpError(f"more than {MAX_ITEMS} values")
        if not below:
            return
        level = below
    raise DumpError("nested too deep")


_MARK = object()
#: By the instruction: how many bytes the number has that follows, and how it is read.
_NUMBERS = {
    0x4B: struct.Struct("<B"),  # BININT1
    0x4D: struct.Struct("<H"),  # BININT2
    0x4A: struct.Struct("<i"),  # BININT
    0x47: struct.Struct(">d"),  # BINFLOAT
}
#: The same of the length before a text, or before bytes.
_TEXTS = {0x58: struct.Struct("<I"), 0x8C: struct.Struct("<B"), 0x8D: struct.Struct("<Q")}
_BYTES = {0x42: struct.Struct("<I"), 0x43: struct.Struct("<B"), 0x8E: struct.Struct("<Q")}
_CONSTANTS = {0x4E: None, 0x88: True, 0x89: False}
#: TUPLE1, TUPLE2, TUPLE3.
_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}


def _pickle(data: bytes) -> Any:
    """Instructions are checked in the order in which torch's files have them most often."""
    if data[1] not in (2, 3, 4, 5):
        raise DumpError(f"a pickle of protocol {data[1]}")
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    at, size, items = 2, len(data), 0
    push = stack.append
    while True:
        code = data[at]
        at += 1
        if code == 0x71:  # BINPUT
            memo[data[at]] = stack[-1]
            at += 1
        elif code == 0x68:  # BINGET
            push(_known(memo, data[at]))
            at += 1
        elif code in _TEXTS or code in _BYTES:
            length = _TEXTS.get(code) or _BYTES[code]
            (count,) = length.unpack_from(data, at)
            at += length.size
            if count > size - at:
                raise DumpError("the file ends in the middle")
            text = data[at : at + count]
            at += count
            push(text.decode("utf-8", "replace") if code in _TEXTS else text)
        elif code in _NUMBERS:
            number = _NUMBERS[code]
            push(number.unpack_from(data, at)[0])
            at += number.size
        elif code == 0x72:  # LONG_BINPUT
            memo[int.from_bytes(data[at : at + 4], "little")] = stack[-1]
            at += 4
        elif code == 0x6A:  # LONG_BINGET
            push(_known(memo, int.from_bytes(data[at : at + 4], "little")))
            at += 4
        elif code == 0x94:  # MEMOIZE
            memo[len(memo)] = stack[-1]
        elif code == 0x28:  # MARK
            push(_MARK)
        elif code == 0x5D:  # EMPTY_LIST
            push([])
        elif code == 0x7D:  # EMPTY_DICT
            push({})
        elif code in (0x65, 0x75, 0x6C, 0x64, 0x74):  # up to the last mark
            _gather(stack, code)
        elif code == 0x61:  # APPEND
            value = stack.pop()
            _list(stack[-1]).append(value)
        elif code == 0x73:  # SETITEM
            value, key = stack.pop(), stack.pop()
            _dict(stack[-1])[_key(key)] = value
        elif code in _CONSTANTS:
            push(_CONSTANTS[code])
        elif code in _TUPLES:
            count = _TUPLES[code]
            if len(stack) < count:
                raise DumpError("a value that is not there")
            stack[-count:] = [_plain(stack[-count:])]
        elif code == 0x29:  # EMPTY_TUPLE
            push([])
        elif code == 0x8A:  # LONG1
            count = data[at]
            if count > MAX_INTEGER:
                raise DumpError("an integer that is too large")
            push(int.from_bytes(data[at + 1 : at + 1 + count], "little", signed=True))
            at += 1 + count
        elif code == 0x95:  # FRAME: only a hint for whoever reads from a stream
            at += 8
        elif code == 0x2E:  # STOP
            (value,) = _plain(stack)
            return value
        else:
            raise DumpError(f"it holds more than plain data (instruction 0x{code:02x} at {at - 1})")
        items += 1
        if items > MAX_ITEMS:
            raise DumpError(f"more than {MAX_ITEMS} values")


def _known(memo: dict[int, Any], number: int) -> Any:
    if number not in memo:
        raise DumpError("a value that is not there")
    return memo[number]


def _gather(stack: list[Any], code: int) -> None:
    """APPENDS, SETITEMS, LIST, DICT, TUPLE: what stands above the last mark becomes, or goes into,
    a container."""
    last = len(stack) - 1
    while stack[last] is not _MARK:
        last -= 1
        if last < 0:
            raise DumpError("a value that is not there")
    values = stack[last + 1 :]
    del stack[last:]
    if code == 0x65:
        _list(stack[-1]).extend(values)
    elif code in (0x6C, 0x74):
        stack.append(values)
    else:
        if len(values) % 2:
            raise DumpError("a key without a value")
        if code == 0x64:
            stack.append({})
        _dict(stack[-1]).update(zip(map(_key, values[::2]), values[1::2], strict=True))


def _key(value: Any) -> str:
    """torch's keys are texts. Of other keys a file could choose many with one hash, which takes
    quadratic time."""
    if type(value) is not str:
        raise DumpError("a key that is no text")
    return value


def _plain(values: list[Any]) -> list[Any]:
    if any(each is _MARK for each in values):
        raise DumpError("a value that is not there")
    return values


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise DumpError("an item of what is no list")
    return value


def _dict(value: Any) -> dict[Any, Any]:
    if type(value) is not dict:
        raise DumpError("an item of what is no dict")
    return value
