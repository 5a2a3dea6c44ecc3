"""Reads HTTP/1.x replies (RFC 9112) without keeping them, for their end and their status.

A body has a Content-Length, or is chunked, or ends when the connection closes. Replies to HEAD, and
with 204 and 304, have none. 1xx replies may come before. Everything else is malformed, so that a
measurement never counts it as answered.
"""

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memset

cdef extern from "<strings.h>" nogil:
    int strncasecmp(const char *one, const char *other, size_t size)


cdef void reply_begin(Reply *reply, bint head_only) noexcept nogil:
    reply.state = REPLY_STATUS
    reply.status = 0
    reply.head_only = head_only
    reply.left = reply.body = 0
    reply.head = reply.kept = reply.line_size = 0
    _forget_fields(reply)


cdef void _forget_fields(Reply *reply) noexcept nogil:
    reply.coded = reply.chunked = False
    reply.length = -1


cdef bint reply_closed(Reply *reply) noexcept nogil:
    if reply.state == REPLY_UNTIL_CLOSE:
        reply.state = REPLY_DONE
    return reply.state == REPLY_DONE


cdef size_t reply_feed(Reply *reply, const char *data, size_t size) noexcept nogil:
    cdef size_t used = 0, part
    cdef const char *end
    while used < size and reply.state < REPLY_DONE:
        if reply.state == REPLY_UNTIL_CLOSE:
            reply.body += size - used
            return size
        if reply.state == REPLY_BODY or reply.state == REPLY_CHUNK:
            part = min(reply.left, <uint64_t>(size - used))
            used += part
            reply.left -= part
            reply.body += part
            if reply.left == 0:
                reply.state = REPLY_DONE if reply.state == REPLY_BODY else REPLY_CHUNK_END
            continue
        end = <const char *>memchr(data + used, c"\n", size - used)
        part = size - used if end is NULL else <size_t>(end - data) - used
        reply.head += part + (end != NULL)
        if reply.head > MAX_HEAD_BYTES:
            reply.state = REPLY_MALFORMED
            return used
        if end is NULL:
            _keep(reply, data + used, part)
            return size
        if reply.line_size:
            _keep(reply, data + used, part)
            _line(reply, reply.line, reply.kept, reply.line_size > KEPT_LINE_BYTES)
            reply.kept = reply.line_size = 0
        else:
            _line(reply, data + used, min(part, <size_t>KEPT_LINE_BYTES), part > KEPT_LINE_BYTES)
        used += part + 1
    return used


cdef void _keep(Reply *reply, const char *data, size_t size) noexcept nogil:
    reply.line_size += size
    size = min(size, <size_t>KEPT_LINE_BYTES - reply.kept)
    memcpy(reply.line + reply.kept, data, size)
    reply.kept += size


cdef void _line(Reply *reply, const char *line, size_t size, bint cut) noexcept nogil:
    """A line without its line feed. *cut*: it is longer, and *line* its beginning, whether it came
    whole or in pieces."""
    if size and line[size - 1] == c"\r":
        size -= 1
    if reply.state == REPLY_STATUS:
        _status_line(reply, line, size)
    elif reply.state == REPLY_FIELDS:
        if size:
            _field(reply, line, size, cut)
        else:
            _head_ends(reply)
    elif reply.state == REPLY_CHUNK_SIZE:
        reply.head = 0  # a body may have any number of chunks
        _chunk_size(reply, line, size)
    elif reply.state == REPLY_CHUNK_END:
        reply.state = REPLY_MALFORMED if size else REPLY_CHUNK_SIZE
    elif size == 0:
        reply.state = REPLY_DONE  # the trailer has ended


cdef inline bint _digit(char byte) noexcept nogil:
    return c"0" <= byte <= c"9"


cdef void _status_line(Reply *reply, const char *line, size_t size) noexcept nogil:
    """``HTTP/1.1 200 OK``, the reason optional (section 4)."""
    reply.state = REPLY_MALFORMED
    if size < 12 or memcmp(line, b"HTTP/1.", 7) != 0 or line[8] != c" " or not _digit(line[7]):
        return
    if not (_digit(line[9]) and _digit(line[10]) and _digit(line[11])) or line[9] == c"0":
        return
    if size > 12 and line[12] != c" ":
        return
    reply.status = (line[9] - c"0") * 100 + (line[10] - c"0") * 10 + line[11] - c"0"
    reply.keep_alive = line[7] != c"0"
    reply.state = REPLY_FIELDS


cdef void _field(Reply *reply, const char *line, size_t size, bint cut) noexcept nogil:
    cdef const char *colon = <const char *>memchr(line, c":", size)
    cdef const char *value
    cdef size_t name, length
    # No name, and a line folded onto the one before (obsolete since RFC 7230).
    if colon is NULL or colon == line or line[0] == c" " or line[0] == c"\t":
        reply.state = REPLY_MALFORMED
        return
    name = <size_t>(colon - line)
    value = colon + 1
    length = size - name - 1
    while length and (value[0] == c" " or value[0] == c"\t"):
        value += 1
        length -= 1
    while length and (value[length - 1] == c" " or value[length - 1] == c"\t"):
        length -= 1
    if cut and (
        name == 14 and strncasecmp(line, b"content-length", 14) == 0
        or name == 17 and strncasecmp(line, b"transfer-encoding", 17) == 0
        or name == 10 and strncasecmp(line, b"connection", 10) == 0
    ):
        # Their end counts too. Nobody sends such long ones.
        reply.state = REPLY_MALFORMED
    elif name == 14 and strncasecmp(line, b"content-length", 14) == 0:
        _content_length(reply, value, length)
    elif name == 17 and strncasecmp(line, b"transfer-encoding", 17) == 0:
        reply.coded = True
        # Only the last coding can be chunked, and only that one tells where the body ends.
        reply.chunked = length >= 7 and strncasecmp(value + length - 7, b"chunked", 7) == 0
    elif name == 10 and strncasecmp(line, b"connection", 10) == 0:
        if _lists(value, length, b"close", 5):
            reply.keep_alive = False
        elif _lists(value, length, b"keep-alive", 10):
            reply.keep_alive = True


cdef bint _lists(const char *value, size_t length, const char *word, size_t size) noexcept nogil:
    """Whether a comma-separated list holds *word*."""
    cdef size_t at = 0, begin
    while at < length:
        while at < length and (value[at] == c" " or value[at] == c"\t" or value[at] == c","):
            at += 1
        begin = at
        while at < length and value[at] != c"," and value[at] != c" " and value[at] != c"\t":
            at += 1
        if at - begin == size and strncasecmp(value + begin, word, size) == 0:
            return True
    return False


cdef void _content_length(Reply *reply, const char *value, size_t length) noexcept nogil:
    cdef int64_t found = 0
    cdef size_t at
    if length == 0 or length > 18:  # no sum overflows
        reply.state = REPLY_MALFORMED
        return
    for at in range(length):
        if not _digit(value[at]):
            reply.state = REPLY_MALFORMED
            return
        found = found * 10 + value[at] - c"0"
    if reply.length >= 0 and reply.length != found:
        reply.state = REPLY_MALFORMED
    reply.length = found


cdef void _head_ends(Reply *reply) noexcept nogil:
    """Section 6.3: how long the body is."""
    if reply.status < 200:
        # 101 is no step towards a reply, and nobody asked for another protocol.
        reply.state = REPLY_MALFORMED if reply.status == 101 else REPLY_STATUS
        _forget_fields(reply)
    elif reply.head_only or reply.status == 204 or reply.status == 304:
        reply.state = REPLY_DONE
    elif reply.chunked:
        reply.state = REPLY_CHUNK_SIZE
    elif reply.coded or reply.length < 0:
        reply.state = REPLY_UNTIL_CLOSE
        reply.keep_alive = False
    elif reply.length == 0:
        reply.state = REPLY_DONE
    else:
        reply.left = <uint64_t>reply.length
        reply.state = REPLY_BODY


cdef void _chunk_size(Reply *reply, const char *line, size_t size) noexcept nogil:
    """Hexadecimal digits; extensions behind them are not looked at (section 7.1)."""
    cdef uint64_t found = 0
    cdef size_t at = 0
    cdef char byte
    while at < size:
        byte = line[at]
        if _digit(byte):
            found = found * 16 + <uint64_t>(byte - c"0")
        elif c"a" <= byte | 0x20 <= c"f":
            found = found * 16 + <uint64_t>((byte | 0x20) - c"a" + 10)
        else:
            break
        at += 1
    if at == 0 or at > 15 or (at < size and line[at] not in (c";", c" ", c"\t")):
        reply.state = REPLY_MALFORMED
        return
    reply.left = found
    reply.state = REPLY_CHUNK if found else REPLY_TRAILER


def read_reply(pieces, *, bint head_only=False, bint closed=False):
    """What comes of *pieces* (bytes, fed one after the other): ``(state, status, keep_alive, body
    bytes, bytes left over)``; the state is ``"done"``, ``"malformed"`` or ``"more"``.

    *closed*: the peer closes behind them. *head_only*: the request was HEAD.
    """
    cdef Reply reply
    cdef const char *data
    cdef size_t size, used
    cdef size_t over = 0
    memset(&reply, 0, sizeof(reply))
    reply_begin(&reply, head_only)
    for piece in pieces:
        data = piece
        size = len(piece)
        used = reply_feed(&reply, data, size)
        over += size - used
    if closed:
        reply_closed(&reply)
    state = {REPLY_DONE: "done", REPLY_MALFORMED: "malformed"}.get(reply.state, "more")
    return state, reply.status, bool(reply.keep_alive), reply.body, over
