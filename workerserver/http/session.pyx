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
    ws_session *session, const unsigned char **keys, const char *value, size_t size,
    const char *method, size_t method_size, const char *target, size_t target_size,
) noexcept nogil:
    cdef unsigned char nothing[WS_KEY]
    ws_blake2b(NULL, 0, nothing, WS_KEY)
    _judge_all(session, keys, value, size, method, method_size, target, target_size, nothing)
    return session.verdict


cdef int _judge_all(
    ws_session *session, const unsigned char **keys, const char *value, size_t size,
    const char *method, size_t method_size, const char *target, size_t target_size,
    const unsigned char *body
) noexcept nogil:
    """The place of the key that the request proves; -1: of none. The verdict is the session's."""
    cdef ws_verdict verdict
    cdef int i
    session.verdict = WS_DOUBTED
    for i in range(WS_TOKENS):
        if keys[i] == NULL:
            continue
        verdict = ws_proof_judge(
            session, keys[i], value, size, method, method_size, target, target_size, body
        )
        if verdict == WS_PROVEN:
            return i
        if verdict == WS_GREETED:
            break
    return -1


cdef size_t proof_challenge(
    ws_session *session, const unsigned char **keys, char *out
) noexcept nogil:
    cdef char worker[WS_WORKER]
    cdef size_t size = worker_text(worker, WS_WORKER)
    return ws_proof_challenge(session, keys[session.wanted], worker, size, out)


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


cdef int _take_keys(tuple keys, const unsigned char **out) except -1:
    """*keys*, which have to live as long as *out*: b"" where there is no token."""
    cdef bytes key
    cdef int i
    if len(keys) != WS_TOKENS:
        raise ValueError(f"{len(keys)} keys")
    for i in range(WS_TOKENS):
        key = keys[i]
        if len(key) not in (0, WS_KEY):
            raise ValueError("no key of a token")
        out[i] = <const unsigned char *>PyBytes_AS_STRING(key) if key else NULL
    return 0


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

    def judge(self, tuple keys not None, ParsedRequest request not None):
        """The place, in *keys*, of the token that the client of *request*, which is of our scheme,
        proves to know; -1: of none. Without its body, what the body says is left open."""
        cdef const unsigned char *raw[WS_TOKENS]
        cdef unsigned char hashed[WS_KEY]
        cdef bytes value = request.authorization
        cdef bytes body = request.body
        cdef const char *data = PyBytes_AS_STRING(body)
        cdef size_t size = len(body)
        _take_keys(keys, raw)
        if size > QUICK:
            with nogil:
                ws_blake2b(data, size, hashed, WS_KEY)
        else:
            ws_blake2b(data, size, hashed, WS_KEY)
        return _judge_all(
            self.session, raw, PyBytes_AS_STRING(value), len(value),
            PyBytes_AS_STRING(request.method), len(request.method),
            PyBytes_AS_STRING(request.target), len(request.target),
            hashed if request.whole else NULL,
        )

    def challenge(self, tuple keys not None):
        """The fields of a 401, by name and value: what a client that did not prove anything needs
        to try, if it has asked for that."""
        cdef const unsigned char *raw[WS_TOKENS]
        cdef char out[WS_CHALLENGE]
        cdef size_t size
        _take_keys(keys, raw)
        size = proof_challenge(self.session, raw, out)
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
