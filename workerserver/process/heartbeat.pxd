"""What the native I/O thread sees of the pulse: no Python, no GIL, no lock, no allocation."""

from libc.stdint cimport int64_t


cdef enum:
    HEALTH_CAPACITY = 1536  # bytes; no body of GET /healthz is longer
    STEPS_CAPACITY = 48 * 1024  # bytes; no body of the handler steps is longer

# A step of the training loop. With the GIL held.
cpdef void beat_at(int64_t step, int64_t now_ns) noexcept nogil

# The GIL watch. on/off, asked: the I/O thread. answered: the loop's thread, once it has the GIL.
cpdef void watch_switch(bint on) noexcept nogil
cpdef void watch_asked(int64_t now_ns) noexcept nogil
cpdef void watch_answered(int64_t now_ns) noexcept nogil

# Writes the body of GET /healthz to *out*. Returns its length, or -1 if *capacity* is too small.
# *now_ns*: from monotonic_ns() in clock.pxd. *started*: the server's start, from time.monotonic().
# *max_step_age*: in seconds, below 0 if the request has none. *status*: becomes 200 or 503.
cdef Py_ssize_t health_body(
    char *out,
    size_t capacity,
    int64_t now_ns,
    double started,
    double max_step_age,
    int *status,
) noexcept nogil

# Writes "PID RANK JOB" to *out*: "-" for an unknown rank, the job's name as JSON has it, without
# its quotes. Returns the length; a name that does not fit *capacity* is left out.
cdef size_t worker_text(char *out, size_t capacity) noexcept nogil

# Writes the body of the handler steps to *out*. Returns its length, or -1 if it does not fit.
cdef Py_ssize_t steps_body(char *out, size_t capacity) noexcept nogil

# How many heartbeats there were.
cdef int64_t beat_count() noexcept nogil

# Whether the present step takes much longer than steps usually do.
cdef bint step_is_late(int64_t now_ns) noexcept nogil
