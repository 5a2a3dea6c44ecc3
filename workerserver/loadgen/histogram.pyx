"""Durations in nanoseconds, counted in fixed memory, to three significant digits.

The layout of the buckets, the meaning of a percentile and the correction for coordinated omission
are those of HdrHistogram (Gil Tene, https://hdrhistogram.org), whose terms are used here.
"""

cimport cython
from libc.math cimport ceil, isnan, log2, nextafter
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy


cdef int64_t lowest_in(int bucket) noexcept nogil:
    cdef int shift = (bucket >> HALF_BITS) - 1 if bucket >= HALF else 0
    return <int64_t>(bucket - (shift << HALF_BITS)) << shift


cdef int64_t highest_in(int bucket) noexcept nogil:
    return lowest_in(bucket + 1) - 1


cdef int64_t value_at(const Buckets *buckets, double percentile) noexcept nogil:
    """The value at or below which *percentile* percent of the values lie. There is a value."""
    # The next smaller percentile, as in HdrHistogram: 99.9 % of 1,000 values are 999 values, even
    # if the product is rounded up.
    cdef double wanted = ceil(nextafter(percentile, -1.0) / 100.0 * <double>buckets.count)
    cdef uint64_t rank = <uint64_t>wanted if wanted > 1.0 else 1
    cdef uint64_t seen = 0
    cdef int bucket
    if percentile <= 0.0:
        return buckets.shortest
    for bucket in range(BUCKETS):
        seen += buckets.counts[bucket]
        if seen >= rank:
            return min(highest_in(bucket), buckets.longest)
    return buckets.longest


@cython.cdivision(True)
cdef void add_missing(
    Buckets *into, int64_t longest, uint64_t times, int64_t interval
) noexcept nogil:
    """Count the values that were not measured during *longest* nanoseconds. Each is smaller than
    the one before by *interval*.

    The values of one bucket are counted at once, so a short interval takes no more steps than there
    are buckets.
    """
    cdef int64_t value = longest - interval, floor, last
    cdef uint64_t steps
    cdef int bucket
    while value >= interval:
        bucket = bucket_of(value)
        floor = max(lowest_in(bucket), interval)
        steps = <uint64_t>((value - floor) // interval) + 1
        last = value - <int64_t>(steps - 1) * interval
        into.counts[bucket] += steps * times
        into.count += steps * times
        into.total += (<double>value + <double>last) / 2.0 * <double>steps * <double>times
        into.shortest = min(into.shortest, last)
        value = last - interval


@cython.final
cdef class Histogram:
    """Counts of durations from 1 ns to 73 minutes; longer ones count as that long.

    Percentiles are right to 0.1 %; ``min`` and ``max`` are exact. One thread at a time. What needs
    a value raises ValueError while there is none.
    """

    def __cinit__(self):
        self.buckets.counts = <uint64_t *>calloc(BUCKETS, sizeof(uint64_t))
        if self.buckets.counts is NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.buckets.counts)

    def record(self, int64_t ns, uint64_t times=1):
        """Count a duration; ValueError if it is negative."""
        if ns < 0:
            raise ValueError(f"a duration of {ns} ns")
        if times:
            buckets_add(&self.buckets, ns, times)

    @property
    def count(self):
        return self.buckets.count

    @property
    def min(self):
        self._needs_value()
        return self.buckets.shortest

    @property
    def max(self):
        self._needs_value()
        return self.buckets.longest

    @property
    def mean(self):
        self._needs_value()
        return self.buckets.total / self.buckets.count

    def percentile(self, double percentile):
        """Nanoseconds: the highest value that counts as equal to the one of this rank.

        The rank is ``ceil(percentile / 100 * count)``, at least 1. ValueError unless the percentile
        is one of 0 to 100.
        """
        if isnan(percentile) or not 0.0 <= percentile <= 100.0:
            raise ValueError(f"{percentile} is no percentile")
        self._needs_value()
        return value_at(&self.buckets, percentile)

    def above(self, int64_t ns):
        """How many values count as longer than *ns*, to the width of a bucket."""
        cdef uint64_t found = 0
        cdef int bucket
        for bucket in range(bucket_of(clamped(ns)) + 1 if ns >= 0 else 0, BUCKETS):
            found += self.buckets.counts[bucket]
        return found

    def merge(self, Histogram other not None):
        """Add all values of *other*."""
        cdef int bucket
        if other.buckets.count == 0:
            return
        if self.buckets.count == 0:
            self.buckets.shortest = other.buckets.shortest
            self.buckets.longest = other.buckets.longest
        self.buckets.shortest = min(self.buckets.shortest, other.buckets.shortest)
        self.buckets.longest = max(self.buckets.longest, other.buckets.longest)
        for bucket in range(BUCKETS):
            self.buckets.counts[bucket] += other.buckets.counts[bucket]
        self.buckets.count += other.buckets.count
        self.buckets.total += other.buckets.total

    def copy(self):
        """A histogram with the same values."""
        cdef Histogram made = Histogram()
        cdef uint64_t *counts = made.buckets.counts
        memcpy(counts, self.buckets.counts, BUCKETS * sizeof(uint64_t))
        made.buckets = self.buckets
        made.buckets.counts = counts
        return made

    def corrected(self, int64_t expected_interval_ns):
        """A copy that makes up for coordinated omission in a closed loop.

        The client meant to ask every *expected_interval_ns* and could not while it waited for a
        slow answer. So each value longer than the interval stands for the requests that were not
        sent meanwhile, too: HdrHistogram's copyCorrectedForCoordinatedOmission. ValueError unless
        the interval is positive.
        """
        cdef Histogram made
        cdef int bucket
        if expected_interval_ns <= 0:
            raise ValueError(f"an interval of {expected_interval_ns} ns")
        made = self.copy()
        for bucket in range(bucket_of(clamped(expected_interval_ns)), BUCKETS):
            if self.buckets.counts[bucket]:
                add_missing(
                    &made.buckets,
                    min(highest_in(bucket), self.buckets.longest),
                    self.buckets.counts[bucket],
                    expected_interval_ns,
                )
        return made

    @cython.cdivision(True)
    def points(self, int ticks=10):
        """``[(percentile, ns), ...]`` for a plot, from 0 to 100; empty without values.

        *ticks* points in each halving of the distance to 100 %, until one value is left.
        """
        cdef double level = 0.0, share
        if ticks < 1:
            raise ValueError(f"{ticks} ticks")
        if self.buckets.count == 0:
            return []
        found = [(0.0, self.buckets.shortest)]
        while True:
            share = 2.0 ** (<int>log2(100.0 / (100.0 - level)) + 1)
            level += 100.0 / (ticks * share)
            if (100.0 - level) / 100.0 * <double>self.buckets.count < 1.0:
                break
            found.append((level, value_at(&self.buckets, level)))
        found.append((100.0, self.buckets.longest))
        return found

    def __repr__(self):
        if self.buckets.count == 0:
            return "<Histogram, empty>"
        return (
            f"<Histogram of {self.count}: p50 {self.percentile(50)} ns, "
            f"p99 {self.percentile(99)} ns, max {self.max} ns>"
        )

    cdef _needs_value(self):
        if self.buckets.count == 0:
            raise ValueError("the histogram holds no value")
