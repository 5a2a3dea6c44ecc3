"""What a protocol uses of its loop's share."""

from libc.stdint cimport int64_t


cdef class LoopShare:
    cdef object _loop  # asyncio.AbstractEventLoop
    cdef double _share
    cdef double _credit  # seconds of the thread that are left
    cdef double _looked_at
    cdef int64_t _cpu_ns
    cdef readonly double used  # seconds of the processor in all
    cdef readonly long waited  # requests that had to wait
    cdef ws_credit *_credit_shown  # the same for threads without the GIL; shared with meters
    cdef object _waiting  # deque of (function, monotonic time at which its patience ends)
    cdef object _timer  # asyncio.TimerHandle | None

    cpdef bint open(self) except -1
    cdef int _look(self, double now) except -1
    cdef int _arm(self) except -1
    cdef int _show(self) except -1


cdef class Pace:
    cdef readonly double rate
    cdef readonly long taken  # how often it has happened
    cdef bint _shown  # to threads without the GIL
    cdef double _left
    cdef double _at

    cpdef double wait(self) except -1.0
    cpdef int take(self) except -1
    cdef int _earn(self) except -1
    cdef int _show(self) except -1
