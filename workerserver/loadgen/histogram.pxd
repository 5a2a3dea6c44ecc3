"""A histogram of durations that native code fills: no Python, no GIL, no allocation per value."""

cimport cython
from libc.stdint cimport int64_t, uint64_t

cdef extern from *:
    int __builtin_clzll(unsigned long long value) noexcept nogil

cdef enum:
    HALF_BITS = 10                  # a bucket is at most 2**-10 of its values wide: under 0.1 %
    HALF = 1 << HALF_BITS
    TOP_BIT = 41
    BUCKETS = (TOP_BIT - HALF_BITS + 2) * HALF


cdef struct Buckets:
    uint64_t *counts  # BUCKETS of them
    uint64_t count
    int64_t shortest  # exact, as is the longest; only if there is a value
    int64_t longest
    double total


# Log-linear, as HdrHistogram lays its buckets out: single nanoseconds below 2048, then 1024 equal
# buckets for each doubling.
cdef inline int bucket_of(int64_t ns) noexcept nogil:
    cdef int shift = 63 - HALF_BITS - __builtin_clzll(<unsigned long long>(ns | HALF))
    return (shift << HALF_BITS) + <int>(ns >> shift)


cdef inline int64_t clamped(int64_t ns) noexcept nogil:
    """*ns*, but not below 0 or above 73 minutes: longer durations count as that long."""
    cdef int64_t longest = (<int64_t>1 << (TOP_BIT + 1)) - 1
    return 0 if ns < 0 else longest if ns > longest else ns


cdef inline void buckets_add(Buckets *buckets, int64_t ns, uint64_t times) noexcept nogil:
    """Count *ns* nanoseconds *times* times. One thread at a time."""
    ns = clamped(ns)
    if buckets.count == 0:
        buckets.shortest = buckets.longest = ns
    elif ns < buckets.shortest:
        buckets.shortest = ns
    elif ns > buckets.longest:
        buckets.longest = ns
    buckets.counts[bucket_of(ns)] += times
    buckets.count += times
    buckets.total += <double>ns * <double>times


@cython.final
cdef class Histogram:
    cdef Buckets buckets
    cdef _needs_value(self)
