"""What a connection's protocol sees of its server."""


cdef class ServerState:
    cdef readonly object loop  # asyncio.AbstractEventLoop
    cdef readonly object router  # routes.Router
    cdef readonly object policy  # access.AccessPolicy
    cdef readonly object pool  # pool.DaemonPool
    cdef readonly set connections  # of WorkerProtocol
    cdef readonly dict requests  # (handler name, status) -> count
    cdef readonly object limits  # server.Limits
    cdef readonly bint is_unix
    cdef readonly Py_ssize_t max_head
    cdef readonly int max_headers
    cdef readonly Py_ssize_t max_body
    cdef readonly Py_ssize_t max_bodies
    cdef readonly int max_connections
    cdef readonly double head_timeout
    cdef readonly double body_timeout
    cdef readonly double idle_timeout
    cdef public double stall_seconds  # a client that takes no byte of its reply for so long is gone
    cdef public double drain_seconds  # the client's time to end its side after the last reply
    cdef public bint closing
    cdef Py_ssize_t body_bytes
    cdef bint _strict  # policy.strict
