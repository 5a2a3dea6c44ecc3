"""The faults: those that the preload library injects, and those that come from outside."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from support.wire import Client, post

__all__ = ["INJECTED", "OUTSIDE", "STRICT", "Control", "built", "outside"]

SOURCE = Path(__file__).with_name("preload.c")
#: In the order of preload.c.
INJECTED = ("nofile", "nomem", "intr", "short", "pipe", "peek", "thread", "space", "clock")
OUTSIDE = ("stopped", "silent", "loop", "processor", "processes", "full")
#: Under these every request is answered as it should be, at most later.
STRICT = {"intr", "short", "space", "clock", "full", "processor"}
_HEAD = struct.Struct("<IIQq")
_COUNTS = struct.Struct(f"<{len(INJECTED)}Q")
CGROUPS = Path("/sys/fs/cgroup")


def built(folder: Path) -> Path | None:
    """The preload library, made in *folder*; None without a C compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    library = folder / "chaos.so"
    command = [compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    subprocess.run([*command, "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


class Control:
    """What decides over the injected faults of one process."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _HEAD.size + _COUNTS.size)

    def arm(self, names: tuple[str, ...], of_1024: int, seed: int, jump: int = 0) -> None:
        bits = sum(1 << INJECTED.index(name) for name in names)
        # The bits come last: a fault is armed with what belongs to it.
        self._map[4 : _HEAD.size] = _HEAD.pack(bits, of_1024, seed, jump)[4:]
        self._map[0:4] = struct.pack("<I", bits)

    def disarm(self) -> None:
        self._map[0:4] = bytes(4)

    def injected(self) -> dict[str, int]:
        counts = _COUNTS.unpack_from(self._map, _HEAD.size)
        return dict(zip(INJECTED, counts, strict=True))

    def close(self) -> None:
        self._map.close()


@contextlib.contextmanager
def outside(name: str, pid: int, path: str, disk: Path | None) -> Iterator[bool]:
    """The fault *name* during the block, in the rank with *pid* that serves at *path*. False if
    this machine can't have it."""
    if name == "full" and disk is None:
        yield False
        return
    acts: dict[str, Callable[[], contextlib.AbstractContextManager[bool]]] = {
        "stopped": lambda: _stopped(pid),
        "silent": lambda: _silent(path),
        "loop": lambda: _loop(path),
        "processor": lambda: _cgroup("cpu", pid, {"cpu.cfs_quota_us": "15000"}),
        "processes": lambda: _cgroup("pids", pid, {"pids.max": "1"}),
        "full": lambda: _full(disk or Path()),
    }
    with acts[name]() as happened:
        yield happened


@contextlib.contextmanager
def _stopped(pid: int) -> Iterator[bool]:
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(0.3)
    finally:
        os.kill(pid, signal.SIGCONT)
    yield True


@contextlib.contextmanager
def _silent(path: str) -> Iterator[bool]:
    """Clients that say nothing, stop in the middle, or read nothing of what they asked for."""
    with contextlib.ExitStack() as stack:
        for number in range(40):
            with contextlib.suppress(OSError):
                client = stack.enter_context(Client(path))
                client.send((b"", b"POST /handler/ping HT", post("large"))[number % 3])
        yield True


@contextlib.contextmanager
def _loop(path: str) -> Iterator[bool]:
    """The server's loop is stopped, again and again."""
    for _ in range(10):
        with contextlib.suppress(OSError, EOFError), Client(path) as client:
            client.ask(post("stop"))
    yield True


@contextlib.contextmanager
def _cgroup(controller: str, pid: int, limits: dict[str, str]) -> Iterator[bool]:
    folder = CGROUPS / controller / f"chaos-{pid}"
    home = CGROUPS / controller
    try:
        line = next(
            each
            for each in Path(f"/proc/{pid}/cgroup").read_text().splitlines()
            if controller in each.split(":")[1].split(",")
        )
        before = home / line.split(":", 2)[2].lstrip("/")
        folder.mkdir()
    except (OSError, StopIteration):
        yield False  # not root, or cgroup v2
        return
    try:
        for name, value in limits.items():
            (folder / name).write_text(value)
        (folder / "cgroup.procs").write_text(str(pid))
        yield True
    finally:
        with contextlib.suppress(OSError):
            (before / "cgroup.procs").write_text(str(pid))
        time.sleep(0.05)
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def _full(disk: Path) -> Iterator[bool]:
    """*disk*, a small file system of the job's, has no byte left."""
    rest = disk / "rest"
    try:
        with rest.open("wb", buffering=0) as file:
            for size in (1 << 16, 4096, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
        yield True
    finally:
        rest.unlink(missing_ok=True)
