"""What epoll is asked for. Under the hub's lock."""

from libc.stdint cimport uint32_t
from libc.string cimport memset

from workerserver.process.epoll cimport (
    EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT, epoll_ctl, epoll_event,
)


cdef enum:
    UNCLAIMED = 64 * 1024  # bytes that a connection keeps for the loop; then reading stops
    ALL_UNCLAIMED = 64 * 1024 * 1024  # bytes that all keep; then each keeps only ...
    FEW = 4 * 1024


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
    """Take the connection out of epoll."""
    if connection.polled:
        connection.polled = False
        epoll_remove(connection.hub, connection.fd)


cdef void set_events(Connection *connection) noexcept nogil:
    """Tell epoll what the connection waits for, and the hub how many bytes it keeps.

    Some transitions leave epoll as it is, because a system call on each would cost more than a
    needless event: after claim and close, EPOLLIN may stay although nobody wants to read. What
    must hold at all times is in invariants.pyx.
    """
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
            connection.out == NULL  # half a head has a limit of its own
            if connection.stage == STAGE_IO
            else unclaimed < <size_t>(UNCLAIMED if hub.unclaimed < ALL_UNCLAIMED else FEW)
        )
    ):
        wanted |= EPOLLIN
    if connection.out != NULL:
        wanted |= EPOLLOUT
    if not connection.polled:
        # The client hung up while nobody wanted to read. The bytes that it left are wanted now.
        if connection.hung_up and wanted & EPOLLIN:
            connection.events = wanted
            connection.polled = epoll_add(hub, connection, connection.fd, wanted)
    elif wanted != connection.events:
        connection.events = wanted
        epoll_change(hub, connection, connection.fd, wanted)
