"""The head of an answer, if it is plain: RFC 9112 without any of its exceptions.

What is not plain is no error yet. The client of Python reads such answers.
"""

from libc.string cimport memchr, memcmp


cdef extern from "<strings.h>" nogil:
    int strncasecmp(const char *a, const char *b, size_t size) noexcept

cdef extern from *:
    """
    #include <string.h>

    /* RFC 9110, section 5.6.2: the characters of a field's name. */
    static inline int ask_is_token(unsigned char c)
    {
        return (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z')
            || (c && strchr("!#$%&'*+-.^_`|~", c) != NULL);
    }
    """
    bint ask_is_token(unsigned char c) noexcept nogil


cdef inline bint is_digit(char c) noexcept nogil:
    return c"0" <= c <= c"9"


cdef inline bint is_text(const char *text, size_t size) noexcept nogil:
    """Whether there are no control characters but tabs in it."""
    cdef size_t i
    cdef unsigned char c
    for i in range(size):
        c = <unsigned char>text[i]
        if (c < 32 and c != 9) or c == 127:
            return False
    return True


cdef inline bint named(
    const char *name, size_t size, const char *word, size_t length
) noexcept nogil:
    return size == length and strncasecmp(name, word, length) == 0


cdef size_t head_end(const char *data, size_t size, size_t scanned) noexcept nogil:
    """The size of the head with its empty line; 0 if its end has not come. *scanned*: bytes that
    were searched before."""
    cdef size_t at = scanned - 3 if scanned > 3 else 0
    cdef const char *found
    while at + 4 <= size:
        found = <const char *>memchr(data + at, c"\r", size - at - 3)
        if found is NULL:
            return 0
        if memcmp(found, b"\r\n\r\n", 4) == 0:
            return <size_t>(found - data) + 4
        at = <size_t>(found - data) + 1
    return 0


cdef bint read_head(const char *data, size_t size, int max_fields, Reply *reply) noexcept nogil:
    """Read a head of *size* bytes, with its empty line. False if it is not plain."""
    cdef const char *end
    cdef size_t at, line
    cdef int count = 0
    cdef bint has_length = False
    end = <const char *>memchr(data, c"\r", size)
    line = <size_t>(end - data)
    if line < 12 or memcmp(data, b"HTTP/1.", 7) != 0 or end[1] != c"\n":
        return False
    if data[7] not in (c"0", c"1") or data[8] != c" " or (line > 12 and data[12] != c" "):
        return False
    if not (is_digit(data[9]) and is_digit(data[10]) and is_digit(data[11])):
        return False
    reply.status = (data[9] - c"0") * 100 + (data[10] - c"0") * 10 + data[11] - c"0"
    # An interim answer, and one without a body by its status.
    if not 200 <= reply.status < 600 or reply.status == 204 or reply.status == 304:
        return False
    reply.reason = min(<size_t>13, line)
    if not is_text(data + reply.reason, line - reply.reason):
        return False
    reply.closes = data[7] == c"0"
    reply.without_gil = False
    reply.fields = at = line + 2
    reply.challenge_size = reply.info_size = 0
    while at < size - 2:
        end = <const char *>memchr(data + at, c"\r", size - at)
        if end[1] != c"\n":
            return False
        line = <size_t>(end - data) - at
        count += 1
        if count > max_fields or not read_field(data, at, line, reply, &has_length):
            return False
        at += line + 2
    return has_length


cdef bint read_field(
    const char *data, size_t at, size_t size, Reply *reply, bint *has_length
) noexcept nogil:
    """Read the line of *size* bytes at *at*. False if the field changes how the answer is to be
    read, or is not plain."""
    cdef const char *line = data + at
    cdef const char *colon = <const char *>memchr(line, c":", size)
    cdef const char *value
    cdef size_t name, length, i
    if colon is NULL or colon == line:
        return False
    name = <size_t>(colon - line)
    for i in range(name):
        if not ask_is_token(<unsigned char>line[i]):
            return False
    value = colon + 1
    length = size - name - 1
    while length and (value[0] == c" " or value[0] == c"\t"):
        value += 1
        length -= 1
    if not is_text(value, length):
        return False
    if length and (value[length - 1] == c" " or value[length - 1] == c"\t"):
        return False
    if named(line, name, b"content-length", 14):
        if has_length[0] or not 0 < length <= 15:
            return False
        has_length[0] = True
        reply.length = 0
        for i in range(length):
            if not is_digit(value[i]):
                return False
            reply.length = reply.length * 10 + <size_t>(value[i] - c"0")
    elif named(line, name, b"connection", 10):
        if named(value, length, b"close", 5):
            reply.closes = True
        elif named(value, length, b"keep-alive", 10):
            reply.closes = False
        else:
            return False
    elif named(line, name, b"www-authenticate", 16):
        reply.challenge = <size_t>(value - data)
        reply.challenge_size = length
    elif named(line, name, b"authentication-info", 19):
        reply.info = <size_t>(value - data)
        reply.info_size = length
    elif named(line, name, b"x-traceback-mode", 16):
        reply.without_gil = not named(value, length, b"gil", 3)
    elif (
        named(line, name, b"transfer-encoding", 17)
        or named(line, name, b"content-encoding", 16)
        or named(line, name, b"upgrade", 7)
        or named(line, name, b"proxy-connection", 16)
    ):
        return False
    return True
