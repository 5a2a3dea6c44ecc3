"""The load generator's native loop: every connection's way from connecting to the end of a reply.

One connection that waits for its reply blocks in recv(): to poll() first would be part of what is
measured. Several, or a schedule to keep, take poll() and reads that don't block.
"""

cimport cython
from libc.errno cimport (
    EAGAIN, ECONNREFUSED, ECONNRESET, EINPROGRESS, EINTR, ENOENT, EPIPE, errno
)
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from posix.unistd cimport close


cdef extern from "loadgen.h" nogil:
    struct sockaddr:
        pass
    int AF_UNIX, MSG_NOSIGNAL, MSG_DONTWAIT
    short POLLIN, POLLOUT
    int connect(int fd, const sockaddr *address, socklen_t size) noexcept
    Py_ssize_t send(int fd, const void *data, size_t size, int flags) noexcept
    Py_ssize_t recv(int fd, void *data, size_t size, int flags) noexcept
    int64_t wl_clock() noexcept
    int wl_poll(pollfd *polled, int count, int64_t ns) noexcept
    int wl_socket(int family, int64_t patience_ns) noexcept
    void wl_block(int fd) noexcept
    int wl_socket_error(int fd) noexcept

cdef enum:
    READ_SIZE = 256 << 10  # stays in the second-level cache

# Nanoseconds: longs, for an int holds two seconds.
cdef int64_t SECOND = 1_000_000_000
cdef int64_t SLICE = 200_000_000     # between two looks for signals
cdef int64_t GRACE = 100_000_000     # that a slice may last longer, to end between two requests
cdef int64_t PATIENCE = 50_000_000   # a blocking read comes back to look at the clock
cdef int64_t BACKLOG_PAUSE = 200_000  # until a full backlog is tried again
cdef int64_t FAILED_PAUSE = 1_000_000  # before a connection that failed is tried again


# --- one connection ---------------------------------------------------------------------------


cdef inline void push(Stack *stack, int item) noexcept nogil:
    stack.items[stack.size] = item
    stack.size += 1


cdef inline int pop(Stack *stack) noexcept nogil:
    stack.size -= 1
    return stack.items[stack.size]


cdef void drop(Stack *stack, int item) noexcept nogil:
    cdef int at, kept = 0
    for at in range(stack.size):
        if stack.items[at] != item:
            stack.items[kept] = stack.items[at]
            kept += 1
    stack.size = kept


cdef inline void watch(Run *run, int i, short events) noexcept nogil:
    """What to wait for on slot *i*; what poll() found on it before holds no longer."""
    run.polls[i].fd = run.slots[i].fd if events else -1
    run.polls[i].events = events
    run.polls[i].revents = 0


cdef inline void arm(Run *run, Slot *slot, int64_t deadline) noexcept nogil:
    slot.deadline = deadline
    run.next_scan = min(run.next_scan, deadline)


cdef void hang_up(Run *run, int i) noexcept nogil:
    cdef Slot *slot = &run.slots[i]
    if slot.fd >= 0:
        close(slot.fd)
    slot.fd = -1
    slot.state = CLOSED
    watch(run, i, 0)


cdef void pause(Run *run, int i, int64_t ns) noexcept nogil:
    cdef Slot *slot = &run.slots[i]
    slot.state = PAUSED
    slot.wake = wl_clock() + ns
    run.next_scan = min(run.next_scan, slot.wake)
    watch(run, i, 0)


cdef void done(Run *run, int i) noexcept nogil:
    """The request of slot *i* has come to its end, good or bad."""
    cdef Slot *slot = &run.slots[i]
    slot.claimed = False
    slot.free_at = run.now
    if slot.late >= 0:
        buckets_add(run.late, slot.late, 1)
    run.in_flight -= 1
    run.sent += 1
    run.last = run.now


cdef void count_error(Run *run, int error) noexcept nogil:
    if error == ECONNREFUSED:
        run.reasons[<int>REFUSED] += 1
    elif error == ECONNRESET or error == EPIPE:
        run.reasons[<int>RESET] += 1
    elif error == ENOENT:
        run.reasons[<int>NO_SOCKET] += 1
    else:
        run.errors[error if 0 < error < MOST_ERRORS else 0] += 1


cdef void failed(Run *run, int i, Reason reason) noexcept nogil:
    """The request of slot *i* failed; its connection is of no more use."""
    hang_up(run, i)
    run.reasons[<int>reason] += 1
    done(run, i)
    push(&run.closed, i)


cdef void failed_by(Run *run, int i, int error) noexcept nogil:
    hang_up(run, i)
    count_error(run, error)
    done(run, i)
    push(&run.closed, i)


cdef void no_connection(Run *run, int i, int error) noexcept nogil:
    """Slot *i* could not connect (*error* 0: in time). A request fails with it, if one waits."""
    cdef Slot *slot = &run.slots[i]
    hang_up(run, i)
    if error:
        if slot.address == run.address and not run.reached and slot.address + 1 < run.address_count:
            run.address += 1
        if slot.address != run.address:  # or another connection's failure has moved it on
            open_connection(run, i)
            return
    run.now = wl_clock()
    if run.start == 0:
        run.start = run.now
    if not slot.claimed:
        run.unclaimed -= 1
        if run.begun < run.total and due_at(run, run.begun) <= run.now:
            claim(run, i)
    if slot.claimed:
        if error:
            count_error(run, error)
        else:
            run.reasons[<int>TIMED_OUT] += 1
        done(run, i)
    pause(run, i, FAILED_PAUSE)


cdef void open_connection(Run *run, int i) noexcept nogil:
    cdef Slot *slot = &run.slots[i]
    cdef int64_t patience = min(PATIENCE, run.timeout) if run.connections == 1 else 0
    run.high = max(run.high, i + 1)
    slot.served = 0
    slot.address = run.address
    slot.fd = wl_socket(run.addresses[slot.address].family, patience)
    if slot.fd < 0:
        no_connection(run, i, errno)
        return
    stamp(run, slot)
    try_connect(run, i)


cdef void try_connect(Run *run, int i) noexcept nogil:
    cdef Slot *slot = &run.slots[i]
    cdef wl_address *address = &run.addresses[slot.address]
    if connect(slot.fd, <sockaddr *>&address.storage, address.size) == 0:
        connected(run, i)
    elif errno == EINPROGRESS:
        slot.state = CONNECTING
        watch(run, i, POLLOUT)
    elif errno == EAGAIN and address.family == AF_UNIX:
        pause(run, i, BACKLOG_PAUSE)
    else:
        no_connection(run, i, errno)


cdef void connected(Run *run, int i) noexcept nogil:
    cdef Slot *slot = &run.slots[i]
    run.reached = True
    if run.connections == 1:
        wl_block(slot.fd)
    if slot.claimed:
        send_request(run, i)
        return
    run.unclaimed -= 1
    run.now = wl_clock()
    if run.start == 0:
        run.start = run.now
    rest(run, i)


cdef void rest(Run *run, int i) noexcept nogil:
    run.slots[i].state = IDLE
    run.slots[i].free_at = run.now
    watch(run, i, POLLIN)  # the server may close it
    push(&run.idle, i)


cdef inline void stamp(Run *run, Slot *slot) noexcept nogil:
    """What is timed begins, and so does the time that it may take."""
    slot.began = wl_clock()
    arm(run, slot, slot.began + run.timeout)
    if slot.claimed and slot.late < 0 and slot.was_free:
        slot.late = slot.began - slot.due


cdef void send_request(Run *run, int i) noexcept nogil:
    cdef Slot *slot = &run.slots[i]
    slot.sent = 0
    reply_begin(&slot.reply, run.head_only)
    if not run.fresh:
        stamp(run, slot)
    send_more(run, i)


cdef void send_more(Run *run, int i) noexcept nogil:
    cdef Slot *slot = &run.slots[i]
    cdef Py_ssize_t size
    while True:
        size = send(
            slot.fd, run.request + slot.sent, run.request_size - slot.sent,
            MSG_NOSIGNAL | MSG_DONTWAIT,
        )
        if size >= 0 or errno != EINTR:
            break
    if size > 0:
        slot.sent += <size_t>size
    if size >= 0 or errno == EAGAIN:
        if slot.sent == run.request_size:
            slot.state = READING
            watch(run, i, POLLIN)
        else:
            slot.state = SENDING
            watch(run, i, POLLIN | POLLOUT)
    elif errno == EPIPE or errno == ECONNRESET:
        slot.state = READING  # the server may have said why before it closed
        watch(run, i, POLLIN)
    else:
        failed_by(run, i, errno)


cdef void receive(Run *run, int i, int flags) noexcept nogil:
    """Read once and take what came."""
    cdef Slot *slot = &run.slots[i]
    cdef Py_ssize_t size = recv(slot.fd, run.buffer, READ_SIZE, flags)
    cdef size_t used
    cdef int error = errno
    run.now = wl_clock()
    if size > 0:
        run.received += <uint64_t>size
        used = reply_feed(&slot.reply, run.buffer, <size_t>size)
        if slot.reply.state == REPLY_MALFORMED or used < <size_t>size:
            failed(run, i, MALFORMED)  # more than was asked for is no reply to this request
        elif slot.reply.state == REPLY_DONE:
            answered(run, i)
    elif size == 0:
        if reply_closed(&slot.reply):
            answered(run, i)
        else:
            failed(run, i, ENDED)
    elif error == EINTR:
        run.interrupted = True
    elif error != EAGAIN:
        failed_by(run, i, error)


cdef void answered(Run *run, int i) noexcept nogil:
    cdef Slot *slot = &run.slots[i]
    run.statuses[slot.reply.status] += 1
    if 200 <= slot.reply.status < 300:
        run.answered += 1
        buckets_add(run.service, run.now - slot.began, 1)
        if run.interval > 0:
            buckets_add(run.response, run.now - slot.due, 1)
    slot.served += 1
    done(run, i)
    if (
        slot.reply.keep_alive
        and not run.fresh
        and slot.sent == run.request_size
        and (run.per_connection == 0 or slot.served < run.per_connection)
    ):
        rest(run, i)
    else:
        hang_up(run, i)
        push(&run.closed, i)


# --- all of them ------------------------------------------------------------------------------


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
    """Begin what is to begin, as far as there are connections."""
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
    """A connection more, for whichever request comes first."""
    run.unclaimed += 1
    open_connection(run, pop(&run.closed))


cdef void scan(Run *run) noexcept nogil:
    """Deadlines, and pauses that are over."""
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
        error = wl_socket_error(slot.fd)
        if error:
            no_connection(run, i, error)
        else:
            connected(run, i)
    elif slot.state == IDLE:
        hang_up(run, i)  # the server closed it, or speaks without being asked
        drop(&run.idle, i)
        push(&run.closed, i)
    elif slot.state == SENDING and not found & ~POLLOUT:
        send_more(run, i)
    elif slot.state == SENDING or slot.state == READING:
        receive(run, i, MSG_DONTWAIT)


cdef void wait(Run *run, int64_t until) noexcept nogil:
    """Sleep until something happens, and do what is to be done about it."""
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
    """When an open loop gives up on what it has not sent yet."""
    if run.start == 0:
        return INT64_MAX
    return due_at(run, run.total) + run.timeout


cdef bint over(Run *run) noexcept nogil:
    """Whether the run has ended. An open loop that is out of time fails what is left."""
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
    until = run.now + SLICE
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
        if run.interrupted or run.now >= until + GRACE:
            return False
        if single and run.slots[0].state == READING:
            receive(run, 0, 0)
        else:
            wait(run, until + GRACE)
        if run.now >= run.next_scan:
            scan(run)
        # Best between two requests: to look for signals takes the GIL, which may take its time.
        if run.now >= until and run.in_flight == 0:
            return over(run)


cdef bint run_open(Run *run) noexcept nogil:
    cdef int i, count = run.connections
    run.slots = <Slot *>calloc(<size_t>count, sizeof(Slot))
    run.polls = <pollfd *>calloc(<size_t>count, sizeof(pollfd))
    run.idle.items = <int *>calloc(<size_t>count, sizeof(int))
    run.closed.items = <int *>calloc(<size_t>count, sizeof(int))
    run.buffer = <char *>malloc(READ_SIZE)
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
