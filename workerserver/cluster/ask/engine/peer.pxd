"""The state of the engine. Plain C data, which one thread uses at a time."""

from libc.stdint cimport int64_t


cdef extern from "dial.h" nogil:
    ctypedef unsigned int socklen_t
    struct sockaddr:
        pass
    struct sockaddr_storage:
        pass
    ctypedef struct dial_address:
        int family
        socklen_t size
        sockaddr_storage storage

cdef extern from "guest.h" nogil:
    enum:
        WS_KEY
        WS_GUEST_TOKEN
        WS_GUEST_VALUE
    ctypedef struct ws_guest:
        int count
    size_t ws_guest_greeting(
        ws_guest *guest, const unsigned char *key, const char *token, size_t token_size, char *out
    ) noexcept
    bint ws_guest_meet(
        ws_guest *guest, const char *challenge, size_t size, int64_t *rank
    ) noexcept
    size_t ws_guest_request(
        ws_guest *guest, const char *method, size_t method_size, const char *target,
        size_t target_size, char *out
    ) noexcept
    bint ws_guest_answered(
        const ws_guest *guest, int number, int status, const char *body, size_t body_size,
        const char *info, size_t info_size
    ) noexcept

cdef enum:
    MAX_QUESTIONS = 8        # to one peer
    FIRST_BYTES = 4096       # room for the answers of one peer, at first


cdef enum Stage:
    QUEUED       # not begun
    NAMING       # Python looks its name up
    PAUSED       # until wake: then it is connected to again
    CONNECTING
    ASKING
    ENDED


# How a peer ended. The text of a failure is made in Python.
cdef enum How:
    ANSWERED     # each question has its answer
    UNNAMED      # Python found no address
    UNREACHED    # no connection: error
    SHUT         # the connection ended before the first byte of an answer
    CUT          # the connection ended within the first answer
    LATE         # past the deadline
    STOPPED
    STRANGE      # to be asked by the client of Python, from question `at` on


cdef struct Reply:
    int status
    bint closes          # the server ends the connection after this answer
    bint without_gil     # of stacks: the GIL could not be had
    size_t length        # of the body
    size_t reason        # where the reason begins
    size_t fields        # where the fields begin
    size_t challenge     # the value of WWW-Authenticate, the last one
    size_t challenge_size
    size_t info          # the value of Authentication-Info
    size_t info_size


cdef struct Answered:
    int status
    size_t begin         # of the head in the peer's data
    size_t reason
    size_t fields
    size_t head_end      # of the last field, before the empty line
    size_t body
    size_t end


cdef struct Proving:
    ws_guest guest
    char *out                            # the requests with their proofs
    size_t starts[MAX_QUESTIONS + 2]     # of the greeting and the requests, and the end of all
    size_t inserts[MAX_QUESTIONS + 1]    # where their Authorization fields belong
    size_t size                          # of `request`
    int base                             # requests on the connection before these
    const char *request
    int64_t rank                         # the one that the worker has to have; -1: any


# Invariants: fd >= 0 only while CONNECTING and ASKING, and while the connection is kept: from the
# end of a peer that has answered until it begins again, with more questions, or until the
# connection ends. A peer is in `queued` until it begins, then in the list of `begun`, and in the
# line `ended` from its end until Python takes it. Young peers have begun. A kept connection is in
# the list of `kept` unless its peer is queued again.
#
# Where a worker is silent, a second peer tries another connection beside the first. They are each
# other's `twin` until one of them ends: then the other one ends too, or goes on alone. One of the
# two owns what Python has given. The one that does not count is `dropped`, and Python gets no Talk.
cdef struct Peer:
    void *number             # Python's own, an object of which the peer holds a reference
    void *request            # bytes, held too
    const char *out
    size_t out_size
    Stage stage
    Stage was                # when it ended
    How how
    int error                # of UNREACHED
    int fd
    dial_address *addresses  # None until the name is known; the peer's own
    int address_count
    int address              # the one that is tried
    bint keeps               # its connection stays open when it has answered
    bint resumed             # it goes on, on a kept connection
    bint listed              # in the list of kept connections
    bint owns                # of two twins, the one that frees what is Python's
    bint twice               # a second connection was tried
    Peer *twin
    bint trusting            # the request holds the token: a Unix peer has to be root's or ours
    Proving *proving         # where both ends prove the token; else NULL
    bint met                 # the worker has proven itself
    bint young
    bint told                # Python knows that its name is wanted
    int64_t seconds_ns       # time from its begin to its deadline
    int64_t begun
    int64_t deadline
    int64_t share            # the end of the time for this address
    int64_t wake
    int64_t moved            # when the last byte came, or when it was dialled
    size_t sent
    int question_count
    size_t limits[MAX_QUESTIONS]
    int at                   # the question whose answer is read
    Answered answers[MAX_QUESTIONS]
    char *data               # all answers, one after the other
    size_t size
    size_t capacity
    size_t start             # of the answer that is read
    size_t scanned           # there is no end of its head before this
    size_t head_size         # with the empty line; 0: its end has not come
    Reply reply              # once its head has come
    int pid                  # who listens on a Unix socket; 0: unknown
    Peer *next               # in `queued` or `ended`
    Peer *younger            # in `young`, which is in the order of their begin
    Peer *older
    Peer *after              # in the list of all that have begun, or of kept connections
    Peer *before


cdef struct Line:            # first in, first out
    Peer *first
    Peer *last
    int size


cdef struct Loop:
    # Parameters
    int working              # peers that are young at one time
    int most                 # peers that have begun at one time
    int64_t patience_ns      # a peer is young for so long
    int64_t stall_ns         # the longest wait for an answer on one connection
    size_t max_head
    int max_fields
    int uid
    unsigned char key[32]    # that stands for the token
    char token[16]           # its name
    size_t token_size
    # State
    int poller
    int timer
    int64_t armed            # the time that the timer is set to; 0: none
    int64_t next_scan
    int64_t now
    Line queued
    Line ended
    Line dropped             # ended, and nobody is told
    bint naming_came         # peers have begun that wait for their names, since Python asked
    Peer *oldest_young
    Peer *youngest
    int young
    Peer *begun
    int begun_count
    Peer *kept               # the list of kept connections
    int kept_count           # open ones, those of queued peers too
    bint stopped
