"""The native frames in the JSON of ``dump_traceback?native=1``.

What comes in is foreign: types are checked, counts and lengths bounded. What is wrong is refused
with a ValueError that names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from workerserver.cluster.model import Native, NativeFrame, Thread

__all__ = ["with_native"]

#: What workerserver sends at most (``unwind.h``), of files, threads that Python doesn't know, and
#: frames of one thread.
MAX_FILES = 2048
MAX_THREADS = 1024
MAX_FRAMES = 128
#: Of a path, with room for lone surrogates; of a build id in hex; of a word.
MAX_PATH = 4096
MAX_ID = 64
MAX_WORD = 32

File = tuple[str, str | None]


def with_native(threads: Sequence[Thread], value: dict[str, Any]) -> tuple[Thread, ...]:
    """*threads* with their native frames, and the threads that Python doesn't know."""
    top = _dict(value.get("native"), "native")
    files = [_file(each) for each in _list(top.get("files"), MAX_FILES, "native.files")]
    found = [
        replace(thread, native=_native(entry["native"], files, len(thread.frames)))
        if entry.get("native") is not None
        else thread
        for thread, entry in zip(threads, value["threads"], strict=True)
    ]
    for each in _list(top.get("threads"), MAX_THREADS, "native.threads"):
        entry = _dict(each, "native.threads")
        name = entry.get("name")
        number = entry.get("native_id")
        found.append(
            Thread(
                (),
                name=_text(name, MAX_WORD * 6, "name") if name is not None else None,
                native_id=_number(number, "native_id"),
                native=_native(entry.get("native"), files, 0),
            )
        )
    return tuple(found)


def _native(value: Any, files: Sequence[File], frames: int) -> Native:
    entry = _dict(value, "native")
    matched = entry.get("matched")
    if type(matched) is not bool:
        raise ValueError("native.matched: not true or false")
    found: list[NativeFrame] = []
    exact = True  # the newest frame, and each that a signal has interrupted
    for each in _list(entry.get("frames"), MAX_FRAMES, "native.frames"):
        frame = _dict(each, "native.frames")
        found.append(_frame(frame, files, exact, frames if matched else 0))
        exact = frame.get("signal") is True
    return Native(tuple(found), _text(entry.get("end"), MAX_WORD, "native.end"), matched)


def _frame(entry: dict[str, Any], files: Sequence[File], exact: bool, frames: int) -> NativeFrame:
    path: str | None = None
    build_id: str | None = None
    offset = _number(entry.get("address"), "address")
    number = entry.get("module")
    if number is not None:
        if _number(number, "module") >= len(files):
            raise ValueError(f"module: {number}, and there are {len(files)} files")
        path, build_id = files[number]
        offset = _number(entry.get("offset"), "offset")
    python = entry.get("python")
    if python is None:
        return NativeFrame(path, build_id, offset, exact)
    first, count = (_number(each, "python") for each in _list(python, 2, "python", exactly=True))
    if first + count > frames:
        raise ValueError(f"python: {first} + {count}, and there are {frames} frames")
    return NativeFrame(path, build_id, offset, exact, (first, count))


def _file(value: Any) -> File:
    entry = _dict(value, "native.files")
    given = entry.get("build_id")
    return (
        _text(entry.get("path"), MAX_PATH, "path"),
        _text(given, MAX_ID, "build_id") if given is not None else None,
    )


def _dict(value: Any, name: str) -> dict[str, Any]:
    if type(value) is not dict:
        raise ValueError(f"{name}: not an object")
    return value


def _list(value: Any, most: int, name: str, *, exactly: bool = False) -> list[Any]:
    if type(value) is not list or len(value) > most or (exactly and len(value) != most):
        raise ValueError(f"{name}: not an array of {'' if exactly else 'at most '}{most}")
    return value


def _text(value: Any, most: int, name: str) -> str:
    if type(value) is not str or len(value) > most:
        raise ValueError(f"{name}: not a string of at most {most} characters")
    return value


def _number(value: Any, name: str) -> int:
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise ValueError(f"{name}: not a number of 64 bits")
    return value
