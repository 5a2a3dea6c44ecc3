"""What a connection's protocol sees of its server."""

from workerserver.process._pulse cimport LoopShare, Meter


cdef class ServerState:
    cdef readonly object loop  # asyncio.AbstractEventLoop
    cdef readonly object call_soon  # as the loop's call_soon_threadsafe()
    cdef LoopShare _share  # None: no limit
    cdef readonly object router  # routes.Router
    cdef readonly object policy  # access.AccessPolicy
    cdef readonly object pool  # pool.DaemonPool
    cdef readonly set connections  # of WorkerProtocol
    cdef readonly Meter meter
    cdef readonly object limits  # limits.Limits
    cdef readonly bint is_unix
    cdef readonly object audit  # audit.Audit
    cdef public double stall_seconds  # a client that takes no byte of its reply for so long is gone
    cdef public double drain_seconds  # the client's time to end its side after the last reply
    cdef public bint closing
    cdef Py_ssize_t body_bytes  # what the meter shows
    cdef public object unsent_elsewhere  # the transport's own count of unsent bytes: a function
    cdef Py_ssize_t unsent_here  # bytes of replies that this side's protocols count
    cdef tuple _checks  # the policy's own
    cdef object _check_head
    cdef tuple _plain_checks

    cdef int hold(self, Py_ssize_t change) except -1
    cdef bint enter(self, handler) except -1
    cdef int leave(self, handler) except -1
