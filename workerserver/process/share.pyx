"""The share of a processor, and so of the GIL, that a loop's thread may use."""

from collections import deque

from libc.stdlib cimport calloc

from workerserver.process.clock cimport monotonic, thread_cpu_ns

#: Seconds between two looks at what the thread has used: a look is a system call.
cdef double LOOK_SECONDS = 0.002
#: What a quiet loop may use at once, in seconds of its share. More is never saved up.
cdef double SAVED_SECONDS = 1.0
#: One request may use more than is left. Nobody waits longer than that for it.
cdef double OWED_SECONDS = 1.0
#: Of the thread's time, so much has to be there again before somebody who waits goes on: to look
#: takes some of it too.
cdef double LEAST_CREDIT = 0.0002


cdef struct Paced:  # of the Pace that is shown
    double rate
    double left
    double at

cdef Paced _pace


cdef double share_spent(const ws_credit *credit) noexcept nogil:
    """The share of the last second that is used up."""
    cdef double share = ws_get_real(&credit.share)
    cdef double since = max(0.0, monotonic() - ws_get_real(&credit.looked_at))
    return max(0.0, share - (ws_get_real(&credit.credit) + share * since))


cdef double pace_spent() noexcept nogil:
    """How many of this second's snapshots the loops of the process have used up."""
    cdef double rate = ws_get_real(&_pace.rate)
    cdef double since = max(0.0, monotonic() - ws_get_real(&_pace.at))
    return max(0.0, rate - ws_get_real(&_pace.left) - rate * since)


@cython.final
cdef class LoopShare:
    """What share of a processor the thread of *loop* may use: *share* 0.1 is a tenth of a second
    in each second; 1 and more is no limit.

    All that the thread does counts, also what needs no GIL. For that thread only. ``open()`` says
    whether a request may be handled now. If not, ``wait()`` calls a function as soon as one may.
    One request may overdraw the share: only the next ones wait.
    """

    def __cinit__(self):
        self._credit_shown = <ws_credit *>calloc(1, sizeof(ws_credit))
        if self._credit_shown == NULL:
            raise MemoryError
        self._credit_shown.references = 1

    def __dealloc__(self):
        credit_drop(self._credit_shown)

    def __init__(self, loop, double share):
        self._loop = loop
        self._share = share
        self._credit = share * SAVED_SECONDS
        self._waiting = deque()
        self._show()

    @property
    def share(self):
        return self._share

    @share.setter
    def share(self, double share):
        self._share = share
        self._show()

    cdef int _show(self) except -1:
        ws_set_real(&self._credit_shown.share, self._share)
        ws_set_real(&self._credit_shown.credit, self._credit)
        ws_set_real(&self._credit_shown.looked_at, self._looked_at)
        return 0

    @property
    def waiting(self):
        """Requests that wait now."""
        return len(self._waiting)

    cpdef bint open(self) except -1:
        """Whether a request may be handled now."""
        cdef double now = monotonic()
        if now - self._looked_at >= LOOK_SECONDS:
            self._look(now)
        return self._credit > 0.0 or self._share >= 1.0

    cdef int _look(self, double now) except -1:
        cdef int64_t cpu_ns = thread_cpu_ns()
        cdef double used
        if self._looked_at > 0.0:
            used = <double>(cpu_ns - self._cpu_ns) * 1e-9
            self.used += used
            self._credit += self._share * (now - self._looked_at) - used
            self._credit = min(self._credit, self._share * SAVED_SECONDS)
            self._credit = max(self._credit, -self._share * OWED_SECONDS)
        self._looked_at = now
        self._cpu_ns = cpu_ns
        self._show()
        return 0

    def wait(self, go_on, double patience):
        """Call *go_on* with True once a request may be handled, or with False after *patience*
        seconds. The first one that waits comes first."""
        self.waited += 1
        self._waiting.append((go_on, monotonic() + patience))
        if self._timer is None:
            self._arm()

    cdef int _arm(self) except -1:
        cdef double wait = self._waiting[0][1] - monotonic()
        if self._share > 0.0:
            wait = min(wait, (LEAST_CREDIT - self._credit) / self._share)
        self._timer = self._loop.call_later(max(wait, LOOK_SECONDS), self._go_on)
        return 0

    def _go_on(self):
        cdef double until
        cdef bint open
        self._timer = None
        while self._waiting:
            open = self.open()
            go_on, until = self._waiting[0]
            if not open and monotonic() < until:
                break
            self._waiting.popleft()
            go_on(open)
        if self._waiting and self._timer is None:
            self._arm()


@cython.final
cdef class Pace:
    """How often something may happen: *rate* times a second. A second's worth may come at once.

    *shown*: what is spent is the budget ``snapshots`` in ``/metrics``.
    """

    def __init__(self, double rate, bint shown=False):
        self.rate = max(rate, 1.0)
        self._shown = shown
        self._left = self.rate
        self._at = monotonic()
        self._show()

    cdef int _show(self) except -1:
        if self._shown:
            ws_set_real(&_pace.rate, self.rate)
            ws_set_real(&_pace.left, self._left)
            ws_set_real(&_pace.at, self._at)
        return 0

    cpdef double wait(self) except -1.0:
        """Seconds until it may happen again; 0 if it may happen now, and then that counts."""
        self._earn()
        if self._left < 1.0:
            return (1.0 - self._left) / self.rate
        self._left -= 1.0
        self.taken += 1
        self._show()
        return 0.0

    cpdef int take(self) except -1:
        """It happens now: a timer for it may be early by a little. That counts in any case."""
        self._earn()
        self._left -= 1.0
        self.taken += 1
        self._show()
        return 0

    cdef int _earn(self) except -1:
        cdef double now = monotonic()
        self._left = min(self.rate, self._left + self.rate * (now - self._at))
        self._at = now
        return 0
