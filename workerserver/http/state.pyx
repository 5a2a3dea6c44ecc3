"""What all connections of one server share."""

cimport cython

from workerserver.http.bounds cimport DRAIN_SECONDS, STALL_SECONDS

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
    def held_bodies(self):
        """Bytes of request bodies that wait for their reply."""
        return self.body_bytes

    def __init__(self, loop, router, policy, pool, *, is_unix, limits, thread=None):
        self.loop = loop
        self.call_soon = loop.call_soon_threadsafe if thread is None else thread.call_soon
        self._share = None if thread is None else thread.share
        self._hold_on = None if thread is None else thread.canary.hold
        self.router = router
        self.policy = policy
        self._checks = policy.checks
        self._check_head = policy.check_head
        self._plain_checks = policy.plain_checks
        self.pool = pool
        self.is_unix = is_unix
        self.audit = _Audit()
        self.connections = set()
        self.requests = {}
        self.limits = limits
        self.unsent_elsewhere = None
        self.stall_seconds = STALL_SECONDS
        self.drain_seconds = DRAIN_SECONDS
