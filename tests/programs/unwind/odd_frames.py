"""Threads that wait in code that no file holds, and inside a signal's handler.

``odd_frames.py LIBRARY`` (signalled.c) prints the native stack of each, a JSON object by name.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import sys
import threading
import time
from typing import Any

from workerserver.stacks._stacks import snapshot

#: sub rsp, 8; call rcx; add rsp, 8; ret: read() with the first three arguments.
CODE = bytes.fromhex("4883ec08 ffd1 4883c408 c3")


def stacks() -> dict[str, Any]:
    value = json.loads(snapshot(mode="nogil", native=True).render("json"))
    return {each["name"]: each["native"] for each in value["threads"]}


def main() -> None:
    reading, writing = os.pipe()
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(CODE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))
    pointer, number = ctypes.c_void_p, ctypes.c_long
    made = ctypes.CFUNCTYPE(number, ctypes.c_int, pointer, number, pointer)(start)
    room = ctypes.create_string_buffer(8)
    # The C library's own: a sanitizer's read() has a frame that no table leads out of, since the
    # kernel does not tell its frame pointer (test_tables.py says more).
    read = ctypes.cast(ctypes.CDLL("libc.so.6").read, pointer)
    signalled = ctypes.CDLL(sys.argv[1]).wait_in_handler
    threads = [
        threading.Thread(target=made, args=(reading, room, 1, read), name="made", daemon=True),
        threading.Thread(target=signalled, args=(reading,), name="signalled", daemon=True),
    ]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found = stacks()
        if (found["made"]["end"], found["signalled"]["end"]) == ("generated", "whole"):
            break
        time.sleep(0.1)
    print(json.dumps(found))
    os.write(writing, b"xx")
    for thread in threads:
        thread.join(60)


if __name__ == "__main__":
    main()
