"""The folder in which ``workerserver run`` puts its sockets, one for each user."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile

__all__ = ["make_run_folder", "run_folder", "run_folders"]


def run_folder(place: str | None = None) -> str:
    """``<tempdir>/workerserver-<uid>``, or the same in the folder *place*. Any user can make a
    folder of that name."""
    return os.path.join(place or tempfile.gettempdir(), f"workerserver-{os.geteuid()}")


def run_folders(place: str | None = None) -> list[str]:
    """The folders of that name that belong to this user alone: the usual one, and those that were
    made because another user had the usual name."""
    usual = run_folder(place)
    place, name = os.path.split(usual)
    found = [usual] if _is_ours(usual) else []
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        more = [entry.path for entry in entries if entry.name.startswith(f"{name}-")]
        found += sorted(path for path in more if _is_ours(path))
    return found


def make_run_folder(place: str | None = None) -> str:
    """A folder of this user's own, made with mode 0700 if need be.

    PermissionError if the usual folder is this user's and others may enter it, NotADirectoryError
    if it is this user's and no folder: its owner can mend that. OSError if none can be made.
    """
    usual = run_folder(place)
    with contextlib.suppress(FileExistsError):
        os.mkdir(usual, 0o700)
    status = os.lstat(usual)
    if status.st_uid == os.geteuid():
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(usual)
        if status.st_mode & 0o077:
            raise PermissionError(usual)
        return usual
    # Another user was first. That user must not be able to keep us from serving.
    for folder in run_folders(place):
        return folder
    return tempfile.mkdtemp(prefix=f"{os.path.basename(usual)}-", dir=os.path.dirname(usual))


def _is_ours(path: str) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.geteuid()
        and not status.st_mode & 0o077
    )
