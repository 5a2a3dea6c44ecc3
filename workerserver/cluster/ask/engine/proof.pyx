"""Requests that prove that we know the token, and answers that do so (docs/security.md)."""

from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcpy

cdef enum:
    FIELD = 17          # the size of FIELD_NAME

cdef const char *FIELD_NAME = b"\r\nAuthorization: "


cdef bint greet(Loop *loop, Peer *peer) noexcept nogil:
    """Begin with the greeting."""
    cdef Proving *proving = peer.proving
    cdef char value[WS_GUEST_VALUE]
    cdef size_t size, at
    size = ws_guest_greeting(&proving.guest, loop.key, loop.token, loop.token_size, value)
    if not make_out(peer) or size == 0:
        return False
    at = put_request(proving, 0, value, size, 0, proving.starts[1])
    peer.out = proving.out
    peer.out_size = at
    peer.sent = 0
    return True


cdef bint make_out(Peer *peer) noexcept nogil:
    """One buffer for the greeting, and then for all requests."""
    cdef Proving *proving = peer.proving
    free(proving.out)
    proving.out = <char *>malloc(
        proving.size + <size_t>(peer.question_count + 1) * (FIELD + WS_GUEST_VALUE)
    )
    return proving.out is not NULL


cdef size_t put_request(
    Proving *proving, int number, const char *value, size_t size, size_t at, size_t end
) noexcept nogil:
    """Write a request with its field at *at*; *end*: its own end. Returns the end in the buffer."""
    cdef size_t start = proving.starts[number]
    cdef size_t insert = proving.inserts[number]
    memcpy(proving.out + at, proving.request + start, insert - start)
    at += insert - start
    memcpy(proving.out + at, FIELD_NAME, FIELD)
    at += FIELD
    memcpy(proving.out + at, value, size)
    at += size
    memcpy(proving.out + at, proving.request + insert, end - insert)
    return at + end - insert


cdef bint meet(Peer *peer, const char *data) noexcept nogil:
    """Read the answer to the greeting, and prepare the requests. False if the worker has not proven
    itself, or is another one."""
    cdef Proving *proving = peer.proving
    cdef int64_t rank = -1
    if peer.reply.status != 401 or not peer.reply.challenge_size:
        return False
    if not ws_guest_meet(
        &proving.guest, data + peer.reply.challenge, peer.reply.challenge_size, &rank
    ):
        return False
    if proving.rank >= 0 and rank >= 0 and rank != proving.rank:
        return False
    peer.met = True
    sign(peer)
    return True


cdef void sign(Peer *peer) noexcept nogil:
    """Prepare the requests, each with its proof."""
    cdef Proving *proving = peer.proving
    cdef char value[WS_GUEST_VALUE]
    cdef const char *method
    cdef const char *target
    cdef const char *line_end
    cdef size_t size, at = 0
    cdef int i
    proving.base = proving.guest.count
    for i in range(1, peer.question_count + 1):
        method = proving.request + proving.starts[i]
        target = <const char *>memchr(method, c" ", proving.inserts[i] - proving.starts[i]) + 1
        size = <size_t>(proving.request + proving.inserts[i] - target)
        line_end = <const char *>memchr(target, c" ", size)
        size = ws_guest_request(
            &proving.guest, method, <size_t>(target - method) - 1, target,
            <size_t>(line_end - target), value
        )
        at = put_request(proving, i, value, size, at, proving.starts[i + 1])
    peer.out = proving.out
    peer.out_size = at
    peer.sent = 0


cdef bint sign_more(Peer *peer) noexcept nogil:
    """Prepare more requests on a connection on which both ends have proven the token: the count of
    requests goes on. False without memory."""
    if not make_out(peer):
        return False
    sign(peer)
    return True


cdef bint is_own(const Peer *peer, const char *data) noexcept nogil:
    """Whether the whole answer at *data* is the worker's own."""
    cdef const Reply *reply = &peer.reply
    return ws_guest_answered(
        &peer.proving.guest, peer.proving.base + peer.at, reply.status, data + peer.head_size,
        reply.length, data + reply.info, reply.info_size
    )


cdef void free_proving(Proving *proving) noexcept nogil:
    if proving is not NULL:
        free(proving.out)
        free(proving)
