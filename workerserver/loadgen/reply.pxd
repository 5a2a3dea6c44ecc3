"""One HTTP/1 reply as a client reads it: bytes in, its end out. No Python, no allocation."""

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    LINE_KEPT = 256        # of a line that comes in pieces; what is wanted of it comes first
    MAX_HEAD = 256 << 10   # bytes of all lines of a head


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
    uint64_t left      # of the body, or of its chunk
    uint64_t body      # bytes of it that came
    size_t head
    size_t kept
    char line[LINE_KEPT]


cdef void reply_begin(Reply *reply, bint head_only) noexcept nogil
# How many bytes belong to this reply: all of them, unless it is done or malformed now.
cdef size_t reply_feed(Reply *reply, const char *data, size_t size) noexcept nogil
# The peer has closed. True if that ends the reply as it should.
cdef bint reply_closed(Reply *reply) noexcept nogil
