"""Requests to torch's own server, for its C++ handlers: one slot for each at a time. On the I/O
thread, under the hub's lock."""

from libc.string cimport memcmp, memcpy, strlen

from workerserver.http._protocol cimport WS_KEY, WS_PROVEN, proof_hash
from workerserver.process.clock cimport monotonic
from workerserver.process.epoll cimport EPOLLIN


cdef enum:
    SLOW_RELAYS = 2  # slots that py-spy may have, since it may hang; the rest is for other requests

cdef double RETRY_SECONDS = 0.05  # until a request that found no free slot looks again


cdef bint _relay_needs_gil(const char *data, const Recognised *request) noexcept nogil:
    """Whether torch's handler would take the GIL for this request."""
    cdef int name = request.path + 9  # behind "/handler/"
    cdef int size = request.path_length - 9
    if size > 0 and data[name + size - 1] == c"/":
        size -= 1
    return relay_needs_gil(
        data + name, <size_t>max(size, 0), data + request.query, <size_t>request.query_length
    )


cdef void _relay(Connection *connection, const Recognised *request) noexcept nogil:
    """Ask torch's server, if there is one and a slot is free; else the request goes on waiting."""
    cdef Hub *hub = connection.hub
    cdef RelaySlot *slot
    cdef const char *data = connection.data + connection.start
    cdef size_t size = <size_t>request.path_length
    cdef int i, slow = 0
    cdef bint pyspy
    if hub.relay_path[0] == 0:
        return
    if request.query_length:
        size = <size_t>(request.query + request.query_length - request.path)
    for i in range(RELAYS):
        slow += hub.relays[i].busy and hub.relays[i].slow
    if not relay_listens(hub.relay_listener, hub.relay_inode):
        hub.relay_path[0] = 0  # torch's socket was closed: a connection would end torch's process
        return
    pyspy = _is_pyspy(data, request)
    for i in range(RELAYS):
        slot = &hub.relays[i]
        if slot.busy or (pyspy and slow >= SLOW_RELAYS):
            continue
        relay_init(&slot.relay)
        if relay_open(&slot.relay, hub.relay_path, data + request.path, size) < 0:
            relay_close(&slot.relay)
            return
        if not epoll_add(hub, slot, slot.relay.fd, EPOLLIN):
            relay_close(&slot.relay)
            return
        take_out(connection)
        connection.start += <size_t>request.length
        move(connection, STAGE_QUEUED, STAGE_ANSWERING)
        set_events(connection)
        slot.busy = True
        slot.slow = pyspy
        slot.connection = connection
        slot.deadline = hub.now + connection.listener.gil_timeout
        arm(hub, slot.deadline)
        return
    connection.judged = False  # a slot may become free before gil_timeout is over
    arm(hub, hub.now + RETRY_SECONDS)


cdef bint _is_pyspy(const char *data, const Recognised *request) noexcept nogil:
    return (
        request.path_length >= 19
        and memcmp(data + request.path, b"/handler/pyspy_dump", 19) == 0
    )


cdef void relayed(Hub *hub, RelaySlot *slot) noexcept nogil:
    """torch's server has sent something: when its reply is complete, pass it on."""
    cdef Connection *connection = slot.connection
    cdef Relay *relay = &slot.relay
    cdef unsigned char hashed[WS_KEY]
    cdef int state = relay_read(relay)
    if state == RELAY_MORE:
        return
    if state == RELAY_DONE and connection != NULL and connection.session.verdict == WS_PROVEN:
        hub_unlock(hub)  # a large reply takes many milliseconds
        proof_hash(relay.data + relay.body_start, relay.body_size, hashed)
        hub_lock(hub)
        hub.now = monotonic()
        if hub_gone(hub):
            return  # the slot stays busy: its descriptor may be somebody else's by now
        connection = slot.connection
    slot.busy = False
    slot.connection = NULL
    if connection != NULL:
        if state == RELAY_DONE:
            send_reply(
                connection, connection.route, relay.status, relay.data + relay.type_start,
                relay.type_size, NULL, 0, relay.data + relay.body_start, relay.body_size,
                connection.keep_alive,
                hashed if connection.session.verdict == WS_PROVEN else NULL,
            )
        else:
            _relay_failed(connection, 502, b"torch's own server did not answer as it should: ",
                          relay.reason)
    if relay.fd >= 0:
        epoll_remove(hub, relay.fd)
    relay_close(relay)
    if connection != NULL:
        _answered(connection)


cdef void relay_late(RelaySlot *slot) noexcept nogil:
    """Answer 504. The slot stays taken until torch answers, because torch's thread is taken too."""
    cdef Connection *connection = slot.connection
    slot.connection = NULL
    if connection != NULL:
        _relay_failed(connection, 504, b"torch's own server, which was asked instead of the "
                      b"loop, did not answer in time", b"")
        _answered(connection)


cdef void _relay_failed(
    Connection *connection, int status, const char *about, const char *reason
) noexcept nogil:
    cdef char text[256]
    cdef size_t size = min(strlen(about), <size_t>128)
    cdef size_t more = min(strlen(reason), <size_t>128)
    memcpy(text, about, size)
    memcpy(&text[size], reason, more)
    send_reply(
        connection, connection.route, status, b"text/plain", 10, NULL, 0, text, size + more,
        connection.keep_alive, NULL,
    )
