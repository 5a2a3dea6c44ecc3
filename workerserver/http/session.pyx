"""Proof that a client knows the token, and that we do: docs/security.md has the protocol.

A session is what one connection keeps. The native I/O thread keeps it beside its connection, and
whoever owns the connection uses it; on other transports it is the Session's own.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING
from libc.string cimport memset

from workerserver._parser cimport ParsedRequest
from workerserver.process._pulse cimport worker_text

cdef extern from "blake2b.h" nogil:
    void ws_blake2b(const void *data, size_t size, unsigned char *digest, size_t digest_size)

cdef extern from "proof.h" nogil:
    void ws_proof_key(const void *token, size_t size, unsigned char *key)
    bint ws_proof_is_ours(const char *value, size_t size)
    ws_verdict ws_proof_judge(
        ws_session *session, const unsigned char *key, const char *value, size_t size,
        const char *method, size_t method_size, const char *target, size_t target_size,
        const unsigned char *body
    )
    size_t ws_proof_challenge(
        ws_session *session, const unsigned char *key, const char *worker, size_t worker_size,
        char *out
    )
    size_t ws_proof_answer(
        ws_session *session, int status, const unsigned char *body, char *out
    )

cdef enum:
    QUICK = 16 * 1024  # bytes that are hashed with the GIL held


def proof_key(bytes token not None):
    """The key that stands for *token* in proofs."""
    cdef unsigned char key[WS_KEY]
    ws_proof_key(PyBytes_AS_STRING(token), len(token), key)
    return key[:WS_KEY]


def is_proof(bytes value):
    """Whether the value of an Authorization field is of our scheme."""
    return value is not None and ws_proof_is_ours(PyBytes_AS_STRING(value), len(value))


cdef bint proof_is_ours(const char *value, size_t size) noexcept nogil:
    return ws_proof_is_ours(value, size)


cdef ws_verdict proof_judge(
    ws_session *session, const unsigned char *key, const char *value, size_t size,
    const char *method, size_t method_size, const char *target, size_t target_size,
) noexcept nogil:
    cdef unsigned char nothing[WS_KEY]
    ws_blake2b(NULL, 0, nothing, WS_KEY)
    return ws_proof_judge(
        session, key, value, size, method, method_size, target, target_size, nothing
    )


cdef size_t proof_challenge(
    ws_session *session, const unsigned char *key, char *out
) noexcept nogil:
    cdef char worker[WS_WORKER]
    cdef size_t size = worker_text(worker, WS_WORKER)
    return ws_proof_challenge(session, key, worker, size, out)


cdef void proof_hash(const char *body, size_t size, unsigned char *out) noexcept nogil:
    ws_blake2b(body, size, out, WS_KEY)


cdef size_t proof_answer(
    ws_session *session, int status, const char *body, size_t size, char *out
) noexcept nogil:
    cdef unsigned char hashed[WS_KEY]
    if session.verdict != WS_PROVEN:
        return 0
    ws_blake2b(body, size, hashed, WS_KEY)
    return ws_proof_answer(session, status, hashed, out)


cdef size_t proof_answer_hashed(
    ws_session *session, int status, const unsigned char *hashed, char *out
) noexcept nogil:
    return ws_proof_answer(session, status, hashed, out)


@cython.final
cdef class Session:
    """What one connection has proven. Used by the loop's thread only, and only while the loop owns
    the connection.

    ``session`` is ``own``, or the native connection's until that lets go.
    """

    def __cinit__(self):
        memset(&self.own, 0, sizeof(ws_session))
        self.session = &self.own

    cdef int begin(self) except -1:
        """A request begins: nothing is proven."""
        self.session.verdict = WS_NO_PROOF
        return 0

    def judge(self, bytes key not None, ParsedRequest request not None):
        """Whether *request*, which is of our scheme, proves that its client knows the token behind
        *key*. Without its body, what the body says is left open."""
        cdef unsigned char hashed[WS_KEY]
        cdef bytes value = request.authorization
        cdef bytes body = request.body
        cdef const char *data = PyBytes_AS_STRING(body)
        cdef size_t size = len(body)
        if len(key) != WS_KEY:
            raise ValueError("no key of a token")
        if size > QUICK:
            with nogil:
                ws_blake2b(data, size, hashed, WS_KEY)
        else:
            ws_blake2b(data, size, hashed, WS_KEY)
        return ws_proof_judge(
            self.session, <const unsigned char *>PyBytes_AS_STRING(key),
            PyBytes_AS_STRING(value), len(value),
            PyBytes_AS_STRING(request.method), len(request.method),
            PyBytes_AS_STRING(request.target), len(request.target),
            hashed if request.whole else NULL,
        ) == WS_PROVEN

    def challenge(self, bytes key not None):
        """The fields of a 401, by name and value: what a client that did not prove anything needs
        to try, if it has asked for that."""
        cdef char out[WS_CHALLENGE]
        cdef size_t size = proof_challenge(
            self.session, <const unsigned char *>PyBytes_AS_STRING(key), out
        )
        lines = out[:size].decode("ascii").split("\r\n")
        return tuple(tuple(line.split(": ", 1)) for line in lines if line)

    cdef bytes answer(self, int status, bytes body):
        """The line that proves the answer to the request under way; empty if that is not proven."""
        cdef char out[WS_PROVEN_LINE]
        cdef const char *data
        cdef size_t size
        if self.session.verdict != WS_PROVEN:
            return b""
        data = PyBytes_AS_STRING(body)
        size = len(body)
        if size > QUICK:
            with nogil:
                size = proof_answer(self.session, status, data, size, out)
        else:
            size = proof_answer(self.session, status, data, size, out)
        return out[:size]
