# A client for one request to a known peer on a Unix socket; see relay.pyx.

from libc.stdint cimport uint64_t

cdef enum:
    RELAY_MORE = 0
    RELAY_DONE = 1
    RELAY_FAILED = -1

cdef struct Relay:
    int fd                # poll it for reading; -1: none
    double deadline       # the owner's; nothing here reads it
    # --- once DONE: the reply; the offsets point into data
    int status            # 200..599
    size_t type_start     # of the content type, as the peer wrote it
    size_t type_size      # 0: none given
    size_t body_start
    size_t body_size
    # --- once FAILED
    const char* reason    # static text
    int error             # errno, or 0 if the peer is at fault
    # --- the buffer, malloc'ed: head and body as they came
    char* data
    size_t size
    size_t capacity
    # --- parsing
    size_t scanned        # the head's end doesn't start before this offset
    bint headed           # the head has come
    bint delimited        # the head told the body's size, which is in body_size

cdef bint relay_listens(int listener, uint64_t inode) noexcept nogil
cdef void relay_init(Relay* relay) noexcept nogil
cdef int relay_open(
    Relay* relay, const char* path, const char* target, size_t target_size
) noexcept nogil
cdef int relay_read(Relay* relay) noexcept nogil
cdef void relay_close(Relay* relay) noexcept nogil
