# cython: boundscheck=False, wraparound=False
# Bounds checks are off: this module compares every index with the buffer's length itself.
"""Bytes -> requests, and parameters -> typed values. No I/O.

``RequestParser`` works like h11: ``receive_data()`` takes bytes, ``next_request()`` returns the
next complete request. The parser cuts the stream into messages and feeds httptools (llhttp) one
message at a time. httptools judges the HTTP syntax. So an answer doesn't depend on how the bytes
were split. The parser reads the request line itself, because httptools shows only parts of the
line: llhttp also speaks RTSP, ICE and HTTP/0.9, and is lenient on spaces.

The parser also refuses what httptools accepts, but RFC 9112 forbids or this server doesn't support.
"""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.pyport cimport PY_SSIZE_T_MAX
from libc.string cimport memset

from workerserver.authority cimport Authority, authority_is_whole, take_authority

cdef extern from "<string.h>" nogil:
    # With const, unlike Cython's own declaration: since C23 glibc's memchr returns a const pointer
    # for a const pointer.
    const void* memchr(const void* data, int byte, size_t size)

import functools
import inspect
import math
import re
import types as _pytypes
import typing
from enum import Enum

import httptools

from workerserver.types import (
    BodyTooLarge,
    DuplicateParameter,
    HeadTooLarge,
    InvalidParameter,
    MalformedRequest,
    MissingParameter,
    Range,
    Request,
    TargetTooLong,
    UnknownParameter,
    UnsupportedExpectation,
    UnsupportedMethod,
    UnsupportedTransferCoding,
    UnsupportedVersion,
    WorkerServerError,
)

MAX_HEAD = 64 * 1024
MAX_HEADERS = 100
MAX_BODY = 10 * 1024 * 1024
MAX_CHUNKS = 16_384  # of one body: httptools calls back for each chunk, under the GIL
MAX_EXTENSIONS = 4096  # bytes of chunk extensions, in one body
MAX_PARAMETERS = 100

# A chunked body may have this much framing for each permitted chunk, and max_head bytes more for
# trailers. (This server reads nothing from extensions and trailers.)
cdef Py_ssize_t CHUNK_FRAMING_BYTES = 16
# A chunk size with more digits begins with zeros, which mean nothing. They count as an extension.
cdef Py_ssize_t CHUNK_DIGITS = 16

# An idle connection keeps its last request, unless that request is longer.
cdef Py_ssize_t MAX_MEMO_BYTES = 4096

cdef object _HttpParserUpgrade = httptools.HttpParserUpgrade
cdef object _HttpParserError = httptools.HttpParserError
cdef object _HttpParserInvalidMethodError = httptools.HttpParserInvalidMethodError
cdef object _HttpRequestParser = httptools.HttpRequestParser

# The spaces and tabs behind the value of a Transfer-Encoding field, which are no part of it.
cdef object _TAB_BEHIND_CODING = re.compile(
    rb"(\r\ntransfer-encoding:[^\r\n]*[^ \t\r\n])[ \t]+(?=\r\n)", re.IGNORECASE
)


# --- character classes ------------------------------------------------------------------------

cdef bint[256] _TCHAR  # RFC 9110, 5.6.2
cdef signed char[256] _HEX


cdef void _fill_tables() noexcept:
    cdef int c
    for c in range(256):
        _TCHAR[c] = False
        _HEX[c] = -1
    for c in b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz":
        _TCHAR[c] = True
    for c in range(10):
        _HEX[48 + c] = <signed char>c
    for c in range(6):
        _HEX[65 + c] = <signed char>(10 + c)
        _HEX[97 + c] = <signed char>(10 + c)


_fill_tables()


# --- percent-encoding and queries -------------------------------------------------------------


cdef inline bint _valid_percent(const unsigned char* raw, Py_ssize_t n) noexcept nogil:
    """Whether every % in *raw* is followed by two hexadecimal digits (RFC 3986, 2.1)."""
    cdef Py_ssize_t i = 0
    while i < n:
        if raw[i] == c"%":
            if i + 2 >= n or _HEX[raw[i + 1]] < 0 or _HEX[raw[i + 2]] < 0:
                return False
            i += 2
        i += 1
    return True


cdef bint _valid_host(bytes host) noexcept:
    """Whether *host* is an authority without userinfo (RFC 9110, 4.2.4 and 7.2)."""
    cdef Authority state
    cdef Py_ssize_t n = PyBytes_GET_SIZE(host)
    memset(&state, 0, sizeof(state))
    return take_authority(
        &state, <const unsigned char*>PyBytes_AS_STRING(host), n
    ) == n and authority_is_whole(&state)


cpdef str unquote(bytes raw, bint plus=False):
    """Percent-decode *raw* to str; with *plus*, ``+`` means a space (form encoding).

    Raises MalformedRequest for a broken escape, and if the decoded bytes are not UTF-8.
    """
    cdef Py_ssize_t n = PyBytes_GET_SIZE(raw)
    cdef const unsigned char* source = <const unsigned char*>PyBytes_AS_STRING(raw)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t j = 0
    cdef bytearray out
    cdef unsigned char* target
    if not _valid_percent(source, n):
        raise MalformedRequest("bad percent-encoding in " + ascii(raw[:200])[1:])
    try:
        if b"%" not in raw and not (plus and b"+" in raw):
            return raw.decode("utf-8")
        out = bytearray(n)
        target = <unsigned char*>PyByteArray_AS_STRING(out)
        while i < n:
            if source[i] == c"%":
                target[j] = <unsigned char>(_HEX[source[i + 1]] * 16 + _HEX[source[i + 2]])
                i += 3
            else:
                target[j] = c" " if plus and source[i] == c"+" else source[i]
                i += 1
            j += 1
        return out[:j].decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedRequest("not UTF-8: " + ascii(raw[:200])[1:]) from None


cpdef list parse_query(bytes raw):
    """``a=1&b=`` -> ``[("a", "1"), ("b", "")]``, in order; pieces without a name are skipped, as
    torch's server does.

    Raises MalformedRequest for a broken escape and for more than MAX_PARAMETERS pairs.
    """
    cdef list pairs = []
    cdef bytes name, value
    cdef const unsigned char* data = <const unsigned char*>PyBytes_AS_STRING(raw)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(raw)
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t end
    cdef const void* found
    while i < n:
        if data[i] == c"&":
            i += 1
            continue
        if len(pairs) == MAX_PARAMETERS:
            raise MalformedRequest(f"more than {MAX_PARAMETERS} parameters")
        found = memchr(&data[i], c"&", n - i)
        end = n if found == NULL else <const unsigned char*>found - data
        name, _, value = raw[i:end].partition(b"=")
        pair = unquote(name, True), unquote(value, True)
        if name:
            pairs.append(pair)
        i = end
    return pairs


# --- parameters -------------------------------------------------------------------------------

cdef object _MISSING = inspect.Parameter.empty
cdef tuple _UNIONS = (typing.Union, _pytypes.UnionType)


cdef enum ParamKind:
    PARAM_BOOL
    PARAM_INT
    PARAM_FLOAT
    PARAM_ENUM
    PARAM_STR


@cython.final
@cython.internal
cdef class _Param:
    cdef readonly str name
    cdef readonly str valid  # completes "valid values are ..."
    cdef object default  # the function's own default, or _MISSING
    cdef ParamKind kind
    cdef object ge  # int | float | None
    cdef object le  # int | float | None
    cdef dict choices  # str -> value, PARAM_ENUM only

    def __init__(self, str name, annotation, default):
        self.name = name
        self.default = default
        self.ge = self.le = self.choices = None
        bounds = None
        while True:  # Annotated and "T | None" in either order
            if typing.get_origin(annotation) is typing.Annotated:
                annotation, *extras = typing.get_args(annotation)
                bounds = next((e for e in extras if isinstance(e, Range)), bounds)
            elif typing.get_origin(annotation) in _UNIONS:
                # Only "T | None = None": a missing parameter is None, a given one is a T.
                inner = [arg for arg in typing.get_args(annotation) if arg is not type(None)]
                if len(inner) != 1 or default is not None:
                    raise TypeError(f"parameter {name}: {annotation} can't be read from a query")
                annotation = inner[0]
            else:
                break
        if annotation is bool:
            self.kind = PARAM_BOOL
            self.valid = "true or false"
        elif annotation is int or annotation is float:
            self.kind = PARAM_INT if annotation is int else PARAM_FLOAT
            self.valid = "integers" if annotation is int else "numbers"
            if bounds is not None:
                self.ge, self.le = bounds.ge, bounds.le
                self.valid += f" from {self.ge:.15g} to {self.le:.15g}"
        elif typing.get_origin(annotation) is typing.Literal:
            self.kind = PARAM_ENUM
            self.choices = {str(value): value for value in typing.get_args(annotation)}
        elif isinstance(annotation, type) and issubclass(annotation, Enum):
            self.kind = PARAM_ENUM
            self.choices = {str(member.value): member for member in annotation}
        elif annotation is str or annotation is _MISSING:
            self.kind = PARAM_STR
            self.valid = "any text"
        else:
            raise TypeError(f"parameter {name}: {annotation} can't be read from a query")
        if self.kind == PARAM_ENUM:
            if not self.choices:
                raise TypeError(f"parameter {name}: {annotation} has no values")
            *most, last = self.choices
            self.valid = f"{', '.join(most)} or {last}" if most else last

    cdef object read(self, str text):
        """The value that *text* stands for; raises InvalidParameter."""
        cdef object value
        if self.kind == PARAM_STR:
            return text
        if self.kind == PARAM_BOOL:
            if text == "true":
                return True
            if text == "false":
                return False
            raise InvalidParameter(self.name, self.valid)
        if self.kind == PARAM_ENUM:
            if text in self.choices:
                return self.choices[text]
            raise InvalidParameter(self.name, self.valid)
        # int() and float() take more than a query should: spaces, underscores, other digits, nan.
        if not text.isascii() or len(text) > 40 or not text.strip("+-.0123456789eE") == "":
            raise InvalidParameter(self.name, self.valid)
        try:
            value = int(text) if self.kind == PARAM_INT else float(text)
        except ValueError:
            raise InvalidParameter(self.name, self.valid) from None
        if not math.isfinite(value) or (self.ge is not None and not self.ge <= value <= self.le):
            raise InvalidParameter(self.name, self.valid)
        return value


@cython.final
cdef class QueryValidator:
    """The parameters of one handler, compiled once from its signature.

    ``validate()`` returns the keyword arguments of one call. It reports only the first problem, in
    this order: bad value, repeated name, unknown name, missing name. So torch's rule that "a bad
    value wins over an unknown name" holds for every handler.
    """

    def __init__(
        self,
        specs,
        *,
        request_name=None,
        extra=False,
        extra_name=None,
        bound=(),
        unknown_text=None,
    ):
        cdef _Param param
        self._params = {name: _Param(name, annotation, default)
                        for name, annotation, default in specs}
        self.names = tuple(self._params)
        self.request_name = request_name
        self._extra = extra
        self._extra_name = extra_name
        self._bound = frozenset((*bound, request_name))
        self._unknown_text = unknown_text
        self.asks_nothing = request_name is None
        for param in self._params.values():
            if param.default is _MISSING:
                self.asks_nothing = False

    @classmethod
    def from_callable(cls, function, *, unknown_text=None):
        """Compile the signature of *function*. TypeError if a query can't call the function.

        A parameter with the annotation Request gets the request itself. ``**name`` gets every query
        parameter that the signature doesn't name. A handler whose only parameter is a Request
        accepts any query parameter and gets it in the Request only.
        """
        try:
            signature = inspect.signature(function)
        except ValueError as error:
            raise TypeError(f"no signature to read parameters from: {error}") from None
        hints = _hints(function)
        try:
            # For example "self": a query must not set such a parameter again through **name.
            bound = inspect.signature(_underlying(function)).parameters.keys()
            bound -= signature.parameters.keys()
        except ValueError:
            bound = ()
        specs = []
        request_name = None
        extra_name = None
        for parameter in signature.parameters.values():
            annotation = hints.get(parameter.name, parameter.annotation)
            if parameter.kind is parameter.VAR_KEYWORD:
                extra_name = parameter.name
            elif parameter.kind is parameter.VAR_POSITIONAL:
                continue
            elif parameter.kind is parameter.POSITIONAL_ONLY:
                raise TypeError(f"parameter {parameter.name} is positional-only: "
                                "handlers are called with keywords")
            elif annotation is Request:
                request_name = parameter.name
            else:
                specs.append((parameter.name, annotation, parameter.default))
        return cls(
            specs,
            request_name=request_name,
            extra=extra_name is not None or (request_name is not None and not specs),
            extra_name=extra_name,
            bound=bound,
            unknown_text=unknown_text,
        )

    cpdef dict validate(self, query, form=()):
        """Keyword arguments from ``(name, value)`` pairs. A name in *query* hides it in *form*.

        Both are checked, as on torch's server; and of several bad values the one whose name comes
        first in the alphabet is reported, because torch keeps parameters in that order.

        Raises InvalidParameter, DuplicateParameter, UnknownParameter or MissingParameter.
        """
        cdef dict values = {}
        cdef set seen = set()
        cdef str name, text, repeated = None, unknown = None
        cdef _Param param
        bad = None
        for pairs in (query, form):
            earlier = frozenset(seen)
            for name, text in pairs:
                param = self._params.get(name)
                if param is not None:
                    try:
                        value = param.read(text)
                    except InvalidParameter as error:
                        if bad is None or name < bad.name:
                            bad = error
                        continue
                if name in earlier:
                    continue
                if name in seen and repeated is None and param is not None:
                    repeated = name
                seen.add(name)
                if param is not None:
                    values[name] = value
                elif not self._extra:
                    if unknown is None:
                        unknown = name
                elif self._extra_name is not None and name not in self._bound:
                    values.setdefault(name, text)
        if bad is not None:
            raise bad
        if repeated is not None:
            raise DuplicateParameter(repeated)
        if unknown is not None:
            raise UnknownParameter(unknown, self.names, self._unknown_text)
        # With **name, *values* holds others too, and their number says nothing.
        if self._extra_name is not None or len(values) < len(self._params):
            for param in self._params.values():
                if param.default is _MISSING and param.name not in values:
                    raise MissingParameter(param.name, param.valid)
        return values


def _underlying(function):
    """The function itself, out of partials, callable objects and bound methods."""
    while isinstance(function, functools.partial):  # a routine to inspect since CPython 3.14
        function = function.func
    if not inspect.isroutine(function) and not inspect.isclass(function):
        function = function.__call__
    return getattr(function, "__func__", function)


def _hints(function):
    """Type hints with strings resolved. TypeError for a name that can't be resolved."""
    try:
        return typing.get_type_hints(_underlying(function), include_extras=True)
    except NameError as error:
        raise TypeError(f"annotation can't be resolved: {error}") from None


# --- requests ---------------------------------------------------------------------------------


@cython.final
@cython.freelist(64)
cdef class ParsedRequest:
    """One request as it came: nothing decoded, nothing looked up."""

    cpdef tuple parameters(self):
        """``(query pairs, form pairs)``, decoded; raises MalformedRequest."""
        cdef list form = []
        if self.body and self.content_type is not None:
            media_type = self.content_type.partition(b";")[0].strip().lower()
            if media_type == b"application/x-www-form-urlencoded":
                form = parse_query(self.body)
        return (parse_query(self.query) if self.query else [], form)

    def to_request(self, path, peer):
        """The Request for a handler. *path* is already decoded."""
        query, form = self.parameters()
        params = {}
        for name, value in query + form:
            params.setdefault(name, value)
        return Request(
            self.method.decode("ascii"),
            path,
            params,
            list(self.headers),  # a copy, because the memo may return this request again
            self.body,
            self.http_version,
            peer,
        )

    def __repr__(self):
        return f"<ParsedRequest {self.method!r} {self.target!r}>"


@cython.final
cdef class RequestParser:
    """Bytes in, requests out. One connection owns the parser; only its loop's thread may use it.

    Between calls ``_buffer[_start:]`` holds the bytes that no request has consumed yet.
    ``_request`` is the unfinished message once its request line is complete, else None. After an
    error the parser keeps no bytes, and every further ``next_request()`` raises the same error.

    *judge* is called with each request whose head is complete and whose body is not. A
    WorkerServerError that *judge* raises ends the connection before the body is read.
    """

    def __init__(
        self,
        *,
        max_head=MAX_HEAD,
        max_headers=MAX_HEADERS,
        max_body=MAX_BODY,
        max_chunks=MAX_CHUNKS,
        judge=None,
    ):
        self._judge = judge
        self._max_head = max_head
        self._max_headers = max_headers
        self._max_body = min(max_body, PY_SSIZE_T_MAX // 32)  # so that no sum below overflows
        # Only the last chunk is empty, so a body that fits has at most as many chunks as bytes.
        self._max_chunks = min(max_chunks, max_body)
        self._http = _HttpRequestParser(self)
        self._buffer = b""
        self._start = self._scan = self._skipped = 0
        self._phase = PHASE_LINE
        self._error = None
        self._request = None
        self._memo = None
        self._memo_request = None
        self._reset_message()

    cdef int _reset_message(self) except -1:
        self._headers = []
        self._body = None
        self._body_size = self._body_left = self._framing = 0
        self._chunk_part = CHUNK_SIZE
        self._chunk_left = self._chunk_count = self._chunk_digits = 0
        self._announced = self._extensions = self._trailer_line = 0
        self._header_count = self._hosts = 0
        self._chunked = self._expects = self._complete = self._upgrade = self._alone = False
        self._closes = False
        self._coding = None
        return 0

    # --- what the connection asks

    @property
    def buffered(self):
        """Bytes received and not yet consumed by a request."""
        return len(self._buffer) - self._start

    @property
    def held(self):
        """Bytes in memory for the unfinished message: its body so far, and the buffer."""
        return self._body_size + len(self._buffer) - self._start

    @property
    def at_boundary(self):
        """True if no byte of the next request has arrived."""
        return self.between_messages()

    @property
    def in_body(self):
        """True if a request's head is complete and its body is not."""
        return self.reading_body()

    @property
    def closed(self):
        """True once the connection's last request was returned or refused."""
        return self._phase == PHASE_CLOSED

    cpdef bint take_continue(self):
        """True if the client waits for ``100 Continue`` before the body. True once per request."""
        cdef bint wanted = (
            self._expects and self.reading_body() and self._framing == 0 and self._body_size == 0
        )
        self._expects = False
        return wanted

    # --- bytes in

    cpdef receive_data(self, bytes data):
        """Keep the bytes that the connection read, for ``next_request()``."""
        cdef Py_ssize_t left
        if self._phase == PHASE_CLOSED or self._error is not None:
            return  # no later request gets an answer, so don't keep the bytes
        left = len(self._buffer) - self._start
        if left == 0:
            self._buffer = data
        elif type(self._buffer) is bytearray:
            del self._buffer[:self._start]
            self._buffer += data
        else:
            self._buffer = bytearray(memoryview(self._buffer)[self._start:])
            self._buffer += data
        self._scan -= self._start if left else self._scan
        self._start = 0

    # --- requests out

    cpdef ParsedRequest next_request(self):
        """The next complete request, or None if more bytes are needed.

        Raises ProtocolError, and what *judge* raises. The caller answers the error and then closes
        the connection.
        """
        cdef ParsedRequest done
        if self._error is not None:
            raise self._error.with_traceback(None)
        if self._phase == PHASE_LINE and self._memo is not None and self._buffer == self._memo:
            # A client that polls sends the same bytes each time. If the buffer holds exactly the
            # bytes of the last request, this is the same request.
            self._buffer = b""
            self._skipped = 0
            return self._memo_request
        try:
            if self._phase == PHASE_LINE and not self._read_line():
                return None
            if self._phase == PHASE_HEAD:
                if not self._read_head():
                    return None
                if self._judge is not None and self.reading_body():
                    self._judge(self._request)
            if self._phase == PHASE_LENGTH and not self._read_length():
                return None
            if self._phase == PHASE_CHUNKED and not self._read_chunked():
                return None
        except WorkerServerError as error:
            self._error = error
            self._buffer = b""
            self._start = self._scan = 0
            self._request = self._memo = self._memo_request = None
            self._phase = PHASE_CLOSED
            self._reset_message()
            raise
        if self._phase == PHASE_CLOSED:
            return None
        done = self._request
        if self._body is not None:
            done.body = bytes(self._body)
        done.whole = True
        self._request = None
        self._phase = PHASE_LINE if done.keep_alive else PHASE_CLOSED
        if self._upgrade or self._chunked:
            # After an Upgrade llhttp stops parsing HTTP, but we answer in HTTP and go on. After a
            # chunked body llhttp obeys trailers as if they were header fields, for example a
            # Connection: close. A fresh parser knows nothing of either.
            self._http = _HttpRequestParser(self)
        self._memo = self._memo_request = None
        if (
            self._alone and self._body is None and done.keep_alive and not self._expects
            and len(self._buffer) <= MAX_MEMO_BYTES
        ):
            self._memo = self._buffer
            self._memo_request = done
        self._reset_message()
        if self._start >= len(self._buffer) or self._phase == PHASE_CLOSED:
            self._buffer = b""
            self._start = 0
        self._scan = self._start
        return done

    cdef const unsigned char* _bytes(self, Py_ssize_t* size) except NULL:
        """The buffer's memory, valid until ``_buffer`` is replaced or grows."""
        if type(self._buffer) is bytes:
            size[0] = PyBytes_GET_SIZE(self._buffer)
            return <const unsigned char*>PyBytes_AS_STRING(self._buffer)
        size[0] = PyByteArray_GET_SIZE(self._buffer)
        return <const unsigned char*>PyByteArray_AS_STRING(self._buffer)

    cdef bint _read_line(self) except -1:
        """Find and judge the request line (RFC 9112, 3). A complete line leads to PHASE_HEAD."""
        cdef Py_ssize_t size, end
        cdef const unsigned char* data = self._bytes(&size)
        cdef const void* found
        # "at least one empty line" before the request line is to be ignored (RFC 9112, 2.2).
        while self._start < size and data[self._start] == c"\r":
            if self._start + 1 == size:
                return False
            if data[self._start + 1] != c"\n":
                raise MalformedRequest("bare CR before the request line")
            self._start += 2
            self._skipped += 2
            if self._skipped > self._max_head:
                raise MalformedRequest("only empty lines")
        if self._scan < self._start:
            self._scan = self._start
        if self._start >= size:
            return False
        if self._scan == self._start and not _TCHAR[data[self._start]]:
            # This is no HTTP, but for example a TLS hello: don't wait for the end of a line.
            raise MalformedRequest("the request line doesn't begin with a method")
        found = memchr(&data[self._scan], c"\n", size - self._scan)
        end = size if found == NULL else <const unsigned char*>found - data
        if end - self._start > self._max_head:
            if memchr(&data[self._start], c" ", self._max_head) != NULL:
                raise TargetTooLong(self._max_head)
            raise MalformedRequest("the request line doesn't begin with a method")
        if found == NULL:
            self._scan = size
            return False
        self._judge_line(data, self._start, end)
        self._scan = end  # the empty line after the head may follow at once
        self._phase = PHASE_HEAD
        return True

    cdef int _judge_line(self, const unsigned char* data, Py_ssize_t i, Py_ssize_t end) except -1:
        """``method SP request-target SP HTTP-version CRLF``, *end* at the LF."""
        cdef Py_ssize_t begin = i
        cdef ParsedRequest request
        cdef bytes method, target
        while i < end and _TCHAR[data[i]]:
            i += 1
        if i == begin or i - begin > 64 or data[i] != c" ":
            raise MalformedRequest("the request line doesn't begin with a method")
        method = PyBytes_FromStringAndSize(<const char*>&data[begin], i - begin)
        i += 1
        begin = i
        while i < end and 0x21 <= data[i] <= 0x7E:
            i += 1
        if i == begin or data[i] != c" ":
            raise MalformedRequest("bad request target")
        target = PyBytes_FromStringAndSize(<const char*>&data[begin], i - begin)
        i += 1
        if (
            end - i != 9  # HTTP/1.1 CR
            or data[i:i + 5] != b"HTTP/"
            or not 48 <= data[i + 5] <= 57
            or data[i + 6] != c"."
            or not 48 <= data[i + 7] <= 57
            or data[i + 8] != c"\r"
        ):
            raise MalformedRequest("bad HTTP version or line end")
        if data[i + 5] != c"1" or data[i + 7] > c"1":
            raise UnsupportedVersion(data[i:i + 8].decode("ascii"))
        if method == b"CONNECT":
            raise UnsupportedMethod("CONNECT")
        request = ParsedRequest()
        request.method = method
        request.http_version = "1.1" if data[i + 7] == c"1" else "1.0"
        request.body = b""
        request.host = b""
        request.session = self.session
        self._split_target(request, target)
        self._request = request
        return 0

    cdef int _split_target(self, ParsedRequest request, bytes target) except -1:
        """Origin-form, absolute-form or ``*`` (RFC 9112, 3.2)."""
        cdef const unsigned char* raw = <const unsigned char*>PyBytes_AS_STRING(target)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(target)
        cdef bytes rest = target
        cdef Py_ssize_t slash
        request.target = target
        if memchr(raw, c"#", n) != NULL:
            raise MalformedRequest("fragment in the request target")
        if memchr(raw, c"%", n) != NULL and not _valid_percent(raw, n):
            raise MalformedRequest("bad percent-encoding in the request target")
        if raw[0] != c"/":
            if target == b"*":
                if request.method != b"OPTIONS":
                    raise MalformedRequest("* is a target for OPTIONS only")
            else:
                scheme, separator, rest = target.partition(b"://")
                if not separator or scheme.lower() not in (b"http", b"https"):
                    raise MalformedRequest("bad request target")
                slash = rest.find(b"/")
                mark = rest.find(b"?")
                if mark >= 0 and (slash < 0 or mark < slash):
                    slash = mark
                request.host = rest if slash < 0 else rest[:slash]
                if not _valid_host(request.host):
                    raise MalformedRequest("no valid host in the request target")
                rest = b"/" if slash < 0 else rest[slash:]
                if rest.startswith(b"?"):
                    rest = b"/" + rest
        if memchr(raw, c"?", n) == NULL:
            request.path = rest
            request.query = b""
        else:
            request.path, _, request.query = rest.partition(b"?")
        return 0

    cdef bint _read_head(self) except -1:
        """Find the empty line, feed the whole head to httptools, and check the result further."""
        cdef Py_ssize_t size, i, end = -1
        cdef const unsigned char* data = self._bytes(&size)
        cdef const void* found
        i = self._scan
        while True:
            found = memchr(&data[i], c"\n", size - i) if i < size else NULL
            if found == NULL:
                i = size
                break
            i = <const unsigned char*>found - data
            # For httptools a lone LF never ends a line. Look for LF LF too, so that httptools
            # refuses the request now, and not the timeout for the head later.
            if i + 1 < size and data[i + 1] == c"\n":
                end = i + 2
                break
            if i + 2 < size and data[i + 1] == c"\r" and data[i + 2] == c"\n":
                end = i + 3
                break
            if i + 2 >= size:
                break  # the next bytes decide
            i += 1
        if end < 0:
            self._scan = i
            if size - self._start > self._max_head:
                raise HeadTooLarge(self._max_head, "bytes")
            return False
        if end - self._start > self._max_head:
            raise HeadTooLarge(self._max_head, "bytes")
        self._alone = self._start == 0 and end == size and type(self._buffer) is bytes
        if memchr(&data[self._start], c"\t", end - self._start) != NULL:
            # llhttp takes a tab behind "chunked" for a part of the coding (RFC 9110, 5.5).
            self._feed(_TAB_BEHIND_CODING.sub(rb"\1", self._buffer[self._start:end]))
        else:
            self._feed(self._buffer if self._alone else memoryview(self._buffer)[self._start:end])
        self._start = self._scan = end
        self._skipped = 0
        self._check_head()
        return True

    cdef int _check_head(self) except -1:
        cdef ParsedRequest request = self._request
        cdef bytes synthetic
        request.headers = self._headers
        if self._hosts != 1 and (self._hosts or request.http_version == "1.1"):
            raise MalformedRequest("exactly one Host field is required")
        if self._chunked and request.http_version == "1.0":
            raise MalformedRequest("Transfer-Encoding in HTTP/1.0")
        if self._coding is not None:
            raise UnsupportedTransferCoding(self._coding.decode("latin-1"))
        if request.http_version == "1.0":
            self._expects = False  # RFC 9110, 10.1.1
        if self._body_left > self._max_body:
            raise BodyTooLarge(self._max_body)
        if self._chunked:
            self._phase = PHASE_CHUNKED
        elif self._body_left > 0:
            self._phase = PHASE_LENGTH
        elif not self._complete:
            raise MalformedRequest("message without an end")
        if self._phase != PHASE_HEAD:
            self._body = b""
            if self._upgrade:
                # To llhttp all bytes after the head of an Upgrade, even the body, are another
                # protocol. So a fresh parser gets a head with the same framing and reads the body.
                self._complete = False
                self._http = _HttpRequestParser(self)
                synthetic = (
                    b"Transfer-Encoding: chunked" if self._chunked
                    else b"Content-Length: %d" % self._body_left
                )
                self._upgrade = False
                self._header_count = -2
                self._http.feed_data(b"POST / HTTP/1.1\r\nHost: x\r\n" + synthetic + b"\r\n\r\n")
        return 0

    cdef bint _read_length(self) except -1:
        cdef Py_ssize_t size, n
        self._bytes(&size)
        n = min(size - self._start, self._body_left)
        if n == 0:
            return False
        self._feed(memoryview(self._buffer)[self._start:self._start + n])
        self._start += n
        self._body_left -= n
        return self._body_left == 0

    cdef bint _read_chunked(self) except -1:
        """Feed all buffered bytes of this message to httptools, and none of the next message.

        The next request's line has to be judged here before httptools sees it.
        """
        cdef Py_ssize_t size, end, left
        self._bytes(&size)
        while self._start < size:
            end = self._chunked_end()
            # First httptools judges the bytes within the limits. So the verdict doesn't depend on
            # how many bytes came at once.
            left = (
                self._max_body + self._max_chunks * CHUNK_FRAMING_BYTES + self._max_head
                - self._framing
            )
            self._feed(memoryview(self._buffer)[self._start:min(end, self._start + left)])
            if end - self._start > left:
                raise BodyTooLarge(self._max_body)
            if self._chunk_count > self._max_chunks:
                raise BodyTooLarge(self._max_chunks, "chunks")
            if self._extensions > MAX_EXTENSIONS:
                raise BodyTooLarge(MAX_EXTENSIONS, "bytes of chunk extensions")
            if self._announced > self._max_body:
                raise BodyTooLarge(self._max_body)
            if self._header_count > self._max_headers:
                raise HeadTooLarge(self._max_headers, "header fields")
            self._framing += end - self._start
            self._start = end
            if self._complete:
                if self._chunk_part != CHUNK_LINES:
                    raise MalformedRequest("chunked body with an unexpected end")
                return True
        self._scan = self._start
        return False

    cdef Py_ssize_t _chunked_end(self) noexcept:
        """The index up to which httptools may be fed in one call.

        That is at most the place where the message may end or has too many chunks. Chunk sizes are
        read here only to skip chunk data: the data may hold many line ends, and one httptools call
        for each would be expensive. A line that isn't a chunk's size ends the part that is fed: at
        its end llhttp may find the end of the message or an error.
        """
        cdef Py_ssize_t size, n, i = self._start
        cdef const unsigned char* data = self._bytes(&size)
        cdef const void* found
        cdef signed char digit
        while i < size:
            if self._chunk_part == CHUNK_DATA:
                n = min(self._chunk_left, size - i)
                i += n
                self._chunk_left -= n
                if self._chunk_left == 0:
                    self._chunk_part = CHUNK_SIZE
                    self._chunk_digits = 0
            elif self._chunk_part == CHUNK_SIZE:
                digit = _HEX[data[i]]
                if digit >= 0:
                    i += 1
                    self._chunk_digits += 1
                    if self._chunk_digits > CHUNK_DIGITS:
                        self._extensions += 1
                        if self._extensions > MAX_EXTENSIONS:
                            return i
                    # Any size that is too large means the same, even one beyond Py_ssize_t.
                    self._chunk_left = min(self._chunk_left * 16 + digit, self._max_body + 1)
                elif data[i] == c";":
                    self._chunk_part = CHUNK_EXTENSION
                elif self._chunk_left > 0 and data[i] == c"\r":
                    self._chunk_part = CHUNK_SIZE_END
                else:
                    self._chunk_part = CHUNK_LINES
            else:
                found = memchr(&data[i], c"\n", size - i)
                n = size - i if found == NULL else <const unsigned char*>found - data + 1 - i
                if self._chunk_part == CHUNK_EXTENSION:
                    if n > MAX_EXTENSIONS - self._extensions:
                        i += MAX_EXTENSIONS - self._extensions
                        self._extensions = MAX_EXTENSIONS + 1
                        return i
                    self._extensions += n
                elif self._chunk_part == CHUNK_LINES:
                    self._trailer_line += n
                i += n
                if found == NULL:
                    return i
                if self._chunk_part == CHUNK_LINES or self._chunk_left == 0:
                    # httptools would tell of a trailer when the next one begins, which depends on
                    # how the bytes come.
                    if self._trailer_line > 2:  # not the empty line
                        self._header_count += 1
                    self._trailer_line = 0
                    self._chunk_part = CHUNK_LINES
                    return i
                self._chunk_part = CHUNK_DATA
                # As with a Content-Length, a body that is too large is refused before it comes.
                self._announced += self._chunk_left
                if self._announced > self._max_body:
                    return i
                self._chunk_left += 2  # its CRLF
                self._chunk_count += 1
                if self._chunk_count > self._max_chunks:
                    return i
        return i

    cdef int _feed(self, data) except -1:
        """Feed *data* to httptools. An error of httptools becomes a ProtocolError."""
        try:
            self._http.feed_data(data)
        except _HttpParserUpgrade:
            self._upgrade = True
        except _HttpParserInvalidMethodError:
            raise UnsupportedMethod(self._request.method.decode("ascii")) from None
        except _HttpParserError as error:
            if self._error is not None:  # raised in a callback below
                raise self._error from None
            raise MalformedRequest(str(error)) from None
        return 0

    # --- httptools' callbacks: an error is kept in _error, because httptools wraps it

    def on_header(self, bytes name, bytes value):
        cdef Py_ssize_t n
        if self._phase != PHASE_HEAD:
            return  # a trailer: nothing here reads any, and _chunked_end() counts its line
        self._header_count += 1
        if self._header_count <= 0:
            return  # a field of the synthetic head
        if self._header_count > self._max_headers:
            self._refuse(HeadTooLarge(self._max_headers, "header fields"))
        name = name.lower()
        n = PyBytes_GET_SIZE(value)
        if n > 0 and (value[n - 1] == c" " or value[n - 1] == c"\t"):
            value = value.rstrip(b" \t")  # llhttp strips on the left only (RFC 9112, 5.1)
        self._headers.append((name, value))
        n = PyBytes_GET_SIZE(name)
        if n == 4:
            if name == b"host":
                self._on_host(value)
        elif n == 6:
            if name == b"expect":
                if value.lower() != b"100-continue":
                    if self._request.http_version == "1.1":
                        self._refuse(UnsupportedExpectation(value.decode("latin-1")))
                self._expects = True
            elif name == b"origin":
                self._request.cross_site = True
        elif n == 10:
            if name == b"connection" and self._request.http_version == "1.0":
                # "keep-alive, close" means close (RFC 9112, 9.3), but llhttp keeps it open.
                if b"close" in [option.strip(b" \t") for option in value.lower().split(b",")]:
                    self._closes = True
        elif n == 12:
            if name == b"content-type":
                self._request.content_type = value
        elif n == 13:
            if name == b"authorization":
                if self._request.authorization is not None:
                    self._refuse(MalformedRequest("more than one Authorization field"))
                self._request.authorization = value
        elif n == 14:
            if name == b"content-length":
                # Cut, because a length may exceed Py_ssize_t. Every length over the limit fails
                # in the same way.
                self._body_left = min(int(value), self._max_body + 1)
            elif name == b"sec-fetch-site":
                if value.lower() == b"cross-site":
                    self._request.cross_site = True
        elif n == 17:
            if name == b"transfer-encoding":
                # llhttp makes sure that the last coding of the last field is chunked.
                if value.lower() != b"chunked":
                    self._coding = value
                self._chunked = True

    cdef int _on_host(self, bytes value) except -1:
        self._hosts += 1
        if not _valid_host(value):
            self._refuse(MalformedRequest("bad Host field"))
        if not self._request.host:
            self._request.host = value
        return 0

    cdef int _refuse(self, error) except -1:
        self._error = error
        raise error

    def on_headers_complete(self):
        if self._phase == PHASE_HEAD:
            self._request.keep_alive = not self._closes and self._http.should_keep_alive()

    def on_body(self, bytes body):
        self._body_size += PyBytes_GET_SIZE(body)
        if self._body_size > self._max_body:
            self._refuse(BodyTooLarge(self._max_body))
        # One growing buffer and not a list: a list of tiny chunks would take many times their size.
        if not self._body:
            self._body = body
        else:
            if type(self._body) is bytes:
                self._body = bytearray(self._body)
            self._body += body

    def on_message_complete(self):
        self._complete = True
