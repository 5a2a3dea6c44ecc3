"""A canary: whether the process's descriptors from before are still there.

``os.closerange(3, 4096)``, as daemonisers call it, closes the descriptors of everybody in the
process. Their numbers then go to files that somebody else opens. A server that went on would write
into such a file, or close it. So one descriptor of each loop's thread does nothing but tell: it is
a socket, and no other socket or file has its inode number. It is looked at before a descriptor is
closed and before a thread is woken. Once it is gone, no descriptor is touched again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from typing import ClassVar

from workerserver.process._pulse import inode_of

__all__ = ["Canary"]

logger = logging.getLogger("workerserver")


class Canary:
    """Any thread may ask. Made before the descriptors that it stands for, so that its number is
    lower and closerange() comes to it first."""

    _open: ClassVar[set[Canary]] = set()

    def __init__(self) -> None:
        self.fd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach()
        self._identity = inode_of(self.fd)
        self._reported = False
        self._lock = threading.Lock()
        Canary._open.add(self)

    @property
    def alive(self) -> bool:
        """Whether the descriptors are still ours. Once False, False for ever."""
        if self._identity is not None and inode_of(self.fd) != self._identity:
            self._identity = None
        return self._identity is not None

    def report(self) -> None:
        """Log, once, that the descriptors are gone."""
        with self._lock:
            if self._reported:
                return
            self._reported = True
        logger.warning(
            "the server has ended: something closed all descriptors of this process, as "
            "os.closerange() does. It touches none of them any more"
        )

    def hold(self) -> None:
        """Return if the descriptors are ours; else never. For the loop's thread: a loop that goes
        on without its descriptors ends the process."""
        if not self.alive:
            self.report()
            while True:
                threading.Event().wait()

    def close(self) -> None:
        """Close the descriptor, if it is still ours."""
        Canary._open.discard(self)
        if self.alive:
            self._identity = None
            with contextlib.suppress(OSError):
                os.close(self.fd)

    @classmethod
    def after_fork(cls) -> None:
        """In a forked child, once everything else of ours is closed. That of an I/O thread is
        closed already."""
        for canary in list(cls._open):
            canary.close()
