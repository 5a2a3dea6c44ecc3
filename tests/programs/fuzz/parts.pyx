# cython: cdivision=True
"""Three parts that read what strangers send, each fed by a fuzzer. No Python in the way.

The parts are those of the package, in a unit of their own, so that each edge that the fuzzer counts
is theirs. An input's first byte says where the rest is cut. The rest is copied to memory of just its
size, so that AddressSanitizer sees each byte that is read behind the end. What has to hold for each
input is checked by ``must()``, which ends the process.
"""

include "requests/recognise.pyx"
include "torch/relay.pyx"
include "reply.pyx"

from libc.stdint cimport uint8_t, uintptr_t
from libc.stdlib cimport abort, malloc
from libc.stdio cimport fprintf, stderr


cdef extern from "<sys/socket.h>" nogil:
    int socketpair(int domain, int type, int protocol, int* ends)
    Py_ssize_t send(int fd, const void* data, size_t size, int flags)


cdef void must(bint held, const char* what) noexcept nogil:
    if not held:
        fprintf(stderr, b"not so: %s\n", what)
        abort()


cdef struct Input:
    size_t size
    size_t step  # bytes of a piece
    char* data


cdef bint taken(const uint8_t* raw, size_t size, Input* found) noexcept nogil:
    """The input, in memory of its own; False if it has no byte. free() *data*."""
    if size == 0:
        return False
    found.size = size - 1
    found.step = 1 + raw[0] % 61
    found.data = <char*>malloc(found.size if found.size else 1)
    memcpy(found.data, raw + 1, found.size)
    return True


# --- the recogniser


cdef bint within(int start, int length, int end) noexcept nogil:
    return start >= 0 and length >= 0 and start + length <= end


cdef bint same(const Recognised* a, const Recognised* b) noexcept nogil:
    return (
        a.length == b.length and a.method == b.method and a.path == b.path
        and a.path_length == b.path_length and a.query == b.query
        and a.query_length == b.query_length and a.host == b.host
        and a.host_length == b.host_length and a.authorization == b.authorization
        and a.authorization_length == b.authorization_length and a.accept == b.accept
        and a.accept_length == b.accept_length and a.fields == b.fields
        and a.keep_alive == b.keep_alive
    )


cdef int one_recognised(const uint8_t* raw, size_t size) noexcept nogil:
    """The same verdict in one piece and in many, and every offset inside of the request."""
    cdef Input given
    cdef Recognition whole, cut
    cdef Recognised found, again
    cdef Verdict verdict, other
    cdef size_t upto
    cdef char* piece
    if not taken(raw, size, &given):
        return 0
    memset(&whole, 0, sizeof(whole))
    memset(&cut, 0, sizeof(cut))
    memset(&found, 0, sizeof(found))
    memset(&again, 0, sizeof(again))
    verdict = recognise(given.data, given.size, &whole, &found)
    upto = 0
    while True:
        upto = min(upto + given.step, given.size)
        piece = <char*>malloc(upto if upto else 1)  # the bytes may move between two calls
        memcpy(piece, given.data, upto)
        other = recognise(piece, upto, &cut, &again)
        free(piece)
        if upto == given.size or other != VERDICT_INCOMPLETE:
            break
    must(verdict == other, b"one verdict, however the bytes come")
    if verdict == VERDICT_RECOGNISED:
        must(same(&found, &again), b"one request, however the bytes come")
        must(found.length <= <int>given.size, b"a request of the bytes that came")
        must(
            within(found.path, found.path_length, found.length)
            and within(found.query, found.query_length, found.length)
            and within(found.host, found.host_length, found.length)
            and within(found.authorization, found.authorization_length, found.length)
            and (found.accept < 0 or within(found.accept, found.accept_length, found.length)),
            b"offsets inside of the request",
        )
        must(0 < found.fields <= NATIVE_FIELDS, b"a bounded number of fields")
    free(given.data)
    return 0


# --- the relay


cdef int relayed(Input* given, size_t step, Relay* relay) noexcept nogil:
    """What the relay makes of a peer that sends *given* in pieces of *step*, and closes."""
    cdef int[2] ends
    cdef int state = RELAY_MORE
    cdef size_t at = 0, part
    cdef Py_ssize_t sent
    relay_init(relay)
    if socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) < 0:
        abort()
    relay.fd = ends[0]
    while at < given.size and state == RELAY_MORE:
        part = min(step, given.size - at)
        sent = send(ends[1], given.data + at, part, MSG_NOSIGNAL)
        if sent < 0:
            abort()  # each piece is read before the next one comes
        at += <size_t>sent
        state = relay_read(relay)
    close(ends[1])
    while state == RELAY_MORE:
        state = relay_read(relay)
    return state


cdef int one_relayed(const uint8_t* raw, size_t size) noexcept nogil:
    """One piece or many: the same reply, and all of it inside of what came."""
    cdef Input given
    cdef Relay whole, cut
    cdef int state, other
    if not taken(raw, size, &given):
        return 0
    state = relayed(&given, 65536, &whole)
    other = relayed(&given, given.step, &cut)
    if state == RELAY_DONE:
        must(200 <= whole.status <= 599, b"a status that can be passed on")
        must(whole.type_start + whole.type_size <= whole.body_start, b"a type inside of the head")
        must(whole.body_start + whole.body_size <= whole.size, b"a body inside of what came")
    else:
        must(state == RELAY_FAILED and whole.reason != NULL, b"a failure has a reason")
    # More bytes than the reply has show an excess only if they are read together with it.
    if state == RELAY_DONE:
        must(
            other == RELAY_DONE and whole.status == cut.status
            and whole.type_start == cut.type_start and whole.type_size == cut.type_size
            and whole.body_start == cut.body_start and whole.body_size == cut.body_size,
            b"one reply, however the bytes come",
        )
    relay_close(&whole)
    relay_close(&cut)
    free(given.data)
    return 0


# --- the load generator's reader of replies


cdef size_t read_all(
    Input* given, size_t step, bint head_only, bint closed, Reply* reply
) noexcept nogil:
    cdef size_t at = 0, part, used
    memset(reply, 0, sizeof(Reply))
    reply_begin(reply, head_only)
    while at < given.size:
        part = min(step, given.size - at)
        used = reply_feed(reply, given.data + at, part)
        must(used <= part, b"no more bytes are used than came")
        must(reply.kept <= KEPT_LINE_BYTES, b"a kept line has room")
        at += used
        if used < part:
            must(reply.state >= REPLY_DONE, b"bytes are left over only behind the end")
            break
        if reply.state >= REPLY_DONE:
            break
    if closed:
        reply_closed(reply)
    return at


cdef int one_reply(const uint8_t* raw, size_t size) noexcept nogil:
    """One piece or many: the same end at the same byte."""
    cdef Input given
    cdef Reply whole, cut
    cdef size_t used, other
    cdef bint head_only, closed
    if not taken(raw, size, &given):
        return 0
    head_only = raw[0] >= 128
    closed = raw[0] & 64
    used = read_all(&given, given.size, head_only, closed, &whole)
    other = read_all(&given, given.step, head_only, closed, &cut)
    if whole.state == REPLY_MALFORMED or cut.state == REPLY_MALFORMED:
        must(whole.state == cut.state, b"malformed, however the bytes come")
    else:
        must(
            whole.state == cut.state and used == other and whole.status == cut.status
            and whole.body == cut.body and whole.keep_alive == cut.keep_alive,
            b"one end, however the bytes come",
        )
    must(whole.body <= given.size, b"a body of the bytes that came")
    free(given.data)
    return 0


def address(str name):
    """The address of a target, a C function as libFuzzer calls it."""
    if name == "recogniser":
        return <uintptr_t>&one_recognised
    if name == "relay":
        return <uintptr_t>&one_relayed
    if name == "reply":
        return <uintptr_t>&one_reply
    raise KeyError(name)
