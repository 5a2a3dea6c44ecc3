"""One HTTP/1 reply as a client reads it, to find its end. No Python, no allocation."""

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    KEPT_LINE_BYTES = 256        # of a line; a longer one is judged by its beginning
    MAX_HEAD_BYTES = 256 << 10   # all lines of a head


cdef enum ReplyState:
    REPLY_STATUS
    REPLY_FIELDS
    REPLY_BODY
    REPLY_CHUNK_SIZE
    REPLY_CHUNK
    REPLY_CHUNK_END
    REPLY_TRAILER
    REPLY_UNTIL_CLOSE
    REPLY_DONE
    REPLY_MALFORMED


cdef struct Reply:
    ReplyState state
    int status
    bint head_only     # the request was HEAD
    bint keep_alive
    bint coded         # a Transfer-Encoding came
    bint chunked       # and its last coding is chunked
    int64_t length     # the Content-Length; -1: none came
    uint64_t left      # bytes that are missing in the body, or in its chunk
    uint64_t body      # bytes of the body that came
    size_t head
    size_t kept
    size_t line_size   # of a line that comes in pieces, as far as it has come
    char line[KEPT_LINE_BYTES]


cdef void reply_begin(Reply *reply, bint head_only) noexcept nogil
# The number of bytes that belong to this reply: all, unless it is now done or malformed.
cdef size_t reply_feed(Reply *reply, const char *data, size_t size) noexcept nogil
# The peer has closed the connection. True if that is a proper end of the reply.
cdef bint reply_closed(Reply *reply) noexcept nogil
