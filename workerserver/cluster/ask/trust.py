"""Whether a token may go to a Unix socket: to whom the process at the other end belongs.

The user of that process is told by the kernel (SO_PEERCRED), so a socket file that was replaced,
moved or linked is no way around. This user and root are trusted. Root has no reason to trust any
other user, with one exception: in a folder that only one user may write, every socket is there by
the will of that user, and root named the folder.
"""

from __future__ import annotations

import os
import stat

__all__ = ["distrust"]

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def distrust(path: str, uid: int | None) -> str | None:
    """Why no token may go to the socket at *path*, which belongs to user *uid*; None if it may.

    *uid* is None where the platform does not tell. Then the owner of the socket file has to do.
    """
    if uid is None:
        try:
            uid = os.stat(path).st_uid
        except OSError:
            return "nobody can tell to whom the socket belongs, so the token was not sent"
    own = os.geteuid()
    if uid in (0, own):
        return None
    if own != 0:
        return f"the socket belongs to {_name(uid)}, so the token was not sent"
    if _only_writer(os.path.dirname(os.path.realpath(path)), uid):
        return None
    return (
        f"the socket belongs to {_name(uid)}, and others may write to its folder: root sends no "
        f"token there (ask as {_name(uid)})"
    )


def _only_writer(folder: str, uid: int) -> bool:
    """Whether nobody but user *uid*, and root, may write to *folder*."""
    try:
        status = os.stat(folder)
    except OSError:
        return False
    return status.st_uid in (0, uid) and not status.st_mode & _WRITABLE_BY_OTHERS


def _name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
