"""Starts the keeper of this host's black boxes from one of its workers, as a detached process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from workerserver.blackbox.commands import hand_over
from workerserver.blackbox.place import READY, SMALL_HEAP
from workerserver.process.environment import with_absolute_paths

__all__ = ["Watchdog", "ask_keeper", "start_keeper"]

logger = logging.getLogger("workerserver")

#: Variables that would make the keeper a worker.
NOT_ITS = ("TORCH_WORKER_SERVER_SOCKET", "WORKERSERVER_", "RANK", "LOCAL_RANK", "TORCHELASTIC_")
#: What a watchdog needs nevertheless: what gives access to the ranks, and whom to tell. Never as an
#: argument: any user of the machine may read those.
OF_WATCHDOG = (
    *("WORKERSERVER_TOKEN", "WORKERSERVER_TLS_"),
    *("WORKERSERVER_ON_VERDICT", "WORKERSERVER_WEBHOOK"),
)
REAP_SECONDS = 0.2
#: Until a command that detaches itself has done so.
START_SECONDS = 30.0
MAX_LINE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Watchdog:
    """How the keeper watches the job, too. *agent*: who has started the job's workers on this host,
    ``PID:TICKS``. *stall*: seconds without a step; None: the job's own pace. *hosts*: the job has
    ranks on other hosts. *store*: their TCPStore, ``host:port``, if the ranks or collectors serve
    on TCP. *world*: ranks of the job. *collects*: the keeper will be asked for a collector."""

    agent: str
    stall: float | None = None
    hosts: bool = False
    store: str = ""
    world: int = 0
    collects: bool = False


#: Our end of the keeper's socket, for the one command that it may be asked for, and whose it is.
_keeper: tuple[int, socket.socket] | None = None


def start_keeper(
    loop: asyncio.AbstractEventLoop,
    boxes: str,
    folder: str,
    keep: int,
    label: str,
    watchdog: Watchdog | None = None,
) -> None:
    """On the loop's thread, which never waits for it: the folder may block for ever. What the
    keeper can't do is a warning of one line. OSError if no process can be had. *folder*: "" if the
    keeper is a watchdog alone."""
    words = [*(sys.executable, "-m", f"{__package__}.keeper", "--boxes", boxes), "--label", label]
    if folder:
        words += ["--folder", os.path.abspath(folder), "--keep", str(keep)]
    collects = watchdog is not None and watchdog.collects
    with _stderr(watchdog is not None) as kept, _channel(collects) as asks:
        process = subprocess.Popen(
            words if watchdog is None else [*words, *_options(watchdog, kept, asks)],
            cwd="/",  # -m looks for modules in the current folder first
            env=_environment(watchdog is not None),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=[*kept, *asks],
            # At once: a launcher may kill our process group before Python runs in the keeper.
            start_new_session=True,
        )
    assert process.stdout is not None
    pipe = process.stdout
    os.set_blocking(pipe.fileno(), False)

    def reap() -> None:
        if process.poll() is None:  # it forks as soon as Python runs in it, and ends
            loop.call_later(REAP_SECONDS, reap)

    def read() -> None:
        line = pipe.read(MAX_LINE_BYTES)
        loop.remove_reader(pipe.fileno())
        pipe.close()
        if line == READY:
            return
        reason = (line or b"it did not start").decode("utf-8", "replace").strip()
        if folder:
            logger.warning("black boxes are not copied to %s: %s", folder, reason)
        else:
            logger.warning("this job has no watchdog: %s", reason)

    loop.add_reader(pipe.fileno(), read)
    loop.call_later(REAP_SECONDS, reap)


@contextlib.contextmanager
def _stderr(wanted: bool) -> Iterator[Sequence[int]]:
    """A descriptor of this process's stderr for the keeper. It is not the keeper's own stderr:
    whatever else the keeper or Python in it may say does not belong into the job's log."""
    kept = []
    if wanted:
        with contextlib.suppress(OSError):  # there is no stderr
            kept.append(os.dup(2))
    try:
        yield kept
    finally:
        for descriptor in kept:
            os.close(descriptor)


@contextlib.contextmanager
def _channel(wanted: bool) -> Iterator[Sequence[int]]:
    """The keeper's end of a socket whose other end only this process has."""
    global _keeper
    if not wanted:
        yield ()
        return
    ours, its = socket.socketpair()
    try:
        with its:
            yield (its.fileno(),)
    except BaseException:
        ours.close()
        raise
    _keeper = os.getpid(), ours


def ask_keeper(words: Sequence[str], environment: Mapping[str, str], stdout: int) -> bool:
    """Have the keeper start the command *words*, which detaches itself, with *environment*. What
    the command writes, to stderr too, comes to *stdout*: nothing if no command was started. Whether
    the keeper is asked: it can be once, and only if its watchdog *collects*."""
    global _keeper
    keeper, _keeper = _keeper, None
    if keeper is None:
        return False
    pid, sock = keeper
    with sock, contextlib.suppress(OSError):
        if pid == os.getpid():  # else it is that of the process that forked us
            hand_over(sock, words, START_SECONDS, b"", stdout, environment)
            return True
    return False


def _options(watchdog: Watchdog, kept: Sequence[int], asks: Sequence[int]) -> list[str]:
    words = ["--watch", watchdog.agent]
    with contextlib.suppress(OSError):  # the folder is gone
        words += ["--cwd", os.getcwd()]
    words += ["--stderr", str(kept[0])] if kept else []
    words += ["--stall", repr(watchdog.stall)] if watchdog.stall is not None else []
    words += ["--asks", str(asks[0])] if asks else []
    words += ["--hosts"] if watchdog.hosts else []
    words += ["--world", str(watchdog.world)] if watchdog.world else []
    return words + (["--store", watchdog.store] if watchdog.store else [])


def _environment(watches: bool) -> dict[str, str]:
    environment = {
        name: text
        for name, text in os.environ.items()
        if not name.startswith(NOT_ITS) or (watches and name.startswith(OF_WATCHDOG))
    }
    return {**with_absolute_paths(environment), **SMALL_HEAP}
