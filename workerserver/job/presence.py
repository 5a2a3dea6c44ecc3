"""How this process makes itself known: the rank and the identity in ``/healthz``, and its record.

``tell()`` is called when a server starts, and again from the loop, because the rank may come later:
mp.spawn, notebooks, Ray and Lightning's launcher set no RANK before the server starts. Nothing here
raises: a record that can't be written costs only that the job is not found by itself.
"""

from __future__ import annotations

import logging
import os
import threading
import time

from workerserver.job import records
from workerserver.job.identity import PROCESS, Identity, own, text_fields
from workerserver.job.proc import namespace, stat_of
from workerserver.process._pulse import set_identity, set_rank
from workerserver.process.run_folder import make_run_folder

__all__ = ["is_recorded", "keep_no_record", "serves", "stops", "tell", "told"]

logger = logging.getLogger("workerserver")

#: What may have changed is looked up no more often.
LOOK_SECONDS = 1.0


class _Presence:
    def __init__(self) -> None:
        # A signal handler may stop a server while its thread is in here.
        self.lock = threading.RLock()
        self.pid = os.getpid()
        self.identity: Identity | None = None
        self.addresses: dict[object, records.Address] = {}  # by the server
        self.path = ""
        self.looked = 0.0

    def tell(self, anew: bool) -> None:
        now = time.monotonic()
        if now - self.looked < LOOK_SECONDS and not anew:
            return
        self.looked = now
        identity = own()
        with self.lock:
            if identity == self.identity and not anew:
                return
            self.identity = identity
            set_rank(identity.rank)
            set_identity(text_fields(identity))
            if self.addresses:
                self.write()

    def write(self) -> None:
        stat = stat_of(self.pid)
        if not _wanted or stat is None or self.identity is None:
            return
        record = records.Record(
            self.pid,
            stat.ticks,
            namespace("pid"),
            tuple(self.addresses.values()),
            self.identity,
        )
        try:
            folder = os.path.dirname(self.path) if self.path else make_run_folder()
            self.path = records.write(folder, record)
        except OSError as error:
            logger.debug("no record of this worker: %s", error)

    def remove(self) -> None:
        if self.path:
            records.remove(self.path)
            self.path = ""


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
    """Tell in ``/healthz`` and in the record who this process is, if that may have changed. *anew*:
    a server starts."""
    if _settled() and not anew:
        return
    try:
        _present.tell(anew)
    except Exception as error:  # whatever an unusual environment brings, never training's problem
        logger.debug("who this worker is can't be told: %s", error)


def _settled() -> bool:
    """Whether nothing is missing that may still become known."""
    identity = _present.identity
    return identity is not None and (
        identity.rank is not None
        and identity.world_size is not None
        and identity.job_from != PROCESS
    )


def serves(server: object, address: str, *, unix: bool, tls: bool) -> None:
    """*server* listens on *address*."""
    address = os.path.abspath(address) if unix else address
    with _present.lock:
        _present.addresses[server] = records.Address(address, unix, tls)
        _present.write()


def stops(server: object) -> None:
    with _present.lock:
        if _present.addresses.pop(server, None) is None:
            return
        if _present.addresses:
            _present.write()
        else:
            _present.remove()


def is_recorded() -> bool:
    """Whether others find this process by its record."""
    return bool(_present.path)


def _after_fork() -> None:
    global _present
    _present = _Presence()


os.register_at_fork(after_in_child=_after_fork)
