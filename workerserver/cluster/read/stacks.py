"""Stacks as workers send them, made into threads: the JSON of ``dump_traceback``, or the text of
faulthandler, which is all that a stock torch worker has.

What comes in is foreign: types are checked, counts and lengths bounded. :func:`parse_json` refuses
what is wrong with a ValueError that names it; :func:`parse_text` takes what it understands of any
text and never raises.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Literal, NoReturn

from workerserver.cluster.model import Child, Frame, Thread
from workerserver.cluster.read.native.answers import with_native
from workerserver.cluster.read.waits_for import (
    read_children,
    read_holds,
    read_switches,
    read_waits,
    with_names,
)

__all__ = [
    "Stacks",
    "digest_text",
    "of_value",
    "parse_json",
    "parse_text",
    "read_json",
    "read_text",
]

Mode = Literal["gil", "nogil", "kernel"]
_MODES: tuple[Mode, ...] = ("gil", "nogil", "kernel")

#: What workerserver sends at most (``snapshot.h``).
MAX_THREADS = 4096
MAX_FRAMES = 65536
MAX_DEPTH = 1000
#: 1024 characters, of which each may be a lone surrogate, spelled out in six; and "...".
MAX_NAME = 6 * 1024 + 3
#: A line's number.
MAX_LINE_NUMBER = 1 << 31
#: Of a text; as many characters as the largest one of workerserver has.
MAX_TEXT = 1 << 25
#: Of a line of it: two names of 500 characters, each spelled out in ten.
MAX_LINE = 10240
#: CPython's own dump ends here; before 3.14 it says so only in 3.10.
CPYTHON_DEPTH = 100


@dataclass(frozen=True, slots=True)
class Stacks:
    """All that one answer holds. *pid*, *mode* and *time* are None in a text, which does not tell
    them. *truncated*: threads were left out."""

    threads: tuple[Thread, ...]
    pid: int | None = None
    mode: Mode | None = None
    time: float | None = None
    truncated: bool = False
    namespace: int | None = None
    """Of process ids, on the worker's host."""
    children: tuple[Child, ...] = ()
    """The processes that the worker has started; empty also if it doesn't tell."""


@lru_cache(maxsize=8192)
def _frame(file: str, line: int | None, function: str) -> Frame:
    """Ranks of one job share nearly all their frames: one object each."""
    return Frame(file, line, function)


# ---- JSON


def parse_json(body: bytes | str) -> list[Thread]:
    """The threads of ``dump_traceback?format=json``; ValueError names what is wrong with it."""
    return list(read_json(body).threads)


def read_json(body: bytes | str) -> Stacks:
    """As :func:`parse_json`, with what else the answer says."""
    try:
        value = json.loads(body, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    return of_value(value)


def of_value(value: Any) -> Stacks:
    """As :func:`read_json`, from the decoded JSON."""
    top = _Object(value, "the answer")
    version = top.get("version", int)
    if version != 1:
        raise ValueError(f"version: {version}, and this reads version 1")
    pid = top.number("pid", 1 << 31)
    mode = top.get("mode", str)
    if mode not in _MODES:
        raise ValueError(f"mode: {_cut(mode)}, not one of {', '.join(_MODES)}")
    given = top.get("threads", list)
    if len(given) > MAX_THREADS:
        raise ValueError(f"threads: {len(given)}, more than {MAX_THREADS}")
    left = MAX_FRAMES
    threads: list[Thread] = []
    for index, entry in enumerate(given):
        thread = _thread(_Object(entry, f"threads[{index}]"))
        left -= len(thread.frames)
        if left < 0:
            raise ValueError(f"threads: more than {MAX_FRAMES} frames in all")
        threads.append(thread)
    main = _main_by_id(threads, pid)
    if main is not None:
        threads[main] = replace(threads[main], main=True)
    time = float(top.get("time", int, float))
    namespace = value.get("pid_namespace")
    if type(namespace) is not int or not 0 < namespace <= 1 << 64:
        namespace = None
    children = read_children(value.get("children"))
    found = with_names(threads, children) if children else tuple(threads)
    if value.get("native") is not None:
        found = with_native(found, value)
    return Stacks(found, pid, mode, time, top.get("truncated", bool), namespace, children)


class _Object:
    """A JSON object of which each value is asked for by its type."""

    __slots__ = ("value", "where")

    def __init__(self, value: Any, where: str) -> None:
        if type(value) is not dict:
            raise ValueError(f"{where}: {_kind(value)}, not an object")
        self.value = value
        self.where = where

    def wrong(self, name: str, text: str) -> NoReturn:
        raise ValueError(f"{self.where}.{name}: {text}" if "[" in self.where else f"{name}: {text}")

    def get(self, name: str, *types: type) -> Any:
        """The value, of exactly one of *types*: a bool is no int."""
        try:
            value = self.value[name]
        except KeyError:
            self.wrong(name, "missing")
        if type(value) not in types:
            names = " or ".join(_NAMES[each] for each in types)
            self.wrong(name, f"{_kind(value)}, not {names}")
        return value

    def number(self, name: str, most: int, *types: type) -> Any:
        value = self.get(name, int, *types)
        if value is not None and not 0 <= value <= most:
            self.wrong(name, "out of range")
        return value

    def text(self, name: str, most: int, *types: type) -> Any:
        value = self.get(name, str, *types)
        if value is not None and len(value) > most:
            self.wrong(name, f"{len(value)} characters, more than {most}")
        return value


_NAMES: dict[type, str] = {
    bool: "true or false",
    dict: "an object",
    float: "a number",
    int: "an integer",
    list: "an array",
    str: "a string",
    type(None): "null",
}
_NONE = type(None)


def _kind(value: Any) -> str:
    return _NAMES[type(value)]


def _cut(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _thread(entry: _Object) -> Thread:
    given = entry.get("frames", list)
    if len(given) > MAX_DEPTH:
        entry.wrong("frames", f"{len(given)}, more than {MAX_DEPTH}")
    frames = [
        _frame_of(each) or _odd_frame(_Object(each, f"{entry.where}.frames[{index}]"))
        for index, each in enumerate(given)
    ]
    return Thread(
        tuple(frames),
        name=entry.text("name", MAX_NAME, _NONE),
        ident=entry.number("ident", 1 << 64, _NONE),
        native_id=entry.number("native_id", 1 << 31, _NONE),
        state=entry.text("state", 1, _NONE),
        wchan=entry.text("wchan", 64, _NONE),
        holds_gil=entry.get("current", bool),
        truncated=entry.get("truncated", bool),
        unstable=entry.get("unstable", bool),
        waits=read_waits(entry.value.get("waits_for")),
        holds=read_holds(entry.value.get("holds")),
        switches=read_switches(entry.value.get("switches")),
    )


def _frame_of(value: Any) -> Frame | None:
    """The frame that nearly all are, at once; None for any other."""
    try:
        file, line, function = value["file"], value["line"], value["function"]
    except (KeyError, IndexError, TypeError):
        return None
    if not (type(file) is str and type(line) is int and type(function) is str):
        return None
    if len(file) > MAX_NAME or len(function) > MAX_NAME or not 0 <= line <= MAX_LINE_NUMBER:
        return None
    return _frame(file, line, function)


def _odd_frame(entry: _Object) -> Frame:
    file = entry.text("file", MAX_NAME, _NONE)
    function = entry.text("function", MAX_NAME, _NONE)
    line = entry.number("line", MAX_LINE_NUMBER, _NONE)
    return _frame(
        _UNKNOWN if file is None else file, line, _UNKNOWN if function is None else function
    )


#: A name that the interpreter could not tell, in the text.
_UNKNOWN = "???"
#: A text's current thread is who took it. If it has no frames, it is a C++ one of torch's server,
#: and called so.
TAKER = "pt_workerserver"


def _main_by_id(threads: Sequence[Thread], pid: int) -> int | None:
    """The main thread's number: the kernel's, by its name, else a guess. Before CPython 3.13 a
    forked child's main thread keeps the native id that it had in the parent."""
    for index, thread in enumerate(threads):
        if thread.native_id == pid:
            return index
    for index, thread in enumerate(threads):
        if thread.name == "MainThread":
            return index
    return _main_by_frames(threads)


def _main_by_frames(threads: Sequence[Thread]) -> int | None:
    """The oldest thread whose first frame is a module's; threads are listed newest first. One that
    was cut off shows no first frame, and counts if it is the oldest."""
    for index in range(len(threads) - 1, -1, -1):
        frames = threads[index].frames
        if frames and (frames[-1].function in ("<module>", "_run_module_as_main")):
            return index
    if threads and threads[-1].truncated and threads[-1].frames:
        return len(threads) - 1
    return None


# ---- text

_HEADER = re.compile(
    r"(Current thread|Thread) 0x([0-9a-f]{1,16})(?: \[(.*)\])? \(most recent call first\):\Z"
)
_ALONE = "Stack (most recent call first):"
_FRAME = re.compile(r'  File (?:"(.*)"|\?\?\?), line ([0-9]{1,10}|\?\?\?) in (.*)\Z')
_KERNEL = re.compile(r"Thread 0x([0-9a-f]{1,16}) \[(.*?)\](?: state (.))?(?: wchan (\S{1,64}))?\Z")
_KERNEL_START = "No Python stacks: "
_UNSTABLE = "  (unstable: changed each time it was read)"
#: Lines that stand for frames that aren't there.
_CUT = frozenset({"  ...", "  <truncated rest of calls>"})
_BROKEN = frozenset({"  <freed frame>", "  <invalid frame>", "  <freed thread state>"})
_BROKEN |= {"  <tstate is freed>"}
#: faulthandler spells out what is not printable ASCII, and only that; a backslash stays as it is.
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))")


def parse_text(text: str) -> list[Thread]:
    """The threads in faulthandler's form, as CPython 3.10 to 3.15, stock torch and workerserver
    write it. What is not understood is skipped."""
    return list(read_text(text).threads)


def read_text(text: str) -> Stacks:
    """As :func:`parse_text`, with what else the text says."""
    kernel = text.startswith(_KERNEL_START)
    threads: list[Thread] = []
    truncated = len(text) > MAX_TEXT
    left = MAX_FRAMES
    for header, lines in _blocks(text[:MAX_TEXT]):
        if header is None:
            truncated = truncated or "..." in lines
            continue
        if len(threads) == MAX_THREADS:
            truncated = True
            break
        thread = _kernel_thread(header) if kernel else _text_thread(header, lines, left)
        if thread is not None:
            threads.append(thread)
            left -= len(thread.frames)
    # The kernel lists a process's first thread first, whatever its id: they wrap around at pid_max.
    main = (0 if threads else None) if kernel else _main_by_frames(threads)
    if main is not None:
        threads[main] = replace(threads[main], main=True)
    return Stacks(tuple(threads), mode="kernel" if kernel else None, truncated=truncated)


def _blocks(text: str) -> Iterator[tuple[str | None, list[str]]]:
    """Headers, each with the lines that belong to it; None for lines that belong to none."""
    header: str | None = None
    lines: list[str] = []
    for line in text.split("\n"):
        if line.startswith(("Thread 0x", "Current thread", _ALONE)):
            if header is not None or lines:
                yield header, lines
            # Of the C stack of CPython 3.14 nothing is read.
            header, lines = (None if "C stack" in line[:32] else line), []
        elif not line:  # ends a thread; what follows without a header belongs to none
            yield header, lines
            header, lines = None, []
        else:
            lines.append(line)
    yield header, lines


def _text_thread(header: str, lines: Sequence[str], most: int) -> Thread | None:
    match = _HEADER.match(header) if len(header) <= MAX_LINE else None
    if match is None and header != _ALONE:
        return None
    frames: list[Frame] = []
    truncated = unstable = False
    most = min(most, MAX_DEPTH)
    for line in lines:
        found = _FRAME.match(line) if len(line) <= MAX_LINE else None
        if found is not None and len(frames) < most:
            frames.append(_text_frame(*found.groups()))
        elif found is not None or line in _CUT or len(line) > MAX_LINE:
            truncated = True
        elif line in _BROKEN or line == _UNSTABLE:
            unstable = True
    if len(frames) == CPYTHON_DEPTH:
        truncated = True  # or has exactly as many
    if match is None:
        return Thread(tuple(frames), truncated=truncated, unstable=unstable)
    name = None if match[3] is None else _plain(match[3])
    current = match[1] == "Current thread"
    if current and not frames:
        name = TAKER
    return Thread(
        tuple(frames),
        name=name,
        ident=int(match[2], 16),
        holds_gil=current,
        truncated=truncated,
        unstable=unstable,
    )


def _text_frame(file: str | None, line: str, function: str) -> Frame:
    number = None if line == _UNKNOWN else int(line)
    if number is not None and number > MAX_LINE_NUMBER:
        number = None
    return _frame(_UNKNOWN if file is None else _plain(file), number, _plain(function))


def _kernel_thread(header: str) -> Thread | None:
    match = _KERNEL.match(header) if len(header) <= MAX_LINE else None
    if match is None:
        return None
    name = None if match[2] == _UNKNOWN else _plain(match[2])
    return Thread((), name=name, native_id=int(match[1], 16), state=match[3], wchan=match[4])


def _plain(name: str) -> str:
    """Without the escapes; what faulthandler would not have escaped is none."""
    return _ESCAPE.sub(_character, name) if "\\" in name else name


def _character(match: re.Match[str]) -> str:
    code = int(match[1] or match[2] or match[3], 16)
    if match[1]:
        genuine = code < 32 or code > 126
    elif match[2]:
        genuine = code > 0xFF and not 0xD800 <= code <= 0xDFFF
    else:
        genuine = 0xFFFF < code <= 0x10FFFF
    return chr(code) if genuine else match[0]


# ---- digests of texts


def digest_text(text: str) -> tuple[str, str | None]:
    """Two hashes of a text: of all its stacks, and of its main thread's (None without one). Made as
    those of ``format=digest``: equal where workers do the same, whatever the idents and the order
    of the threads and how many share a stack. Left out is the thread that took the text, if it is
    not the main thread. A text tells less than workerserver knows, so don't compare across kinds.
    """
    main: str | None = None
    others: set[str] = set()
    stacks: list[tuple[bool, list[str]]] = []
    for header, lines in _blocks(text[:MAX_TEXT]):
        if header is None:
            continue
        lines = [line for line in lines if line.startswith("  ") and line != "  Garbage-collecting"]
        # Of a thread that the kernel knows, all is in the header.
        lines = lines or [header.partition(" [")[2]]
        stacks.append((header.startswith("Current"), lines))
    found = _main_by_frames([_outline(lines) for _, lines in stacks])
    for index, (current, lines) in enumerate(stacks):
        if index == found:
            main = _hash("\n".join(lines) + "\n")
        elif not current:
            others.add(_hash("\n".join(lines) + "\n"))
    return _hash("\n".join([main or "-", *sorted(others)])), main


def _outline(lines: Sequence[str]) -> Thread:
    """As much of a thread as tells whether it is the main one."""
    cut = len(lines) >= CPYTHON_DEPTH
    while lines and lines[-1] in _CUT:
        lines, cut = lines[:-1], True
    found = _FRAME.match(lines[-1]) if lines and len(lines[-1]) <= MAX_LINE else None
    return Thread((_text_frame(*found.groups()),) if found else (), truncated=cut)


def _hash(text: str) -> str:
    return blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()
