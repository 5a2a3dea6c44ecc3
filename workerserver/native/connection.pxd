"""The hub and its connections: what the native I/O thread and the loop's thread share."""

from libc.stdint cimport uint32_t, uint64_t

from workerserver.native.system cimport pthread_mutex_t


cdef enum:
    RELAYS = 4  # requests at a time at torch's own server
    COUNTS = 64
    DUMP_FORMATS = 3
    READ_SIZE = 64 * 1024  # bytes read at a time
    JOINED = 16 * 1024

cdef enum:
    NEVER = 1000000000  # seconds of the monotonic clock: in 30 years

# What a route of a listener's table does; its answer's number is in the bits above the lowest 8.
cdef enum Action:
    ACTION_STATIC  # a precomputed answer, at once
    ACTION_LATE  # a precomputed answer that may be out of date: only if the loop takes too long
    ACTION_HEALTH
    ACTION_DUMP
    ACTION_RELAY

cdef enum Kind:
    KIND_WAKE
    KIND_TIMER
    KIND_LISTENER
    KIND_CONNECTION
    KIND_RELAY

# Who owns a connection. Only the owner writes to it; only the I/O thread closes descriptors.
cdef enum Stage:
    STAGE_IO  # I/O thread; at a message boundary, what has come is not a whole request yet
    STAGE_WAIT  # I/O thread; whatever comes is the protocol's, which waits inside a message
    STAGE_QUEUED  # I/O thread; bytes wait for the loop, and may be taken back
    STAGE_LOOP  # the loop: it has claimed the bytes and not asked for more
    STAGE_ANSWERING  # I/O thread; a snapshot or a relay for it is under way
    STAGE_DRAIN  # I/O thread; the last reply is on its way, what comes is thrown away
    STAGE_CLOSING  # I/O thread, which is to close the descriptor
    STAGE_DEAD  # closed; freed once the transport has let go


cdef struct Source:  # how each thing that epoll knows begins
    int kind
    int fd


cdef struct Chunk:  # bytes on their way out
    Chunk *next
    const char *data
    size_t size
    size_t sent
    void *owner  # a reference to the bytes object that data belongs to; NULL: data is our own copy


cdef struct Answer:  # a whole precomputed reply; borrowed from the Python side's bytes
    const char *data
    size_t size
    const char *closing  # the same with Connection: close
    size_t closing_size
    int status


cdef struct Count:
    int route  # -1: none
    int status
    uint64_t number


cdef struct Memo:  # the last request that was answered at once: its very bytes mean the same again
    size_t size  # 0: none
    char data[256]
    Recognised request
    const Route *route  # of the listener's table; a new table drops the memo


cdef struct Listener:
    int kind
    int fd
    Hub *hub
    Listener *next
    bint local  # a Unix socket
    bint accepting
    bint dropped  # its server is gone: free it with its last connection
    int references  # connections that are not freed yet
    void *owner  # the Python side, a reference; NULL once that has let go
    double resume_at  # 0, or when to accept again after running out of descriptors
    int connections
    int max_connections
    double head_timeout
    double idle_timeout
    double gil_deadline
    double gil_timeout
    double started  # monotonic seconds
    Memo memo
    const TableData *table  # this and the answers: borrowed from Python, replaced under the lock
    const Answer *answers
    Answer too_many
    Answer forbidden
    Answer head_late
    Count counts[COUNTS]
    int count_used


cdef struct Connection:
    int kind
    int fd
    Hub *hub
    Listener *listener
    Connection *previous  # all connections of the hub
    Connection *next
    Connection *queue_previous
    Connection *queue_next
    Connection *reap_next
    Connection *dump_next
    Stage stage
    uint32_t events  # what epoll was asked for
    bint polled  # known to epoll
    bint queued
    uint64_t number  # hub.number when something last came for the loop
    bint reaping
    # --- in
    char *data  # malloc'ed; [start, size) are the bytes nobody has claimed
    size_t start
    size_t size
    size_t capacity
    Recognition state
    bint boundary  # those bytes begin a message
    bint heading  # deadline is the head's, not the idle one
    bint judged  # the deadline has passed, and there was no answer but to wait
    bint paused
    bint eof
    bint eof_told
    bint hung_up  # both directions are closed
    int error  # errno that ended it, for the loop
    size_t accounted  # its share of hub.unclaimed
    double deadline  # 0: none
    double queued_at
    size_t drained
    # --- out
    Chunk *out
    Chunk *out_last
    size_t out_size
    size_t high
    size_t low
    bint full  # pause_writing() was said, resume_writing() not yet
    bint resume  # ... and is to be said
    bint closing  # close once out is empty
    bint shut  # send FIN once out is empty
    bint doomed  # to be closed whatever it does; its listener's answers may be gone already
    # --- the request that is being answered
    int route
    int format
    bint keep_alive
    # --- the loop's
    void *transport  # a reference; touched with the GIL only


cdef struct RelaySlot:
    int kind
    int fd
    Relay relay
    Connection *connection  # NULL: its client has gone
    bint busy
    bint slow  # py-spy's
    double deadline


cdef struct Hub:
    pthread_mutex_t lock
    int waiters  # threads that wait for the lock; atomic
    size_t unclaimed  # bytes that all connections keep
    int epoll
    Source wake  # eventfd: the loop -> the I/O thread
    int turn  # eventfd: the I/O thread -> the loop
    bint woken
    bint asked  # a turn was asked for and has not come
    double asked_at
    bint stopping
    double now
    double scan_at
    Source timer  # timerfd: a wait with a timeout would cost each request a kernel timer
    double timer_at  # when it goes off
    double watch  # seconds between two turns asked for to see how long they take; 0: never
    double watch_at
    Listener *listeners
    Connection *connections
    Connection *queue
    Connection *queue_last
    uint64_t number  # of what has come for the loop so far
    Connection *reap
    bint sweep  # a listener may be free to go
    Connection *dumps
    Chunk *done
    RelaySlot relays[RELAYS]
    char relay_path[108]  # of torch's own server; empty: there is none
    int relay_listener  # its descriptor and inode
    uint64_t relay_inode
    char *page  # READ_SIZE bytes to read into
    char *joined  # JOINED bytes, for answers to pipelined requests
    Hub *next


cdef struct Event:  # what the loop is to tell one protocol, in this order
    char *data  # malloc'ed, the receiver's to free; NULL: none
    size_t size
    bint eof
    bint resume
    bint lost
    int error  # of lost; 0: an orderly end


# --- either side, under the hub's lock
cdef void hub_lock(Hub *hub) noexcept nogil
cdef void hub_unlock(Hub *hub) noexcept nogil
cdef void give_way(Hub *hub) noexcept nogil
cdef void wake_io(Hub *hub) noexcept nogil
cdef void ask_turn(Hub *hub) noexcept nogil
cdef void arm(Hub *hub, double at) noexcept nogil
cdef void stamp(Connection *connection) noexcept nogil
cdef void enqueue(Connection *connection) noexcept nogil
cdef void dequeue(Connection *connection) noexcept nogil
cdef void reap(Connection *connection) noexcept nogil
cdef bint epoll_add(Hub *hub, void *source, int fd, uint32_t events) noexcept nogil
cdef void epoll_change(Hub *hub, void *source, int fd, uint32_t events) noexcept nogil
cdef void epoll_remove(Hub *hub, int fd) noexcept nogil
cdef void unpoll(Connection *connection) noexcept nogil
cdef void set_events(Connection *connection) noexcept nogil
cdef ssize_t send_some(int fd, const char *data, size_t size) noexcept nogil
cdef void discard_out(Connection *connection) noexcept nogil
cdef Chunk *chunk_new(const char *data, size_t size, void *owner) noexcept nogil
cdef void chunk_append(Connection *connection, Chunk *chunk) noexcept nogil

# --- the loop's thread, which holds the GIL; these take the lock themselves
cdef Chunk *turn_begin(Hub *hub, uint64_t *number) noexcept nogil
cdef Connection *turn_next(Hub *hub, uint64_t *number) noexcept nogil
cdef void connection_take(Connection *connection, Event *event) noexcept nogil
cdef int connection_descriptor(Connection *connection) noexcept nogil
cdef int connection_write(
    Connection *connection, const char *data, size_t size, void *owner
) noexcept nogil
cdef size_t connection_unsent(Connection *connection) noexcept nogil
cdef bint connection_full(Connection *connection) noexcept nogil
cdef void connection_want(Connection *connection, bint boundary) noexcept nogil
cdef void connection_pause(Connection *connection, bint paused) noexcept nogil
cdef void connection_shut(Connection *connection) noexcept nogil
cdef bint connection_close(Connection *connection, bint discard) noexcept nogil
cdef void connection_detach(Connection *connection) noexcept nogil
