"""This process's black box: made once, when it is asked for, and kept until the process ends.

The I/O thread writes it (native/box). Nothing here can fail training: what keeps a process from
having a box is one warning.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable

from workerserver.blackbox import place
from workerserver.blackbox.ends import watch_end
from workerserver.blackbox.identity import cgroup_files, identity_bytes
from workerserver.blackbox.keeping import Watchdog, start_keeper
from workerserver.job import presence
from workerserver.job.identity import Identity, own
from workerserver.job.proc import stat_of
from workerserver.native.counters import Counters
from workerserver.native.standstill import Standstill
from workerserver.native.watchdog import job_beside_others, starter_of
from workerserver.process.environment import seconds
from workerserver.process.loop_thread import LoopThread
from workerserver.process.threads import why_no_real_threads

if sys.platform == "linux":
    from workerserver.native import _bridge
    from workerserver.native.publication import hub_of
    from workerserver.stacks.known import publish

__all__ = ["INTERVAL", "KEEP", "keep_black_box"]

logger = logging.getLogger("workerserver")

INTERVAL = "WORKERSERVER_BLACKBOX_INTERVAL"
INTERVAL_SECONDS = 5.0
#: Runs of a host whose boxes are kept.
KEEP = 10
START_SECONDS = 10.0
RELEASE_SECONDS = 1.0
#: How often to look again who this process is and what it has imported: the rank may come late.
TELL_SECONDS = 5.0

_lock = threading.RLock()
_asked = False


def keep_black_box(
    folder: str, keep: int = KEEP, watchdog: Callable[[Identity], Watchdog] | None = None
) -> None:
    """Keep a black box from now on, and copy it to *folder*. With *watchdog*, who copies it watches
    the job, too. Only the first call does anything."""
    global _asked
    with _lock:
        if _asked:
            return
        _asked = True
        try:
            _Own(folder, keep, watchdog)
        except Exception as error:
            text = " ".join(str(error).split()) or type(error).__name__
            logger.warning("this worker keeps no black box: %s", text)


class _Own:
    def __init__(
        self, folder: str, keep: int, watchdog: Callable[[Identity], Watchdog] | None
    ) -> None:
        why_not = why_no_real_threads()
        if sys.platform != "linux" or why_not is not None:
            raise RuntimeError(why_not or "black boxes need Linux")
        self._interval = max(seconds(INTERVAL, INTERVAL_SECONDS), 0.05)
        self._pid = os.getpid()
        self._watchdog = watchdog
        self._thread = LoopThread.acquire()
        try:
            self._thread.run(self._begin(folder, max(keep, 1)), START_SECONDS)
        except BaseException:
            self._thread.release(RELEASE_SECONDS)
            raise
        try:
            self._hub.keep_box(self._interval, True)
        except OSError as error:  # the box is kept by now, and goes on
            logger.warning(
                "this worker's black box won't tell of signals: %s", error.strerror or error
            )
        watch_end(self._write_end, self._close)

    async def _begin(self, folder: str, keep: int) -> None:
        """On the loop's thread."""
        self._hub = hub_of(self._thread)
        identity = own()
        starter = starter_of(identity)
        boxes = self._open(identity, starter)
        self._watched = cgroup_files()
        for name, path in self._watched.items():
            _bridge.watch_file(name.encode(), os.fsencode(path))
        self._told: Identity | None = None
        self._standstill = Standstill(_bridge.write_recorder)
        self._counters = Counters(_bridge.write_counters)
        presence.tell(anew=True)
        self._tell()
        if not identity.local_rank:
            label = place.label_of(identity.job, identity.host or "", starter)
            try:
                watchdog = None if self._watchdog is None else self._watchdog(identity)
                start_keeper(self._thread.loop, boxes, folder, keep, label, watchdog)
            except OSError as error:
                logger.warning(
                    "black boxes are not copied to %s: %s", folder, error.strerror or error
                )

    def _open(self, identity: Identity, starter: str) -> str:
        """Make and map the file, on the first tmpfs that has room; the folder that it lies in."""
        stat = stat_of(self._pid)
        name = f"{self._pid}-{0 if stat is None else stat.ticks}{place.SUFFIX}"
        reasons = []
        for where in place.places():
            try:
                size = place.size_for(where, identity.local_world_size)
                boxes = place.folder_of(where, starter, job_beside_others(identity))
                path, descriptor = place.create(boxes, name, size, where)
            except (OSError, place.NoPlace) as error:
                reasons.append(getattr(error, "strerror", None) or str(error))
                continue
            try:
                _bridge.open_box(descriptor, size)
            except OSError as error:
                os.unlink(path)
                reasons.append(f"{where}: {error.strerror}")
            else:
                return boxes
            finally:
                os.close(descriptor)
        raise RuntimeError("; ".join(reasons))

    def _tell(self) -> None:
        self._thread.loop.call_later(TELL_SECONDS, self._tell)
        presence.tell()
        publish()  # with the GIL, what reading stacks without it needs to know
        identity = presence.told() or own()
        if identity != self._told and _bridge.write_identity(
            identity_bytes(identity, self._watched, self._interval)
        ):
            self._told = identity
        with contextlib.suppress(Exception):  # torch may be in the middle of its import
            self._standstill.look()
        self._counters.look()

    def _write_end(self, text: bytes) -> None:
        _bridge.write_end(text)
        self._counters.look()
        if text.startswith(b'{"why": "exception"'):
            self._standstill.ends()

    def _close(self) -> None:
        """At the interpreter's exit."""
        if self._pid == os.getpid():
            _bridge.restore_signals()
            self._thread.release(RELEASE_SECONDS)


def _after_fork() -> None:
    """In a forked child: the box is the parent's, and a rank that is forked may have its own."""
    global _asked, _lock
    _asked = False
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)
