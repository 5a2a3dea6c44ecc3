"""The command's own stdout and stderr: what becomes of output that can't be written.

A reader that goes away (``| head``) changes nothing: the command ends with its own status. A full
disk, or any other error, is one line on stderr and status 74 (EX_IOERR of sysexits.h).
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

from workerserver.process.sockets import fill_standard_descriptors

__all__ = ["NOT_WRITTEN", "Losses", "bearable_streams", "reader_left"]

NOT_WRITTEN = 74


class Losses:
    """What could not be written. ``error`` is the first reason that is not a reader's end."""

    error: OSError | None = None

    def note(self, error: OSError) -> None:
        if self.error is None and error.errno != errno.EPIPE:
            self.error = error


class _Bearable(io.RawIOBase):
    """A descriptor on which no write fails. What can't be written is lost, and noted; the next
    write is tried again, since a disk may have room by then."""

    def __init__(self, fd: int, losses: Losses) -> None:
        self._fd = fd
        self._losses = losses
        self.left = False  # the reader has gone

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def write(self, data: Any) -> int | None:
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return None
        except OSError as error:
            self.left = self.left or error.errno == errno.EPIPE
            self._losses.note(error)
            return len(data)


def reader_left() -> bool:
    """Whether nobody reads stdout any more: for commands that would go on for nobody."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(raw, _Bearable) and raw.left


@contextlib.contextmanager
def bearable_streams() -> Iterator[Losses]:
    """While the block runs, writing to stdout and stderr raises nothing. Gives what stdout lost.

    A descriptor from 0 to 2 that is closed becomes /dev/null: else the next socket would get its
    number, and libuv would end the process. Streams that somebody has replaced are left alone.
    """
    fill_standard_descriptors()
    losses = Losses()
    before = sys.stdout, sys.stderr
    sys.stdout = _bearable(sys.stdout, 1, losses)
    sys.stderr = _bearable(sys.stderr, 2, Losses())
    try:
        yield losses
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = before


def _bearable(stream: Any, fd: int, losses: Losses) -> Any:
    if stream is not None and type(stream) is not io.TextIOWrapper:
        return stream
    with contextlib.suppress(OSError, ValueError):
        if stream is not None:
            if stream.fileno() != fd:
                return stream
            stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Bearable(fd, losses)),
        encoding=getattr(stream, "encoding", "utf-8"),
        errors=getattr(stream, "errors", "backslashreplace"),
        line_buffering=fd == 2 or os.isatty(fd),
    )
