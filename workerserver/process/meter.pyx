"""What one server counts: replies and how long they took, and what is used of its budgets."""

cimport cython
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from workerserver.process.clock cimport monotonic_ns

cdef extern from *:
    """
    /* In ns. A histogram's bounds never change: Prometheus adds them up over processes. */
    static const int64_t WS_REQUEST_BOUNDS[] = {
        100000, 1000000, 5000000, 10000000, 25000000, 100000000, 250000000, 500000000, 1000000000,
        2500000000, 5000000000, 30000000000, 60000000000,
    };

    /* Of the process: how long each turn of a loop had to be waited for. */
    static ws_histogram ws_waits;

    /* In the order of ws_meter.limits. */
    static const char *const WS_BUDGET_NAMES[WS_BUDGETS] = {
        "descriptors", "connections", "connections_without_token", "connections_of_one_address",
        "request_bytes", "unsent_bytes", "handler_threads", "gil_share", "snapshots",
    };
    """
    ws_histogram ws_waits
    const int64_t *WS_REQUEST_BOUNDS
    const char *const *WS_BUDGET_NAMES


#: Of handlers that have no figures of their own: no path can hold that name.
cdef str OTHERS = "/others"
BUDGETS = tuple(WS_BUDGET_NAMES[i].decode("ascii") for i in range(WS_BUDGETS))
#: The content types of ``/metrics``: of Prometheus' text, and of OpenMetrics.
METRICS_TYPES = (WS_TEXT_TYPE.decode("ascii"), WS_OPENMETRICS_TYPE.decode("ascii"))


cdef void meter_keep(ws_meter *meter) noexcept nogil:
    ws_add(&meter.references, 1)


cdef void meter_drop(ws_meter *meter) noexcept nogil:
    cdef int i
    if meter == NULL or ws_add(&meter.references, -1) > 0:
        return
    for i in range(<int>meter.used):
        free(meter.tallies[i])
    credit_drop(meter.credit)
    free(meter)


cdef void credit_drop(ws_credit *credit) noexcept nogil:
    if credit != NULL and ws_add(&credit.references, -1) <= 0:
        free(credit)


cdef void meter_replied(ws_meter *meter, int number, int status) noexcept nogil:
    ws_reply(meter.tallies[number], status, True)


cdef void meter_took(ws_meter *meter, int number, int64_t took_ns, int64_t times) noexcept nogil:
    ws_observe(&meter.tallies[number].times, WS_REQUEST_BOUNDS, max(took_ns, 0), times)


def label(str value, most=None):
    """*value* as the value of a label, between its quotes, in *most* bytes at most (the default is
    the most that a handler's name may take)."""
    cdef size_t limit = WS_LABEL_BYTES if most is None else most
    cdef str text = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    cdef bytes whole = text.encode("utf-8", "replace")
    if len(whole) <= <Py_ssize_t>limit:
        return whole
    whole = whole[:limit].decode("utf-8", "ignore").encode()
    # Half an escape would swallow the quote behind it.
    return whole[:-1] if (len(whole) - len(whole.rstrip(b"\\"))) % 2 else whole


@cython.final
cdef class Meter:
    """What one server counts. Names and numbers are added under the GIL, from any thread.

    *share* is the LoopShare of the server's loop, *limits* are the budgets' in the order of
    BUDGETS; that of descriptors is read when it is shown.
    """

    def __cinit__(self, LoopShare share=None, limits=()):
        cdef int i
        cdef double limit
        self.data = <ws_meter *>calloc(1, sizeof(ws_meter))
        if self.data == NULL:
            raise MemoryError
        self.data.references = 1
        self.data.standby = -1
        if share is not None:
            self.data.credit = share._credit_shown
            ws_add(&share._credit_shown.references, 1)
        for i, limit in enumerate(limits):
            self.data.limits[i] = limit
        self._numbers = {}
        self.number("")  # 0: no handler was found

    def __dealloc__(self):
        meter_drop(self.data)

    cpdef int number(self, str name) except -1:
        """The place of the handler *name*, which it keeps for good."""
        cdef ws_tally *tally
        cdef bytes text
        found = self._numbers.get(name)
        if found is not None:
            return found
        if self.data.used == WS_TALLIES:
            return WS_TALLIES - 1
        text = label(OTHERS if self.data.used == WS_TALLIES - 1 else name)
        tally = <ws_tally *>calloc(1, sizeof(ws_tally))
        if tally == NULL:
            raise MemoryError
        tally.size = len(text)
        memcpy(tally.label, <const char *>text, len(text))
        found = <int>self.data.used
        self.data.tallies[<int>found] = tally
        ws_set(&self.data.used, found + 1)
        if found < WS_TALLIES - 1:
            self._numbers[name] = found
        return found

    cdef int reply(self, str name, int status, int64_t began_ns) except -1:
        """The loop has a reply of the handler *name*, to a request that was complete at
        *began_ns*; 0: there was none."""
        cdef ws_tally *tally = self.data.tallies[self.number(name)]
        ws_reply(tally, status, False)
        if began_ns:
            ws_observe(&tally.times, WS_REQUEST_BOUNDS, _since(began_ns, monotonic_ns()), 1)
        return 0

    def enter(self, str name, int change=1):
        """A request is inside the handler *name*; with *change* -1, it has left."""
        ws_add(&self.data.tallies[self.number(name)].running, change)

    def list(self, names):
        """These handlers can be called now, and no others."""
        cdef set numbers = {self.number(name) for name in names}
        cdef int i
        for i in range(<int>self.data.used):
            ws_set(&self.data.tallies[i].listed, i in numbers)

    def replies(self, bint loop=True, bint alone=True):
        """``{(handler name, status): replies}``: those that the *loop* wrote, and those that the
        I/O thread wrote *alone*. The status of one that has no figure of its own is 0."""
        cdef const ws_replies *each
        cdef int64_t number
        cdef int i
        found = {}
        for name, place in list(self._numbers.items()) + (
            [(OTHERS, WS_TALLIES - 1)] if self.data.used == WS_TALLIES else []
        ):
            for i in range(WS_STATUSES):
                each = &self.data.tallies[<int>place].replies[i]
                number = (ws_get(&each.loop) if loop else 0) + (ws_get(&each.alone) if alone else 0)
                if number:
                    found[name, ws_get(&each.status)] = number
        return found

    @property
    def threads(self):
        """Threads that run handlers."""
        return ws_get(&self.data.threads)

    @threads.setter
    def threads(self, int64_t number):
        ws_set(&self.data.threads, number)

    @property
    def scrapes(self):
        """How often the metrics were written."""
        return ws_get(&self.data.scrapes)

    @property
    def standby(self):
        """Threads of torch's own server; None where there can be none."""
        cdef int64_t number = ws_get(&self.data.standby)
        return None if number < 0 else number

    @standby.setter
    def standby(self, number):
        ws_set(&self.data.standby, -1 if number is None else number)

    def exposition(
        self, bint openmetrics, *, double started=0.0, int64_t connections=0, int64_t unproven=0,
        int64_t busiest=0, int64_t evicted=0, int64_t refused=0, int64_t unsent=0
    ):
        """The body of GET /metrics for a server without a native I/O thread."""
        cdef Readings readings
        readings.started = started
        readings.connections = connections
        readings.unproven = unproven
        readings.busiest = busiest
        readings.evicted = evicted
        readings.refused = refused
        readings.unsent = unsent
        readings.snapshots = 0.0
        return metrics_bytes(self.data, &readings, openmetrics)


cdef bytes metrics_bytes(ws_meter *meter, const Readings *readings, bint openmetrics):
    cdef size_t capacity = metrics_capacity(meter)
    cdef bytearray out = bytearray(capacity)
    cdef Py_ssize_t length
    cdef char *data = out
    with nogil:  # counts descriptors
        length = metrics_body(data, capacity, meter, readings, openmetrics)
    if length < 0:
        raise ValueError(f"/metrics needs more than {capacity} bytes")
    return bytes(out[:length])
