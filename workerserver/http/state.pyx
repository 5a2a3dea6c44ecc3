"""What all connections of one server share."""

cimport cython

from workerserver.http.bounds cimport DRAIN_SECONDS, STALL_SECONDS


@cython.final
cdef class ServerState:
    """What all connections of one server share. Owned by the loop's thread; see the .pxd.

    ``body_bytes`` counts what the bodies of requests without a reply hold in memory, over all
    connections.
    """

    def __init__(self, loop, router, policy, pool, *, is_unix, limits):
        self.loop = loop
        self.router = router
        self.policy = policy
        self._strict = policy.strict
        self.pool = pool
        self.is_unix = is_unix
        self.connections = set()
        self.requests = {}
        self.limits = limits
        self.max_head = limits.max_head
        self.max_headers = limits.max_headers
        self.max_body = limits.max_body
        self.max_bodies = limits.max_bodies
        self.max_connections = limits.max_connections
        self.head_timeout = limits.head_timeout
        self.body_timeout = limits.body_timeout
        self.idle_timeout = limits.idle_timeout
        self.stall_seconds = STALL_SECONDS
        self.drain_seconds = DRAIN_SECONDS
