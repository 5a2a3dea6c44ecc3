"""A connection of the native I/O thread, as both sides see it; plain C memory, no Python.

Everything in a Hub is guarded by its one lock. Who may do what with a connection follows from its
``stage`` (see the .pxd): only the owner writes to the socket, only the I/O thread closes it and
frees the struct. The lock is held for a few microseconds at a time, never over a wait, a snapshot
or a large copy, so that the loop's thread may take it while it holds the GIL.
"""

from libc.errno cimport EAGAIN, EINTR, EPIPE, errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove, memset
from posix.fcntl cimport F_DUPFD_CLOEXEC, fcntl
from posix.unistd cimport write

from workerserver.native.system cimport (
    MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_WR, pthread_mutex_lock, pthread_mutex_trylock,
    pthread_mutex_unlock, sched_yield, send, shutdown,
)
from workerserver.process.clock cimport monotonic, monotonic_ns
from workerserver.process.epoll cimport (
    EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT, epoll_ctl, epoll_event,
)
from workerserver.process._pulse cimport watch_answered, watch_asked


cdef extern from * nogil:
    """
    static inline int ws_count(int *counter, int change) {
        return __atomic_add_fetch(counter, change, __ATOMIC_RELAXED);
    }
    """
    int ws_count(int *counter, int change)


cdef enum:
    UNCLAIMED = 64 * 1024  # bytes kept for a loop that doesn't come; then reading stops
    ALL_UNCLAIMED = 64 * 1024 * 1024  # over all connections; then each keeps only ...
    FEW = 4 * 1024
    PATIENCE = 100  # times to yield to somebody who waits for the lock
    DIRECT = 128 * 1024  # bytes that the loop's thread sends by itself, with the GIL held


cdef void hub_lock(Hub *hub) noexcept nogil:
    if pthread_mutex_trylock(&hub.lock) != 0:
        ws_count(&hub.waiters, 1)
        pthread_mutex_lock(&hub.lock)
        ws_count(&hub.waiters, -1)


cdef void give_way(Hub *hub) noexcept nogil:
    """On the I/O thread, between two pieces of work: let those have the lock who wait for it.

    Whoever that is may hold the GIL, and with it training; and a mutex is not fair.
    """
    cdef int waiting = ws_count(&hub.waiters, 0)
    cdef int _i
    if waiting == 0:
        return
    hub_unlock(hub)
    for _i in range(PATIENCE):
        if ws_count(&hub.waiters, 0) < waiting:
            break
        sched_yield()
    hub_lock(hub)


cdef void hub_unlock(Hub *hub) noexcept nogil:
    pthread_mutex_unlock(&hub.lock)


cdef void _signal(int fd) noexcept nogil:
    cdef uint64_t one = 1
    if write(fd, &one, sizeof(one)) < 0:
        pass  # the counter is full: it has been signalled


cdef void wake_io(Hub *hub) noexcept nogil:
    """Have the I/O thread look at what was left for it."""
    if not hub.woken:
        hub.woken = True
        _signal(hub.wake.fd)


cdef void ask_turn(Hub *hub) noexcept nogil:
    """Ask the loop for a turn; from then on the GIL counts as waited for."""
    if not hub.asked:
        hub.asked = True
        hub.asked_at = monotonic()
        watch_asked(monotonic_ns())
        _signal(hub.turn)


cdef void arm(Hub *hub, double at) noexcept nogil:
    """Have deadlines looked at by *at*; on the I/O thread, which sets its timer before it waits."""
    if at < hub.scan_at:
        hub.scan_at = at


cdef void _arm_io(Hub *hub, double at) noexcept nogil:
    """The same from the loop's thread. Nearly always there is an earlier deadline already, so a
    request costs no wake-up."""
    if at < hub.scan_at:
        hub.scan_at = at
        wake_io(hub)


# --- lists


cdef void stamp(Connection *connection) noexcept nogil:
    """Something has come for *connection*, which is or will be in the queue."""
    connection.hub.number += 1
    connection.number = connection.hub.number


cdef void enqueue(Connection *connection) noexcept nogil:
    """Have the loop look at *connection*; in the order of arrival."""
    cdef Hub *hub = connection.hub
    stamp(connection)
    if not connection.queued:
        connection.queued = True
        connection.queue_next = NULL
        connection.queue_previous = hub.queue_last
        if hub.queue_last != NULL:
            hub.queue_last.queue_next = connection
        else:
            hub.queue = connection
        hub.queue_last = connection
    ask_turn(hub)


cdef void dequeue(Connection *connection) noexcept nogil:
    cdef Hub *hub = connection.hub
    if not connection.queued:
        return
    connection.queued = False
    if connection.queue_previous != NULL:
        connection.queue_previous.queue_next = connection.queue_next
    else:
        hub.queue = connection.queue_next
    if connection.queue_next != NULL:
        connection.queue_next.queue_previous = connection.queue_previous
    else:
        hub.queue_last = connection.queue_previous


cdef void reap(Connection *connection) noexcept nogil:
    """Have the I/O thread close *connection*, or free it if it is closed already."""
    if not connection.reaping:
        connection.reaping = True
        connection.reap_next = connection.hub.reap
        connection.hub.reap = connection


cdef bint _epoll_tell(
    Hub *hub, int change, void *source, int fd, uint32_t events
) noexcept nogil:
    cdef epoll_event event
    memset(&event, 0, sizeof(event))
    event.events = events
    event.data.ptr = source
    return epoll_ctl(hub.epoll, change, fd, &event) == 0


cdef bint epoll_add(Hub *hub, void *source, int fd, uint32_t events) noexcept nogil:
    return _epoll_tell(hub, EPOLL_CTL_ADD, source, fd, events)


cdef void epoll_change(Hub *hub, void *source, int fd, uint32_t events) noexcept nogil:
    _epoll_tell(hub, EPOLL_CTL_MOD, source, fd, events)


cdef void epoll_remove(Hub *hub, int fd) noexcept nogil:
    epoll_ctl(hub.epoll, EPOLL_CTL_DEL, fd, NULL)


cdef void unpoll(Connection *connection) noexcept nogil:
    """Have epoll tell nothing more of the connection."""
    if connection.polled:
        connection.polled = False
        epoll_remove(connection.hub, connection.fd)


cdef void set_events(Connection *connection) noexcept nogil:
    """Tell epoll what the connection waits for, if that has changed."""
    cdef uint32_t wanted = 0
    cdef Hub *hub = connection.hub
    cdef size_t unclaimed = connection.size - connection.start
    hub.unclaimed += unclaimed - connection.accounted
    connection.accounted = unclaimed
    if connection.stage == STAGE_DEAD:
        return
    if (
        not connection.eof
        and not connection.paused
        and not connection.closing
        and (
            connection.out == NULL  # a half head, bounded by itself
            if connection.stage == STAGE_IO
            else unclaimed < <size_t>(UNCLAIMED if hub.unclaimed < ALL_UNCLAIMED else FEW)
        )
    ):
        wanted |= EPOLLIN
    if connection.out != NULL:
        wanted |= EPOLLOUT
    if not connection.polled:
        # Taken out when it hung up while nobody wanted to read; what is unread is wanted now.
        if connection.hung_up and wanted & EPOLLIN:
            connection.events = wanted
            connection.polled = epoll_add(hub, connection, connection.fd, wanted)
    elif wanted != connection.events:
        connection.events = wanted
        epoll_change(hub, connection, connection.fd, wanted)


# --- bytes on their way out


cdef ssize_t send_some(int fd, const char *data, size_t size) noexcept nogil:
    """What the socket takes of *data* now, in bytes; below 0 the negative errno that ends it."""
    cdef ssize_t n
    while True:
        n = send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL)
        if n >= 0:
            return n
        if errno == EAGAIN:
            return 0
        if errno != EINTR:
            return -errno


cdef Chunk *chunk_new(const char *data, size_t size, void *owner) noexcept nogil:
    """*data*, borrowed while *owner* lives, else copied; NULL without memory."""
    cdef Chunk *chunk = <Chunk *>malloc(sizeof(Chunk) + (0 if owner != NULL else size))
    if chunk == NULL:
        return NULL
    chunk.next = NULL
    chunk.size = size
    chunk.sent = 0
    chunk.owner = owner
    chunk.data = data
    if owner == NULL:
        memcpy(&chunk[1], data, size)
        chunk.data = <const char *>&chunk[1]
    return chunk


cdef void chunk_append(Connection *connection, Chunk *chunk) noexcept nogil:
    if connection.out_last != NULL:
        connection.out_last.next = chunk
    else:
        connection.out = chunk
    connection.out_last = chunk
    connection.out_size += chunk.size
    set_events(connection)


cdef void discard_out(Connection *connection) noexcept nogil:
    """Give up what was not sent. Python's references go to the loop, which may drop them."""
    cdef Hub *hub = connection.hub
    cdef Chunk *chunk = connection.out
    cdef Chunk *following
    connection.out = NULL
    connection.out_last = NULL
    connection.out_size = 0
    while chunk != NULL:
        following = chunk.next
        if chunk.owner != NULL:
            chunk.next = hub.done
            hub.done = chunk
            ask_turn(hub)
        else:
            free(chunk)
        chunk = following


# --- the loop's side


cdef Chunk *turn_begin(Hub *hub, uint64_t *number) noexcept nogil:
    """The loop has come. The chunks that were sent, for it to drop their owners and to free;
    *number* becomes hub.number."""
    cdef Chunk *done
    hub_lock(hub)
    if hub.asked:
        hub.asked = False
        watch_answered(monotonic_ns())
    done = hub.done
    hub.done = NULL
    number[0] = hub.number
    hub_unlock(hub)
    return done


cdef Connection *turn_next(Hub *hub, uint64_t *number) noexcept nogil:
    """Claim the next connection in the queue; NULL if there is none. *number* becomes hub.number if
    something has come for the connection since then.

    Each is claimed only when its turn has come: while a handler holds the loop up, those behind it
    can still be taken back.
    """
    cdef Connection *connection
    hub_lock(hub)
    connection = hub.queue
    if connection != NULL:
        dequeue(connection)
        if connection.stage == STAGE_QUEUED:
            connection.stage = STAGE_LOOP
            connection.deadline = 0.0
        if connection.number > number[0]:
            number[0] = hub.number
    hub_unlock(hub)
    return connection


cdef void connection_take(Connection *connection, Event *event) noexcept nogil:
    """What has happened to a claimed connection since it was last asked."""
    hub_lock(connection.hub)
    event.data = NULL
    event.size = 0
    event.eof = False
    event.resume = connection.resume
    event.error = connection.error
    event.lost = connection.stage == STAGE_DEAD or connection.error != 0
    connection.resume = False
    if (
        connection.stage == STAGE_LOOP
        and not event.lost
        and not connection.paused
        and not connection.closing
    ):
        if connection.size > connection.start:
            event.data = connection.data
            event.size = connection.size - connection.start
            if connection.start:  # rare: behind a request that the I/O thread has answered
                memmove(event.data, event.data + connection.start, event.size)
            connection.data = NULL
            connection.start = connection.size = connection.capacity = 0
        event.eof = connection.eof and not connection.eof_told
        connection.eof_told = connection.eof
        # In order, but nobody is there any more: what runs for them may be cancelled.
        event.lost = connection.eof and connection.hung_up
        set_events(connection)
    hub_unlock(connection.hub)


cdef int connection_descriptor(Connection *connection) noexcept nogil:
    """A duplicate of the descriptor, the caller's to close; -1 if there is none any more."""
    cdef int fd = -1
    hub_lock(connection.hub)
    if connection.stage != STAGE_DEAD:
        fd = fcntl(connection.fd, F_DUPFD_CLOEXEC, 3)
    hub_unlock(connection.hub)
    return fd


cdef bint _claim(Connection *connection) noexcept nogil:
    """Make the loop the owner; False if the connection can't be had any more."""
    if (
        connection.stage == STAGE_IO
        or connection.stage == STAGE_WAIT
        or connection.stage == STAGE_QUEUED
    ):
        connection.stage = STAGE_LOOP
        connection.deadline = 0.0
    return connection.stage == STAGE_LOOP


cdef int connection_write(
    Connection *connection, const char *data, size_t size, void *owner
) noexcept nogil:
    """Send what the socket takes now; the I/O thread sends the rest, from *owner*'s memory.

    1 if *owner* (a reference of its own) was kept for that, 0 if not, -1 if the connection takes
    no more.
    """
    cdef Hub *hub = connection.hub
    cdef Chunk *chunk
    cdef ssize_t n = 0
    cdef bint direct
    hub_lock(hub)
    if not _claim(connection) or connection.closing or connection.shut or connection.error:
        hub_unlock(hub)
        return -1
    direct = connection.out == NULL
    if direct:
        # Not under the lock: the descriptor stays, because only its owner lets it be closed.
        hub_unlock(hub)
        n = send_some(connection.fd, data, min(size, <size_t>DIRECT))
        if n == <ssize_t>size:
            return 0
        hub_lock(hub)
        if n < 0:
            connection.error = <int>-n
            enqueue(connection)
            hub_unlock(hub)
            return -1
    chunk = chunk_new(data + n, size - <size_t>n, owner)
    if chunk == NULL:
        connection.error = EPIPE
        enqueue(connection)
        hub_unlock(hub)
        return -1
    chunk_append(connection, chunk)
    hub_unlock(hub)
    return 1


cdef size_t connection_unsent(Connection *connection) noexcept nogil:
    cdef size_t size
    hub_lock(connection.hub)
    size = connection.out_size
    hub_unlock(connection.hub)
    return size


cdef bint connection_full(Connection *connection) noexcept nogil:
    """True, once, if more waits to be sent than the high-water mark: pause_writing() is due."""
    cdef bint full
    hub_lock(connection.hub)
    full = not connection.full and connection.out_size > connection.high
    if full:
        connection.full = True
        if connection.resume:  # not told yet that it may go on, the protocol still waits
            connection.resume = False
            full = False
    hub_unlock(connection.hub)
    return full


cdef void connection_want(Connection *connection, bint boundary) noexcept nogil:
    """The protocol owes nothing and wants bytes; at a message *boundary* the I/O thread may
    answer what it recognises."""
    cdef Hub *hub = connection.hub
    hub_lock(hub)
    if connection.stage == STAGE_LOOP and not connection.closing and not connection.error:
        connection.boundary = boundary
        if connection.size > connection.start or (connection.eof and not connection.eof_told):
            # More has come meanwhile: it is in the queue, and may be taken back from now on.
            connection.stage = STAGE_QUEUED
            connection.judged = False
            connection.queued_at = monotonic()
            _arm_io(hub, connection.queued_at + min(
                connection.listener.gil_deadline, connection.listener.gil_timeout
            ))
            enqueue(connection)
        elif boundary:
            connection.stage = STAGE_IO
            memset(&connection.state, 0, sizeof(connection.state))
            connection.heading = False
            connection.deadline = monotonic() + connection.listener.idle_timeout
            _arm_io(hub, connection.deadline)
        else:
            connection.stage = STAGE_WAIT
    hub_unlock(hub)


cdef void connection_pause(Connection *connection, bint paused) noexcept nogil:
    hub_lock(connection.hub)
    if connection.stage != STAGE_DEAD and connection.stage != STAGE_CLOSING:
        connection.paused = paused
        set_events(connection)
        if not paused and connection.stage == STAGE_LOOP and (
            connection.size > connection.start
            or (connection.eof and not connection.eof_told)
        ):
            enqueue(connection)
    hub_unlock(connection.hub)


cdef void connection_shut(Connection *connection) noexcept nogil:
    """End our side once everything is sent."""
    hub_lock(connection.hub)
    if _claim(connection) and not connection.shut:
        connection.shut = True
        if connection.out == NULL:
            shutdown(connection.fd, SHUT_WR)
    elif connection.stage == STAGE_ANSWERING:
        connection.closing = True
    hub_unlock(connection.hub)


cdef bint connection_close(Connection *connection, bint discard) noexcept nogil:
    """Have the I/O thread close the connection once everything is sent, or now if *discard*.

    True if nothing more is to be waited for; else the loop is told when it is closed.
    """
    cdef Hub *hub = connection.hub
    cdef bint now = True
    hub_lock(hub)
    if _claim(connection):
        connection.closing = True
        if discard or connection.out == NULL or connection.error:
            connection.stage = STAGE_CLOSING
            reap(connection)
            wake_io(hub)
        else:
            now = False
    elif connection.stage == STAGE_ANSWERING or connection.stage == STAGE_DRAIN:
        connection.closing = True  # with the answer that is under way
        if discard:
            connection.doomed = True
            reap(connection)
            wake_io(hub)
        else:
            now = False
    hub_unlock(hub)
    return now


cdef void connection_detach(Connection *connection) noexcept nogil:
    """The transport lets go: the struct belongs to the I/O thread alone, which frees it."""
    cdef Hub *hub = connection.hub
    hub_lock(hub)
    connection.transport = NULL
    dequeue(connection)
    reap(connection)
    wake_io(hub)
    hub_unlock(hub)
