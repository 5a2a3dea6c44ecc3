"""The training loop's pulse: the last step and when it came, in C memory.

``heartbeat(step)`` is called by the training loop itself, so it is two stores and a clock reading:
no allocation, no lock, no exception that a training loop could trip over (a step that is no
integer is the caller's mistake and raises TypeError).
"""

from libc.stdint cimport int64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef int64_t _step = -1
cdef double _stamp = -1.0


cdef inline double _now() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <double>now.tv_sec + <double>now.tv_nsec * 1e-9


def heartbeat(int64_t step):
    """Note that the training loop has reached *step* (an int that fits 64 bits) now."""
    global _step, _stamp
    _step = step
    _stamp = _now()


def last_heartbeat():
    """``(step, age in seconds)`` of the last heartbeat, or ``(None, None)`` if none ever came."""
    if _stamp < 0.0:
        return None, None
    return _step, _now() - _stamp


def reset():
    """Forget the last heartbeat: a forked child has not made a step of its own."""
    global _step, _stamp
    _step = -1
    _stamp = -1.0
