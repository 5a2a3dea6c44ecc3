"""Which recognised requests the I/O thread answers: who may ask, and for what.

A rule that passes here passes in ``AccessPolicy.check()`` too, a rule that refuses here refuses
there too, and what ``find()`` finds, the handler takes. Everything else is left open: the loop
judges it.
"""

from libc.string cimport memcmp, memcpy, memset

from workerserver.http._protocol cimport (
    WS_NO_PROOF, WS_PROVEN, WS_TOKENS, proof_is_ours, proof_judge, ws_session,
)
from workerserver.native.system cimport (
    AF_INET, AF_INET6, SOL_SOCKET, SO_PEERCRED, getsockopt, inet_pton, socklen_t, ucred,
)


# --- who may ask ------------------------------------------------------------------------------

cdef unsigned char[256] _NAME  # a host name's character in lower case; else 0


cdef void _fill_table() noexcept:
    cdef int c
    memset(_NAME, 0, sizeof(_NAME))
    for c in b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz._-":
        _NAME[c] = <unsigned char>(c + 32 if 65 <= c <= 90 else c)


_fill_table()


cdef unsigned char name_byte(unsigned char c) noexcept nogil:
    """See the .pxd."""
    return _NAME[c]


cdef inline bint _is_host(const unsigned char* text, const char* other, int length) noexcept nogil:
    """Whether *text* is *other*, which is in lower case, but for its case."""
    return folds_to(_NAME, text, other, length)


cdef bint _is_port(const unsigned char* text, int length) noexcept nogil:
    """Nothing, or a colon and one to five digits."""
    cdef int i
    if length == 0:
        return True
    if length < 2 or length > 6 or text[0] != c":":
        return False
    for i in range(1, length):
        if not c"0" <= text[i] <= c"9":
            return False
    return True


cdef bint _is_address(int family, const unsigned char* text, int length) noexcept nogil:
    cdef char[64] copy
    cdef char[16] address
    if length >= <int>sizeof(copy):
        return False
    memcpy(copy, text, length)
    copy[length] = 0
    return inet_pton(family, copy, address) == 1


cdef bint _host_allowed(const Rule* rule, const unsigned char* host, int length) noexcept nogil:
    """access.HostNames, without its leniences."""
    cdef int i, end = 0
    cdef const Text* name
    if host[0] == c"[":
        while end < length and host[end] != c"]":
            end += 1
        return (
            end < length
            and _is_port(&host[end + 1], length - end - 1)
            and _is_address(AF_INET6, &host[1], end - 1)
        )
    while end < length and _NAME[host[end]]:
        end += 1
    if end == 0 or not _is_port(&host[end], length - end):
        return False
    for i in range(rule.name_count):
        name = &rule.names[i]
        if name.data[0] == c".":
            if host[0] == c"." or end <= name.length:
                continue
        elif end != name.length:
            continue
        if _is_host(&host[end - name.length], name.data, name.length):
            return True
    return c"0" <= host[0] <= c"9" and _is_address(AF_INET, host, end)


cdef bint _fits_token(
    const Text* token, const unsigned char* given, int length
) noexcept nogil:
    """All wrong tokens of a length take the same time."""
    cdef volatile unsigned char different = 0
    cdef int i
    if token.length == 0 or length != token.length:
        return False
    for i in range(length):
        different |= given[i] ^ <unsigned char>token.data[i]
    return different == 0


cdef Judgement _judge_token(
    const Rule* rule, const unsigned char* value, int length
) noexcept nogil:
    """access.BearerToken; each token is compared, whichever the first is that fits."""
    cdef bint right = False, any_token = False
    cdef int i
    for i in range(WS_TOKENS):
        any_token |= rule.tokens[i].length > 0
    if not any_token:
        return JUDGED_OPEN
    if length < 8 or not _is_host(value, "bearer", 6) or value[6] != c" ":
        return JUDGED_REFUSED
    if value[7] == c" " or value[7] == c"\t":
        return JUDGED_OPEN  # check() strips what it compares
    for i in range(WS_TOKENS):
        right |= _fits_token(&rule.tokens[i], &value[7], length - 7)
    return JUDGED_PASSED if right else JUDGED_REFUSED


cdef Judgement _judge_proof(
    const Rule* rule, const char* data, const Recognised* request, ws_session* session
) noexcept nogil:
    """access.BearerToken, for an Authorization of our own scheme."""
    cdef const char* method = b"GET" if request.method == METHOD_GET else b"POST"
    cdef size_t size = <size_t>request.path_length
    if session == NULL:
        return JUDGED_OPEN
    if request.query:
        size = <size_t>(request.query + request.query_length - request.path)
    if proof_judge(
        session, <const unsigned char**>rule.keys,
        data + request.authorization, <size_t>request.authorization_length,
        method, 3 if request.method == METHOD_GET else 4, data + request.path, size,
    ) == WS_PROVEN:
        return JUDGED_PASSED
    return JUDGED_REFUSED


cdef Judgement _ask(
    const Rule* rule, const unsigned char* raw, const Recognised* request, ws_session* session
) noexcept nogil:
    if rule.kind == RULE_WEB_PAGE or rule.kind == RULE_PEER:
        return JUDGED_PASSED
    if rule.kind == RULE_HOST and _host_allowed(rule, &raw[request.host], request.host_length):
        return JUDGED_PASSED
    if rule.kind == RULE_TOKEN:
        if request.path_length == 3 and memcmp(&raw[request.path], b"/ui", 3) == 0:
            return JUDGED_OPEN  # the one page that needs no token, if the server has it
        if proof_is_ours(
            <const char*>&raw[request.authorization], <size_t>request.authorization_length
        ):
            return _judge_proof(rule, <const char*>raw, request, session)
        return _judge_token(
            rule, &raw[request.authorization], request.authorization_length
        )
    return JUDGED_OPEN


cdef Judgement permitted(
    const TableData* table, const char* data, const Recognised* request, ws_session* session,
    const Rule** refusing,
) noexcept nogil:
    """See the .pxd."""
    cdef Judgement judgement
    cdef int i
    refusing[0] = NULL
    if session != NULL:
        session.verdict = WS_NO_PROOF
    if request.length > table.max_head or request.fields > table.max_fields:
        return JUDGED_OPEN
    for i in range(table.rule_count):
        judgement = _ask(&table.rules[i], <const unsigned char*>data, request, session)
        if judgement == JUDGED_REFUSED:
            refusing[0] = &table.rules[i]
        if judgement != JUDGED_PASSED:
            return judgement
    return JUDGED_PASSED


cdef bint admitted(const TableData* table, int fd) noexcept nogil:
    """See the .pxd; access.OwnUser."""
    cdef ucred peer
    cdef socklen_t size
    cdef int i
    for i in range(table.rule_count):
        if table.rules[i].kind != RULE_PEER:
            continue
        size = sizeof(peer)
        if getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0:
            return False
        if peer.uid != 0 and peer.uid != table.rules[i].uid:
            return False
    return True


# --- what is asked for ------------------------------------------------------------------------

cdef double[16] _TENS
_TENS[:] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15
]


cdef double _seconds(const char* text, int length) noexcept nogil:
    """The number that up to 15 digits, with a point among them, stand for; -1 for anything else.

    Both halves of the quotient are exact, so it is rounded as Python's float() does.
    """
    cdef long long digits = 0
    cdef int i, count = 0, point = -1
    for i in range(length):
        if c"0" <= text[i] <= c"9" and count < 15:
            digits = digits * 10 + (text[i] - c"0")
            count += 1
        elif text[i] == c"." and point < 0 and i > 0:
            point = count
        else:
            return -1.0
    if count == 0 or point == count:
        return -1.0
    return <double>digits / _TENS[0 if point < 0 else count - point]


cdef bint _read_dump(const char* query, int length, Parameters* out) noexcept nogil:
    cdef int begin = 0, end, size, bit, seen = 0
    cdef bint native = False
    while True:
        end = begin
        while end < length and query[end] != c"&":
            end += 1
        size = end - begin
        if size > 7 and memcmp(&query[begin], b"format=", 7) == 0:
            bit = 1
            begin += 7
            size -= 7
            if size == 4 and memcmp(&query[begin], b"text", 4) == 0:
                out.format = DUMP_TEXT
            elif size == 4 and memcmp(&query[begin], b"json", 4) == 0:
                out.format = DUMP_JSON
            elif size == 6 and memcmp(&query[begin], b"digest", 6) == 0:
                out.format = DUMP_DIGEST
            else:
                return False
        elif size > 5 and memcmp(&query[begin], b"mode=", 5) == 0:
            bit = 2
            begin += 5
            size -= 5
            if size == 4 and memcmp(&query[begin], b"auto", 4) == 0:
                out.mode = DUMP_AUTO
            elif size == 3 and memcmp(&query[begin], b"gil", 3) == 0:
                out.mode = DUMP_GIL
            elif size == 5 and memcmp(&query[begin], b"nogil", 5) == 0:
                out.mode = DUMP_NOGIL
            else:
                return False
        elif size == 8 and memcmp(&query[begin], b"native=", 7) == 0:
            bit = 4
            native = query[begin + 7] == c"1"
            if not native and query[begin + 7] != c"0":
                return False
        else:
            return False
        if seen & bit:
            return False
        seen |= bit
        if end == length:
            return not native or _with_native(out)
        begin = end + 1


cdef bint _with_native(Parameters* out) noexcept nogil:
    """Native frames are read without the GIL. False: they are not asked for so."""
    if out.mode == DUMP_GIL:
        return False
    out.mode = DUMP_NOGIL
    if out.format == DUMP_TEXT:
        out.format = DUMP_NATIVE_TEXT
    elif out.format == DUMP_JSON:
        out.format = DUMP_NATIVE_JSON
    return True


cdef bint _read_query(
    const TableData* table, QueryRule rule, const char* query, int length, Parameters* out
) noexcept nogil:
    """Whether the handler takes *query* for sure, and what it says."""
    cdef int i, pieces = 1
    if length == 0:
        return True
    if rule == QUERY_ANY or rule == QUERY_OPAQUE:
        for i in range(length):
            pieces += query[i] == c"&"
        return pieces <= table.max_parameters
    if rule == QUERY_HEALTHZ:
        if length <= 13 or memcmp(query, b"max_step_age=", 13) != 0:
            return False
        out.max_step_age = _seconds(query + 13, length - 13)
        return 0.0 <= out.max_step_age <= 1e9
    if rule == QUERY_DUMP:
        return _read_dump(query, length, out)
    return False


cdef const Route* find(
    const TableData* table, const char* data, const Recognised* request, Parameters* parameters
) noexcept nogil:
    """See the .pxd."""
    cdef const Route* route
    cdef int i
    parameters.max_step_age = -1.0
    parameters.format = DUMP_TEXT
    parameters.mode = DUMP_AUTO
    for i in range(table.route_count):
        route = &table.routes[i]
        if (
            route.path.length == request.path_length
            and route.method == request.method
            and memcmp(route.path.data, data + request.path, request.path_length) == 0
        ):
            if _read_query(
                table, route.rule, data + request.query, request.query_length, parameters
            ):
                return route
            return NULL
    return NULL


cdef const Route* judge(
    const TableData* table, const char* data, const Recognised* request, ws_session* session,
    Parameters* parameters, const Rule** refusing,
) noexcept nogil:
    """See the .pxd."""
    cdef Judgement judgement = permitted(table, data, request, session, refusing)
    parameters.permitted = judgement == JUDGED_PASSED
    if parameters.permitted:
        return find(table, data, request, parameters)
    if judgement == JUDGED_REFUSED and refusing[0].refuses:
        return &refusing[0].refusal
    return NULL
