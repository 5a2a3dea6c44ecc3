"""The load generator's loop over all connections: what is due begins, and what is over ends."""

cimport cython
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc


cdef extern from "loadgen.h" nogil:
    int wl_poll(pollfd *polled, int count, int64_t ns) noexcept

cdef int64_t SLICE_NS = 200_000_000     # between two checks for signals
cdef int64_t GRACE_NS = 100_000_000     # a slice may last longer, to end between two requests


cdef inline int64_t due_at(const Run *run, uint64_t number) noexcept nogil:
    return run.start + <int64_t>(<double>number * run.interval)


@cython.cdivision(True)
cdef inline uint64_t due_by(const Run *run, int64_t now) noexcept nogil:
    """How many requests of an open loop are due."""
    cdef uint64_t number
    if now < run.start:
        return 0
    number = <uint64_t>(<double>(now - run.start) / run.interval) + 1
    return min(number, run.total)


cdef inline bint may_begin(const Run *run) noexcept nogil:
    """Whether there is a request to begin now."""
    if run.start == 0 or run.begun >= run.total:
        return False
    if open_loop(run):
        return due_at(run, run.begun) <= run.now
    return run.now - run.start < run.duration


cdef void claim(Run *run, int i) noexcept nogil:
    """Slot *i* gets the next request."""
    cdef Slot *slot = &run.slots[i]
    slot.claimed = True
    slot.was_free = False
    slot.late = -1
    slot.due = due_at(run, run.begun) if open_loop(run) else run.now
    run.begun += 1
    run.in_flight += 1


cdef void dispatch(Run *run) noexcept nogil:
    """Begin the requests that may begin, as long as there are connections for them."""
    cdef int i
    cdef int64_t free_since
    while may_begin(run):
        if run.idle.size:
            free_since = run.slots[run.idle.items[0]].free_at
            i = pop(&run.idle)
            claim(run, i)
            run.slots[i].was_free = open_loop(run) and free_since <= run.slots[i].due
            send_request(run, i)
        elif run.closed.size == 0:
            return
        elif run.fresh or not open_loop(run):
            free_since = run.slots[run.closed.items[0]].free_at
            i = pop(&run.closed)
            claim(run, i)
            run.slots[i].was_free = open_loop(run) and free_since <= run.slots[i].due
            open_connection(run, i)
        elif <uint64_t>run.unclaimed < due_by(run, run.now) - run.begun:
            open_unclaimed(run)
        else:
            return


cdef void open_unclaimed(Run *run) noexcept nogil:
    """Open one more connection, for the first request that needs it."""
    run.unclaimed += 1
    open_connection(run, pop(&run.closed))


cdef void scan(Run *run) noexcept nogil:
    """End what is past its deadline, and the pauses that are over."""
    cdef int i
    cdef Slot *slot
    cdef int64_t now = run.now
    run.next_scan = INT64_MAX
    for i in range(run.high):
        slot = &run.slots[i]
        if slot.state == PAUSED and slot.fd < 0:
            if now >= slot.wake:
                slot.state = CLOSED
                push(&run.closed, i)
            else:
                run.next_scan = min(run.next_scan, slot.wake)
        elif slot.state != CLOSED and slot.state != IDLE:
            if now >= slot.deadline:
                if slot.state == SENDING or slot.state == READING:
                    failed(run, i, TIMED_OUT)
                else:
                    no_connection(run, i, 0)
                continue
            run.next_scan = min(run.next_scan, slot.deadline)
            if slot.state == PAUSED:
                if now >= slot.wake:
                    try_connect(run, i)
                else:
                    run.next_scan = min(run.next_scan, slot.wake)


cdef void event(Run *run, int i) noexcept nogil:
    """Something is ready on slot *i*."""
    cdef Slot *slot = &run.slots[i]
    cdef short found = run.polls[i].revents
    cdef int error
    if slot.state == CONNECTING:
        error = dial_error(slot.fd)
        if error:
            no_connection(run, i, error)
        else:
            connected(run, i)
    elif slot.state == IDLE:
        hang_up(run, i)  # the server closed it, or sent something without a request
        drop(&run.idle, i)
        push(&run.closed, i)
    elif slot.state == SENDING and not found & ~POLLOUT:
        send_more(run, i)
    elif slot.state == SENDING or slot.state == READING:
        receive(run, i, MSG_DONTWAIT)


cdef void wait(Run *run, int64_t until) noexcept nogil:
    """Sleep until something happens, and handle it."""
    cdef int i, ready
    until = min(until, run.next_scan)
    if open_loop(run):
        if run.begun < run.total and run.idle.size + run.closed.size and not may_begin(run):
            until = min(until, due_at(run, run.begun))
        until = min(until, hard_end(run))
    ready = wl_poll(run.polls, run.high, max(until - run.now, <int64_t>0))
    run.interrupted = ready < 0
    run.now = wl_clock()
    i = 0
    while ready > 0 and i < run.high:
        if run.polls[i].revents:
            ready -= 1
            event(run, i)
            dispatch(run)
        i += 1


cdef inline int64_t hard_end(const Run *run) noexcept nogil:
    """When an open loop gives up the requests that it has not sent yet."""
    if run.start == 0:
        return INT64_MAX
    return due_at(run, run.total) + run.timeout


cdef bint over(Run *run) noexcept nogil:
    """Whether the run has ended. If the time of an open loop is over, the rest has failed."""
    cdef int i
    if run.start == 0:
        return False
    if open_loop(run) and run.now >= hard_end(run):
        for i in range(run.high):
            if run.slots[i].claimed:
                failed(run, i, TIMED_OUT)
        run.reasons[<int>NOT_SENT] += run.total - run.begun
        run.sent += run.total - run.begun
        run.begun = run.total
        run.last = run.now
        return True
    if run.in_flight:
        return False
    return run.begun >= run.total or (not open_loop(run) and run.now - run.start >= run.duration)


cdef bint run_on(Run *run) noexcept nogil:
    """Run for a slice of time, or until a signal comes. True: the run has ended."""
    cdef int64_t until
    cdef bint single = run.connections == 1
    run.now = wl_clock()
    until = run.now + SLICE_NS
    run.interrupted = False
    if run.start == 0 and run.high == 0:
        if open_loop(run) and not run.fresh:
            open_unclaimed(run)  # the schedule begins when there is a connection
        else:
            run.start = run.now
    while True:
        dispatch(run)
        if over(run):
            return True
        if run.interrupted or run.now >= until + GRACE_NS:
            return False
        if single and run.slots[0].state == READING:
            receive(run, 0, 0)
        else:
            wait(run, until + GRACE_NS)
        if run.now >= run.next_scan:
            scan(run)
        # Best between two requests: a check for signals needs the GIL, which may take long to get.
        if run.now >= until and run.in_flight == 0:
            return over(run)


cdef bint run_open(Run *run) noexcept nogil:
    cdef int i, count = run.connections
    run.slots = <Slot *>calloc(<size_t>count, sizeof(Slot))
    run.polls = <pollfd *>calloc(<size_t>count, sizeof(pollfd))
    run.idle.items = <int *>calloc(<size_t>count, sizeof(int))
    run.closed.items = <int *>calloc(<size_t>count, sizeof(int))
    run.buffer = <char *>malloc(READ_BYTES)
    if (
        run.slots is NULL or run.polls is NULL or run.buffer is NULL
        or run.idle.items is NULL or run.closed.items is NULL
    ):
        return False
    run.next_scan = INT64_MAX
    for i in range(count):
        run.slots[i].fd = run.polls[i].fd = -1
        push(&run.closed, count - 1 - i)
    return True


cdef void run_close(Run *run) noexcept nogil:
    cdef int i
    for i in range(run.high):
        hang_up(run, i)
    free(run.slots)
    free(run.polls)
    free(run.idle.items)
    free(run.closed.items)
    free(run.buffer)
