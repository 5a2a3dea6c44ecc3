"""A small HTTP client for one peer that is known: torch's own server on a private Unix socket.

The I/O thread asks it for torch's C++ handlers while the GIL can't be had. Nothing here takes the
GIL, waits, or touches a Python object, except ``fetch`` and its result.

A ``Relay`` is one request on one connection, and belongs to one thread::

    relay_init(&relay)
    if relay_listens(listener, inode) and relay_open(&relay, path, target, size) == 0:
        ... the request is sent; whenever relay.fd is readable: relay_read(&relay)
    relay_close(&relay)     # always; frees the reply

``relay_read`` takes what has come, at most ``READ_SLICE`` a call so that a large reply doesn't
keep the thread from others (poll level-triggered), and says MORE, DONE or FAILED. The buffer comes
from malloc() and grows by doubling: that may take locks of the C library's allocator, which nobody
holds while waiting for the GIL.

The peer is trusted to mean well, not to be right: a reply that isn't plainly understood is FAILED.
"""

from libc.errno cimport EAGAIN, EINTR, EINVAL, ENAMETOOLONG, errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memchr, memcmp, memcpy, memset, strlen
from posix.unistd cimport close

from workerserver.native.system cimport (
    AF_UNIX, MSG_NOSIGNAL, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, connect, fstat, iovec, msghdr,
    recv, sa_family_t, sendmsg, sockaddr, sockaddr_un, socket, stat_t, strncasecmp,
)

cdef enum:
    MAX_TARGET = 8192          # what cpp-httplib takes
    MAX_HEAD = 16 << 10
    MAX_BODY = 256 << 20
    FIRST_BUFFER = 32 << 10
    READ_SLICE = 1 << 20

cdef const char* RELAY_METHOD = b"POST "
cdef const char* RELAY_REST = (
    b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)


cdef int _failed(Relay* relay, const char* reason, int error) noexcept nogil:
    relay.reason = reason
    relay.error = error
    return RELAY_FAILED


cdef void relay_init(Relay* relay) noexcept nogil:
    memset(relay, 0, sizeof(Relay))
    relay.fd = -1


cdef void relay_close(Relay* relay) noexcept nogil:
    """Close the connection and free the reply. Harmless when repeated; ``reason`` stays."""
    if relay.fd >= 0:
        close(relay.fd)
        relay.fd = -1
    free(relay.data)
    relay.data = NULL
    relay.size = relay.capacity = 0


cdef bint relay_listens(int listener, uint64_t inode) noexcept nogil:
    """Whether descriptor *listener* still is the peer's socket, of that *inode*.

    Where somebody has closed it (``os.closerange``), torch's server still sleeps in accept(); the
    next connection would wake it, and it would end the process. So ask this before each.
    """
    cdef stat_t found
    return fstat(listener, &found) == 0 and <uint64_t>found.st_ino == inode


cdef int relay_open(
    Relay* relay, const char* path, const char* target, size_t target_size
) noexcept nogil:
    """Connect to the socket at *path* and send ``POST`` *target*; 0, or -1 with the reason set.

    *target* is copied out before this returns. Never waits: a peer with a full backlog fails.
    """
    cdef sockaddr_un address
    cdef msghdr message
    cdef iovec parts[3]
    cdef size_t at, wanted, path_size = strlen(path)
    cdef Py_ssize_t sent
    if path_size == 0 or path_size >= sizeof(address.sun_path):
        return _failed(relay, b"the peer's path fits no socket address", ENAMETOOLONG)
    if target_size == 0 or target_size > MAX_TARGET or target[0] != b"/":
        return _failed(relay, b"the request target is empty, too long or no path", EINVAL)
    for at in range(target_size):
        # Anything else could end the request line and begin another request.
        if target[at] <= 0x20 or target[at] >= 0x7f:
            return _failed(relay, b"the request target holds a byte that no target may", EINVAL)
    memset(&address, 0, sizeof(address))
    address.sun_family = <sa_family_t>AF_UNIX
    memcpy(address.sun_path, path, path_size)
    relay.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)
    if relay.fd < 0:
        return _failed(relay, b"no socket could be made", errno)
    # On a Unix socket that doesn't block, connect() succeeds or fails at once.
    if connect(relay.fd, <sockaddr*>&address, sizeof(address)) < 0:
        return _failed(relay, b"the peer takes no connection", errno)
    parts[0].iov_base = <void*>RELAY_METHOD
    parts[0].iov_len = strlen(RELAY_METHOD)
    parts[1].iov_base = <void*>target
    parts[1].iov_len = target_size
    parts[2].iov_base = <void*>RELAY_REST
    parts[2].iov_len = strlen(RELAY_REST)
    wanted = parts[0].iov_len + parts[1].iov_len + parts[2].iov_len
    memset(&message, 0, sizeof(message))
    message.msg_iov = parts
    message.msg_iovlen = 3
    while True:
        sent = sendmsg(relay.fd, &message, MSG_NOSIGNAL)
        if sent >= 0 or errno != EINTR:
            break
    if sent < 0:
        return _failed(relay, b"the request could not be sent", errno)
    if <size_t>sent != wanted:  # a socket buffer below 9 KiB
        return _failed(relay, b"the request could not be sent at once", EAGAIN)
    return 0


cdef int relay_read(Relay* relay) noexcept nogil:
    """Take what has come: RELAY_MORE, RELAY_DONE or RELAY_FAILED. Call it until it isn't MORE."""
    cdef size_t room, taken = 0
    cdef Py_ssize_t got
    cdef int state
    if relay.fd < 0:
        return _failed(relay, b"the relay is not connected", 0)
    while taken < READ_SLICE:
        if relay.size == relay.capacity and _grow(relay) < 0:
            return RELAY_FAILED
        room = min(relay.capacity - relay.size, <size_t>READ_SLICE)
        got = recv(relay.fd, relay.data + relay.size, room, 0)
        if got < 0:
            if errno == EINTR:
                continue
            if errno == EAGAIN:  # on Linux also EWOULDBLOCK
                return RELAY_MORE
            return _failed(relay, b"the connection broke", errno)
        if got == 0:
            return _at_end(relay)
        relay.size += <size_t>got
        taken += <size_t>got
        state = _progress(relay)
        if state != RELAY_MORE:
            return state
    return RELAY_MORE


cdef int _grow(Relay* relay) noexcept nogil:
    cdef size_t limit = <size_t>MAX_HEAD + <size_t>MAX_BODY + 1  # one more shows an excess
    cdef size_t wanted = 2 * relay.capacity if relay.capacity else FIRST_BUFFER
    cdef char* grown
    wanted = min(wanted, limit)
    if wanted <= relay.capacity:
        return _failed(relay, b"the reply is larger than 256 MiB", 0)
    grown = <char*>realloc(relay.data, wanted)
    if grown == NULL:
        return _failed(relay, b"no memory for the reply", 0)
    relay.data = grown
    relay.capacity = wanted
    return 0


cdef int _progress(Relay* relay) noexcept nogil:
    cdef size_t body
    if not relay.headed:
        if not _find_head(relay):
            if relay.size > MAX_HEAD:
                return _failed(relay, b"the reply's head is larger than 16 KiB", 0)
            return RELAY_MORE
        if _parse_head(relay) < 0:
            return RELAY_FAILED
    body = relay.size - relay.body_start
    if not relay.delimited:
        if body > MAX_BODY:
            return _failed(relay, b"the reply is larger than 256 MiB", 0)
        return RELAY_MORE
    if body > relay.body_size:
        return _failed(relay, b"the reply is longer than it said", 0)
    return RELAY_DONE if body == relay.body_size else RELAY_MORE


cdef int _at_end(Relay* relay) noexcept nogil:
    if not relay.headed or relay.delimited:
        return _failed(relay, b"the peer closed the connection before its reply was complete", 0)
    relay.body_size = relay.size - relay.body_start
    return RELAY_DONE


cdef bint _find_head(Relay* relay) noexcept nogil:
    """Whether the empty line has come; sets body_start behind it."""
    cdef const char* found
    while relay.scanned + 4 <= relay.size:
        found = <const char*>memchr(
            relay.data + relay.scanned, c"\r", relay.size - relay.scanned - 3
        )
        if found == NULL:
            relay.scanned = relay.size - 3
            return False
        relay.scanned = <size_t>(found - relay.data)
        if memcmp(found, b"\r\n\r\n", 4) == 0:
            relay.body_start = relay.scanned + 4
            return relay.body_start <= MAX_HEAD
        relay.scanned += 1
    return False


cdef int _parse_head(Relay* relay) noexcept nogil:
    """Read status, content type and length from the head; 0, or -1 with the reason set."""
    cdef size_t end = relay.body_start - 2  # behind the last header line's CRLF
    cdef size_t line = 0, stop
    cdef const char* found
    relay.headed = True
    while line < end:
        found = <const char*>memchr(relay.data + line, c"\r", end - line)
        stop = <size_t>(found - relay.data)  # there is one: the head ends with CRLF CRLF
        if relay.data[stop + 1] != c"\n":
            return _failed(relay, b"a line of the reply's head holds a bare CR", 0)
        if line == 0:
            if _parse_status(relay, stop) < 0:
                return -1
        elif _parse_header(relay, line, stop) < 0:
            return -1
        line = stop + 2
    return 0


cdef inline bint _is_digit(char byte) noexcept nogil:
    return c"0" <= byte <= c"9"


cdef inline bint _is_text(char byte) noexcept nogil:
    """Whether a header's value or a reason phrase may hold it: no control characters but tab."""
    cdef unsigned char code = <unsigned char>byte
    return code >= 0x20 and code != 0x7f or code == 0x09


cdef inline bint _is_token(char byte) noexcept nogil:
    """tchar, RFC 9110 section 5.6.2."""
    if _is_digit(byte) or c"a" <= byte <= c"z" or c"A" <= byte <= c"Z":
        return True
    return byte != 0 and memchr(b"!#$%&'*+-.^_`|~", byte, 15) != NULL


cdef int _parse_status(Relay* relay, size_t stop) noexcept nogil:
    """``HTTP/1.x NNN reason``, RFC 9112 section 4; the reason may be missing."""
    cdef const char* data = relay.data
    cdef size_t at
    if (
        stop < 12
        or memcmp(data, b"HTTP/1.", 7) != 0
        or (data[7] != c"1" and data[7] != c"0")
        or data[8] != c" "
        or not (_is_digit(data[9]) and _is_digit(data[10]) and _is_digit(data[11]))
        or (stop > 12 and data[12] != c" ")
    ):
        return _failed(relay, b"the reply has no status line of HTTP/1", 0)
    for at in range(12, stop):
        if not _is_text(data[at]):
            return _failed(relay, b"the reply has no status line of HTTP/1", 0)
    relay.status = 100 * (data[9] - c"0") + 10 * (data[10] - c"0") + (data[11] - c"0")
    # Interim replies, and those that have no body whatever their head says: nothing to pass on.
    if not 200 <= relay.status <= 599 or relay.status == 204 or relay.status == 304:
        return _failed(relay, b"the reply's status is none that could be passed on", 0)
    return 0


cdef int _parse_header(Relay* relay, size_t start, size_t stop) noexcept nogil:
    cdef const char* data = relay.data
    cdef size_t at, name_size, value = start
    while value < stop and _is_token(data[value]):
        value += 1
    name_size = value - start
    if name_size == 0 or value == stop or data[value] != c":":
        return _failed(relay, b"a line of the reply's head is no header", 0)
    value += 1
    for at in range(value, stop):
        if not _is_text(data[at]):
            return _failed(relay, b"a line of the reply's head is no header", 0)
    while value < stop and (data[value] == c" " or data[value] == c"\t"):
        value += 1
    while stop > value and (data[stop - 1] == c" " or data[stop - 1] == c"\t"):
        stop -= 1
    if _is_name(data + start, name_size, b"content-length"):
        return _parse_length(relay, value, stop)
    if _is_name(data + start, name_size, b"content-type"):
        if relay.type_size:
            return _failed(relay, b"the reply has two content types", 0)
        relay.type_start = value
        relay.type_size = stop - value
    elif _is_name(data + start, name_size, b"transfer-encoding"):
        return _failed(relay, b"the reply has a transfer encoding", 0)
    elif _is_name(data + start, name_size, b"content-encoding"):
        return _failed(relay, b"the reply has a content encoding", 0)
    return 0


cdef inline bint _is_name(const char* name, size_t size, const char* wanted) noexcept nogil:
    return size == strlen(wanted) and strncasecmp(name, wanted, size) == 0


cdef int _parse_length(Relay* relay, size_t value, size_t stop) noexcept nogil:
    cdef size_t at, length = 0
    if relay.delimited:
        return _failed(relay, b"the reply has two content lengths", 0)
    if value == stop:
        return _failed(relay, b"the reply's content length is no number", 0)
    for at in range(value, stop):
        if not _is_digit(relay.data[at]):
            return _failed(relay, b"the reply's content length is no number", 0)
        length = 10 * length + <size_t>(relay.data[at] - c"0")
        if length > MAX_BODY:
            return _failed(relay, b"the reply is larger than 256 MiB", 0)
    relay.delimited = True
    relay.body_size = length
    return 0
