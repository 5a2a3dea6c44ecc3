"""Native and Python frames as one stack, with the names of the native functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from workerserver.cluster.model import NATIVE, Frame, Native, NativeFrame, RankState, Thread
from workerserver.cluster.read.native.symbols import Symbols

__all__ = ["name_frames", "named"]

#: Files that only pass a call on: their functions say little of what a thread does.
_PLUMBING = (
    "python", "libpython", "_ctypes.", "libffi.", "libc.so", "libc-", "libpthread", "libstdc++.",
    "libgcc_s.", "ld-linux", "libm.", "linux-vdso", "[vdso]", "libtorch_python.",
)  # fmt: skip
#: In place of a file, where a stack was cut.
_CUT = f"{NATIVE}native frames end here"


def name_frames(states: Iterable[RankState]) -> None:
    """Give names to the native frames of *states*. Reads the files that hold the functions."""
    symbols = Symbols()
    known: dict[int, tuple[Thread, ...]] = {}
    kept = []  # so that no other object gets the number of one of these
    for state in states:
        threads = state.threads
        if any(each.native is not None for each in threads):
            kept.append(threads)
            if id(threads) not in known:
                known[id(threads)] = tuple(named(each, symbols) for each in threads)
            state.threads = known[id(threads)]


def named(thread: Thread, symbols: Symbols) -> Thread:
    """*thread* with the frames to show, and the native function that it is in."""
    native = thread.native
    if native is None:
        return thread
    function, names = _function(native, symbols)
    shown: list[Frame] = []
    next_python = 0
    for frame, name in zip(native.frames, names, strict=True):
        if frame.python is None:
            shown.append(_frame(frame, name))
        else:
            first, count = frame.python
            shown += thread.frames[first : first + count]
            next_python = first + count
    if native.end != "whole":
        shown.append(Frame(_CUT, None, _WHY.get(native.end, native.end)))
    shown += thread.frames[next_python:]
    return replace(thread, native=replace(native, shown=tuple(shown), function=function))


def _function(native: Native, symbols: Symbols) -> tuple[str | None, list[str | None]]:
    """The innermost native function that says what the thread does, and the name of each frame.
    Where all are the C library's and Python's, the C library's function that was called."""
    names = [_name(each, symbols) for each in native.frames]
    called: str | None = None
    for frame, name in zip(native.frames, names, strict=True):
        if frame.python is not None:
            break
        if name is None:
            continue
        file = frame.file or ""
        base = file.rpartition("/")[2]
        if not base.startswith(_PLUMBING) and "/lib-dynload/" not in file:
            return name, names
        if base.startswith(("libc.so", "libc-", "libpthread")):
            called = name
    return called, names


def _name(frame: NativeFrame, symbols: Symbols) -> str | None:
    if frame.file is None:
        return None
    # A call that returns to the next function's start was the last instruction of this one.
    return symbols.name(frame.file, frame.build_id, frame.offset - (not frame.exact))


def _frame(frame: NativeFrame, name: str | None) -> Frame:
    if frame.file is None:
        return Frame(f"{NATIVE}code without a file", None, f"0x{frame.offset:x}")
    function = f"{name}()" if name is not None else f"+0x{frame.offset:x}"
    return Frame(NATIVE + frame.file, None, function)


#: Why there are no more native frames, in words.
_WHY = {
    "running": "the thread runs",
    "hidden": "the kernel doesn't tell where the thread is",
    "late": "no time was left",
    "deep": "there are more than are shown",
    "no_code": "the next address is in no code",
    "generated": "this code lies in no file",
    "no_table": "the file has no unwind table for this function",
    "no_rule": "the file has no unwind rule that is known",
    "lost_register": "a register is not known",
    "no_call": "no call stands before the next address",
    "no_stack": "the stack can't be read",
    "changed": "libraries were loaded meanwhile",
}
