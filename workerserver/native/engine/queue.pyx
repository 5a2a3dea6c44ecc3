"""The lists through which the two threads hand connections to each other. Under the hub's lock.

The *queue* holds, in the order of arrival, the connections that have something for the loop. The
*reap* list holds the connections that the I/O thread is to close or to free.
"""


cdef void stamp(Connection *connection) noexcept nogil:
    """Give *connection* the next number: something has come for the loop on it."""
    connection.hub.number += 1
    connection.number = connection.hub.number


cdef void enqueue(Connection *connection) noexcept nogil:
    """Put *connection* at the end of the queue, unless it is in it; ask the loop for a turn."""
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


cdef void take_out(Connection *connection) noexcept nogil:
    """The I/O thread answers what waited in the queue. The connection leaves the queue, unless the
    protocol is still to be told that it may write again."""
    if not connection.resume:
        dequeue(connection)


cdef void reap(Connection *connection) noexcept nogil:
    """Put *connection* on the list of those that the I/O thread closes, or frees if it is dead."""
    if not connection.reaping:
        connection.reaping = True
        connection.reap_next = connection.hub.reap
        connection.hub.reap = connection
