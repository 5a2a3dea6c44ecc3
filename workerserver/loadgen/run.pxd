"""The load generator's run: its parameters, its state, and its results.

Plain C data of the one thread that runs it. A run has no lock and no Python object. The code that
makes a run keeps its histograms and its request alive.
"""

from libc.stdint cimport int64_t, uint64_t


cdef extern from "loadgen.h" nogil:
    ctypedef unsigned int socklen_t
    struct sockaddr:
        pass
    struct sockaddr_storage:
        pass
    struct pollfd:
        int fd
        short events
        short revents
    ctypedef struct dial_address:
        int family
        socklen_t size
        sockaddr_storage storage

cdef enum:
    MAX_CONNECTIONS = 4096
    MAX_ADDRESSES = 8
    MAX_ERRORS = 256           # errno values that are counted separately


cdef enum SlotState:
    CLOSED
    PAUSED      # until wake; then it connects again if it has a descriptor, else it is closed
    CONNECTING
    IDLE
    SENDING
    READING


cdef enum Reason:
    REFUSED
    RESET
    ENDED
    TIMED_OUT
    MALFORMED
    NOT_SENT
    NO_SOCKET
    REASONS


cdef struct Slot:
    int fd
    SlotState state
    int address        # the index of the address that it connects to
    bint claimed       # it carries a request, or connects for one
    bint was_free      # there was a free connection when its request was due
    int64_t due
    int64_t late       # how long after due it was sent, if a connection was free; else -1
    int64_t began      # when its request was sent; fresh: when it began to connect
    int64_t deadline
    int64_t wake
    int64_t free_at
    size_t sent
    uint64_t served    # requests on this connection
    Reply reply


cdef struct Stack:
    int *items
    int size


cdef struct Run:
    # Parameters.
    dial_address addresses[MAX_ADDRESSES]
    int address_count
    const char *request
    size_t request_size
    bint head_only
    int connections
    uint64_t total          # requests
    double interval         # ns; 0: closed loop
    int64_t duration        # ns; INT64_MAX: until all requests are done
    int64_t timeout
    uint64_t per_connection
    bint fresh
    # State.
    Slot *slots
    pollfd *polls
    Stack idle              # connected; at the bottom the one that is free for longest
    Stack closed
    int high                # slots ever used
    int address
    bint reached            # a connection was made, so the address is right
    bint interrupted
    int unclaimed           # connections being made, not for a certain request
    uint64_t begun
    uint64_t in_flight
    int64_t now
    int64_t start           # 0: not yet
    int64_t last            # when the last request was done
    int64_t next_scan
    char *buffer
    # Results.
    uint64_t sent
    uint64_t answered
    uint64_t received
    uint64_t reasons[REASONS]
    uint64_t errors[MAX_ERRORS]
    uint64_t statuses[1000]
    Buckets *service
    Buckets *response
    Buckets *late


# False: no memory. run_close() has to follow in both cases.
cdef bint run_open(Run *run) noexcept nogil
# Run for about a fifth of a second, or until a signal comes. True: the run has ended.
cdef bint run_on(Run *run) noexcept nogil
cdef void run_close(Run *run) noexcept nogil

cdef inline bint open_loop(const Run *run) noexcept nogil:
    return run.interval > 0
