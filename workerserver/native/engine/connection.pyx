"""The loop's calls on a connection of the native I/O thread. Each takes the hub's lock itself.

stage.pyx says who owns a connection when. The loop's thread holds the GIL here, and nothing of
Python runs under the lock.
"""

from libc.errno cimport EPIPE
from libc.stdint cimport uint64_t
from libc.string cimport memmove, memset
from posix.fcntl cimport F_DUPFD_CLOEXEC, fcntl

from workerserver.native.system cimport SHUT_WR, pthread_self, shutdown
from workerserver.process.clock cimport monotonic, monotonic_ns
from workerserver.process._pulse cimport watch_answered


cdef enum:
    DIRECT = 128 * 1024  # bytes that the loop's thread sends by itself, with the GIL held


cdef Chunk *turn_begin(Hub *hub, uint64_t *number) noexcept nogil:
    """The loop begins a turn. The result: chunks that are sent; the loop drops the references to
    their owners and frees them. *number* becomes hub.number."""
    cdef Chunk *done
    hub_lock(hub)
    if WS_DEBUG:
        hub.witness.loop = pthread_self()
        hub.witness.turning = True
    if hub.asked:
        hub.asked = False
        watch_answered(monotonic_ns())
    done = hub.done
    hub.done = NULL
    number[0] = hub.number
    hub_unlock(hub)
    return done


cdef Connection *turn_next(Hub *hub, uint64_t *number) noexcept nogil:
    """Claim the next connection in the queue; NULL if the queue is empty. *number* becomes
    hub.number if something came for the connection after *number*.

    The loop claims one connection at a time. While a handler keeps the loop busy, the I/O thread
    can take the others back.
    """
    cdef Connection *connection
    hub_lock(hub)
    connection = hub.queue
    if WS_DEBUG:
        hub.witness.claimed = connection
        hub.witness.turning = connection != NULL
    if connection != NULL:
        dequeue(connection)
        if connection.stage == STAGE_QUEUED:
            move(connection, STAGE_QUEUED, STAGE_LOOP)
            connection.deadline = 0.0
        if connection.number > number[0]:
            number[0] = hub.number
    hub_unlock(hub)
    return connection


cdef void connection_attach(Connection *connection, void *transport) noexcept nogil:
    """Give the connection its *transport*, a reference; connection_detach() takes that away."""
    hub_lock(connection.hub)
    connection.transport = transport
    hub_unlock(connection.hub)


cdef void connection_take(Connection *connection, Event *event) noexcept nogil:
    """What has happened to a connection since the last call, for its protocol."""
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
            if connection.start:  # rare: the I/O thread has answered a request before these bytes
                memmove(event.data, event.data + connection.start, event.size)
            connection.data = NULL
            connection.start = connection.size = connection.capacity = 0
        event.eof = connection.eof and not connection.eof_told
        connection.eof_told = connection.eof
        # The client ended in order, but it reads no reply any more: handlers may be cancelled.
        event.lost = connection.eof and connection.hung_up
        set_events(connection)
    if WS_DEBUG and not event.lost:
        connection.hub.witness.claimed = NULL
    hub_unlock(connection.hub)


cdef int connection_descriptor(Connection *connection) noexcept nogil:
    """A duplicate of the descriptor, which the caller closes; -1 if the connection is closed."""
    cdef int fd = -1
    hub_lock(connection.hub)
    if connection.stage != STAGE_DEAD and not hub_gone(connection.hub):
        fd = fcntl(connection.fd, F_DUPFD_CLOEXEC, 3)
    hub_unlock(connection.hub)
    return fd


cdef bint _claim(Connection *connection) noexcept nogil:
    """Make the loop the owner of a connection that it wants to write to; False if that is too
    late."""
    cdef Stage stage = connection.stage
    if _claimable(stage) and stage != STAGE_LOOP:
        move(connection, stage, STAGE_LOOP)
        connection.deadline = 0.0
        if stage == STAGE_IO and connection.size > connection.start:
            enqueue(connection)  # half a head, which belongs to the protocol from now on
    return connection.stage == STAGE_LOOP


cdef bint _claimable(Stage stage) noexcept nogil:
    return (
        stage == STAGE_IO or stage == STAGE_WAIT or stage == STAGE_QUEUED or stage == STAGE_LOOP
    )


cdef int connection_write(
    Connection *connection, const char *data, size_t size, void *owner
) noexcept nogil:
    """Send what the socket takes now; the I/O thread sends the rest, from *owner*'s memory.

    *owner* is a reference. 1: the reference is kept until the bytes are sent. 0: all is sent, and
    the reference is the caller's again. -1: the same, and the connection takes no more.
    """
    cdef Hub *hub = connection.hub
    cdef Chunk *chunk
    cdef ssize_t n = 0
    cdef bint direct
    hub_lock(hub)
    if not _claim(connection) or connection.closing or connection.shut or connection.error:
        hub_unlock(hub)
        return -1
    connection.answered = True
    direct = connection.out == NULL
    if direct:
        # Not under the lock: while the loop owns the connection, nobody closes the descriptor.
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
    """True, once, if more bytes are unsent than the high-water mark: call pause_writing()."""
    cdef bint full
    hub_lock(connection.hub)
    full = not connection.full and connection.out_size > connection.high
    if full:
        connection.full = True
        if connection.resume:  # resume_writing() was not called yet, so the protocol still waits
            connection.resume = False
            full = False
    hub_unlock(connection.hub)
    return full


cdef void connection_want(Connection *connection, bint boundary) noexcept nogil:
    """The protocol owes no reply and wants bytes. At a message *boundary* the I/O thread may answer
    what it recognises."""
    cdef Hub *hub = connection.hub
    hub_lock(hub)
    if connection.stage == STAGE_LOOP and not connection.closing and not connection.error:
        connection.boundary = boundary
        if connection.size > connection.start or (connection.eof and not connection.eof_told):
            # More bytes have come meanwhile. From now on the I/O thread may take them back.
            move(connection, STAGE_LOOP, STAGE_QUEUED)
            connection.judged = False
            connection.queued_at = monotonic()
            _arm_io(hub, connection.queued_at + min(
                connection.listener.gil_deadline, connection.listener.gil_timeout
            ))
            enqueue(connection)
        elif boundary:
            move(connection, STAGE_LOOP, STAGE_IO)
            memset(&connection.state, 0, sizeof(connection.state))
            connection.heading = False
            if connection.answered:  # else empty lines have come, which move no deadline
                connection.answered = False
                connection.idle_since = monotonic()
            connection.owes_since = connection.idle_since
            connection.deadline = connection.owes_since + connection.listener.idle_timeout
            _arm_io(hub, connection.deadline)
        else:
            move(connection, STAGE_LOOP, STAGE_WAIT)
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
        if connection.out == NULL and not hub_gone(connection.hub):
            shutdown(connection.fd, SHUT_WR)
    elif connection.stage == STAGE_ANSWERING:
        connection.closing = True
    hub_unlock(connection.hub)


cdef bint connection_close(Connection *connection, bint discard) noexcept nogil:
    """Let the I/O thread close the connection: when everything is sent, or now if *discard*.

    True: the loop has nothing to wait for. False: the connection comes into the queue when it is
    closed.
    """
    cdef Hub *hub = connection.hub
    cdef bint now = True
    hub_lock(hub)
    if discard:
        give_up(connection)
    elif _claimable(connection.stage):
        if connection.out == NULL or connection.error:
            give_up(connection)
        else:
            _claim(connection)
            now = False
    elif connection.stage == STAGE_ANSWERING or connection.stage == STAGE_DRAIN:
        now = False  # the answer that is under way is the last
    if connection.stage != STAGE_DEAD:
        connection.closing = True
    hub_unlock(hub)
    return now


cdef void give_up(Connection *connection) noexcept nogil:
    """From the loop's thread: the I/O thread is to close *connection* and to send nothing more."""
    cdef Stage stage = connection.stage
    if stage == STAGE_ANSWERING:
        connection.doomed = True  # a snapshot or a relay refers to it: closed with the answer
    elif _claimable(stage) or stage == STAGE_DRAIN:
        move(connection, stage, STAGE_CLOSING)
        if connection.transport == NULL:
            dequeue(connection)  # no protocol will hear of it, and the struct may be freed
        reap(connection)
        wake_io(connection.hub)


cdef void connection_prove(Connection *connection) noexcept nogil:
    """The client has shown the token, in a request that the loop has judged."""
    hub_lock(connection.hub)
    prove(connection)
    hub_unlock(connection.hub)


cdef void connection_detach(Connection *connection) noexcept nogil:
    """The transport lets go of the struct, which the I/O thread frees."""
    cdef Hub *hub = connection.hub
    hub_lock(hub)
    connection.transport = NULL
    dequeue(connection)
    reap(connection)
    wake_io(hub)
    hub_unlock(hub)
