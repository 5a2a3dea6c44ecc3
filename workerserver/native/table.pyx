"""The table by which the I/O thread answers, made from Python's side."""

cimport cython
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from workerserver.native._engine cimport (
    METHOD_GET, METHOD_POST, NATIVE_FIELDS, NATIVE_HEAD, QUERY_ANY, QUERY_DUMP, QUERY_HEALTHZ,
    QUERY_NONE, QUERY_OPAQUE, VERDICT_INCOMPLETE, VERDICT_RECOGNISED, Parameters, Recognised,
    Recognition, Route, Text, Verdict, allowed, find, name_byte, recognise,
)

from typing import NamedTuple

from workerserver._parser import MAX_PARAMETERS as _MAX_PARAMETERS

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
        self.data.max_parameters = _MAX_PARAMETERS

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
        if not name_byte(c):
            return None
    return text
