"""Names of native functions, from the symbol tables of the files that hold them.

A worker tells a file's path, its build id and an address in it. The reader opens that path, or the
file that a debug package has for the build id. It counts only if its build id is the same: so the
worker may run on another machine or in a container, and no name is of another version. Where no
such file is found, or no function of its table covers the address, there is no name.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import stat
import struct
from array import array
from bisect import bisect_right
from functools import lru_cache
from typing import Any, NamedTuple

__all__ = ["Symbols", "build_id_of"]

#: Files that are opened, and functions of one file.
MAX_FILES = 512
MAX_FUNCTIONS = 1 << 22
#: Characters of a name, before its arguments are left out and after.
MAX_MANGLED = 4096
MAX_NAME = 160
DEBUG_FOLDER = "/usr/lib/debug/.build-id"

_HEAD = struct.Struct("<4sBB10xHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_NOTE = struct.Struct("<III")
_SYMBOL_TABLE, _NOTES, _DYNAMIC_SYMBOLS = 2, 7, 11  # kinds of sections
_FUNCTIONS = (2, 10)  # kinds of symbols: a function, and one that is chosen when it is loaded
_BUILD_ID = 3


class _Section(NamedTuple):
    kind: int
    offset: int
    size: int
    link: int


class Symbols:
    """Names of functions. Each file is read once, when the first name in it is asked for."""

    def __init__(self) -> None:
        self._tables: dict[tuple[str, str], tuple[_Table, ...]] = {}

    def name(self, file: str, build_id: str | None, address: int) -> str | None:
        """The function at *address* of *file*, without its arguments; None: not known."""
        if build_id is None:
            return None
        key = (file, build_id)
        tables = self._tables.get(key)
        if tables is None:
            tables = () if len(self._tables) >= MAX_FILES else _tables(file, build_id)
            self._tables[key] = tables
        for table in tables:
            name = table.name(address)
            if name is not None:
                return _readable(name)
        return None


class _Table:
    """The functions of one file, by address."""

    def __init__(self, symbols: bytes, names: bytes) -> None:
        found: list[tuple[int, int, int]] = []
        count = min(len(symbols) // _SYMBOL.size, MAX_FUNCTIONS)
        whole = symbols[: count * _SYMBOL.size]
        for name, info, _, section, start, size in _SYMBOL.iter_unpack(whole):
            if info & 15 in _FUNCTIONS and section and size:
                found.append((start, size, name))
        found.sort()
        self._starts = array("Q", (each[0] for each in found))
        self._sizes = array("Q", (each[1] for each in found))
        self._names = array("Q", (each[2] for each in found))
        self._text = names

    def name(self, address: int) -> bytes | None:
        """One function may have several names: the one that people write is the shortest of those
        without an underscore in front."""
        place = bisect_right(self._starts, address) - 1
        found: list[bytes] = []
        start = self._starts[place] if place >= 0 else 0
        while place >= 0 and self._starts[place] == start:
            if address - start < self._sizes[place]:
                found += filter(None, [self._name(self._names[place])])
            place -= 1
        return min(found, key=lambda name: (name[:1] == b"_", len(name), name), default=None)

    def _name(self, begin: int) -> bytes:
        end = self._text.find(b"\0", begin, begin + MAX_MANGLED)
        return self._text[begin:end] if end > begin else b""


def _tables(file: str, build_id: str) -> tuple[_Table, ...]:
    """The symbol tables for *build_id*, the best ones first."""
    paths = [file.removesuffix(" (deleted)")]
    if len(build_id) > 2 and build_id.isalnum():
        paths.append(f"{DEBUG_FOLDER}/{build_id[:2]}/{build_id[2:]}.debug")
    found: list[tuple[int, _Table]] = []
    for path in paths:
        for kind, table in _of_file(path, build_id):
            found.append((kind, table))
    # The whole table of symbols tells of more functions than that for the linker.
    return tuple(table for _, table in sorted(found, key=lambda each: each[0]))


def _of_file(path: str, build_id: str) -> list[tuple[int, _Table]]:
    data = _open(path)
    if data is None:
        return []
    with data:
        try:
            sections = _sections(data)
            if _build_id(data, sections) != build_id:
                return []
            found: list[tuple[int, _Table]] = []
            for each in sections:
                if each.kind in (_SYMBOL_TABLE, _DYNAMIC_SYMBOLS) and each.link < len(sections):
                    names = sections[each.link]
                    symbols = data[each.offset : each.offset + each.size]
                    text = data[names.offset : names.offset + names.size]
                    found.append((each.kind, _Table(symbols, text)))
            return found
        except (struct.error, ValueError, OverflowError):
            return []


def build_id_of(path: str) -> str | None:
    """The build id of an ELF file; None if it has none, or isn't one."""
    data = _open(path)
    if data is None:
        return None
    with data:
        try:
            return _build_id(data, _sections(data))
        except (struct.error, ValueError, OverflowError):
            return None


def _open(path: str) -> mmap.mmap | None:
    """A regular file, mapped. A path that a worker names may be anything: a FIFO must not keep the
    reader waiting."""
    if not path.startswith("/") or "\0" in path:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError):
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)


def _sections(data: mmap.mmap) -> list[_Section]:
    """The sections of a 64-bit little-endian ELF file; ValueError for anything else."""
    head = _HEAD.unpack_from(data, 0)
    magic, bits, order, table, size, count = *head[:3], head[8], head[13], head[14]
    if magic != b"\x7fELF" or (bits, order) != (2, 1) or size != _SECTION.size:
        raise ValueError("not such a file")
    found = []
    for index in range(count):
        each = _SECTION.unpack_from(data, table + index * size)
        found.append(_Section(each[1], each[4], each[5], each[6]))
    return found


def _build_id(data: mmap.mmap, sections: list[_Section]) -> str | None:
    for section in sections:
        if section.kind != _NOTES:
            continue
        at, end = section.offset, section.offset + section.size
        while at + _NOTE.size <= end:
            name, length, kind = _NOTE.unpack_from(data, at)
            at += _NOTE.size
            begin = at + (name + 3 & ~3)
            if kind == _BUILD_ID and data[at : at + 4] == b"GNU\0":
                return data[begin : begin + min(length, 32)].hex()
            at = begin + (length + 3 & ~3)
    return None


# ---- names of C++


@lru_cache(maxsize=4096)
def _readable(name: bytes) -> str:
    """A name as its author wrote it, without arguments: ``c10d::ProcessGroupNCCL::abort``."""
    plain = _demangled(name) if name.startswith(b"_Z") else None
    text = (plain or name).decode("ascii", "backslashreplace")
    text = _without_arguments(text) if plain else text.partition("@")[0].partition(".")[0] or text
    return text if len(text) <= MAX_NAME else text[: MAX_NAME - 3] + "..."


def _without_arguments(text: str) -> str:
    """``f(int)::{lambda()#1}::operator()(int) const`` keeps all but the last pair of brackets."""
    end = text.rfind(")")
    depth = 0
    for place in range(end, 0, -1):
        depth += (text[place] == ")") - (text[place] == "(")
        if depth == 0:
            return text[:place] or text
    return text


@lru_cache(maxsize=1)
def _demangler() -> tuple[Any, Any] | None:
    """A function of the library that every program of C++ needs, and what frees its results; names
    stay as they are where the library is missing."""
    try:
        demangle = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
        # The program's own: a preloaded allocator (jemalloc) serves that library, too.
        free = ctypes.CDLL(None).free
    except (OSError, AttributeError):
        return None
    demangle.restype = ctypes.c_void_p
    demangle.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    free.argtypes = [ctypes.c_void_p]
    free.restype = None
    return demangle, free


def _demangled(name: bytes) -> bytes | None:
    found = _demangler()
    if found is None:
        return None
    demangle, free = found
    # What the compiler has made of a function has a suffix: _Z1fv.cold
    given = demangle(name.partition(b"@")[0].partition(b".")[0], None, None, None)
    if not given:
        return None
    try:
        return ctypes.string_at(given)
    finally:
        free(given)
