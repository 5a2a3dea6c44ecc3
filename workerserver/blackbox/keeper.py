"""The keeper: one small process for the ranks of one job on one host, which copies their black
boxes to the folder that the user named, and which is the job's watchdog on this host (watchdog/).

A rank starts it (keeping.py). It is detached, has no descriptor of training's but stderr, which
only the watchdog has, and ends after the last rank. The folder may be on a network file system that
blocks: then only the keeper waits. Each time a rank ends, its box is copied at once; meanwhile
every COPY_SECONDS. A box leaves the tmpfs when its rank has ended and its last copy is whole.

Run as ``python -m workerserver.blackbox.keeper``.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import os
import re
import select
import signal
import socket
import stat
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from workerserver.blackbox.format import BoxError, parse
from workerserver.blackbox.known_end import is_clean, keeper_slot, mark_end
from workerserver.blackbox.place import BOX, LEFT, READY, RUN, SMALL_HEAP, SUFFIX
from workerserver.blackbox.read import Box, decode, read_bytes
from workerserver.blackbox.watchdog.incident import Settings
from workerserver.blackbox.watchdog.watch import REST_SECONDS, Watch
from workerserver.job.proc import lives
from workerserver.process.sockets import silence_standard_streams

__all__ = ["main"]

#: On a machine whose processors are all taken, a diagnosis at 10 may come too late.
NICE, NICE_OF_WATCH = 10, 5
LOOK_SECONDS = 1.0
ALIVE_SECONDS = 0.5
#: The job's stderr is closed so long after the last rank, whatever blocks.
STDERR_SECONDS = 2.0
COPY_SECONDS = 10.0
#: Who is killed for want of memory is counted at once, but ends only when its memory is given back.
DYING_SECONDS = 10.0
#: Until the kernel tells how a process ended. Its parent has to ask for it first.
STATUS_SECONDS = 0.7
#: A keeper of the job's last attempt may be about to end. It may have to tell an incident before.
LOCK_SECONDS = 5.0
LAST_ATTEMPT_SECONDS = 90.0
#: A keeper that the folder blocks ends so long after the last rank. The boxes stay.
BLOCKED_SECONDS = 60.0
#: What a job has left on the tmpfs goes after this time, if its keeper is gone too.
OLD_SECONDS = 24 * 3600.0
PAGE_BYTES = 4096

_COPY = re.compile(r"rank(?:\d{1,9}|-unknown)-\d{1,10}\.box(?:\.part)?\Z")

#: ioctl PIDFD_GET_INFO of linux/pidfd.h, for the struct of 64 bytes; Linux 6.15 tells exits.
_PIDFD_GET_INFO = 3 << 30 | 64 << 16 | 0xFF << 8 | 11
_PIDFD_INFO_EXIT = 1 << 3


@dataclass
class Rank:
    """One box. *seen*: what the cgroup had counted as killed for want of memory DYING_SECONDS ago,
    when the process surely still lived. *looks*: when, and what was counted since then."""

    path: str
    pid: int
    ticks: int
    pidfd: int
    copied: float = 0.0
    name: str = ""
    ends: frozenset[str] = frozenset()
    watched: Mapping[str, str] = field(default_factory=dict)
    seen: int | None = None
    looks: deque[tuple[float, int]] = field(default_factory=deque)

    def look(self, kills: int | None, now: float) -> None:
        if not self.looks and self.seen is not None:
            self.looks.append((now, self.seen))
        if kills is not None:
            self.looks.append((now, kills))
        while len(self.looks) > 1 and self.looks[1][0] <= now - DYING_SECONDS:
            self.looks.popleft()
        if self.looks:
            self.seen = self.looks[0][1]


def main() -> int:
    options = _options()
    for name in SMALL_HEAP:  # glibc has read them, and what the watchdog starts is none of theirs
        os.environ.pop(name, None)
    for descriptor in (options.stderr, options.asks):
        if descriptor is not None:
            os.set_inheritable(descriptor, False)
    if os.fork():  # nobody waits for us
        os._exit(0)
    os.setsid()
    with contextlib.suppress(OSError):
        os.nice(NICE_OF_WATCH)
    # Slurm sends SIGTERM to every process of a job: just then this one is needed. It ends with the
    # last rank.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    asks = None if options.asks is None else socket.socket(fileno=options.asks)
    lock = _lock(options.boxes, asks)
    if lock is None:
        _tell(READY)  # another keeper works here
        return 0
    watch = None if options.watch is None else Watch(_settings(options), options.stderr)
    if watch is not None:
        watch.get_ready(asks)
    if options.folder is None:
        _tell(READY)
        if watch is not None:
            watch.start("")
            watch.await_end()
        return 0
    keeper = Keeper(options.boxes, options.folder, options.keep, options.label, watch)

    if watch is not None:
        watch.start(keeper.run_folder)
    with contextlib.suppress(OSError):  # on Linux, of this thread and of those that it starts
        os.nice(NICE - NICE_OF_WATCH)

    def work() -> None:
        try:
            keeper.begin()
        except OSError as error:
            _tell(f"{error.strerror or error}\n".encode())
        else:
            _tell(READY)
        keeper.run()
        if watch is not None:
            watch.finish(keeper.last_end)
        os._exit(0)

    threading.Thread(target=work, daemon=True).start()
    _await_end(options.boxes, watch)
    os._exit(0)


def _await_end(boxes: str, watch: Watch | None) -> None:
    """Return some time after the last rank has ended: the folder may block the other thread for
    ever. That thread usually ends the process much earlier."""
    passed = 0.0
    while passed < BLOCKED_SECONDS or (
        watch is not None and watch.finishes and passed < REST_SECONDS
    ):
        time.sleep(ALIVE_SECONDS)
        alive = any(lives(int(match[1]), int(match[2])) for match in _boxes(boxes))
        passed = 0.0 if alive else passed + ALIVE_SECONDS
        if watch is not None and passed >= STDERR_SECONDS:
            watch.close_stderr()


def _settings(options: argparse.Namespace) -> Settings:
    return Settings(
        boxes=options.boxes,
        folder=options.folder or "",
        label=options.label,
        agent=options.watch,
        cwd=options.cwd,
        stall=options.stall,
        store=options.store,
        hosts=options.hosts,
        world=options.world,
    )


def _boxes(folder: str) -> list[re.Match[str]]:
    with contextlib.suppress(OSError):
        return [match for name in os.listdir(folder) if (match := BOX.match(name)) is not None]
    return []


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(f"{__package__}.keeper")
    parser.add_argument("--boxes", required=True)
    parser.add_argument("--folder")
    parser.add_argument("--keep", type=int, default=1)
    parser.add_argument("--label", required=True)
    parser.add_argument("--watch")
    parser.add_argument("--stderr", type=int)
    parser.add_argument("--asks", type=int)
    parser.add_argument("--cwd", default="/")
    parser.add_argument("--stall", type=float)
    parser.add_argument("--hosts", action="store_true")
    parser.add_argument("--store", default="")
    parser.add_argument("--world", type=int, default=0)
    return parser.parse_args()


def _lock(boxes: str, asks: socket.socket | None = None) -> int | None:
    """None if another keeper works here. A longer wait has an end with the last rank: whoever reads
    the job's output waits for this process, too. Who *asks* us for a command does not wait for
    that: its socket is closed then."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(os.path.join(boxes, "keeper.lock"), flags, 0o600)
    began = time.monotonic()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if asks is not None:
                asks.close()
            waited = time.monotonic() - began
            alive = any(lives(int(match[1]), int(match[2])) for match in _boxes(boxes))
            if waited >= (LAST_ATTEMPT_SECONDS if alive else LOCK_SECONDS):
                os.close(descriptor)
                return None
            time.sleep(0.2)
        else:
            return descriptor


def _tell(line: bytes) -> None:
    """To who started us. Then close the streams: ``torchrun ... | tee`` ends as without us."""
    with contextlib.suppress(OSError):
        os.write(1, line)
    silence_standard_streams()


class Keeper:
    """*boxes*: the folder on the tmpfs. *folder*: where the copies go, each run in a folder of its
    own below it. *keep*: so many runs of this host, with this one, are kept. *watch* hears how each
    rank has ended."""

    def __init__(
        self, boxes: str, folder: str, keep: int, label: str, watch: Watch | None = None
    ) -> None:
        self._boxes = boxes
        self._folder = folder
        self._keep = keep
        self._label = label
        self._watch = watch
        began = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        self._run = os.path.join(folder, f"{began}-{label}")
        self._owner = os.geteuid()  # of the run's folder; a network file system may say another
        self._ranks: dict[str, Rank] = {}
        self._warned = True  # who has started us hears what keeps us from beginning
        self.last_end = 0.0
        """When a rank was last seen to have ended, by the monotonic clock."""

    @property
    def run_folder(self) -> str:
        return self._run

    def begin(self) -> None:
        """Make the run's folder, copy what is there and delete what is too old. OSError: the folder
        is missing and can't be made, is full, or may not be written."""
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        self._owner = _folder_of_ours(self._run)
        self._look()
        for rank in self._ranks.values():
            with contextlib.suppress(BoxError):  # of a rank that has only just made it
                self._copy(rank, {"ended": None})
        self._prune()
        _sweep(self._boxes)
        self._warned = False

    def run(self) -> None:
        """Until the last rank has ended."""
        while True:
            self._look()
            ended = self._wait()
            now = time.time()
            if ended:
                self.last_end = time.monotonic()
            left = _statuses(ended)
            for rank in ended:
                self._end(rank, left.get(rank.pid), now)
            for rank in self._ranks.values():
                if now - rank.copied >= COPY_SECONDS:
                    self._try_copy(rank, {"ended": None})
            if not self._ranks and not self._look():
                return

    def _look(self) -> bool:
        """Note new boxes. Whether there are any."""
        for match in _boxes(self._boxes):
            path = os.path.join(self._boxes, match[0])
            if path not in self._ranks:
                pid, ticks = int(match[1]), int(match[2])
                self._ranks[path] = Rank(path, pid, ticks, _pidfd(pid, ticks))
        for rank in self._ranks.values():
            if rank.pidfd >= 0:
                rank.look(_oom_kills(rank.watched), time.monotonic())
        return bool(self._ranks)

    def _wait(self) -> list[Rank]:
        """Wait for a look's time, or for the end of a rank; the ranks that have ended."""
        poll = select.poll()
        by_descriptor = {}
        ended = [rank for rank in self._ranks.values() if rank.pidfd < 0]
        for rank in self._ranks.values():
            if rank.pidfd >= 0:
                poll.register(rank.pidfd, select.POLLIN)
                by_descriptor[rank.pidfd] = rank
        ready = poll.poll(0 if ended else LOOK_SECONDS * 1000)
        return ended + [by_descriptor[descriptor] for descriptor, _ in ready]

    def _end(self, rank: Rank, status: int | None, now: float) -> None:
        kills = _oom_kills(rank.watched)
        more = None if kills is None or rank.seen is None else kills - rank.seen
        whole = self._try_copy(rank, {"ended": now, "wait_status": status, "oom_kills": more})
        if rank.pidfd >= 0:
            os.close(rank.pidfd)
        del self._ranks[rank.path]
        if whole:
            with contextlib.suppress(OSError):
                os.unlink(rank.path)
        else:  # so that this keeper does not try again
            with contextlib.suppress(OSError, BoxError):
                mark_end(rank.path, now, wait_status=status, oom_kills=more)
            with contextlib.suppress(OSError):
                os.rename(rank.path, rank.path.removesuffix(SUFFIX) + LEFT)
        if self._watch is not None:  # now that the file lies where it stays
            clean = is_clean(rank.ends, status)
            self._watch.ended((rank.pid, rank.ticks), clean=clean, copied=whole)

    def _try_copy(self, rank: Rank, known: dict[str, Any]) -> bool:
        try:
            self._copy(rank, known)
        except (OSError, BoxError):
            rank.copied = time.time()
            return False
        return True

    def _copy(self, rank: Rank, known: dict[str, Any]) -> None:
        """Write the box to the run's folder, whole or not at all. OSError if that is no folder of
        ours: begin() has failed, and somebody else's may lie there."""
        rank.copied = time.time()
        data = bytearray(read_bytes(rank.path))
        contents = parse(bytes(data))
        box = decode(contents, rank.path)
        rank.ends = frozenset(str(moment.value.get("why")) for moment in box.ends)
        if not rank.watched:
            rank.watched = _paths(box)
            rank.seen = _oom_kills(rank.watched)
        offset, slot = keeper_slot(contents, known)
        data[offset : offset + len(slot)] = slot
        name = f"rank{'-unknown' if box.rank is None else box.rank}-{rank.pid}.box"
        try:
            if not _is_folder_of(self._run, self._owner):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._run)
            _write(os.path.join(self._run, name), data)
        except OSError as error:
            self._warn(error)
            raise
        if rank.name not in ("", name):  # the rank has become known
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self._run, rank.name))
        rank.name = name

    def _warn(self, error: OSError) -> None:
        """Once: a disk that has run full, say. The boxes are copied again when that works again."""
        if not self._warned and self._watch is not None:
            self._warned = True
            reason = error.strerror or str(error)
            self._watch.warn(
                f"workerserver: black boxes can't be copied to {self._folder}: {reason}; "
                f"until that works, diagnose them here: {self._boxes}"
            )

    def _prune(self) -> None:
        """Delete the oldest runs of this host, as far as they hold nothing but boxes. Other users
        may write in the same folder: their runs do not count, however new their names are."""
        host = self._label.rpartition("@")[2].rpartition("-")[0]
        runs = sorted(
            name
            for name in os.listdir(self._folder)
            if (match := RUN.match(name)) is not None
            and match[3] == host
            and _is_folder_of(os.path.join(self._folder, name), self._owner)
        )
        for name in runs[: -self._keep]:
            folder = os.path.join(self._folder, name)
            if folder == self._run:
                continue
            with contextlib.suppress(OSError):
                for each in os.listdir(folder):
                    if _COPY.match(each):
                        os.unlink(os.path.join(folder, each))
                os.rmdir(folder)


def _folder_of_ours(path: str) -> int:
    """Make the folder *path*, or take that of an earlier keeper of this user; the owner that its
    file system tells. OSError for what somebody else has put there: a link to a folder, say."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not _is_folder_of(path, os.geteuid()):
            raise
    return os.lstat(path).st_uid


def _is_folder_of(path: str, owner: int) -> bool:
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        return stat.S_ISDIR(status.st_mode) and status.st_uid == owner
    return False


def _sweep(mine: str) -> None:
    """Delete what jobs have left on the tmpfs long ago, because their keeper was killed or could
    not copy."""
    place = os.path.dirname(mine)
    with contextlib.suppress(OSError):
        for name in os.listdir(place):
            folder = os.path.join(place, name)
            if not name.startswith("blackbox-") or folder == mine or os.path.islink(folder):
                continue
            with contextlib.suppress(OSError):
                paths = [os.path.join(folder, each) for each in os.listdir(folder)]
                newest = max(os.lstat(path).st_mtime for path in [folder, *paths])
                alive = any(lives(int(match[1]), int(match[2])) for match in _boxes(folder))
                if alive or newest > time.time() - OLD_SECONDS:
                    continue
                for path in paths:
                    os.unlink(path)
                os.rmdir(folder)


def _write(path: str, data: bytearray) -> None:
    part = f"{path}.part"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(part)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(part, flags, 0o600)
    try:
        for start, piece in _pieces(data):  # a box is mostly zeros: holes cost a network nothing
            os.pwrite(descriptor, piece, start)
        os.ftruncate(descriptor, len(data))
        os.fsync(descriptor)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise
    finally:
        os.close(descriptor)
    os.rename(part, path)


def _pieces(data: bytearray) -> Iterator[tuple[int, bytes]]:
    """The parts of *data* that are not zeros, in whole pages."""
    empty = bytes(PAGE_BYTES)
    began = None
    for at in range(0, len(data) + PAGE_BYTES, PAGE_BYTES):
        full = at < len(data) and data[at : at + PAGE_BYTES] != empty[: len(data) - at]
        if full and began is None:
            began = at
        elif not full and began is not None:
            yield began, bytes(data[began:at])
            began = None


def _pidfd(pid: int, ticks: int) -> int:
    """A descriptor that can be read once the process has ended; -1: it has."""
    if not lives(pid, ticks):
        return -1
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return -1
    if lives(pid, ticks):
        return descriptor
    os.close(descriptor)
    return -1


def _statuses(ended: list[Rank]) -> dict[int, int]:
    """The wait statuses of processes that have ended, by pid, as far as the kernel tells."""
    found: dict[int, int] = {}
    give_up = time.monotonic() + STATUS_SECONDS
    asked = [rank for rank in ended if rank.pidfd >= 0]
    while asked:
        for rank in asked:
            status = _of_zombie(rank) if rank.pid not in found else None
            status = _of_pidfd(rank.pidfd) if status is None else status
            if status is not None:
                found.setdefault(rank.pid, status)
        asked = [rank for rank in asked if rank.pid not in found]
        if not asked or time.monotonic() >= give_up:
            break
        time.sleep(0.05)
    return found


def _of_zombie(rank: Rank) -> int | None:
    """The last field of proc(5)'s stat, for a process that nobody has waited for yet."""
    try:
        with open(f"/proc/{rank.pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    if len(fields) < 50 or fields[0] != "Z" or fields[19] != str(rank.ticks):
        return None
    return int(fields[49])


def _of_pidfd(descriptor: int) -> int | None:
    """For a process that somebody has waited for."""
    info = bytearray(64)
    struct.pack_into("<Q", info, 0, _PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(descriptor, _PIDFD_GET_INFO, info)
    except OSError:
        return None
    mask, status = struct.unpack_from("<Q", info)[0], struct.unpack_from("<i", info, 60)[0]
    return int(status) if mask & _PIDFD_INFO_EXIT else None


def _paths(box: Box) -> Mapping[str, str]:
    watched = box.identity.get("watched")
    if not isinstance(watched, dict):
        return {}
    return {str(name): path for name, path in watched.items() if isinstance(path, str)}


def _oom_kills(watched: Mapping[str, str]) -> int | None:
    """How many processes of the cgroup the kernel has killed for want of memory so far."""
    for name in ("memory.events", "memory.oom_control"):
        path = watched.get(name)
        if path is None:
            continue
        with (
            contextlib.suppress(OSError, ValueError),
            open(path, encoding="ascii", errors="replace") as file,
        ):
            for line in file.read(4096).splitlines():
                word, _, number = line.partition(" ")
                if word == "oom_kill":
                    return int(number)
    return None


if __name__ == "__main__":
    raise SystemExit(main())
