"""The table by which the I/O thread answers, made from Python's side."""

cimport cython
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from workerserver.http._protocol cimport WS_KEY, WS_TOKENS
from workerserver.native._engine cimport (
    JUDGED_PASSED, JUDGED_REFUSED, METHOD_GET, METHOD_POST, NATIVE_FIELDS, NATIVE_HEAD,
    QUERY_ANY, QUERY_DUMP, QUERY_HEALTHZ, QUERY_NONE, QUERY_OPAQUE, RULE_HOST, RULE_PEER,
    RULE_TOKEN, RULE_WEB_PAGE, VERDICT_INCOMPLETE, VERDICT_RECOGNISED, Judgement, Parameters,
    Recognised, Recognition, Route, Rule, Text, Verdict, field_is_judged, find, name_byte,
    permitted, recognise,
)

from typing import NamedTuple

from workerserver._parser import MAX_PARAMETERS as _MAX_PARAMETERS
from workerserver.http.limits import Limits as _Limits

cdef dict _METHODS = {"GET": METHOD_GET, "POST": METHOD_POST}
cdef dict _RULES = {
    "any": QUERY_ANY,
    "none": QUERY_NONE,
    "healthz": QUERY_HEALTHZ,
    "dump": QUERY_DUMP,
    "opaque": QUERY_OPAQUE,
}
cdef dict _RULE_KINDS = {
    "web_page": RULE_WEB_PAGE,
    "host": RULE_HOST,
    "token": RULE_TOKEN,
    "peer": RULE_PEER,
}
cdef tuple _FORMATS = ("text", "json", "digest", "native text", "native json")
cdef tuple _MODES = ("auto", "gil", "nogil")
cdef str _PREFIX = "/handler/"
cdef object _DEFAULTS = _Limits()


class Look(NamedTuple):
    """What the I/O thread makes of a request: who may ask, and what is asked for.

    *allowed*: every rule is sure to pass; *refused*: one is sure to refuse. *action* is None for
    a request that no route takes, and then *max_step_age*, *format* and *mode* say nothing.
    """

    length: int
    method: str
    path: bytes
    query: bytes
    host: bytes
    authorization: object  # bytes | None
    fields: int
    keep_alive: bool
    allowed: bool
    refused: bool
    action: object  # int | None
    max_step_age: object  # float | None
    format: str
    mode: str


def judges_field(bytes name):
    """Whether the I/O thread looks at the header field *name* (lower case): it keeps the value, or
    forwards the request."""
    return bool(field_is_judged(<const unsigned char*><const char*>name, <int>len(name)))


@cython.final
cdef class Table:
    """The routes that the I/O thread answers, and who may ask: one listener's, immutable.

    *routes* are ``(method, path, query rule, action)``; ``/handler/NAME`` stands for
    ``/handler/NAME/`` too. *rules* are pairs: an access.NativeForm, and the action for a request
    that the rule refuses, or None to leave such requests to the loop. A path or a name that no
    plain request can hold is left out: requests for it are forwarded. *limits* are the server's,
    a Limits; what is recognised has bounds of its own.

    ``data`` is what other threads read, without the GIL, while this object lives.
    """

    def __cinit__(self, routes, *, rules=(), limits=_DEFAULTS):
        entries = _entries(routes)
        forms = [(form, [host for host in map(_plain, (*form.names, *form.suffixes)) if host],
                  action) for form, action in rules]
        texts = [entry[1] for entry in entries]
        for form, hosts, _ in forms:
            texts += [*hosts, *form.tokens, *form.keys]
        self._routes = <Route*>calloc(len(entries) + 1, sizeof(Route))
        self._rules = <Rule*>calloc(len(forms) + 1, sizeof(Rule))
        self._names = <Text*>calloc(sum(len(hosts) for _, hosts, _ in forms) + 1, sizeof(Text))
        self._text = <char*>calloc(sum(map(len, texts)) + 1, 1)
        if (
            self._routes == NULL or self._rules == NULL or self._names == NULL
            or self._text == NULL
        ):
            raise MemoryError
        self._set_routes(entries)
        self._set_rules(forms)
        # The engine's own bounds meet the server's here, and nowhere else.
        self.data.max_head = min(limits.max_head, NATIVE_HEAD)
        self.data.max_fields = min(limits.max_headers, NATIVE_FIELDS)
        self.data.max_parameters = _MAX_PARAMETERS

    cdef int _set_routes(self, list entries) except -1:
        cdef int i
        for i, entry in enumerate(entries):
            self._routes[i].method, path, self._routes[i].rule, self._routes[i].action = entry
            self._routes[i].path = self._keep(path)
        self.data.routes = self._routes
        self.data.route_count = <int>len(entries)
        return 0

    cdef int _set_rules(self, list forms) except -1:
        cdef Text* names = self._names
        cdef Rule* rule
        cdef int i
        for i, (form, hosts, action) in enumerate(forms):
            rule = &self._rules[i]
            rule.kind = _RULE_KINDS[form.kind]
            rule.names = names
            rule.name_count = <int>len(hosts)
            for host in hosts:
                names[0] = self._keep(host)
                names += 1
            for place, token in enumerate(form.tokens[:WS_TOKENS]):
                rule.tokens[<int>place] = self._keep(token)
            for place, key in enumerate(form.keys[:WS_TOKENS]):
                if len(key) == WS_KEY:
                    rule.keys[<int>place] = <const unsigned char*>self._keep(key).data
            if form.kind == "peer":
                rule.uid = form.uid
            rule.refuses = action is not None
            if rule.refuses:
                rule.refusal.action = action
        self.data.rules = self._rules
        self.data.rule_count = <int>len(forms)
        return 0

    def __dealloc__(self):
        free(self._routes)
        free(self._rules)
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
        cdef const Rule* refusing
        cdef Judgement judgement
        cdef Verdict verdict
        cdef const char* raw = data
        memset(&state, 0, sizeof(state))
        verdict = recognise(raw, len(data), &state, &request)
        if verdict != VERDICT_RECOGNISED:
            return "incomplete" if verdict == VERDICT_INCOMPLETE else "forward"
        judgement = permitted(&self.data, raw, &request, NULL, &refusing)
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
            judgement == JUDGED_PASSED,
            judgement == JUDGED_REFUSED,
            None if route == NULL else route.action,
            None if parameters.max_step_age < 0 else parameters.max_step_age,
            _FORMATS[<int>parameters.format],
            _MODES[<int>parameters.mode],
        )


cdef list _entries(routes):
    """*routes* as they are compared, without those that no plain request is for."""
    cdef list entries = []
    for method, path, rule, action in routes:
        name = path.removeprefix(_PREFIX)
        if not path.isascii() or (name != path and "/" in name):
            continue
        entry = (_METHODS[method], path.encode("ascii"), _RULES[rule], action)
        entries.append(entry)
        if name and name != path:
            entries.append((entry[0], entry[1] + b"/", entry[2], action))
    return entries


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
