"""What all connections of one server share."""

cimport cython

from workerserver.http.bounds cimport DRAIN_SECONDS, STALL_SECONDS
from workerserver.process._pulse cimport Meter, ws_set

from workerserver.http.audit import Audit as _Audit


@cython.final
cdef class ServerState:
    """What all connections of one server share. Owned by the loop's thread; see the .pxd.

    ``body_bytes`` counts what the bodies of requests without a reply hold in memory, over all
    connections.
    """

    @property
    def unsent(self):
        """Bytes of replies that their clients have not taken yet."""
        return self.unsent_here if self.unsent_elsewhere is None else self.unsent_elsewhere()

    @property
    def requests(self):
        """Replies that the loop wrote, by (handler name, status)."""
        return self.meter.replies(alone=False)

    cdef int hold(self, Py_ssize_t change) except -1:
        """Bodies hold *change* bytes more."""
        if change:
            self.body_bytes += change
            ws_set(&self.meter.data.body_bytes, self.body_bytes)
        return 0

    cdef bint enter(self, handler) except -1:
        """Take one of the handler's places; False when all are taken. leave() gives it back."""
        if not handler.acquire():
            return False
        self.meter.enter(handler.name)
        return True

    cdef int leave(self, handler) except -1:
        """From any thread."""
        handler.release()
        self.meter.enter(handler.name, -1)
        return 0

    def __init__(self, loop, router, policy, pool, *, is_unix, limits, thread=None, meter=None):
        self.loop = loop
        self.call_soon = loop.call_soon_threadsafe if thread is None else thread.call_soon
        self._share = None if thread is None else thread.share
        self.router = router
        self.policy = policy
        self._checks = policy.checks
        self._check_head = policy.check_head
        self._plain_checks = policy.plain_checks
        self.pool = pool
        self.is_unix = is_unix
        self.audit = _Audit()
        self.connections = set()
        self.meter = Meter() if meter is None else meter
        self.limits = limits
        self.unsent_elsewhere = None
        self.stall_seconds = STALL_SECONDS
        self.drain_seconds = DRAIN_SECONDS
