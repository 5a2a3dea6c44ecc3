"""Bytes on their way out: the chunks of a connection that its socket did not take at once."""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from workerserver.http.bounds cimport DRAIN_SECONDS, STALL_SECONDS
from workerserver.native.system cimport MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_WR, send, shutdown


cdef enum:
    FLUSH = 256 * 1024  # bytes sent at a time, so that others do not wait long for a large body


cdef ssize_t send_some(int fd, const char *data, size_t size) noexcept nogil:
    """Send what the socket takes now; the number of bytes, or a negative errno that ends it."""
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
    """A chunk of *data*, which belongs to *owner*; a copy if that is NULL. NULL without memory."""
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
    connection.listener.unsent += chunk.size
    set_events(connection)


cdef bint may_send(const Listener *listener, size_t size) noexcept nogil:
    """Whether a reply of *size* bytes may be written: the unsent ones of all clients have a limit.
    Where all is sent, a reply may have any size."""
    return listener.unsent == 0 or listener.unsent + size <= listener.max_unsent


cdef void discard_out(Connection *connection) noexcept nogil:
    """Give up the unsent bytes. References to bytes objects go to the loop, which drops them."""
    cdef Hub *hub = connection.hub
    cdef Chunk *chunk = connection.out
    cdef Chunk *following
    connection.out = NULL
    connection.out_last = NULL
    connection.listener.unsent -= connection.out_size
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


cdef void flush(Connection *connection) noexcept nogil:
    """The socket takes bytes again: send some more. The lock is free while the kernel copies."""
    cdef Hub *hub = connection.hub
    cdef Chunk *chunk = connection.out
    cdef size_t size
    cdef ssize_t n
    if chunk == NULL:
        set_events(connection)
        return
    size = min(chunk.size - chunk.sent, <size_t>FLUSH)
    hub_unlock(hub)
    n = send_some(connection.fd, chunk.data + chunk.sent, size)
    hub_lock(hub)
    if n < 0:
        connection.error = <int>-n
        if connection.stage == STAGE_LOOP:
            enqueue(connection)
            discard_out(connection)
            set_events(connection)
        elif connection.stage != STAGE_ANSWERING:
            die(connection)
    if n <= 0:
        return
    chunk.sent += <size_t>n
    connection.out_size -= <size_t>n
    connection.listener.unsent -= <size_t>n
    if connection.stage != STAGE_LOOP:
        connection.deadline = hub.now + STALL_SECONDS
        arm(hub, connection.deadline)
    if chunk.sent == chunk.size:
        connection.out = chunk.next
        if connection.out == NULL:
            connection.out_last = NULL
        if chunk.owner != NULL:
            chunk.next = hub.done
            hub.done = chunk
            ask_turn(hub)
        else:
            free(chunk)
    if connection.full and connection.out_size <= connection.low:
        connection.full = False
        connection.resume = True
        enqueue(connection)
    if connection.out == NULL:
        set_events(connection)
        if connection.shut and not hub_gone(hub):
            shutdown(connection.fd, SHUT_WR)
        if connection.stage == STAGE_DRAIN:
            if connection.eof:
                die(connection)
            else:
                connection.deadline = hub.now + DRAIN_SECONDS
                arm(hub, connection.deadline)
        elif connection.closing:
            die(connection)
