"""What the I/O thread does with the requests of a connection that it owns. Under the hub's lock.

Recognised requests are answered at once. The others are handed to the loop; late.pyx has what
happens to a request that the loop does not claim in time.
"""

from libc.errno cimport ENOMEM
from libc.stdlib cimport free, realloc
from libc.string cimport memcmp, memcpy, memmove

from workerserver.http._protocol cimport WS_DOUBTED, WS_GREETED
from workerserver.http.accept cimport openmetrics_wanted


cdef bint make_room(Connection *connection, size_t more) noexcept nogil:
    """Make room for *more* bytes behind those that wait; False without memory."""
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


cdef void proceed(Connection *connection, const char *data, size_t size) noexcept nogil:
    """STAGE_IO: answer what is recognised, hand over the rest. The bytes are the connection's own
    if *data* is NULL; else they have just been read, and the connection has none."""
    cdef Hub *hub = connection.hub
    cdef const char *at
    cdef size_t used, left, joined = 0
    cdef int verdict
    cdef Recognised request
    cdef Parameters parameters
    cdef const Route *route
    cdef const Rule *refusing
    cdef Listener *listener = connection.listener
    while (
        connection.stage == STAGE_IO
        and connection.out == NULL
        and not connection.error
    ):
        if data == NULL:
            at = connection.data + connection.start
            left = connection.size - connection.start
        else:
            at = data
            left = size
        if left == 0:
            break
        refusing = NULL
        route = _recall(connection, at, left, &request)
        if route == NULL:
            verdict = recognise(at, left, &connection.state, &request)
            if verdict == VERDICT_INCOMPLETE and left <= <size_t>listener.table.max_head:
                break
            if verdict == VERDICT_RECOGNISED:
                route = judge(
                    listener.table, at, &request, &connection.session, &parameters, &refusing
                )
                if parameters.permitted:
                    prove(connection)
                _remember(listener, at, route, &request)
        used = <size_t>request.length
        if route == NULL or route.action & 255 != ACTION_STATIC:
            send_joined(connection, &joined)
        if route == NULL or not _answer(
            connection, at, route, refusing, &request, &parameters, False,
            &joined if joined or used < left else NULL,
        ):
            if _keep(connection, data, size):
                hand_over(connection)
            data = NULL
            continue
        connection.answered = True
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
            connection.owes_since = connection.idle_since = hub.now
            connection.deadline = hub.now + connection.listener.idle_timeout
        elif not connection.heading:
            connection.heading = True
            connection.owes_since = hub.now
            connection.deadline = hub.now + connection.listener.head_timeout
        arm(hub, connection.deadline)
    set_events(connection)


cdef const Route *_recall(
    Connection *connection, const char *data, size_t size, Recognised *request
) noexcept nogil:
    """The route of a request with the same bytes as the last one that was answered at once; else
    NULL. A client that polls sends the same bytes each time."""
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
        and request.authorization == 0  # the time that a comparison takes would tell the token
    ):
        memo.size = <size_t>request.length
        memcpy(memo.data, data, memo.size)
        memo.request = request[0]
        memo.route = route


cdef bint _keep(Connection *connection, const char *data, size_t size) noexcept nogil:
    """Copy bytes from the read buffer to the connection. False without memory: then the connection
    is broken."""
    if data == NULL or size == 0:
        return True
    if not make_room(connection, size):
        broken(connection, ENOMEM)
        return False
    memcpy(connection.data + connection.size, data, size)
    connection.size += size
    return True


cdef bint _answer(
    Connection *connection, const char *data, const Route *route, const Rule *refusing,
    const Recognised *request, const Parameters *parameters, bint late, size_t *joined
) noexcept nogil:
    """Answer a recognised request, which *data* begins with, or begin to; False if the loop or
    torch's server must. *refusing*: the rule that refuses the request. *late*: gil_deadline is
    over."""
    cdef Listener *listener = connection.listener
    cdef int action = route.action & 255
    connection.began = connection.queued_at if late else connection.hub.now
    connection.route = route.action >> 8
    connection.keep_alive = request.keep_alive
    if refusing != NULL and (
        connection.session.verdict == WS_GREETED or connection.session.verdict == WS_DOUBTED
    ):
        send_joined(connection, joined)
        send_challenge(
            connection, &listener.answers[route.action >> 8], connection.route, refusing,
            request.keep_alive,
        )
    elif action == ACTION_STATIC or (late and action == ACTION_LATE):
        send_answer(
            connection, &listener.answers[route.action >> 8], connection.route,
            request.keep_alive, joined,
        )
    elif action == ACTION_HEALTH:
        send_health(
            connection, connection.route, parameters.max_step_age, request.keep_alive
        )
    elif action == ACTION_STEPS:
        send_steps(connection, connection.route, request.keep_alive)
    elif action == ACTION_METRICS and request.accept >= 0:
        _await_metrics(connection, request.accept > 0 and openmetrics_wanted(
            data + request.accept, request.accept_length
        ))
    elif action == ACTION_DUMP and (
        parameters.mode == DUMP_NOGIL or (late and parameters.mode != DUMP_GIL)
    ):
        _await_dump(connection, parameters)
    else:
        return False
    return True


cdef void hand_over(Connection *connection) noexcept nogil:
    """Hand the connection's bytes to the loop. If the loop is known to be stuck, gil_deadline has
    passed already."""
    cdef Hub *hub = connection.hub
    connection.boundary = connection.stage == STAGE_IO
    if connection.boundary:
        connection.owes_since = hub.now  # should a part of the message be missing
    move(connection, connection.stage, STAGE_QUEUED)
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
