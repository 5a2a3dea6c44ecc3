"""How this process makes itself known: the rank and the identity in ``/healthz``, and its record.

``tell()`` is called when a server starts, and ``look()`` from the loop: mp.spawn, notebooks, Ray
and Lightning's launcher set no RANK before the server starts. Nothing here raises: a record that
can't be written costs only that the job is not found by itself.

A disk can be slow, and a network file system can hang. So who starts a server, and who makes a
step, never waits for the record. ``serves()`` and ``stops()`` only say what the record should be.
``settle()`` writes it, on the loop's thread. Where the run folder is on a file system that another
machine or program serves, the loop doesn't wait either: there a thread of the handlers' pool writes
the record, and only that thread can hang.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from workerserver.job import records
from workerserver.job.identity import PROCESS, Identity, own, text_fields
from workerserver.job.proc import namespace, stat_of
from workerserver.process._pulse import set_identity, set_rank
from workerserver.process.run_folder import make_run_folder, may_hang

__all__ = [
    "in_background",
    "is_recorded",
    "keep_no_record",
    "look",
    "serves",
    "settle",
    "settled",
    "stops",
    "tell",
    "told",
]

logger = logging.getLogger("workerserver")

#: Runs a job in a thread of a pool; False if it can't.
Submit = Callable[[Callable[[], None]], bool]
#: What may have changed is looked up no more often.
LOOK_SECONDS = 1.0
POLL_SECONDS = 0.001


class _Presence:
    """What this process tells. Any thread may call anything, and so may a signal handler.

    Only one thread at a time works on the record, and nobody waits for that thread: who comes
    meanwhile leaves the work to it. While a disk is waited for, no lock is held but ``_working``,
    which is only ever tried.
    """

    def __init__(self) -> None:
        # A signal handler may stop a server while its thread is in here.
        self.lock = threading.RLock()
        self.pid = os.getpid()
        self.identity: Identity | None = None
        # By the server.
        self.addresses: dict[object, records.Address] = {}
        self.pools: dict[object, Submit] = {}
        self.path = ""  # of the record, as far as there is one
        self.looked = 0.0
        self._changed = False  # since the record was last worked on
        self._working = threading.Lock()
        self._busy = False  # somebody works on the record
        self._tried: records.Record | None = None
        self._may_hang: bool | None = None  # None: not looked at yet

    def tell(self, anew: bool) -> None:
        now = time.monotonic()
        if now - self.looked < LOOK_SECONDS and not anew:
            return
        self.looked = now
        with self.lock:
            identity = own()
            if identity == self.identity and not anew:
                return
            if identity != self.identity:
                self.identity = identity
                if self.addresses:
                    self.change()
            set_rank(identity.rank)
            set_identity(text_fields(identity))

    def change(self) -> None:
        """What the record should say has changed."""
        self._changed = True

    def settle(self) -> None:
        """Write the record, or remove it, if something has changed; waits for the disk."""
        while self._changed and self._working.acquire(blocking=False):
            try:
                self._busy = True
                self._changed = False
                self._work()
            finally:
                self._busy = False
                self._working.release()

    @property
    def settled(self) -> bool:
        """Whether the record says what it should. No Event has this: a signal handler may shut a
        server down while its thread holds an Event's lock."""
        return not (self._changed or self._busy)

    @property
    def changed(self) -> bool:
        return self._changed

    def may_hang(self) -> bool:
        """Whether the run folder is where only a thread of the pool may wait for it."""
        if self._may_hang is None:
            self._may_hang = may_hang()
        return self._may_hang

    def _work(self) -> None:
        wanted = self._wanted()
        if wanted == self._tried:
            return
        self._tried = wanted
        try:
            if wanted is None:
                path, self.path = self.path, ""
                if path:
                    records.remove(path)
            else:
                folder = os.path.dirname(self.path) if self.path else make_run_folder()
                self.path = records.write(folder, wanted)
        except Exception as error:
            logger.debug("no record of this worker: %s", error)

    def _wanted(self) -> records.Record | None:
        addresses = tuple(self.addresses.values())
        stat = stat_of(self.pid) if addresses and _wanted else None
        if stat is None or self.identity is None:
            return None
        return records.Record(self.pid, stat.ticks, namespace("pid"), addresses, self.identity)


_wanted = True
_present = _Presence()


def keep_no_record() -> None:
    """For a process that serves and is no worker of a job: a collector."""
    global _wanted
    _wanted = False


def told() -> Identity | None:
    """Who this process has said it is; None before its first server."""
    return _present.identity


def tell(anew: bool = False) -> None:
    """Tell in ``/healthz`` who this process is, if that may have changed; the record follows with
    the next ``settle()``. *anew*: a server starts."""
    if _settled() and not anew:
        return
    try:
        _present.tell(anew)
    except Exception as error:  # whatever an unusual environment brings, never training's problem
        logger.debug("who this worker is can't be told: %s", error)


def look() -> None:
    """``tell()`` and ``settle()``; on the loop's thread."""
    tell()
    settle()


def _settled() -> bool:
    """Whether nothing is missing that may still become known."""
    identity = _present.identity
    return identity is not None and (
        identity.rank is not None
        and identity.world_size is not None
        and identity.job_from != PROCESS
    )


def serves(server: object, address: str, submit: Submit, *, unix: bool, tls: bool) -> None:
    """*server* listens on *address*; the record follows with the next ``settle()``. *submit*: of
    the server's pool."""
    address = os.path.abspath(address) if unix else address
    _present.pools[server] = submit
    _present.addresses[server] = records.Address(address, unix, tls)
    _present.change()


def stops(server: object) -> bool:
    """*server* ends, and will close its pool. The record follows with the next ``settle()``.

    Where only a thread of a pool may do that, the server's own pool gets it to do now. Whether that
    is so, and ``settled()`` is worth a wait.
    """
    submit = _present.pools.pop(server, None)
    if _present.addresses.pop(server, None) is None or submit is None:
        return False
    _present.change()
    return _present.may_hang() and submit(_present.settle)


def settle() -> None:
    """Bring the record up to date; on the loop's thread. Cheap if nothing has changed."""
    if _present.changed:
        in_background(_present.settle)


def in_background(work: Callable[[], None]) -> None:
    """Do *work* in the run folder; on the loop's thread. Where the folder may hang, a thread of a
    server's pool does it."""
    if not _present.may_hang():
        work()
    elif not any(submit(work) for submit in list(_present.pools.values())):
        logger.debug("the run folder is left as it is: no thread is free to wait for it")


def settled(seconds: float) -> bool:
    """Wait up to *seconds* until the record says what it should. Whether it does."""
    present = _present
    end = time.monotonic() + seconds
    while not present.settled and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    return present.settled


def is_recorded() -> bool:
    """Whether others find this process by its record."""
    return bool(_present.path)


def _after_fork() -> None:
    global _present
    _present = _Presence()


os.register_at_fork(after_in_child=_after_fork)
