"""Replies that the I/O thread writes by itself, and the ends of connections.

Everything runs on the I/O thread, under the hub's lock, on connections that the loop doesn't own.
"""

from libc.errno cimport EPIPE
from libc.stdint cimport int64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, strlen
from posix.unistd cimport close

from workerserver.http.bounds cimport DRAIN_SECONDS, STALL_SECONDS
from workerserver.native.system cimport SHUT_WR, shutdown
from workerserver.process.clock cimport monotonic_ns
from workerserver.process._pulse cimport HEALTH_CAPACITY, health_body


cdef enum:
    HEAD_ROOM = 1024  # bytes for a head
    FLUSH = 256 * 1024  # bytes sent at a time, so that nobody waits long behind a large body


cdef struct Line:  # a reply's head being written; bounded, so what would be too long is cut
    char text[HEAD_ROOM]
    size_t size


cdef void _put(Line *line, const char *text, size_t size) noexcept nogil:
    if size > HEAD_ROOM - line.size:
        size = HEAD_ROOM - line.size
    if size:
        memcpy(&line.text[line.size], text, size)
        line.size += size


cdef void _put_text(Line *line, const char *text) noexcept nogil:
    _put(line, text, strlen(text))


cdef void _put_number(Line *line, size_t number) noexcept nogil:
    cdef char digits[20]
    cdef int i = 20
    while True:
        i -= 1
        digits[i] = <char>(c"0" + number % 10)
        number //= 10
        if number == 0:
            break
    _put(line, &digits[i], 20 - i)


cdef const char *_reason(int status) noexcept nogil:
    if status == 200:
        return b"OK"
    if status == 400:
        return b"Bad Request"
    if status == 404:
        return b"Not Found"
    if status == 500:
        return b"Internal Server Error"
    if status == 501:
        return b"Not Implemented"
    if status == 503:
        return b"Service Unavailable"
    return b""  # a reason phrase may be empty (RFC 9112, 4)


cdef void count(Listener *listener, int route, int status) noexcept nogil:
    """One more reply; *route* -1 where no handler was found."""
    cdef int i
    for i in range(listener.count_used):
        if listener.counts[i].route == route and listener.counts[i].status == status:
            listener.counts[i].number += 1
            return
    if listener.count_used < COUNTS:
        i = listener.count_used
        listener.counts[i].route = route
        listener.counts[i].status = status
        listener.counts[i].number = 1
        listener.count_used += 1


# --- out


cdef void emit(Connection *connection, const char *data, size_t size) noexcept nogil:
    """Send; what the socket doesn't take now is kept and sent when it does."""
    cdef ssize_t n = 0
    cdef Chunk *chunk
    if connection.error:
        return
    if connection.out == NULL:
        n = send_some(connection.fd, data, size)
        if n == <ssize_t>size:
            return
        if n < 0:
            connection.error = <int>-n
            return
    chunk = chunk_new(data + n, size - <size_t>n, NULL)
    if chunk == NULL:
        connection.error = EPIPE
        return
    chunk_append(connection, chunk)
    connection.deadline = connection.hub.now + STALL_SECONDS
    arm(connection.hub, connection.deadline)


cdef void send_answer(
    Connection *connection, const Answer *answer, int route, bint keep_alive, size_t *joined
) noexcept nogil:
    """A precomputed reply. With *joined*, behind as many bytes in hub.joined, which
    are not sent yet: a crowd of pipelined requests costs one send()."""
    cdef char *buffer = connection.hub.joined
    cdef const char *data = answer.data if keep_alive else answer.closing
    cdef size_t size = answer.size if keep_alive else answer.closing_size
    count(connection.listener, route, answer.status)
    if joined == NULL:
        emit(connection, data, size)
        return
    if joined[0] + size > JOINED:
        send_joined(connection, joined)
    if size > JOINED:
        emit(connection, data, size)
        return
    memcpy(&buffer[joined[0]], data, size)
    joined[0] += size


cdef void send_joined(Connection *connection, size_t *joined) noexcept nogil:
    if joined[0]:
        emit(connection, connection.hub.joined, joined[0])
        joined[0] = 0


cdef void send_final(
    Connection *connection, const Answer *answer, int status
) noexcept nogil:
    """A precomputed reply to no request in particular; the connection's last."""
    count(connection.listener, -1, status)
    emit(connection, answer.closing, answer.closing_size)
    finish(connection)


cdef void send_health(
    Connection *connection, int route, double max_step_age, bint keep_alive
) noexcept nogil:
    cdef char body[HEALTH_CAPACITY]
    cdef int status = 200
    cdef Py_ssize_t size = health_body(
        body, HEALTH_CAPACITY, monotonic_ns(), connection.listener.started, max_step_age, &status
    )
    send_reply(
        connection, route, status, b"application/json", 16, NULL, 0, body,
        <size_t>max(size, 0), keep_alive,
    )


cdef void send_reply(
    Connection *connection, int route, int status, const char *content_type, size_t type_size,
    const char *extra, size_t extra_size, const char *body, size_t size, bint keep_alive
) noexcept nogil:
    """Head and body; *extra* is whole header lines."""
    cdef Line head
    cdef char joined[HEAD_ROOM + JOINED]
    count(connection.listener, route, status)
    head.size = 0
    _put_text(&head, b"HTTP/1.1 ")
    _put_number(&head, <size_t>status)
    _put_text(&head, b" ")
    _put_text(&head, _reason(status))
    _put_text(&head, b"\r\nContent-Type: ")
    _put(&head, content_type, min(type_size, <size_t>256))
    _put_text(&head, b"\r\nContent-Length: ")
    _put_number(&head, size)
    if not keep_alive:
        _put_text(&head, b"\r\nConnection: close")
    _put_text(&head, b"\r\n")
    _put(&head, extra, min(extra_size, <size_t>512))
    _put_text(&head, b"\r\n")
    if size <= JOINED:
        memcpy(joined, head.text, head.size)
        if size:
            memcpy(&joined[head.size], body, size)
        emit(connection, joined, head.size + size)
    else:
        emit(connection, head.text, head.size)
        emit(connection, body, size)


cdef void send_unavailable(
    Connection *connection, int route, const char *about, double seconds, bint keep_alive
) noexcept nogil:
    """503: *about* what could not be had, for *seconds*; the request is never run."""
    cdef Line body
    cdef Line retry
    cdef int64_t tenths = <int64_t>(seconds * 10.0)
    body.size = 0
    _put_text(&body, about)
    _put_text(&body, b" for ")
    _put_number(&body, <size_t>(tenths // 10))
    _put_text(&body, b".")
    _put_number(&body, <size_t>(tenths % 10))
    _put_text(&body, b" seconds; this request was not run")
    retry.size = 0
    _put_text(&retry, b"Retry-After: ")
    _put_number(&retry, <size_t>connection.listener.gil_timeout + 1)
    _put_text(&retry, b"\r\n")
    send_reply(
        connection, route, 503, b"text/plain", 10, retry.text, retry.size, body.text, body.size,
        keep_alive,
    )


cdef void flush(Connection *connection) noexcept nogil:
    """The socket takes bytes again: send some more, without the lock while they are copied."""
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
        if connection.shut:
            shutdown(connection.fd, SHUT_WR)
        if connection.stage == STAGE_DRAIN:
            if connection.eof:
                die(connection)
            else:
                connection.deadline = hub.now + DRAIN_SECONDS
                arm(hub, connection.deadline)
        elif connection.closing:
            die(connection)


# --- the end


cdef void finish(Connection *connection) noexcept nogil:
    """No more replies: end our side, read on until the client has ended its own.

    Closing at once with bytes unread would make the kernel send a reset, and a reset can destroy
    the reply on its way to the client (RFC 9112, 9.6).
    """
    cdef Hub *hub = connection.hub
    connection.stage = STAGE_DRAIN
    connection.shut = True
    dequeue(connection)
    free(connection.data)
    connection.data = NULL
    connection.start = connection.size = connection.capacity = 0
    if connection.error:
        die(connection)
        return
    if connection.out == NULL:
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
    """Close the descriptor, now. The struct lives on until its transport has let go of it."""
    cdef Hub *hub = connection.hub
    cdef int i
    if connection.stage == STAGE_DEAD:
        return
    dequeue(connection)
    connection.stage = STAGE_DEAD
    connection.deadline = 0.0
    # close() alone would leave epoll a descriptor that a forked child still has a copy of, and
    # events with it that point to a connection which is long freed.
    unpoll(connection)
    connection.listener.connections -= 1
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
