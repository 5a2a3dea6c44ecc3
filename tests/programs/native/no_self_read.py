"""``no_self_read.py before|after``: which answers are left if a seccomp filter forbids self-reads.

The filter refuses process_vm_readv and pread64, before stacks are prepared for or after. Prints as
JSON: why they can't be prepared for, and the status, mode and text that the handler answers.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import struct
import sys
from typing import Any

from workerserver.handlers.stacks import dump_traceback
from workerserver.stacks._stacks import prepare, snapshot
from workerserver.types import NotImplementedHere

# linux/seccomp.h, linux/filter.h, sys/prctl.h; call numbers of process_vm_readv and pread64
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | 1  # EPERM
REFUSED = {"x86_64": (310, 17), "aarch64": (270, 67)}


def forbid() -> None:
    calls = REFUSED[platform.machine()]
    program = [(LOAD, 0, 0, 0)]
    for left, call in zip(reversed(range(1, len(calls) + 1)), calls, strict=True):
        program.append((EQUAL, left, 0, call))
    program += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    filter = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        sys.exit(77)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filter, 0, 0) != 0:
        sys.exit(77)


def answer() -> dict[str, Any]:
    try:
        response = dump_traceback("text", "nogil")
    except NotImplementedHere as error:
        return {"status": error.status, "text": str(error)}
    return {
        "status": response.status,
        "headers": dict(response.headers),
        "text": bytes(response.body).decode("ascii"),
    }


def main() -> None:
    if sys.argv[1] == "after":
        assert prepare() is None
        assert snapshot(mode="nogil").threads
    forbid()
    found: dict[str, Any] = {"problem": prepare(), **answer(), "pid": os.getpid()}
    found["gil"] = snapshot().mode
    print(json.dumps(found))


if __name__ == "__main__":
    main()
