"""Requests that the I/O thread may answer by itself: recognised, never parsed.

``recognise()`` knows one narrow kind of request to the letter and leaves everything else to the
parser, the only judge of HTTP: what is recognised, ``RequestParser`` accepts as the same request.
The reverse need not hold.

All of it is a function of the bytes so far, judged one by one: how they were split can't matter,
and the first byte that can't belong to such a request ends the recognition.
"""

from libc.string cimport memset

from workerserver.authority cimport authority_is_whole, take_authority


# --- character classes ------------------------------------------------------------------------

cdef enum:
    IN_PATH = 1
    IN_QUERY = 2
    IN_VALUE = 4  # of a field: visible ASCII, space, tab

cdef unsigned char[256] _CLASS
cdef unsigned char[256] _TOKEN  # a field name's character in lower case; else 0


cdef void _fill_tables() noexcept:
    cdef int c
    memset(_CLASS, 0, sizeof(_CLASS))
    memset(_TOKEN, 0, sizeof(_TOKEN))
    for c in range(0x20, 0x7F):
        _CLASS[c] = IN_VALUE
    _CLASS[9] = IN_VALUE
    for c in b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz":
        _CLASS[c] |= IN_PATH | IN_QUERY
        _TOKEN[c] = <unsigned char>(c + 32 if 65 <= c <= 90 else c)
    for c in b"._~/-":
        _CLASS[c] |= IN_PATH | IN_QUERY
    for c in b"=&,:":
        _CLASS[c] |= IN_QUERY
    for c in b"!#$%&'*+-.^_`|~":
        _TOKEN[c] = <unsigned char>c


_fill_tables()


# --- recognition ------------------------------------------------------------------------------

cdef enum Phase:
    PHASE_METHOD
    PHASE_REST  # `rest` to the letter, after that `then`
    PHASE_FOLDED  # the same in any case, after that the line's end
    PHASE_PATH
    PHASE_QUERY
    PHASE_FIELD  # at the beginning of a line
    PHASE_NAME
    PHASE_SPACE  # before a value; `then` says which
    PHASE_VALUE
    PHASE_AUTHORIZATION
    PHASE_ACCEPT
    PHASE_HOST
    PHASE_HOST_END
    PHASE_LENGTH
    PHASE_CONNECTION
    PHASE_DONE
    PHASE_FORWARD

cdef enum:
    SEEN_HOST = 1
    SEEN_LENGTH = 2
    SEEN_CONNECTION = 4
    SEEN_AUTHORIZATION = 8


cdef inline bint _is(const unsigned char* name, const char* other, int length) noexcept nogil:
    """Whether *name* is *other*, which is in lower case, but for its case."""
    return folds_to(_TOKEN, name, other, length)


cdef inline int _once(Recognition* state, int bit, int phase) noexcept nogil:
    if state.seen & bit:
        return PHASE_FORWARD
    state.seen |= bit
    return phase


cdef int _judge_name(
    Recognition* state, const unsigned char* name, int length
) noexcept nogil:
    """The phase for the value of the field *name*: PHASE_FORWARD if it can say anything of the
    message's end, of the connection's future or of a web page, beyond the few plain values."""
    if length == 4:
        if _is(name, "host", 4):
            return _once(state, SEEN_HOST, PHASE_HOST)
    elif length == 10:
        if _is(name, "connection", 10):
            return _once(state, SEEN_CONNECTION, PHASE_CONNECTION)
    elif length == 14:
        if _is(name, "content-length", 14):
            return _once(state, SEEN_LENGTH, PHASE_LENGTH)
        if _is(name, "sec-fetch-site", 14) or _is(name, "http2-settings", 14):
            return PHASE_FORWARD
    elif length == 13:
        if _is(name, "authorization", 13):
            return _once(state, SEEN_AUTHORIZATION, PHASE_AUTHORIZATION)
    elif length == 2:
        if _is(name, "te", 2):
            return PHASE_FORWARD
    elif length == 6:
        if _is(name, "expect", 6) or _is(name, "origin", 6):
            return PHASE_FORWARD
        if _is(name, "accept", 6):
            return PHASE_ACCEPT
    elif length == 7:
        if _is(name, "upgrade", 7) or _is(name, "trailer", 7):
            return PHASE_FORWARD
    elif length == 16:
        if _is(name, "proxy-connection", 16) or _is(name, "content-encoding", 16):
            return PHASE_FORWARD
    elif length == 17:
        if _is(name, "transfer-encoding", 17):
            return PHASE_FORWARD
    return PHASE_VALUE


cdef bint field_is_judged(const unsigned char* name, int length) noexcept nogil:
    """See the .pxd."""
    cdef Recognition state
    memset(&state, 0, sizeof(state))
    return _judge_name(&state, name, length) != PHASE_VALUE


cdef Verdict recognise(
    const char* data, size_t size, Recognition* state, Recognised* request
) noexcept nogil:
    """See the .pxd. Each turn of the loop begins one phase, or goes on with it."""
    cdef const unsigned char* raw = <const unsigned char*>data
    cdef Recognised* found = &state.request
    cdef int end = <int>size if size < <size_t>NATIVE_HEAD else NATIVE_HEAD
    cdef int at = state.at
    cdef int phase = state.phase
    cdef const char* rest = state.rest
    while True:
        if phase == PHASE_DONE:
            found.length = at
            request[0] = found[0]
            memset(state, 0, sizeof(Recognition))
            return VERDICT_RECOGNISED
        if at >= end or phase == PHASE_FORWARD:
            break
        if phase == PHASE_METHOD:
            state.then = PHASE_PATH
            found.keep_alive = True
            if raw[at] == c"G":
                found.method = METHOD_GET
                found.path = 4
                rest = "ET /"
                phase = PHASE_REST
            elif raw[at] == c"P":
                found.method = METHOD_POST
                found.path = 5
                rest = "OST /"
                phase = PHASE_REST
            else:
                phase = PHASE_FORWARD
            at += 1
        elif phase == PHASE_REST:
            while at < end and rest[0] != 0 and raw[at] == <unsigned char>rest[0]:
                at += 1
                rest += 1
            if rest[0] == 0:
                phase = state.then
            elif at < end:
                phase = PHASE_FORWARD
        elif phase == PHASE_FOLDED:
            while (
                at < end and rest[0] != 0
                and _TOKEN[raw[at]] == <unsigned char>rest[0]
            ):
                at += 1
                rest += 1
            if rest[0] == 0:
                rest = "\r\n"
                phase = PHASE_REST
            elif at < end:
                phase = PHASE_FORWARD
        elif phase == PHASE_PATH:
            while at < end and _CLASS[raw[at]] & IN_PATH:
                at += 1
            if at < end:
                found.path_length = at - found.path
                if raw[at] == c" ":
                    rest = "HTTP/1.1\r\n"
                    state.then = PHASE_FIELD
                    phase = PHASE_REST
                elif raw[at] == c"?":
                    found.query = at + 1
                    phase = PHASE_QUERY
                else:
                    phase = PHASE_FORWARD
                at += 1
        elif phase == PHASE_QUERY:
            while at < end and _CLASS[raw[at]] & IN_QUERY:
                at += 1
            if at < end:
                found.query_length = at - found.query
                rest = "HTTP/1.1\r\n"
                state.then = PHASE_FIELD
                phase = PHASE_REST if raw[at] == c" " else PHASE_FORWARD
                at += 1
        elif phase == PHASE_FIELD:
            if raw[at] == c"\r":
                rest = "\n"
                state.then = PHASE_DONE
                phase = PHASE_REST if state.seen & SEEN_HOST else PHASE_FORWARD
            elif found.fields < NATIVE_FIELDS and _TOKEN[raw[at]]:
                found.fields += 1
                state.begin = at
                phase = PHASE_NAME
            else:
                phase = PHASE_FORWARD
            at += 1
        elif phase == PHASE_NAME:
            while at < end and _TOKEN[raw[at]]:
                at += 1
            if at < end:
                phase = PHASE_FORWARD
                if raw[at] == c":":
                    state.then = _judge_name(state, &raw[state.begin], at - state.begin)
                    if state.then != PHASE_FORWARD:
                        phase = PHASE_SPACE
                at += 1
        elif phase == PHASE_SPACE:
            while at < end and (raw[at] == c" " or raw[at] == c"\t"):
                at += 1
            if at < end:
                phase = state.then
                state.then = PHASE_FIELD
                if phase == PHASE_HOST:
                    found.host = at
                elif phase == PHASE_AUTHORIZATION:
                    found.authorization = at
                elif phase == PHASE_ACCEPT:
                    found.accept = at if found.accept == 0 else -1
        elif phase == PHASE_VALUE or phase == PHASE_AUTHORIZATION or phase == PHASE_ACCEPT:
            while at < end and _CLASS[raw[at]] & IN_VALUE:
                at += 1
            if at < end:
                if phase == PHASE_AUTHORIZATION:
                    found.authorization_length = at - found.authorization
                    while found.authorization_length > 0 and (
                        raw[found.authorization + found.authorization_length - 1] == c" "
                        or raw[found.authorization + found.authorization_length - 1] == c"\t"
                    ):
                        found.authorization_length -= 1
                elif phase == PHASE_ACCEPT and found.accept > 0:
                    found.accept_length = at - found.accept
                rest = "\n"
                phase = PHASE_REST if raw[at] == c"\r" else PHASE_FORWARD
                at += 1
        elif phase == PHASE_HOST:
            at += <int>take_authority(&state.authority, &raw[at], end - at)
            if at < end:
                found.host_length = at - found.host
                phase = PHASE_HOST_END if authority_is_whole(&state.authority) else PHASE_FORWARD
        elif phase == PHASE_HOST_END:
            while at < end and (raw[at] == c" " or raw[at] == c"\t"):
                at += 1
            if at < end:
                rest = "\r\n"
                phase = PHASE_REST
        elif phase == PHASE_LENGTH:
            rest = "0\r\n"
            phase = PHASE_REST
        elif phase == PHASE_CONNECTION:
            if _TOKEN[raw[at]] == c"c":
                found.keep_alive = False
                rest = "close"
            else:
                rest = "keep-alive"
            phase = PHASE_FOLDED
        else:
            phase = PHASE_FORWARD
    if at == NATIVE_HEAD:
        phase = PHASE_FORWARD
    state.at = at
    state.phase = phase
    state.rest = rest
    return VERDICT_FORWARD if phase == PHASE_FORWARD else VERDICT_INCOMPLETE
