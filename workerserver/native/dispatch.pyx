"""What becomes of the requests of a connection that the I/O thread owns.

Recognised ones are answered at once, the others handed to the loop. What the loop doesn't claim
in time is taken back under the hub's lock, so every request is answered exactly once: by a
snapshot, by torch's own server, or with 503, and then it is never run.

Runs on the I/O thread, under the hub's lock.
"""

from libc.errno cimport ENOMEM
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy, memmove, memset, strlen

from workerserver.process.clock cimport monotonic
from workerserver.process.epoll cimport EPOLLIN
from workerserver.stacks.snapshot cimport ws_buffer, ws_gil
from workerserver.stacks._stacks cimport buffer_free, dump_reply, gil_state


cdef enum:
    SLOW_RELAYS = 2  # of py-spy, which may hang; the others have a place left


cdef bint make_room(Connection *connection, size_t more) noexcept nogil:
    cdef size_t wanted = connection.size + more
    cdef size_t capacity
    cdef char *grown
    if connection.start == connection.size:
        connection.start = connection.size = 0
        wanted = more
    elif connection.start > READ_SIZE:
        memmove(
            connection.data, connection.data + connection.start,
            connection.size - connection.start,
        )
        connection.size -= connection.start
        connection.start = 0
        wanted = connection.size + more
    if wanted > connection.capacity:
        capacity = max(wanted, 2 * connection.capacity)
        grown = <char *>realloc(connection.data, capacity)
        if grown == NULL:
            return False
        connection.data = grown
        connection.capacity = capacity
    return True


cdef void broken(Connection *connection, int error) noexcept nogil:
    unpoll(connection)
    connection.error = error
    if connection.stage == STAGE_LOOP:
        enqueue(connection)
    elif connection.stage != STAGE_ANSWERING:
        die(connection)


# --- requests


cdef void proceed(Connection *connection, const char *data, size_t size) noexcept nogil:
    """STAGE_IO: answer what is recognised, hand over the rest. *data* NULL: the connection's own
    bytes; else they have just been read and nothing is before them."""
    cdef Hub *hub = connection.hub
    cdef const char *at
    cdef size_t used, left, joined = 0
    cdef int verdict
    cdef Recognised request
    cdef Parameters parameters
    cdef const Route *route
    cdef Listener *listener = connection.listener
    while (
        connection.stage == STAGE_IO
        and connection.out == NULL
        and not connection.error
        and not connection.doomed
    ):
        if data == NULL:
            at = connection.data + connection.start
            left = connection.size - connection.start
        else:
            at = data
            left = size
        if left == 0:
            break
        route = _recall(connection, at, left, &request)
        if route == NULL:
            verdict = recognise(at, left, &connection.state, &request)
            if verdict == VERDICT_INCOMPLETE and left <= <size_t>listener.table.max_head:
                break
            if verdict == VERDICT_RECOGNISED:
                route = judge(listener.table, at, &request, &parameters)
                _remember(listener, at, route, &request)
        used = <size_t>request.length
        if route == NULL or route.action & 255 != ACTION_STATIC:
            send_joined(connection, &joined)
        if route == NULL or not _answer(
            connection, route, &request, &parameters, False,
            &joined if joined or used < left else NULL,
        ):
            if _keep(connection, data, size):
                hand_over(connection)
            data = NULL
            continue
        if data == NULL:
            connection.start += used
        else:
            data += used
            size -= used
        if connection.stage == STAGE_IO:
            if not connection.error:
                connection.heading = False
                if not connection.keep_alive:
                    send_joined(connection, &joined)
                    finish(connection)
    send_joined(connection, &joined)
    if connection.stage == STAGE_DEAD or connection.stage == STAGE_DRAIN:
        return
    if not _keep(connection, data, size):
        return
    if connection.stage != STAGE_IO:
        set_events(connection)
        return
    if connection.error:
        die(connection)
        return
    if connection.start == connection.size and connection.capacity > READ_SIZE:
        free(connection.data)
        connection.data = NULL
        connection.start = connection.size = connection.capacity = 0
    if connection.out == NULL:
        if connection.eof:
            die(connection)
            return
        if connection.start == connection.size:
            connection.deadline = hub.now + connection.listener.idle_timeout
        elif not connection.heading:
            connection.heading = True
            connection.deadline = hub.now + connection.listener.head_timeout
        arm(hub, connection.deadline)
    set_events(connection)


cdef const Route *_recall(
    Connection *connection, const char *data, size_t size, Recognised *request
) noexcept nogil:
    """The route of a request that is, to the byte, the last one that was answered at once; else
    NULL. A client that polls sends nothing else."""
    cdef Memo *memo = &connection.listener.memo
    if size != memo.size or connection.state.at != 0 or memcmp(data, memo.data, size) != 0:
        return NULL
    request[0] = memo.request
    return memo.route


cdef void _remember(
    Listener *listener, const char *data, const Route *route, const Recognised *request
) noexcept nogil:
    cdef Memo *memo = &listener.memo
    if (
        route != NULL
        and route.action & 255 == ACTION_STATIC
        and <size_t>request.length <= sizeof(memo.data)
        and request.authorization == 0  # how long a comparison takes would tell the token
    ):
        memo.size = <size_t>request.length
        memcpy(memo.data, data, memo.size)
        memo.request = request[0]
        memo.route = route


cdef bint _keep(Connection *connection, const char *data, size_t size) noexcept nogil:
    """Keep bytes that are still in the read buffer; False, and the connection is broken, if there
    is no memory for them."""
    if data == NULL or size == 0:
        return True
    if not make_room(connection, size):
        broken(connection, ENOMEM)
        return False
    memcpy(connection.data + connection.size, data, size)
    connection.size += size
    return True


cdef bint _answer(
    Connection *connection, const Route *route, const Recognised *request,
    const Parameters *parameters, bint late, size_t *joined
) noexcept nogil:
    """Answer a recognised request, or begin to; False if it is the loop's, or torch's. *late*: the
    loop has had its time."""
    cdef Listener *listener = connection.listener
    cdef int action = route.action & 255
    connection.route = route.action >> 8
    connection.keep_alive = request.keep_alive
    if action == ACTION_STATIC or (late and action == ACTION_LATE):
        send_answer(
            connection, &listener.answers[route.action >> 8], connection.route,
            request.keep_alive, joined,
        )
    elif action == ACTION_HEALTH:
        send_health(
            connection, connection.route, parameters.max_step_age, request.keep_alive
        )
    elif action == ACTION_DUMP and (
        parameters.mode == DUMP_NOGIL or (late and parameters.mode != DUMP_GIL)
    ):
        _await_dump(connection, parameters)
    else:
        return False
    return True


cdef void hand_over(Connection *connection) noexcept nogil:
    """Hand the connection's bytes to the loop. If the loop is known to be stuck, the deadline has
    passed already."""
    cdef Hub *hub = connection.hub
    connection.boundary = connection.stage == STAGE_IO
    connection.stage = STAGE_QUEUED
    connection.judged = False
    connection.heading = False
    connection.deadline = 0.0
    connection.queued_at = hub.now
    enqueue(connection)
    set_events(connection)
    arm(hub, min(
        min(hub.asked_at, hub.now) + connection.listener.gil_deadline,
        hub.now + connection.listener.gil_timeout,
    ))


# --- what the loop did not claim in time


cdef void take_back(Connection *connection) noexcept nogil:
    """STAGE_QUEUED, and the loop doesn't come: answer without it where that can be done."""
    cdef Hub *hub = connection.hub
    cdef Listener *listener = connection.listener
    cdef Recognised request
    cdef Parameters parameters
    cdef const Route *route = _judge(connection, &request, &parameters)
    if _owed_nothing(connection):
        finish(connection)  # a reply may still be on its way
        return
    connection.judged = True
    arm(hub, connection.queued_at + listener.gil_timeout)
    if route == NULL:
        return
    if _answer(connection, route, &request, &parameters, True, NULL):
        dequeue(connection)
        connection.start += <size_t>request.length
        if connection.stage == STAGE_QUEUED:  # else a dump is awaited
            _answered(connection)
    elif route.action & 255 == ACTION_RELAY:
        if _relay_needs_gil(connection.data + connection.start, &request):
            refuse(connection)
        else:
            _relay(connection, &request)


cdef bint _owed_nothing(Connection *connection) noexcept nogil:
    """Nothing but the end of a client that has all its replies waits for the loop."""
    return connection.boundary and connection.start == connection.size


cdef const Route *_judge(
    Connection *connection, Recognised *request, Parameters *parameters
) noexcept nogil:
    """The route of the request that the queued bytes begin with; NULL if it isn't recognised."""
    cdef Recognition state
    cdef const char *data = connection.data + connection.start
    cdef size_t size = connection.size - connection.start
    if not connection.boundary or size == 0:
        return NULL
    memset(&state, 0, sizeof(state))
    request.length = 0
    if recognise(data, size, &state, request) != VERDICT_RECOGNISED:
        request.length = 0
        return NULL
    return judge(connection.listener.table, data, request, parameters)


cdef void _answered(Connection *connection) noexcept nogil:
    """A reply outside of proceed() is written: go on with what is behind its request."""
    if connection.error or connection.doomed:
        connection.stage = STAGE_IO
        die(connection)
    elif not connection.keep_alive or connection.closing:
        finish(connection)
    else:
        connection.stage = STAGE_IO
        connection.heading = False
        memset(&connection.state, 0, sizeof(connection.state))
        proceed(connection, NULL, 0)


cdef void refuse(Connection *connection) noexcept nogil:
    """The time is over: 503, and the request will never run."""
    cdef Recognised request
    cdef Parameters parameters
    cdef ws_gil gil
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
    route = _judge(connection, &request, &parameters)
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
    dequeue(connection)
    connection.start += <size_t>request.length
    # What is not understood has no known end, so nothing can follow it.
    connection.keep_alive = request.length > 0 and request.keep_alive
    connection.stage = STAGE_ANSWERING
    send_unavailable(
        connection, number, about,
        connection.hub.now - min(connection.hub.asked_at, connection.queued_at),
        connection.keep_alive,
    )
    _answered(connection)


cdef void _await_dump(Connection *connection, const Parameters *parameters) noexcept nogil:
    connection.stage = STAGE_ANSWERING
    connection.deadline = 0.0
    connection.format = parameters.format
    connection.dump_next = connection.hub.dumps
    connection.hub.dumps = connection


cdef void answer_dumps(Hub *hub) noexcept nogil:
    """One snapshot, without the lock, for everybody who waits for one."""
    cdef Connection *connection = hub.dumps
    cdef Connection *following
    cdef ws_buffer bodies[DUMP_FORMATS]
    cdef ws_buffer headers
    cdef ws_buffer *body
    cdef int wanted = 0, failed
    hub.dumps = NULL
    memset(bodies, 0, sizeof(bodies))
    memset(&headers, 0, sizeof(headers))
    following = connection
    while following != NULL:
        wanted |= 1 << following.format
        following = following.dump_next
    hub_unlock(hub)
    failed = dump_reply(wanted, bodies, &headers)
    hub_lock(hub)
    hub.now = monotonic()
    while connection != NULL:
        following = connection.dump_next
        connection.dump_next = NULL
        body = &bodies[connection.format]
        if failed:
            send_reply(
                connection, connection.route, 503, b"text/plain", 10, NULL, 0,
                b"no stacks could be read", 23, connection.keep_alive,
            )
        else:
            send_reply(
                connection, connection.route, 200,
                b"text/plain" if connection.format == DUMP_TEXT else b"application/json",
                10 if connection.format == DUMP_TEXT else 16,
                headers.data, headers.size, body.data, body.size, connection.keep_alive,
            )
        _answered(connection)
        connection = following
        give_way(hub)
    for wanted in range(DUMP_FORMATS):
        buffer_free(&bodies[wanted])
    buffer_free(&headers)


# --- torch's own server, for its C++ handlers


cdef bint _relay_needs_gil(const char *data, const Recognised *request) noexcept nogil:
    cdef int name = request.path + 9  # behind "/handler/"
    cdef int size = request.path_length - 9
    if size > 0 and data[name + size - 1] == c"/":
        size -= 1
    return relay_needs_gil(
        data + name, <size_t>max(size, 0), data + request.query, <size_t>request.query_length
    )


cdef void _relay(Connection *connection, const Recognised *request) noexcept nogil:
    """Ask torch's server, if there is one and it has a place; else the request goes on waiting."""
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
        hub.relay_path[0] = 0  # somebody has closed torch's socket: a connection would end torch
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
        dequeue(connection)
        connection.start += <size_t>request.length
        connection.stage = STAGE_ANSWERING
        slot.busy = True
        slot.slow = pyspy
        slot.connection = connection
        slot.deadline = hub.now + connection.listener.gil_timeout
        arm(hub, slot.deadline)
        return
    connection.judged = False  # a place may become free before the time is over
    arm(hub, hub.now + 0.05)


cdef bint _is_pyspy(const char *data, const Recognised *request) noexcept nogil:
    return (
        request.path_length >= 19
        and memcmp(data + request.path, b"/handler/pyspy_dump", 19) == 0
    )


cdef void relayed(Hub *hub, RelaySlot *slot) noexcept nogil:
    """Something came from torch's server."""
    cdef Connection *connection = slot.connection
    cdef Relay *relay = &slot.relay
    cdef int state = relay_read(relay)
    if state == RELAY_MORE:
        return
    slot.busy = False
    slot.connection = NULL
    if connection != NULL:
        if state == RELAY_DONE:
            send_reply(
                connection, connection.route, relay.status, relay.data + relay.type_start,
                relay.type_size, NULL, 0, relay.data + relay.body_start, relay.body_size,
                connection.keep_alive,
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
    """The client is told now. The place stays taken until torch answers: so does its thread."""
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
        connection.keep_alive,
    )
