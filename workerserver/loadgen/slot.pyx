"""One connection of the load generator, from connecting to the end of a reply.

A slot is a connection with the request that it carries. A run with one connection blocks in recv()
while it waits for the reply: a poll() before it would be part of what is measured. All other runs
wait in poll(), and their reads don't block.
"""

from libc.errno cimport (
    EAGAIN, ECONNREFUSED, ECONNRESET, EINPROGRESS, EINTR, ENOENT, EPIPE, errno
)
from libc.stdint cimport int64_t, uint64_t
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
    int wl_socket(int family, int64_t patience_ns) noexcept
    void wl_block(int fd) noexcept
    int dial_error(int fd) noexcept

cdef enum:
    READ_BYTES = 256 << 10  # stays in the second-level cache

# Variables, because an int holds only two seconds of nanoseconds.
cdef int64_t PATIENCE_NS = 50_000_000       # a blocking read returns after that, to read the clock
cdef int64_t BACKLOG_PAUSE_NS = 200_000     # until a full backlog is tried again
cdef int64_t FAILED_PAUSE_NS = 1_000_000    # until a connection that failed is tried again


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
    """Set what poll() waits for on slot *i*, and forget what it found before."""
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
    """The request of slot *i* has ended, in a reply or a failure."""
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
        run.errors[error if 0 < error < MAX_ERRORS else 0] += 1


cdef void failed(Run *run, int i, Reason reason) noexcept nogil:
    """The request of slot *i* failed, and its connection can't be used any more."""
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
    """Slot *i* could not connect; *error* is 0 if its time is over. If it carries a request, the
    request fails."""
    cdef Slot *slot = &run.slots[i]
    hang_up(run, i)
    if error:
        if slot.address == run.address and not run.reached and slot.address + 1 < run.address_count:
            run.address += 1
        if slot.address != run.address:  # by us, or by another connection's failure
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
    pause(run, i, FAILED_PAUSE_NS)


cdef void open_connection(Run *run, int i) noexcept nogil:
    cdef Slot *slot = &run.slots[i]
    cdef int64_t patience = min(PATIENCE_NS, run.timeout) if run.connections == 1 else 0
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
    cdef dial_address *address = &run.addresses[slot.address]
    if connect(slot.fd, <sockaddr *>&address.storage, address.size) == 0:
        connected(run, i)
    elif errno == EINPROGRESS:
        slot.state = CONNECTING
        watch(run, i, POLLOUT)
    elif errno == EAGAIN and address.family == AF_UNIX:
        pause(run, i, BACKLOG_PAUSE_NS)
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
    """The measured time begins, and the deadline counts from here."""
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
    """Read once, and handle what came."""
    cdef Slot *slot = &run.slots[i]
    cdef Py_ssize_t size = recv(slot.fd, run.buffer, READ_BYTES, flags)
    cdef size_t used
    cdef int error = errno
    run.now = wl_clock()
    if size > 0:
        run.received += <uint64_t>size
        used = reply_feed(&slot.reply, run.buffer, <size_t>size)
        if slot.reply.state == REPLY_MALFORMED or used < <size_t>size:
            failed(run, i, MALFORMED)  # bytes after the reply belong to no request
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
