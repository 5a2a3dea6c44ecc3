"""The file of ``-o``: a whole one or none."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from workerserver.cli.errors import OutputError

__all__ = ["is_plain", "whole"]


def is_plain(path: str) -> bool:
    """Whether *path* is a file, or nothing yet: a device, a pipe and a link (/dev/stdout) must not
    be replaced by a file."""
    return not os.path.islink(path) and (not os.path.exists(path) or os.path.isfile(path))


@contextlib.contextmanager
def whole(path: str) -> Iterator[BinaryIO]:
    """A file to write to, which becomes *path* at the end of the block. An exception in the block
    leaves *path* as it was, and OSError becomes OutputError. What is not plain is written at
    once. The name of the unfinished file can be guessed: in a folder where others may write, a link
    or a file of theirs may lie there already. It is never written to."""
    plain = is_plain(path)
    part = f"{path}.part" if plain else path
    try:
        with open(part, "wb", opener=_anew) if plain else open(part, "wb") as file:
            yield file
        if plain:
            os.replace(part, path)
    except BaseException as error:
        if plain:
            with contextlib.suppress(OSError):
                os.unlink(part)
        if isinstance(error, OSError):
            raise OutputError(path, error) from None
        raise


def _anew(path: str, flags: int) -> int:
    """A new file, in place of what an earlier command of this user has left there."""
    with contextlib.suppress(FileNotFoundError):
        left = os.lstat(path)
        if stat.S_ISREG(left.st_mode) and left.st_uid == os.geteuid():
            os.unlink(path)
    return os.open(path, flags | os.O_EXCL | os.O_NOFOLLOW, 0o666)
