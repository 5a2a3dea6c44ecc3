"""Replies that the I/O thread writes by itself.

On the I/O thread, under the hub's lock, on connections that the loop does not own.
"""

from libc.errno cimport ENOMEM, EPIPE
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, strlen

from workerserver.http._protocol cimport (
    WS_CHALLENGE, WS_PROVEN, WS_PROVEN_LINE, proof_answer, proof_answer_hashed, proof_challenge,
)
from workerserver.http.bounds cimport STALL_SECONDS
from workerserver.http.date cimport DATE_AT, DATE_FIELD, DATE_SIZE, renew_date
from workerserver.process.clock cimport monotonic, monotonic_ns
from workerserver.process._pulse cimport (
    HEALTH_CAPACITY, STEPS_CAPACITY, health_body, meter_replied, meter_took, steps_body,
)


cdef enum:
    HEAD_ROOM = 1536  # bytes for a head
    SMALL = 1024  # bytes of a body that is sent whatever is unsent

cdef const char *UNSENT = (
    b"replies that their clients don't read fill the memory set aside for them"
)


cdef struct Line:  # text being written; what does not fit is cut
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
    if status == 401:
        return b"Unauthorized"
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
    """Count a reply; *route* is -1 if no handler was found."""
    meter_replied(listener.meter, 0 if route < 0 else listener.numbers[route], status)


cdef void took(Connection *connection, int route, int times) noexcept nogil:
    """*times* replies of *route* are out: since when their requests were there, is known."""
    meter_took(
        connection.listener.meter, connection.listener.numbers[route],
        <int64_t>((monotonic() - connection.began) * 1e9), times,
    )


cdef void emit(Connection *connection, const char *data, size_t size) noexcept nogil:
    """Send what the socket takes now; keep a copy of the rest, which flush() sends."""
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


cdef void _date_anew(Hub *hub, Answer *answer) noexcept nogil:
    renew_date(&hub.date)
    if answer.second == hub.date.second or answer.date == NULL:
        return
    answer.second = hub.date.second
    memcpy(answer.date, &hub.date.field[DATE_AT], DATE_SIZE)
    memcpy(answer.closing_date, &hub.date.field[DATE_AT], DATE_SIZE)


cdef void send_answer(
    Connection *connection, Answer *answer, int route, bint keep_alive, size_t *joined
) noexcept nogil:
    """Send a precomputed reply. With *joined*, the reply is only appended to the *joined* bytes in
    hub.joined: many pipelined requests then cost one send()."""
    cdef Hub *hub = connection.hub
    cdef char *buffer = hub.joined
    cdef const char *data = answer.data if keep_alive else answer.closing
    cdef size_t size = answer.size if keep_alive else answer.closing_size
    _date_anew(connection.hub, answer)
    count(connection.listener, route, answer.status)
    if connection.session.verdict == WS_PROVEN:
        _send_proven(connection, answer, keep_alive, joined)
        took(connection, route, 1)
        return
    if joined == NULL:
        emit(connection, data, size)
        took(connection, route, 1)
        return
    if joined[0] + size > JOINED or route != hub.answered_route:
        send_joined(connection, joined)
    if size > JOINED:
        emit(connection, data, size)
        took(connection, route, 1)
        return
    hub.answered_route = route
    hub.answered += 1
    memcpy(&buffer[joined[0]], data, size)
    joined[0] += size


cdef void _send_proven(
    Connection *connection, const Answer *answer, bint keep_alive, size_t *joined
) noexcept nogil:
    """A precomputed reply, with the line that proves it."""
    cdef char *buffer = connection.hub.joined
    cdef char line[WS_PROVEN_LINE]
    cdef const char *data = answer.data if keep_alive else answer.closing
    cdef size_t head = answer.head if keep_alive else answer.closing_head
    cdef size_t rest = (answer.size if keep_alive else answer.closing_size) - head
    cdef size_t more = proof_answer(
        &connection.session, answer.status, data + head + 2, rest - 2, line
    )
    cdef size_t own = 0
    cdef size_t *used = &own if joined == NULL else joined
    if used[0] + head + more + rest > JOINED:
        send_joined(connection, used)
    if head + more + rest > JOINED:
        emit(connection, data, head)
        emit(connection, line, more)
        emit(connection, data + head, rest)
        return
    memcpy(&buffer[used[0]], data, head)
    memcpy(&buffer[used[0] + head], line, more)
    memcpy(&buffer[used[0] + head + more], data + head, rest)
    used[0] += head + more + rest
    if joined == NULL:
        send_joined(connection, used)


cdef void send_challenge(
    Connection *connection, const Answer *answer, int route, const Rule *refusing,
    bint keep_alive
) noexcept nogil:
    """*answer* is what *refusing* answers without a token; the client has asked to prove one."""
    cdef char lines[WS_CHALLENGE]
    cdef size_t size = proof_challenge(
        &connection.session, <const unsigned char **>refusing.keys, lines
    )
    send_reply(
        connection, route, answer.status, b"text/plain", 10, lines, size,
        answer.data + answer.head + 2, answer.size - answer.head - 2, keep_alive, NULL,
    )


cdef void send_joined(Connection *connection, size_t *joined) noexcept nogil:
    cdef Hub *hub = connection.hub
    if joined != NULL and joined[0]:
        emit(connection, hub.joined, joined[0])
        joined[0] = 0
        if hub.answered:
            took(connection, hub.answered_route, hub.answered)
        hub.answered = 0


cdef void send_final(
    Connection *connection, Answer *answer, int status
) noexcept nogil:
    """Send a precomputed reply that belongs to no request, the last of the connection."""
    _date_anew(connection.hub, answer)
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
        <size_t>max(size, 0), keep_alive, NULL,
    )


cdef void send_steps(Connection *connection, int route, bint keep_alive) noexcept nogil:
    cdef char *body = <char *>malloc(STEPS_CAPACITY)
    if body == NULL:
        connection.error = ENOMEM
        return
    cdef Py_ssize_t size = steps_body(body, STEPS_CAPACITY)
    send_reply(
        connection, route, 200, b"application/json", 16, NULL, 0, body, <size_t>max(size, 0),
        keep_alive, NULL,
    )
    free(body)


cdef void send_reply(
    Connection *connection, int route, int status, const char *content_type, size_t type_size,
    const char *extra, size_t extra_size, const char *body, size_t size, bint keep_alive,
    const unsigned char *hashed
) noexcept nogil:
    """Send head and body; *extra* is whole header lines. *hashed*: the body's hash, if a large body
    is to be proven; NULL: it is reckoned here."""
    cdef Line head
    cdef char proof[WS_PROVEN_LINE]
    cdef size_t more
    cdef char joined[HEAD_ROOM + JOINED]
    if size > SMALL and not may_send(connection.listener, size):
        send_reply(
            connection, route, 503, b"text/plain", 10, NULL, 0, UNSENT, strlen(UNSENT),
            keep_alive, NULL,
        )
        return
    count(connection.listener, route, status)
    head.size = 0
    _put_text(&head, b"HTTP/1.1 ")
    _put_number(&head, <size_t>status)
    _put_text(&head, b" ")
    _put_text(&head, _reason(status))
    _put_text(&head, b"\r\n")
    renew_date(&connection.hub.date)
    _put(&head, connection.hub.date.field, DATE_FIELD)
    _put_text(&head, b"Content-Type: ")
    _put(&head, content_type, min(type_size, <size_t>256))
    _put_text(&head, b"\r\nContent-Length: ")
    _put_number(&head, size)
    if not keep_alive:
        _put_text(&head, b"\r\nConnection: close")
    _put_text(&head, b"\r\n")
    _put(&head, extra, min(extra_size, <size_t>WS_CHALLENGE))
    if hashed != NULL:
        more = proof_answer_hashed(&connection.session, status, hashed, proof)
    else:
        more = proof_answer(&connection.session, status, body, size, proof)
    _put(&head, proof, more)
    _put_text(&head, b"\r\n")
    if size <= JOINED:
        memcpy(joined, head.text, head.size)
        if size:
            memcpy(&joined[head.size], body, size)
        emit(connection, joined, head.size + size)
    else:
        emit(connection, head.text, head.size)
        emit(connection, body, size)
    if route >= 0:
        took(connection, route, 1)


cdef void send_unavailable(
    Connection *connection, int route, const char *about, double seconds, bint keep_alive
) noexcept nogil:
    """Send 503: *about* says what was not available, for *seconds*. The request never runs."""
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
        keep_alive, NULL,
    )
