# cython: cdivision=True
"""Which recognised requests the I/O thread answers: who may ask, and for what.

What ``allowed()`` lets in, ``AccessPolicy.check()`` does, and what ``find()`` finds, the handler
takes. The reverse need not hold.
"""

cimport cython
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from workerserver._recognise cimport (
    METHOD_GET, METHOD_POST, NATIVE_FIELDS, NATIVE_HEAD, VERDICT_INCOMPLETE, VERDICT_RECOGNISED,
    Recognised, Recognition, Verdict, folds_to, recognise,
)

cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char* text, void* address)

cdef extern from "<sys/socket.h>" nogil:
    enum:
        AF_INET
        AF_INET6

from typing import NamedTuple

from workerserver._parser import MAX_PARAMETERS as _MAX_PARAMETERS

cdef int MAX_PARAMETERS = _MAX_PARAMETERS


# --- who may ask ------------------------------------------------------------------------------

cdef unsigned char[256] _NAME  # a host name's character in lower case; else 0


cdef void _fill_table() noexcept:
    cdef int c
    memset(_NAME, 0, sizeof(_NAME))
    for c in b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz._-":
        _NAME[c] = <unsigned char>(c + 32 if 65 <= c <= 90 else c)


_fill_table()


cdef inline bint _is(const unsigned char* text, const char* other, int length) noexcept nogil:
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


cdef bint _host_allowed(
    const TableData* table, const unsigned char* host, int length
) noexcept nogil:
    """AccessPolicy._check_host_name(), without its leniences."""
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
    for i in range(table.name_count):
        name = &table.names[i]
        if name.length == end and _is(host, name.data, end):
            return True
    if c"0" <= host[0] <= c"9" and _is_address(AF_INET, host, end):
        return True
    name = &table.prefix
    return (
        name.length > 0
        and end > name.length
        and host[end - 1] != c"."
        and _is(host, name.data, name.length)
    )


cdef bint _bearer(const Text* token, const unsigned char* value, int length) noexcept nogil:
    """Whether *value* is ``Bearer`` and *token*; all wrong ones of a length take the same time."""
    cdef volatile unsigned char different = 0
    cdef int i
    if length != token.length + 7 or not _is(value, "bearer", 6) or value[6] != c" ":
        return False
    if token.length == 0 or value[7] == c" " or value[7] == c"\t":
        return False  # the policy strips what it compares
    for i in range(token.length):
        different |= value[7 + i] ^ <unsigned char>token.data[i]
    return different == 0


cdef bint allowed(
    const TableData* table, const char* data, const Recognised* request
) noexcept nogil:
    """See the .pxd."""
    cdef const unsigned char* raw = <const unsigned char*>data
    if request.length > table.max_head or request.fields > table.max_fields:
        return False
    if table.check_host and not _host_allowed(table, &raw[request.host], request.host_length):
        return False
    return table.token.data == NULL or _bearer(
        &table.token, &raw[request.authorization], request.authorization_length
    )


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
        else:
            return False
        if seen & bit:
            return False
        seen |= bit
        if end == length:
            return True
        begin = end + 1


cdef bint _read_query(
    QueryRule rule, const char* query, int length, Parameters* out
) noexcept nogil:
    """Whether the handler takes *query* for sure, and what it says."""
    cdef int i, pieces = 1
    if length == 0:
        return True
    if rule == QUERY_ANY or rule == QUERY_OPAQUE:
        for i in range(length):
            pieces += query[i] == c"&"
        return pieces <= MAX_PARAMETERS
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
            if _read_query(route.rule, data + request.query, request.query_length, parameters):
                return route
            return NULL
    return NULL


# --- the table --------------------------------------------------------------------------------

cdef dict _METHODS = {"GET": METHOD_GET, "POST": METHOD_POST}
cdef dict _RULES = {
    "any": QUERY_ANY,
    "none": QUERY_NONE,
    "healthz": QUERY_HEALTHZ,
    "dump": QUERY_DUMP,
    "opaque": QUERY_OPAQUE,
}
cdef tuple _FORMATS = ("text", "json", "digest")
cdef tuple _MODES = ("auto", "gil", "nogil")
cdef str _PREFIX = "/handler/"


class Look(NamedTuple):
    """What the I/O thread makes of a request; *action* is None for one that no route takes, and
    then *max_step_age*, *format* and *mode* say nothing."""

    length: int
    method: str
    path: bytes
    query: bytes
    host: bytes
    authorization: object  # bytes | None
    fields: int
    keep_alive: bool
    allowed: bool
    action: object  # int | None
    max_step_age: object  # float | None
    format: str
    mode: str


@cython.final
cdef class Table:
    """The routes that the I/O thread answers, and who may ask: one listener's, immutable.

    *routes* are ``(method, path, query rule, action)``; ``/handler/NAME`` stands for
    ``/handler/NAME/`` too. *names* and *prefix* are what AccessPolicy takes for names of this
    machine. A path or a name that no plain request can hold is left out: its requests are
    forwarded.

    ``data`` is what other threads read, without the GIL, while this object lives.
    """

    def __cinit__(
        self,
        routes,
        *,
        bint check_host=False,
        names=(),
        str prefix=None,
        bytes token=None,
        int max_head=NATIVE_HEAD,
        int max_headers=NATIVE_FIELDS,
    ):
        cdef int i
        cdef Py_ssize_t size
        entries = []
        for method, path, rule, action in routes:
            name = path.removeprefix(_PREFIX)
            if not path.isascii() or (name != path and "/" in name):
                continue  # no plain request is for it
            entry = (_METHODS[method], path.encode("ascii"), _RULES[rule], action)
            entries.append(entry)
            if name and name != path:
                entries.append((entry[0], entry[1] + b"/", entry[2], action))
        hosts = [host for host in map(_plain, names) if host]
        start = b""
        if prefix is not None and prefix.endswith("."):
            start = _plain(prefix[:-1])
            start = start + b"." if start else b""
        size = len(start) + (0 if token is None else len(token))
        size += sum(len(entry[1]) for entry in entries) + sum(len(host) for host in hosts)
        self._routes = <Route*>calloc(len(entries) + 1, sizeof(Route))
        self._names = <Text*>calloc(len(hosts) + 1, sizeof(Text))
        self._text = <char*>calloc(size + 1, 1)
        if self._routes == NULL or self._names == NULL or self._text == NULL:
            raise MemoryError
        for i, entry in enumerate(entries):
            self._routes[i].method, path, self._routes[i].rule, self._routes[i].action = entry
            self._routes[i].path = self._keep(path)
        for i, host in enumerate(hosts):
            self._names[i] = self._keep(host)
        self.data.routes = self._routes
        self.data.route_count = <int>len(entries)
        self.data.names = self._names
        self.data.name_count = <int>len(hosts)
        self.data.prefix = self._keep(start)
        if token is not None:
            self.data.token = self._keep(token)
        self.data.check_host = check_host
        self.data.max_head = max_head
        self.data.max_fields = max_headers

    def __dealloc__(self):
        free(self._routes)
        free(self._names)
        free(self._text)

    cdef Text _keep(self, bytes text) except *:
        """A copy that lives as long as this object; the constructor has made room for it."""
        cdef Text kept
        kept.data = self._text + self._used
        kept.length = <int>len(text)
        memcpy(self._text + self._used, <const char*>text, kept.length)
        self._used += kept.length
        return kept

    def look(self, bytes data not None):
        """A Look at the request that *data* begins with, or ``"incomplete"`` or ``"forward"``."""
        cdef Recognition state
        cdef Recognised request
        cdef Parameters parameters
        cdef const Route* route
        cdef Verdict verdict
        cdef const char* raw = data
        memset(&state, 0, sizeof(state))
        verdict = recognise(raw, len(data), &state, &request)
        if verdict != VERDICT_RECOGNISED:
            return "incomplete" if verdict == VERDICT_INCOMPLETE else "forward"
        route = find(&self.data, raw, &request, &parameters)
        return Look(
            request.length,
            "GET" if request.method == METHOD_GET else "POST",
            data[request.path:request.path + request.path_length],
            data[request.query:request.query + request.query_length],
            data[request.host:request.host + request.host_length],
            None if request.authorization == 0 else data[
                request.authorization:request.authorization + request.authorization_length
            ],
            request.fields,
            bool(request.keep_alive),
            bool(allowed(&self.data, raw, &request)),
            None if route == NULL else route.action,
            None if parameters.max_step_age < 0 else parameters.max_step_age,
            _FORMATS[<int>parameters.format],
            _MODES[<int>parameters.mode],
        )


cdef bytes _plain(str name):
    """*name* in lower case, or None if no Host field is sure to be taken for it."""
    cdef bytes text
    cdef unsigned char c
    if not name.isascii() or name.endswith("."):
        return None
    text = name.lower().encode("ascii")
    for c in text:
        if not _NAME[c]:
            return None
    return text
