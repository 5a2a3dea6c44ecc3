"""What one server takes from its clients: bytes, counts and seconds."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace

from workerserver import _parser
from workerserver.process.environment import number, seconds

__all__ = ["Limits"]

#: The largest number of things, a C int, and of bytes, a Py_ssize_t.
MAX_COUNT = 2**31 - 1
MAX_BYTES = sys.maxsize
_WHOLE = {
    "max_head": MAX_BYTES,
    "max_headers": MAX_COUNT,
    "max_body": MAX_BYTES,
    "max_bodies": MAX_BYTES,
    "max_unsent": MAX_BYTES,
    "max_connections": MAX_COUNT,
    "max_unproven": MAX_COUNT,
    "max_peer": MAX_COUNT,
    "max_threads": MAX_COUNT,
}


@dataclass(frozen=True)
class Limits:
    """What one server takes from its clients; the defaults are the documented ones.

    The one owner of these numbers: a server makes one, and everything else holds it. Only the I/O
    thread has copies, because it can't read Python's objects (native/bridge/loop_side.pyx, and
    native/bridge/table.pyx, where its own bounds come in).
    """

    max_head: int = _parser.MAX_HEAD
    max_headers: int = _parser.MAX_HEADERS
    max_body: int = _parser.MAX_BODY
    max_bodies: int = 8 * _parser.MAX_BODY  # over all connections
    #: The share of a processor, and so of the GIL, that the thread of the server's loop may use; 1:
    #: no limit.
    gil_share: float = 0.1
    #: Snapshots of the stacks that clients may cause in a second.
    max_snapshots: float = 100.0
    #: Bytes of replies that their clients have not taken yet, over all connections. One reply alone
    #: may have more.
    max_unsent: int = 128 << 20
    max_connections: int = 4096
    #: TCP connections that have not shown the token yet, where there is one.
    max_unproven: int = 64
    #: TCP connections from one address.
    max_peer: int = 256
    #: Threads for handlers that are plain functions.
    max_threads: int = 64
    head_timeout: float = 10.0
    body_timeout: float = 30.0
    idle_timeout: float = 75.0
    #: A request that the loop has not claimed by then is answered without the loop, where that is
    #: possible ...
    gil_deadline: float = 0.25
    #: ... and by then it is refused with 503, and never run.
    gil_timeout: float = 5.0

    def __post_init__(self) -> None:
        """Raises ValueError, which names the field, unless each is a number of at least 0, and a
        whole one where bytes or things are counted."""
        for name, value in vars(self).items():
            if not isinstance(value, (int, float)) or not value >= 0:
                raise ValueError(f"Limits: {name} must be a number of at least 0, not {value!r}")
        for name, most in _WHOLE.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value > most:
                raise ValueError(
                    f"Limits: {name} must be a whole number of at most {most}, not {value!r}"
                )

    @classmethod
    def from_environment(cls) -> Limits:
        """The defaults, with WORKERSERVER_GIL_DEADLINE and WORKERSERVER_GIL_TIMEOUT in seconds,
        the share WORKERSERVER_GIL_SHARE and, in a second, WORKERSERVER_SNAPSHOTS."""
        return cls(
            gil_deadline=seconds("WORKERSERVER_GIL_DEADLINE", cls.gil_deadline),
            gil_timeout=seconds("WORKERSERVER_GIL_TIMEOUT", cls.gil_timeout),
            gil_share=number("WORKERSERVER_GIL_SHARE", cls.gil_share),
            max_snapshots=number("WORKERSERVER_SNAPSHOTS", cls.max_snapshots),
        )

    @property
    def budgets(self) -> tuple[float, ...]:
        """The limits of the budgets in ``/metrics``, in the order of ``_pulse.BUDGETS``; 0 for the
        descriptors, whose limit the process has."""
        return (
            0,
            self.max_connections,
            self.max_unproven,
            self.max_peer,
            self.max_bodies,
            self.max_unsent,
            self.max_threads,
            self.gil_share,
            self.max_snapshots,
        )

    def within_descriptors(self) -> Limits:
        """These limits, with no more connections than half the descriptors the process may open:
        the other half is for training."""
        soft = os.sysconf("SC_OPEN_MAX")
        if soft == -1:  # no limit
            return self
        return replace(self, max_connections=min(self.max_connections, max(16, soft // 2)))
