"""The body of ``GET /metrics``, as Prometheus reads it or as OpenMetrics has it.

Any thread writes it, without the GIL and without a lock. What only Python can know is published
before: who the process is, and torch's process groups.
"""

from libc.string cimport strlen

from workerserver.process.clock cimport monotonic_ns, process_cpu_ns

cdef enum:
    METRICS_BASE = 48 * 1024  # bytes of all that is no handler's
    TALLY_BYTES = (WS_BUCKETS + WS_STATUSES + 3) * (WS_LABEL_BYTES + 96)  # of one handler at most


# --- families and samples


cdef void _family(
    Text *text, bint openmetrics, const char *name, const char *kind, const char *help
) noexcept nogil:
    """OpenMetrics leaves ``_total`` and ``_info`` out of the name of a family, and has a kind for
    what the other format calls a gauge."""
    cdef size_t size = strlen(name)
    if openmetrics:
        size -= 6 if kind[0] == c"c" else 5 if kind[0] == c"i" else 0
    word(text, b"# HELP ")
    put(text, name, size)
    word(text, b" ")
    word(text, help)
    word(text, b"\n# TYPE ")
    put(text, name, size)
    word(text, b" ")
    if kind[0] == c"i" and not openmetrics:
        kind = b"gauge"
    word(text, kind)
    word(text, b"\n")


cdef void _label(
    Text *text, const char *before, const char *name, const char *value, size_t size
) noexcept nogil:
    """*before* is an opening brace or a comma; the closing brace comes from whoever ends."""
    word(text, before)
    word(text, name)
    word(text, b'="')
    put(text, value, size)
    word(text, b'"')


cdef void _whole(Text *text, int64_t value) noexcept nogil:
    word(text, b" ")
    integer(text, value)
    word(text, b"\n")


cdef void _real(Text *text, double value) noexcept nogil:
    """To the millionth; a number that is not finite, or negative, is shown as what it means."""
    word(text, b" ")
    if not value >= 0.0:
        value = 0.0
    if value > 1.8e19:
        word(text, b"+Inf")
    elif value >= 1e12:
        natural(text, <uint64_t>value)
    else:
        seconds(text, <uint64_t>(value * 1e6 + 0.5), 1000000)
    word(text, b"\n")


cdef void _span(Text *text, int64_t ns) noexcept nogil:
    """Nanoseconds as seconds."""
    word(text, b" ")
    seconds(text, <uint64_t>max(ns, 0), 1000000000)
    word(text, b"\n")


cdef void _gauge(
    Text *text, bint openmetrics, const char *name, const char *help, int64_t value
) noexcept nogil:
    _family(text, openmetrics, name, b"gauge", help)
    word(text, name)
    _whole(text, value)


cdef void _gauge_span(
    Text *text, bint openmetrics, const char *name, const char *help, int64_t ns
) noexcept nogil:
    _family(text, openmetrics, name, b"gauge", help)
    word(text, name)
    _span(text, ns)


cdef void _counter(
    Text *text, bint openmetrics, const char *name, const char *help, int64_t value
) noexcept nogil:
    _family(text, openmetrics, name, b"counter", help)
    word(text, name)
    _whole(text, value)


cdef void _histogram(
    Text *text, const char *name, const ws_histogram *histogram, const int64_t *bounds,
    const ws_tally *tally
) noexcept nogil:
    """The samples of one histogram; *tally* names its handler, or is NULL. The count is the sum of
    the buckets as they are shown, whatever is counted meanwhile."""
    cdef int64_t count = 0
    cdef int i
    for i in range(WS_BUCKETS):
        count += ws_get(&histogram.buckets[i])
        word(text, name)
        word(text, b"_bucket{")
        if tally != NULL:
            _label(text, b"", b"handler", tally.label, <size_t>tally.size)
            word(text, b",")
        word(text, b'le="')
        if i == WS_BUCKETS - 1:
            word(text, b"+Inf")
        else:
            seconds(text, <uint64_t>bounds[i], 1000000000)
        word(text, b'"}')
        _whole(text, count)
    word(text, name)
    word(text, b"_sum")
    _of_handler(text, tally)
    _span(text, ws_get(&histogram.sum))
    word(text, name)
    word(text, b"_count")
    _of_handler(text, tally)
    _whole(text, count)


cdef void _of_handler(Text *text, const ws_tally *tally) noexcept nogil:
    if tally != NULL:
        _label(text, b"{", b"handler", tally.label, <size_t>tally.size)
        word(text, b"}")


cdef bint _is_empty(const ws_histogram *histogram) noexcept nogil:
    cdef int i
    for i in range(WS_BUCKETS):
        if ws_get(&histogram.buckets[i]):
            return False
    return True


# --- the subjects


cdef void _write_info(Text *text, bint openmetrics, const ws_board *board) noexcept nogil:
    _family(
        text, openmetrics, b"workerserver_info", b"info", b"Who this process is, and its versions."
    )
    word(text, b"workerserver_info")
    if board.info_size:
        word(text, b"{")
        put(text, board.info, <size_t>board.info_size)
        word(text, b"}")
    _whole(text, 1)


cdef void _write_requests(Text *text, bint openmetrics, const ws_meter *meter) noexcept nogil:
    cdef const ws_tally *tally
    cdef const ws_replies *replies
    cdef int64_t number
    cdef int used = <int>ws_get(&meter.used), i, j
    _family(
        text, openmetrics, b"workerserver_requests_total", b"counter", b"Requests answered."
    )
    for i in range(used):
        tally = meter.tallies[i]
        for j in range(WS_STATUSES):
            replies = &tally.replies[j]
            number = ws_get(&replies.loop) + ws_get(&replies.alone)
            if number == 0:
                continue
            word(text, b"workerserver_requests_total")
            _label(text, b"{", b"handler", tally.label, <size_t>tally.size)
            word(text, b',status="')
            if ws_get(&replies.status):
                integer(text, ws_get(&replies.status))
            else:
                word(text, b"other")
            word(text, b'"}')
            _whole(text, number)
    _family(
        text, openmetrics, b"workerserver_request_duration_seconds", b"histogram",
        b"From the whole request to its reply.",
    )
    for i in range(used):
        tally = meter.tallies[i]
        if not _is_empty(&tally.times):
            _histogram(
                text, b"workerserver_request_duration_seconds", &tally.times, WS_REQUEST_BOUNDS,
                tally,
            )
    _family(
        text, openmetrics, b"workerserver_handler_running", b"gauge",
        b"Requests inside a handler now.",
    )
    for i in range(used):
        tally = meter.tallies[i]
        number = ws_get(&tally.running)
        if number or ws_get(&tally.listed):
            word(text, b"workerserver_handler_running")
            _of_handler(text, tally)
            _whole(text, number)


cdef void _budget(Text *text, const char *kind, const char *name, double value) noexcept nogil:
    word(text, b"workerserver_budget_")
    word(text, kind)
    _label(text, b"{", b"budget", name, strlen(name))
    word(text, b"}")
    _real(text, value)


cdef void _write_budgets(
    Text *text, bint openmetrics, const ws_meter *meter, const Readings *readings
) noexcept nogil:
    cdef double[WS_BUDGETS] used
    cdef int i
    used[0] = ws_lowest_free()
    used[1] = readings.connections
    used[2] = readings.unproven
    used[3] = readings.busiest
    used[4] = ws_get(&meter.body_bytes)
    used[5] = readings.unsent
    used[6] = ws_get(&meter.threads)
    used[7] = 0.0 if meter.credit == NULL else share_spent(meter.credit)
    used[8] = max(pace_spent(), readings.snapshots)
    _family(
        text, openmetrics, b"workerserver_budget_used", b"gauge", b"Used of a bounded resource now."
    )
    for i in range(WS_BUDGETS):
        _budget(text, b"used", WS_BUDGET_NAMES[i], used[i])
    _family(
        text, openmetrics, b"workerserver_budget_limit", b"gauge", b"How much of it may be used."
    )
    for i in range(WS_BUDGETS):
        _budget(
            text, b"limit", WS_BUDGET_NAMES[i], descriptor_line() if i == 0 else meter.limits[i]
        )
    _family(
        text, openmetrics, b"workerserver_places_total", b"counter",
        b"Connections that had to go, or got no place.",
    )
    word(text, b'workerserver_places_total{what="closed_for_another"}')
    _whole(text, readings.evicted)
    word(text, b'workerserver_places_total{what="refused"}')
    _whole(text, readings.refused)


cdef void _write_steps(Text *text, bint openmetrics) noexcept nogil:
    cdef ws_beat beat = ws_beat_read()
    cdef int64_t usual
    if beat.stamp == 0:
        return
    steps_fold()
    _gauge(
        text, openmetrics, b"workerserver_heartbeat_step", b"Last step of the training loop.",
        beat.step,
    )
    _gauge_span(
        text, openmetrics, b"workerserver_heartbeat_age_seconds", b"Seconds since that step.",
        _since(beat.stamp, monotonic_ns()),
    )
    _counter(
        text, openmetrics, b"workerserver_heartbeats_total", b"Calls of heartbeat().",
        heartbeats_so_far(),
    )
    _family(
        text, openmetrics, b"workerserver_step_duration_seconds", b"histogram",
        b"How long steps of the training loop took.",
    )
    _histogram(
        text, b"workerserver_step_duration_seconds", step_times(), WS_STEP_BOUNDS, NULL
    )
    usual = step_median_ns()
    if usual >= 0:
        _gauge_span(
            text, openmetrics, b"workerserver_step_median_seconds",
            b"Median time of the last steps.", usual,
        )


cdef void _write_gil(Text *text, bint openmetrics) noexcept nogil:
    cdef int64_t last = ws_load(&ws_watch.last)
    cdef int64_t longest = ws_load(&ws_watch.longest)
    if last >= 0:
        _gauge_span(
            text, openmetrics, b"workerserver_gil_wait_seconds",
            b"How long the server last waited for the GIL.", last,
        )
    if longest >= 0:
        _gauge_span(
            text, openmetrics, b"workerserver_gil_wait_max_seconds",
            b"The server's longest wait for the GIL.", longest,
        )
    if ws_load(&ws_watch.on):
        _gauge_span(
            text, openmetrics, b"workerserver_gil_unavailable_seconds",
            b"How long the server has been waiting for the GIL; 0 when it isn't.",
            _unavailable(monotonic_ns()),
        )
    if not _is_empty(&ws_waits):
        _family(
            text, openmetrics, b"workerserver_gil_wait_duration_seconds", b"histogram",
            b"How long the server waited for the GIL, each time.",
        )
        _histogram(
            text, b"workerserver_gil_wait_duration_seconds", &ws_waits, WS_REQUEST_BOUNDS, NULL
        )


cdef void _write_groups(Text *text, bint openmetrics, const ws_board *board) noexcept nogil:
    cdef int64_t i
    if board.group_count == 0:
        return
    _family(
        text, openmetrics, b"workerserver_collectives_issued_total", b"counter",
        b"Collectives that a process group has issued, as torch counts them.",
    )
    for i in range(board.group_count):
        word(text, b"workerserver_collectives_issued_total{")
        put(text, board.groups[i].labels, <size_t>board.groups[i].size)
        word(text, b"}")
        _whole(text, board.groups[i].issued)
    _family(
        text, openmetrics, b"workerserver_collectives_retired_total", b"counter",
        b"Collectives of it that have ended, as torch counts them.",
    )
    for i in range(board.group_count):
        word(text, b"workerserver_collectives_retired_total{")
        put(text, board.groups[i].labels, <size_t>board.groups[i].size)
        word(text, b"}")
        _whole(text, board.groups[i].retired)
    _gauge_span(
        text, openmetrics, b"workerserver_collectives_age_seconds",
        b"How long ago torch was asked for these; it can't be asked without the GIL.",
        _since(board.groups_at, monotonic_ns()),
    )


cdef void _write_watchdogs(Text *text, bint openmetrics, const ws_board *board) noexcept nogil:
    """At a collector. A watchdog that is gone has no sample: nothing says that all is well."""
    cdef int64_t i
    cdef int64_t now = monotonic_ns()
    if board.watchdog_count == 0:
        return
    _family(
        text, openmetrics, b"workerserver_watchdog_status", b"gauge",
        b"Verdict on the open incident: 1 suspects, 2 can't tell; 0 if no incident is open.",
    )
    for i in range(board.watchdog_count):
        _of_watchdog(text, b"workerserver_watchdog_status", &board.watchdogs[i], b"}")
        _whole(text, board.watchdogs[i].status)
    _family(
        text, openmetrics, b"workerserver_watchdog_incidents_total", b"counter",
        b"Incidents that the watchdog of this host has reported.",
    )
    for i in range(board.watchdog_count):
        _of_watchdog(
            text, b"workerserver_watchdog_incidents_total", &board.watchdogs[i], b',kind="stall"}'
        )
        _whole(text, board.watchdogs[i].stalls)
        _of_watchdog(
            text, b"workerserver_watchdog_incidents_total", &board.watchdogs[i], b',kind="gone"}'
        )
        _whole(text, board.watchdogs[i].gone)
    _family(
        text, openmetrics, b"workerserver_watchdog_look_age_seconds", b"gauge",
        b"How long ago the watchdog has begun its last look at the job; a diagnosis takes seconds.",
    )
    for i in range(board.watchdog_count):
        _of_watchdog(text, b"workerserver_watchdog_look_age_seconds", &board.watchdogs[i], b"}")
        _span(text, _since(board.watchdogs[i].looked, now))


cdef void _of_watchdog(
    Text *text, const char *name, const ws_watchdog *watchdog, const char *end
) noexcept nogil:
    word(text, name)
    word(text, b"{")
    put(text, watchdog.labels, <size_t>watchdog.size)
    word(text, end)


cdef void _write_process(Text *text, bint openmetrics) noexcept nogil:
    """By the names that every Prometheus client has."""
    cdef ws_process process
    ws_process_read(&process)
    _family(
        text, openmetrics, b"process_cpu_seconds_total", b"counter",
        b"Total user and system CPU time spent in seconds.",
    )
    word(text, b"process_cpu_seconds_total")
    _span(text, process_cpu_ns())
    if process.address_space >= 0:
        _gauge(
            text, openmetrics, b"process_virtual_memory_bytes", b"Virtual memory size in bytes.",
            process.address_space,
        )
        _gauge(
            text, openmetrics, b"process_resident_memory_bytes", b"Resident memory size in bytes.",
            process.resident,
        )
    if process.started >= 0:
        _gauge_span(
            text, openmetrics, b"process_start_time_seconds",
            b"Start time of the process since unix epoch in seconds.", process.started,
        )
    if process.open >= 0:
        _gauge(
            text, openmetrics, b"process_open_fds", b"Number of open file descriptors.",
            process.open,
        )
    if process.most >= 0:
        _gauge(
            text, openmetrics, b"process_max_fds", b"Maximum number of open file descriptors.",
            process.most,
        )


# --- the whole


cdef size_t metrics_capacity(const ws_meter *meter) noexcept nogil:
    return METRICS_BASE + <size_t>ws_get(&meter.used) * TALLY_BYTES


cdef Py_ssize_t metrics_body(
    char *out, size_t capacity, ws_meter *meter, const Readings *readings, bint openmetrics
) noexcept nogil:
    """See the .pxd."""
    cdef Text text
    cdef ws_board board
    text.at = out
    text.end = out + capacity
    ws_add(&meter.scrapes, 1)
    ws_board_read(&board)
    _write_info(&text, openmetrics, &board)
    _write_requests(&text, openmetrics, meter)
    _gauge(
        &text, openmetrics, b"workerserver_connections", b"Connections open now.",
        readings.connections,
    )
    _gauge_span(
        &text, openmetrics, b"workerserver_uptime_seconds", b"Seconds since the start.",
        monotonic_ns() - <int64_t>(readings.started * 1e9),
    )
    _write_budgets(&text, openmetrics, meter, readings)
    _write_steps(&text, openmetrics)
    _write_gil(&text, openmetrics)
    _write_groups(&text, openmetrics, &board)
    _write_watchdogs(&text, openmetrics, &board)
    if ws_get(&meter.standby) >= 0:
        _gauge(
            &text, openmetrics, b"workerserver_torch_fallback_threads",
            b"Threads of torch's own server, which answers while the GIL is held.",
            ws_get(&meter.standby),
        )
    _write_process(&text, openmetrics)
    if openmetrics:
        word(&text, b"# EOF\n")
    return -1 if text.at is NULL else text.at - out
