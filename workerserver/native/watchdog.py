"""Whether this job has a watchdog, and how one is started where no black box is asked for.

The watchdog is a process (blackbox/keeper.py). Nothing here can fail training: what keeps a job
from having a watchdog is one warning.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workerserver.blackbox import place
from workerserver.blackbox.keeping import Watchdog, ask_keeper, start_keeper
from workerserver.job.identity import Identity, own
from workerserver.process.environment import seconds
from workerserver.process.loop_thread import LoopThread
from workerserver.process.threads import why_no_real_threads

__all__ = ["AskedFor", "asked_for", "job_beside_others", "starter_of"]

logger = logging.getLogger("workerserver")

WATCHDOG = "WORKERSERVER_WATCHDOG"
STALL = "WORKERSERVER_STALL"
COLLECTOR = "WORKERSERVER_COLLECTOR"
START_SECONDS = 10.0
RELEASE_SECONDS = 1.0

_lock = threading.RLock()
_asked = False


def is_wanted(asked: bool | None, has_box: bool) -> bool:
    """*asked*: by the program or by an option; None: by neither. Then the variable says, and else a
    job has a watchdog if it has black boxes."""
    if asked is not None:
        return asked
    text = os.environ.get(WATCHDOG, "").strip()
    if text in ("0", "1"):
        return text == "1"
    if text:
        logger.warning("%s must be 0 or 1, not %r", WATCHDOG, text)
    return has_box


@dataclass(frozen=True, slots=True)
class AskedFor:
    """The watchdog that a job has asked for."""

    stall: float | None
    on_tcp: bool

    def settings(self, identity: Identity) -> Watchdog:
        return settings_of(identity, self.stall, self.on_tcp)

    def start_alone(self) -> None:
        watch_alone(self.stall, self.on_tcp)

    def ask_keeper(self, words: Sequence[str], environment: Mapping[str, str], stdout: int) -> bool:
        return ask_keeper(words, environment, stdout)


def asked_for(
    has_box: bool, asked: bool | None, stall: float | None, on_tcp: bool
) -> AskedFor | None:
    """*asked*, *stall*: what the program or an option says. *on_tcp*: the worker serves there."""
    return AskedFor(stall_seconds(stall), on_tcp) if is_wanted(asked, has_box) else None


def stall_seconds(asked: float | None) -> float | None:
    """The threshold that *asked* or the variable gives; None: the job's own pace."""
    if asked is not None:
        return asked
    try:
        return seconds(STALL, 0.0) or None
    except ValueError as error:
        logger.warning("%s; the watchdog goes by the job's own pace", error)
        return None


def settings_of(identity: Identity, stall: float | None, on_tcp: bool) -> Watchdog:
    """*on_tcp*: the ranks, or collectors, announce themselves in the job's store."""
    known = identity.world_size is not None and identity.local_world_size is not None
    hosts = known and identity.world_size != identity.local_world_size
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    name = f"[{address}]" if address and ":" in address else address
    store = f"{name}:{port}" if hosts and on_tcp and address and port else ""
    return Watchdog(
        starter_of(identity),
        stall,
        hosts,
        store,
        identity.world_size or 0,
        collects=bool(os.environ.get(COLLECTOR)),
    )


def starter_of(identity: Identity) -> str:
    """Who has started the workers of the job on this host; a process that nobody has launched is
    its own."""
    return identity.agent or f"{os.getpid()}:0"


def job_beside_others(identity: Identity) -> str | None:
    """The job's name, if who has started its workers may start other jobs, too."""
    return identity.job if identity.agent and identity.restart is None else None


def watch_alone(stall: float | None, on_tcp: bool) -> None:
    """Start the watchdog of a job without black boxes. Only the first call does anything, and only
    in the first worker of a host."""
    global _asked
    with _lock:
        if _asked:
            return
        _asked = True
        identity = own()
        if identity.local_rank:
            return
        try:
            _Own(identity, settings_of(identity, stall, on_tcp))
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            logger.warning("this job has no watchdog: %s", text)


class _Own:
    """Holds the loop's thread, on which the start of the watchdog is awaited, until the exit."""

    def __init__(self, identity: Identity, watchdog: Watchdog) -> None:
        why_not = why_no_real_threads()
        if sys.platform != "linux" or why_not is not None:
            raise RuntimeError(why_not or "a watchdog needs Linux")
        self._pid = os.getpid()
        self._thread = LoopThread.acquire()
        try:
            self._thread.run(self._begin(identity, watchdog), START_SECONDS)
        except BaseException:
            self._thread.release(RELEASE_SECONDS)
            raise
        atexit.register(self._close)

    async def _begin(self, identity: Identity, watchdog: Watchdog) -> None:
        """On the loop's thread."""
        label = place.label_of(identity.job, identity.host or "", watchdog.agent)
        folder = place.folder_of(place.places()[0], watchdog.agent, job_beside_others(identity))
        start_keeper(self._thread.loop, folder, "", 1, label, watchdog)

    def _close(self) -> None:
        if self._pid == os.getpid():
            self._thread.release(RELEASE_SECONDS)


def _after_fork() -> None:
    """In a forked child, which may be a rank of its own."""
    global _asked, _lock
    _asked = False
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)
