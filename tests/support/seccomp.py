"""A seccomp filter on this process; for isolated scripts, so no pytest in here."""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Sequence

# linux/seccomp.h, linux/filter.h, sys/prctl.h
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000


def forbid(calls: Sequence[int], error: int = errno.EPERM) -> bool:
    """Have the kernel refuse the system *calls*, by their numbers, with *error* from now on. False
    if there are no such filters here."""
    program = [(LOAD, 0, 0, 0)]
    for left, call in zip(reversed(range(1, len(calls) + 1)), calls, strict=True):
        program.append((EQUAL, left, 0, call))
    program += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE | error)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    filter = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filter, 0, 0) == 0)
