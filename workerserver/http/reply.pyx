"""The bytes of replies."""

from http import HTTPStatus

cdef int MAX_HEADS = 256

# (status, content type, length) -> head, for replies without further header fields.
cdef dict _heads = {}
cdef dict _REASONS = {int(status): status.phrase.encode() for status in HTTPStatus}


cdef bytes reply_head(response, Py_ssize_t length, bint close, bint http_1_0):
    """The head of *response*, whose body has *length* bytes; *close*: the connection's last."""
    cdef int status = response.status
    cdef bytes head
    cdef str extra
    headers = response.headers
    if close or http_1_0 or headers or status == 204 or status == 304:
        extra = "Connection: close\r\n" if close else ""
        if http_1_0 and not close:
            extra = "Connection: keep-alive\r\n"
        for field, value in headers:
            extra += f"{field}: {value}\r\n"
        return _head(status, response.content_type, length, extra)
    shape = (status, response.content_type, length)
    head = _heads.get(shape)
    if head is None:
        head = _head(status, shape[1], length, "")
        if len(_heads) < MAX_HEADS:
            _heads[shape] = head
    return head


cdef bytes _head(int status, str content_type, Py_ssize_t length, str extra):
    """A reply's head; *extra* is whole header lines."""
    if status == 204 or status == 304:  # no body, and no length of one (RFC 9110, 8.6)
        return b"HTTP/1.1 %d %b\r\n%b\r\n" % (
            status, _REASONS[status], extra.encode("latin-1", "replace")
        )
    if content_type:
        extra = f"Content-Type: {content_type}\r\nContent-Length: {length}\r\n{extra}"
    else:  # of nothing, as torch's server has it
        extra = f"Content-Length: {length}\r\n{extra}"
    return b"HTTP/1.1 %d %b\r\n%b\r\n" % (
        status, _REASONS.get(status, b""), extra.encode("latin-1", "replace")
    )


def whole_reply(response, bint close):
    """*response* as it is sent; for replies that are made before a request comes."""
    return reply_head(response, len(response.body), close, False) + response.body
