"""Proof of the token, for the protocol and for the native I/O thread: C data, no GIL."""

from libc.stdint cimport uint64_t


cdef extern from "proof.h" nogil:
    enum:
        WS_KEY
        WS_CHALLENGE
        WS_PROVEN_LINE
        WS_WORKER
        WS_TOKENS
    ctypedef enum ws_verdict:
        WS_NO_PROOF
        WS_GREETED
        WS_DOUBTED
        WS_PROVEN
    ctypedef struct ws_session:
        ws_verdict verdict
        int wanted


cdef class Session:
    cdef ws_session own
    cdef ws_session *session

    cdef int begin(self) except -1
    cdef bytes answer(self, int status, bytes body)


# Whether the value of an Authorization field is of our scheme.
cdef bint proof_is_ours(const char *value, size_t size) noexcept nogil

# What a request without a body proves; see proof.h. *keys*: WS_TOKENS, NULL where there is none.
cdef ws_verdict proof_judge(
    ws_session *session, const unsigned char **keys, const char *value, size_t size,
    const char *method, size_t method_size, const char *target, size_t target_size,
) noexcept nogil

# Writes the header lines of a 401, with a challenge if the client wants one; their size.
cdef size_t proof_challenge(
    ws_session *session, const unsigned char **keys, char *out
) noexcept nogil

# Writes the line that proves an answer, which uses the request's counter up; 0 if the request was
# not proven. Takes a millisecond for a MiB of body.
cdef size_t proof_answer(
    ws_session *session, int status, const char *body, size_t size, char *out
) noexcept nogil

# The same for a body whose hash (WS_KEY bytes) is known.
cdef size_t proof_answer_hashed(
    ws_session *session, int status, const unsigned char *hashed, char *out
) noexcept nogil

cdef void proof_hash(const char *body, size_t size, unsigned char *out) noexcept nogil
