"""Snapshots without the GIL, one for all requests that came with one wake-up. On the I/O thread,
under the hub's lock."""

from libc.string cimport memset

from workerserver.http._protocol cimport WS_KEY, WS_PROVEN, proof_hash
from workerserver.process.clock cimport monotonic
from workerserver.stacks.snapshot cimport ws_buffer
from workerserver.stacks._stacks cimport buffer_free, dump_reply


cdef void _await_dump(Connection *connection, const Parameters *parameters) noexcept nogil:
    move(connection, connection.stage, STAGE_ANSWERING)
    connection.deadline = 0.0
    connection.format = parameters.format
    connection.dump_next = connection.hub.dumps
    connection.hub.dumps = connection


cdef bint _may_dump(Hub *hub) noexcept nogil:
    """Whether a snapshot may be taken now, and then it counts. If a second has had all of its
    snapshots, those who want one wait for the next: it is not older than their requests."""
    cdef double rate = hub.dump_rate
    if rate > 0.0:
        hub.dumps_left = min(rate, hub.dumps_left + rate * (hub.now - hub.dumps_at))
        hub.dumps_at = hub.now
        if hub.dumps_left < 1.0:
            hub.dump_wait_until = hub.now + (1.0 - hub.dumps_left) / rate
            arm(hub, hub.dump_wait_until)
            return False
        hub.dumps_left -= 1.0
    hub.dump_wait_until = 0.0
    return True


cdef inline bint _dump_is_text(int format) noexcept nogil:
    return format == DUMP_TEXT or format == DUMP_NATIVE_TEXT


cdef void answer_dumps(Hub *hub) noexcept nogil:
    """Take one snapshot, without the lock, and answer every connection in ``hub.dumps`` with it."""
    cdef Connection *connection
    cdef ws_buffer bodies[DUMP_FORMATS]
    cdef ws_buffer headers
    cdef ws_buffer *body
    cdef unsigned char hashes[DUMP_FORMATS][WS_KEY]
    cdef int wanted = 0, proven = 0, failed, format
    if not _may_dump(hub):
        return
    hub.dumping = hub.dumps
    hub.dumps = NULL
    memset(bodies, 0, sizeof(bodies))
    memset(&headers, 0, sizeof(headers))
    connection = hub.dumping
    while connection != NULL:
        wanted |= 1 << connection.format
        if connection.session.verdict == WS_PROVEN:
            proven |= 1 << connection.format
        connection = connection.dump_next
    hub_unlock(hub)
    failed = dump_reply(wanted, bodies, &headers)
    for format in range(DUMP_FORMATS):
        if proven & 1 << format and not failed:
            proof_hash(bodies[format].data, bodies[format].size, hashes[format])
    hub_lock(hub)
    hub.now = monotonic()
    while hub_gone(hub) and hub.dumping != NULL:
        hub.dumping = hub.dumping.dump_next  # a snapshot takes milliseconds
    while hub.dumping != NULL:
        connection = hub.dumping
        hub.dumping = connection.dump_next
        connection.dump_next = NULL
        body = &bodies[connection.format]
        if failed:
            send_reply(
                connection, connection.route, 503, b"text/plain", 10, NULL, 0,
                b"no stacks could be read", 23, connection.keep_alive, NULL,
            )
        else:
            send_reply(
                connection, connection.route, 200,
                b"text/plain" if _dump_is_text(connection.format) else b"application/json",
                10 if _dump_is_text(connection.format) else 16,
                headers.data, headers.size, body.data, body.size, connection.keep_alive,
                hashes[connection.format] if proven & 1 << connection.format else NULL,
            )
        _answered(connection)
        give_way(hub)
    for wanted in range(DUMP_FORMATS):
        buffer_free(&bodies[wanted])
    buffer_free(&headers)
