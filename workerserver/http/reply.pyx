"""The bytes of replies."""

from workerserver.http.accept cimport openmetrics_wanted
from workerserver.http.date cimport DATE_FIELD, HttpDate, renew_date, write_date

from http import HTTPStatus

cdef int MAX_HEADS = 256

# (status, content type, length) -> head, for replies without further header fields; of one second.
cdef dict _heads = {}
cdef HttpDate _date
cdef dict _REASONS = {int(status): status.phrase.encode() for status in HTTPStatus}


def date_field(long second):
    """The line of a Date field, for a number of seconds since 1970."""
    cdef HttpDate date
    write_date(&date, second)
    return date.field[:DATE_FIELD]


def wants_openmetrics(bytes accept not None):
    """Whether a client with this Accept field gets ``/metrics`` as OpenMetrics, and not as
    Prometheus' own text."""
    return bool(openmetrics_wanted(<const char *>accept, <int>len(accept)))


cdef bytes _EPOCH = date_field(0)


cdef bytes reply_head(
    response, Py_ssize_t length, bint close, bint http_1_0, bytes proof=b""
):
    """The head of *response*, whose body has *length* bytes; *close*: the connection's last.
    *proof*: one more line."""
    cdef int status = response.status
    cdef bytes head
    if renew_date(&_date):
        _heads.clear()
    if proof or close or http_1_0 or response.headers or status == 204 or status == 304:
        return _full_head(response, length, close, http_1_0, _date.field[:DATE_FIELD], proof)
    shape = (status, response.content_type, length)
    head = _heads.get(shape)
    if head is None:
        head = _head(status, shape[1], length, _date.field[:DATE_FIELD], "")
        if len(_heads) < MAX_HEADS:
            _heads[shape] = head
    return head


cdef bytes _full_head(
    response, Py_ssize_t length, bint close, bint http_1_0, bytes date, bytes proof=b""
):
    """*date* is left out if the response has a Date field of its own."""
    cdef str extra = "Connection: close\r\n" if close else ""
    if http_1_0 and not close:
        extra = "Connection: keep-alive\r\n"
    for field, value in response.headers:
        extra += f"{field}: {value}\r\n"
        if field.lower() == "date":
            date = b""
    extra += proof.decode("ascii")
    return _head(response.status, response.content_type, length, date, extra)


cdef bytes _head(int status, str content_type, Py_ssize_t length, bytes date, str extra):
    """A reply's head; *date* and *extra* are whole header lines."""
    if status == 204 or status == 304:  # no body, and no length of one (RFC 9110, 8.6)
        return b"HTTP/1.1 %d %b\r\n%b%b\r\n" % (
            status, _REASONS[status], date, extra.encode("latin-1", "replace")
        )
    if content_type:
        extra = f"Content-Type: {content_type}\r\nContent-Length: {length}\r\n{extra}"
    else:  # of nothing, as torch's server has it
        extra = f"Content-Length: {length}\r\n{extra}"
    return b"HTTP/1.1 %d %b\r\n%b%b\r\n" % (
        status, _REASONS.get(status, b""), date, extra.encode("latin-1", "replace")
    )


def whole_reply(response, bint close):
    """*response* as it is sent, for replies that are made before a request comes. Its date is that
    of second 0: the I/O thread writes the present one over it."""
    cdef Py_ssize_t size = len(response.body)
    return _full_head(response, size, close, False, _EPOCH) + response.body
