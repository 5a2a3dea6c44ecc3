"""Where a process's black box lies: a file on a local tmpfs, of a size that all ranks can have.

What is on a tmpfs stays when the process is killed. Nothing that blocks, as a network file system
may, is ever mapped into a training process.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import zlib

from workerserver.blackbox.format import LEAST_BYTES, MAX_BYTES
from workerserver.process.run_folder import make_run_folder, temporary_folder

__all__ = [
    "BOX",
    "LEFT",
    "READY",
    "RUN",
    "SHARED_MEMORY",
    "SMALL_HEAP",
    "SUFFIX",
    "NoPlace",
    "create",
    "folder_of",
    "label_of",
    "places",
    "size_for",
]

SUFFIX = ".box"
#: A box on the tmpfs that its keeper could not copy.
LEFT = f"{SUFFIX}.left"
#: For glibc in the keeper: the memory of a box's copy is given back to the system at once. The
#: keeper would have 6 MB more otherwise, for its whole life.
SMALL_HEAP = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1"}
#: A box on the tmpfs: the pid, and when the process began, in ticks.
BOX = re.compile(r"(\d{1,10})-(\d{1,20})\.box\Z")
#: A folder of one run on one host: when its keeper began, the job, the host, who started it.
RUN = re.compile(r"(\d{8}T\d{6})-(.{1,64})@(.{1,64})-(\d{1,20})\Z")
#: What the keeper writes to who started it, once it has copied a box.
READY = b"ready\n"
SHARED_MEMORY = "/dev/shm"
#: Of the file system: what the boxes of one job may have on this host, and all boxes of the user,
#: with those that no keeper has taken away yet.
JOB_SHARE = 8
USER_SHARE = 4
#: Ranks of a host, where nobody tells.
USUAL_RANKS = 8
PAGE_BYTES = 4096
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


class NoPlace(Exception):
    """There is no room for a black box; the text says why."""


def places() -> list[str]:
    """Folders that may be on a tmpfs."""
    return list(dict.fromkeys((SHARED_MEMORY, temporary_folder())))


def label_of(job: str, host: str, starter: str) -> str:
    """How the folder of a run of this job on this host ends. *starter*: ``PID:TICKS``."""
    plain = (_UNSAFE.sub("_", text)[:64] or "_" for text in (job, host))
    return f"{'@'.join(plain)}-{starter.partition(':')[0]}"


def folder_of(place: str, starter: str, job: str | None) -> str:
    """The folder of the boxes of one job on this host, made if need be. OSError. *job*: its name,
    if who has started it may start others; None of torchrun, whose job may change its name with the
    port of an attempt."""
    name = f"blackbox-{starter.replace(':', '-')}"
    if job is not None:
        name += f"-{zlib.crc32(job.encode('utf-8', 'surrogateescape')):08x}"
    folder = os.path.join(make_run_folder(place), name)
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    return folder


def size_for(place: str, ranks: int | None) -> int:
    """Bytes of each box if *ranks* of them are on *place*. NoPlace if that is too little."""
    status = os.statvfs(place)
    total = status.f_blocks * status.f_frsize
    size = min(MAX_BYTES, total // JOB_SHARE // max(ranks or USUAL_RANKS, 1))
    size -= size % PAGE_BYTES
    if size < LEAST_BYTES:
        raise NoPlace(
            f"{place} has {total >> 20} MiB, which is too little for {ranks or USUAL_RANKS} ranks"
        )
    return size


def create(folder: str, name: str, size: int, place: str) -> tuple[str, int]:
    """The path and the descriptor of a new file of *size* bytes that are allocated: a write to its
    mapping can't fail for want of room. OSError, NoPlace. *name*: of this process alone."""
    path = os.path.join(folder, name)
    # exec() keeps the pid and the start: this is the box of the program that this process was.
    with contextlib.suppress(FileNotFoundError):
        there = os.lstat(path)
        if stat.S_ISREG(there.st_mode) and there.st_uid == os.geteuid():
            os.unlink(path)
    status = os.statvfs(place)
    if used(os.path.dirname(folder)) + size > status.f_blocks * status.f_frsize // USER_SHARE:
        raise NoPlace(f"black boxes of this user fill a quarter of {place}")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except BaseException:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    return path, descriptor


def used(run_folder: str) -> int:
    """Bytes of all boxes in a user's run folder."""
    total = 0
    for folder in _entries(run_folder):
        if folder.name.startswith("blackbox-") and folder.is_dir(follow_symlinks=False):
            for each in _entries(folder.path):
                with contextlib.suppress(OSError):
                    if each.name.endswith(SUFFIX):
                        total += each.stat(follow_symlinks=False).st_size
    return total


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return list(entries)
    return []
