"""Requests that the loop did not claim in time. On the I/O thread, under the hub's lock.

The I/O thread takes such a request back while it is still in the queue. So each request has exactly
one answer: a snapshot, the reply of torch's own server, or 503. A request with a 503 never runs.
"""

from libc.string cimport memset

from workerserver.http._protocol cimport WS_NO_PROOF
from workerserver.stacks.snapshot cimport ws_gil
from workerserver.stacks._stacks cimport gil_state


cdef void take_back(Connection *connection) noexcept nogil:
    """STAGE_QUEUED, and the loop does not come: answer without the loop, if that is possible."""
    cdef Hub *hub = connection.hub
    cdef Listener *listener = connection.listener
    cdef Recognised request
    cdef Parameters parameters
    cdef const Rule *refusing
    cdef const Route *route = _judge(connection, &request, &parameters, &refusing)
    if _owed_nothing(connection):
        finish(connection)  # a reply may still be on its way out
        return
    connection.judged = True
    arm(hub, connection.queued_at + listener.gil_timeout)
    if route == NULL:
        return
    if _answer(
        connection, connection.data + connection.start, route, refusing, &request, &parameters,
        True, NULL,
    ):
        take_out(connection)
        connection.start += <size_t>request.length
        if connection.stage == STAGE_QUEUED:
            _answered(connection)
        else:  # a snapshot is to come
            set_events(connection)
    elif route.action & 255 == ACTION_RELAY:
        if _relay_needs_gil(connection.data + connection.start, &request):
            refuse(connection)
        else:
            _relay(connection, &request)


cdef bint _owed_nothing(Connection *connection) noexcept nogil:
    """Whether only the client's end waits for the loop: the client has all its replies."""
    return connection.boundary and connection.start == connection.size


cdef const Route *_judge(
    Connection *connection, Recognised *request, Parameters *parameters, const Rule **refusing
) noexcept nogil:
    """The route of the first request in the queued bytes; NULL if it is not recognised."""
    cdef Recognition state
    cdef const char *data = connection.data + connection.start
    cdef size_t size = connection.size - connection.start
    refusing[0] = NULL
    connection.session.verdict = WS_NO_PROOF
    if not connection.boundary or size == 0:
        return NULL
    memset(&state, 0, sizeof(state))
    request.length = 0
    if recognise(data, size, &state, request) != VERDICT_RECOGNISED:
        request.length = 0
        return NULL
    return judge(
        connection.listener.table, data, request, &connection.session, parameters, refusing
    )


cdef void _answered(Connection *connection) noexcept nogil:
    """A reply is written, and not by proceed(): go on with the bytes behind its request."""
    if connection.error or connection.doomed:
        die(connection)
    elif not connection.keep_alive or connection.closing:
        finish(connection)
    else:
        move(connection, connection.stage, STAGE_IO)
        connection.heading = False
        memset(&connection.state, 0, sizeof(connection.state))
        proceed(connection, NULL, 0)


cdef void refuse(Connection *connection) noexcept nogil:
    """gil_timeout is over: answer 503. The request never runs."""
    cdef Recognised request
    cdef Parameters parameters
    cdef ws_gil gil
    cdef const Rule *refusing
    cdef const Route *route
    cdef int number = -1
    cdef const char *about = b"the server's loop has not come"
    if connection.hung_up:
        die(connection)
        return
    if _owed_nothing(connection):
        finish(connection)
        return
    request.length = 0
    route = _judge(connection, &request, &parameters, &refusing)
    if route != NULL:
        number = route.action >> 8
    gil_state(&gil)
    if gil.locked:
        about = b"the GIL is held by another thread, and the server's loop has not come"
        if route != NULL and route.action & 255 == ACTION_RELAY and _relay_needs_gil(
            connection.data + connection.start, &request
        ):
            about = (
                b"naming the stack traces needs the GIL (ask with includestacktraces=false); "
                b"the server's loop has not come"
            )
    take_out(connection)
    connection.start += <size_t>request.length
    # The end of a request that is not recognised is unknown, so no request can follow it.
    connection.keep_alive = request.length > 0 and request.keep_alive
    move(connection, STAGE_QUEUED, STAGE_ANSWERING)
    connection.began = connection.queued_at
    send_unavailable(
        connection, number, about,
        connection.hub.now - min(connection.hub.asked_at, connection.queued_at),
        connection.keep_alive,
    )
    _answered(connection)
