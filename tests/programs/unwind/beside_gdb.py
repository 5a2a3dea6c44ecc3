"""Run by gdb: stops a process again and again, and writes each thread's return addresses.

The process runs while it tells its own stacks. Then a signal stops it, which it never gets. To
attach anew each time would read all libraries anew.

Environment: ``WS_PID``, ``WS_SOCKET`` (waiting.py's), ``WS_ROUNDS``, ``WS_OUT``: a file that gets
one JSON line for each round, with ``ours`` (the native dump) and ``gdb`` (addresses by thread id,
newest frame first, and why gdb saw no more).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
from typing import Any

import gdb  # type: ignore[import-untyped,import-not-found,unused-ignore]


def order(stream: Any, text: bytes) -> bytes:
    stream.write(text + b"\n")
    stream.flush()
    answer: bytes = stream.readline()
    return answer


def addresses() -> tuple[list[int], str]:
    """Of the selected thread. What gdb tells of inlined functions and tail calls is no frame."""
    found: list[int] = []
    reason = 0
    frame = gdb.newest_frame()
    while frame is not None:
        if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
            found.append(frame.pc())
        reason = frame.unwind_stop_reason()
        frame = frame.older()
    return found, gdb.frame_stop_reason_string(reason)


def main() -> None:
    for setting in (
        "pagination off", "confirm off", "debuginfod enabled off", "print thread-events off",
        "backtrace past-main on", "backtrace past-entry on", "backtrace limit 500",
        "auto-load off", "index-cache enabled off",
    ):  # fmt: skip
        with contextlib.suppress(gdb.error):  # an older gdb
            gdb.execute("set " + setting)
    client = socket.socket(socket.AF_UNIX)
    client.connect(os.environ["WS_SOCKET"])
    stream = client.makefile("rwb")
    pid = int(os.environ["WS_PID"])
    gdb.execute(f"attach {pid}", to_string=True)
    gdb.execute("handle SIGINT stop nopass", to_string=True)
    told: list[bytes] = []

    def ask() -> None:
        order(stream, b"move")
        told.append(order(stream, b"dump"))
        os.kill(pid, signal.SIGINT)

    with open(os.environ["WS_OUT"], "w") as out:
        for _ in range(int(os.environ["WS_ROUNDS"])):
            asking = threading.Thread(target=ask)
            asking.start()
            gdb.execute("continue", to_string=True)
            asking.join()
            ours, theirs = json.loads(told.pop()), {}
            for thread in gdb.selected_inferior().threads():
                thread.switch()
                theirs[thread.ptid[1]] = addresses()
            out.write(json.dumps({"ours": ours, "gdb": theirs}) + "\n")
            out.flush()
    gdb.execute("detach", to_string=True)


main()
