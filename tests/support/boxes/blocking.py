"""A folder on a file system that blocks, as NFS does whose server is gone: FUSE, and nobody answers
the kernel's requests."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["blocking_folder", "may_mount", "waits_for_it"]

DEVICE = "/dev/fuse"
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def may_mount() -> bool:
    return os.geteuid() == 0 and os.path.exists(DEVICE)


@contextlib.contextmanager
def blocking_folder(place: Path) -> Iterator[Path]:
    """*place*, in which every look-up waits. Afterwards all of them have failed (ENOTCONN), and
    *place* is an empty folder again."""
    try:
        descriptor = os.open(DEVICE, os.O_RDWR)
    except OSError as error:
        import pytest

        pytest.skip(f"no FUSE here: {error.strerror}")
    options = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0".encode()
    try:
        if _libc.mount(b"blocking", os.fsencode(place), b"fuse", 0, options) != 0:
            import pytest

            pytest.skip(f"no FUSE here: {os.strerror(ctypes.get_errno())}")
        try:
            yield place
        finally:
            os.close(descriptor)
            descriptor = -1
            _libc.umount2(os.fsencode(place), MNT_DETACH)
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def waits_for_it(pid: int) -> bool:
    """A thread of process *pid* waits for the file system."""
    for path in Path(f"/proc/{pid}/task").glob("*/wchan"):
        with contextlib.suppress(OSError):
            if path.read_text() in ("request_wait_answer", "fuse_get_req", "fuse_simple_request"):
                return True
    return False
