"""The end of a connection: the last reply, the close, and errors. On the I/O thread, under the
hub's lock."""

from libc.stdlib cimport free
from posix.unistd cimport close

from workerserver.http.bounds cimport DRAIN_SECONDS, STALL_SECONDS
from workerserver.native.system cimport SHUT_WR, shutdown


cdef void finish(Connection *connection) noexcept nogil:
    """No reply follows: end our side, then read until the client ends its side.

    If we closed at once and left bytes unread, the kernel would send a reset. A reset can destroy
    the reply on its way to the client (RFC 9112, 9.6).
    """
    cdef Hub *hub = connection.hub
    move(connection, connection.stage, STAGE_DRAIN)
    connection.owes_since = hub.now
    connection.shut = True
    take_out(connection)
    free(connection.data)
    connection.data = NULL
    connection.start = connection.size = connection.capacity = 0
    if connection.error:
        die(connection)
        return
    if connection.out == NULL:
        if not hub_gone(hub):
            shutdown(connection.fd, SHUT_WR)
        if connection.eof:
            die(connection)
            return
        connection.deadline = hub.now + DRAIN_SECONDS
    else:
        connection.deadline = hub.now + STALL_SECONDS
    arm(hub, connection.deadline)
    set_events(connection)


cdef void die(Connection *connection) noexcept nogil:
    """Close the descriptor, now. The struct stays until the transport has let go of it."""
    cdef Hub *hub = connection.hub
    cdef int i
    if connection.stage == STAGE_DEAD:
        return
    dequeue(connection)
    move(connection, connection.stage, STAGE_DEAD)
    connection.deadline = 0.0
    # close() alone is not enough: if a forked child has a copy of the descriptor, epoll goes on to
    # report events, which would point to a freed connection.
    connection.listener.connections -= 1
    place_give(connection)
    if hub_gone(hub):
        connection.polled = False
    else:
        unpoll(connection)
        close(connection.fd)
    discard_out(connection)
    free(connection.data)
    connection.data = NULL
    connection.start = connection.size = connection.capacity = 0
    set_events(connection)
    for i in range(RELAYS):
        if hub.relays[i].connection == connection:
            hub.relays[i].connection = NULL
    if connection.transport != NULL:
        enqueue(connection)
    reap(connection)


cdef void broken(Connection *connection, int error) noexcept nogil:
    """Reading has failed: close, or let the owner know."""
    unpoll(connection)
    connection.error = error
    if connection.stage == STAGE_LOOP:
        enqueue(connection)
    elif connection.stage != STAGE_ANSWERING:
        die(connection)
