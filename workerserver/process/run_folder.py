"""The folder in which ``workerserver run`` puts its sockets, one for each user."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import tempfile

__all__ = [
    "fresh_folder",
    "make_run_folder",
    "may_hang",
    "run_folder",
    "run_folders",
    "temporary_folder",
]

#: File systems that need no other machine, and no program, to answer.
_LOCAL = frozenset({
    "aufs", "bcachefs", "btrfs", "devtmpfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay",
    "ramfs", "reiserfs", "rootfs", "tmpfs", "xfs", "zfs",
})  # fmt: skip
_MOUNTS = "/proc/self/mountinfo"
MAX_MOUNTS_BYTES = 4 << 20
MAX_LINKS = 40
#: That name the folder for temporary files, in the order in which tempfile looks at them.
_VARIABLES = ("TMPDIR", "TEMP", "TMP")
TRIES = 100
_ESCAPED = re.compile(r"\\([0-7]{3})")


def temporary_folder() -> str:
    """As :func:`tempfile.gettempdir`, without its lock. That one is held while files are written.
    A process that training forks just then, as a DataLoader does, would wait for it for ever.
    FileNotFoundError if there is none."""
    if tempfile.tempdir is not None:
        return os.fsdecode(tempfile.tempdir)
    named = (os.environ.get(name) for name in _VARIABLES)
    for place in (*named, "/tmp", "/var/tmp", "/usr/tmp", os.curdir):
        if place and os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK):
            return os.path.abspath(place)
    raise FileNotFoundError(errno.ENOENT, "there is no folder for temporary files")


def fresh_folder(prefix: str, place: str) -> str:
    """Make a folder of mode 0700 in *place*, with eight more characters in its name. OSError. As
    :func:`tempfile.mkdtemp`, without its lock."""
    for _ in range(TRIES):
        path = os.path.join(place, prefix + os.urandom(4).hex())
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
            return path
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), place)


def run_folder(place: str | None = None, user: int | None = None) -> str:
    """``<tempdir>/workerserver-<uid>``, or the same in the folder *place*. *user*: another one's.
    Any user can make a folder of that name."""
    number = os.geteuid() if user is None else user
    return os.path.join(place or temporary_folder(), f"workerserver-{number}")


def run_folders(place: str | None = None, user: int | None = None) -> list[str]:
    """The folders of that name that belong to this user alone, or to *user*: the usual one, and
    those that were made because another user had the usual name."""
    usual = run_folder(place, user)
    place, name = os.path.split(usual)
    found = [usual] if _is_private(usual, user) else []
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        more = [entry.path for entry in entries if entry.name.startswith(f"{name}-")]
        found += sorted(path for path in more if _is_private(path, user))
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
    return fresh_folder(f"{os.path.basename(usual)}-", os.path.dirname(usual))


def may_hang() -> bool:
    """Whether the run folder is on a file system that another machine or a program serves. While
    that one doesn't answer, whoever opens a file there waits.

    Looks at no such file system itself.
    """
    places = [tempfile.tempdir]
    if tempfile.tempdir is None:  # nobody has asked yet, and to find out may wait
        places = [*(os.environ.get(name) for name in _VARIABLES), "/tmp"]
    mounts = _mounts()
    return any(_is_remote(os.path.abspath(os.fsdecode(place)), mounts) for place in places if place)


def _mounts() -> dict[str, str]:
    """The kind of each mounted file system, by its path; none where /proc doesn't tell."""
    found = {}
    with contextlib.suppress(OSError), open(_MOUNTS, encoding="utf-8", errors="replace") as file:
        for line in file.read(MAX_MOUNTS_BYTES).splitlines():
            left, _, right = line.partition(" - ")
            fields = left.split(" ")
            if len(fields) > 4 and right:
                path = _ESCAPED.sub(lambda match: chr(int(match[1], 8)), fields[4])
                found[path.rstrip("/")] = right.partition(" ")[0]
    return found


def _is_remote(path: str, mounts: dict[str, str]) -> bool:
    """Whether *path*, with its symbolic links followed, leads to a file system that is not local.
    Stops where it does: to look at the next name there could hang."""
    at, links = "", 0
    left = path.split("/")[::-1]
    while left:
        name = left.pop()
        if name in ("", "."):
            continue
        at = at.rpartition("/")[0] if name == ".." else f"{at}/{name}"
        if _kind_at(at, mounts) not in _LOCAL:
            return True
        try:
            target = os.readlink(at or "/")
        except OSError:
            continue  # no link
        links += 1
        if links > MAX_LINKS:
            return True
        at = "" if target.startswith("/") else at.rpartition("/")[0]
        left += target.split("/")[::-1]
    return False


def _kind_at(path: str, mounts: dict[str, str]) -> str:
    while path and path not in mounts:
        path = path.rpartition("/")[0]
    return mounts.get(path, "rootfs")


def _is_private(path: str, user: int | None) -> bool:
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == (os.geteuid() if user is None else user)
        and not status.st_mode & 0o077
    )
