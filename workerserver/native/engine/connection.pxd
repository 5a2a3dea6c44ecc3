"""The hub and its connections: what the native I/O thread and the loop's thread share.

Everything in a Hub is guarded by its lock. What must be true whenever a thread gives the lock back
is written down, and checked in debug builds, in invariants.pyx.
"""

from libc.stdint cimport uint32_t, uint64_t

from workerserver.http._protocol cimport ws_session
from workerserver.http.date cimport HttpDate
from workerserver.native.system cimport pthread_mutex_t, pthread_t
from workerserver.process._pulse cimport Readings, ws_meter


cdef enum:
    RELAYS = 4  # requests at a time at torch's own server
    ROUTES = 64  # answers of one listener
    DUMP_FORMATS = 5  # of DumpFormat
    READ_SIZE = 64 * 1024  # bytes read at a time
    JOINED = 16 * 1024

cdef enum:
    NEVER = 1000000000  # seconds of the monotonic clock: in 30 years

# What a route of a listener's table does. The bits above the lowest 8 are the number of its answer.
cdef enum Action:
    ACTION_STATIC  # a precomputed answer, at once
    ACTION_LATE  # a precomputed answer that may be out of date: only after gil_deadline
    ACTION_HEALTH
    ACTION_DUMP
    ACTION_RELAY
    ACTION_STEPS
    ACTION_METRICS

cdef enum Kind:
    KIND_WAKE
    KIND_TIMER
    KIND_LISTENER
    KIND_CONNECTION
    KIND_RELAY
    KIND_ENDING


# What is known of a client, which counts when places are short.
cdef enum Standing:
    STANDING_TRUSTED  # on a Unix socket, or has shown the token
    STANDING_UNPROVEN  # has not shown the token yet
    STANDING_OPEN  # of a listener that has no token

cdef enum:
    STANDINGS = 3
    PEER_BYTES = 16
    PEER_BUCKETS = 256


cdef struct Peer:  # an address that has TCP connections
    Peer *next  # of its bucket
    unsigned char address[PEER_BYTES]
    int connections


cdef struct Source:  # everything that epoll knows begins with these two
    int kind
    int fd


cdef struct Chunk:  # bytes on their way out
    Chunk *next
    const char *data
    size_t size
    size_t sent
    void *owner  # a reference to the bytes object that has the data; NULL: a copy behind the chunk


cdef struct Answer:  # a whole precomputed reply, in memory that belongs to the Python side
    const char *data
    size_t size
    const char *closing  # the same with Connection: close
    size_t closing_size
    char *date  # in data: DATE_SIZE bytes, to be written anew each second; NULL: there is none
    char *closing_date  # the same in closing
    size_t head  # of data: its header lines, without the empty one
    size_t closing_head
    long second  # whose date they hold
    int status


cdef struct Memo:  # the last request that was answered at once, to recognise the same bytes again
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
    bint dropped  # its server is gone: freed with its last connection
    int references  # connections that are not freed yet
    void *owner  # a reference to the NativeListener; NULL after hub_forget()
    double resume_at  # 0, or when to accept again after running out of descriptors
    uint64_t reported  # hub.waits when epoll has last reported it
    int connections  # those that are not closed yet
    int max_connections
    bint asks_secret  # the rules ask for a token
    int max_unproven
    int max_peer
    size_t unsent  # bytes that its connections have in out
    size_t max_unsent
    double head_timeout
    double idle_timeout
    double gil_deadline
    double gil_timeout
    double started  # monotonic seconds
    Memo memo
    const TableData *table  # table and answers are Python's memory, replaced under the lock
    Answer *answers
    Answer too_many
    Answer forbidden
    Answer head_late
    ws_meter *meter  # one of its users is the listener
    int numbers[ROUTES]  # the tally of each route's number in the meter


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
    Standing standing
    ws_session session  # what the client has proven; used by whoever owns the connection
    double owes_since  # when the client last began to owe us bytes
    double idle_since  # the same, between two messages: empty lines don't move it
    bint answered  # since connection_want() last looked at it
    Peer *peer  # NULL: on a Unix socket
    uint32_t events  # what epoll was asked for
    bint polled  # epoll knows the descriptor
    bint queued  # in hub.queue
    uint64_t number  # hub.number when something last came for the loop
    bint reaping  # in hub.reap
    # --- in
    char *data  # malloc'ed; [start, size) are the bytes nobody has claimed
    size_t start
    size_t size
    size_t capacity
    Recognition state
    bint boundary  # STAGE_QUEUED: the bytes begin a message
    bint heading  # STAGE_IO: the deadline is that of a head, not that of an idle connection
    bint judged  # STAGE_QUEUED: gil_deadline is over, and only the loop or a 503 can answer
    bint paused  # the protocol called pause_reading()
    bint eof  # the client sends no more
    bint eof_told  # the protocol knows
    bint hung_up  # both directions are closed
    int error  # errno that ended the connection
    size_t accounted  # bytes of this connection in hub.unclaimed
    double deadline  # 0: none
    double queued_at
    size_t drained  # bytes thrown away in STAGE_DRAIN
    # --- out
    Chunk *out
    Chunk *out_last
    size_t out_size
    size_t high
    size_t low
    bint full  # pause_writing() was called, and out_size is still above the low-water mark
    bint resume  # pause_writing() was called, and the loop is to call resume_writing()
    bint closing  # close when out is empty
    bint shut  # send FIN when out is empty
    bint doomed  # STAGE_ANSWERING: close instead of going on when the answer is ready
    # --- the request that is being answered
    double began  # when it had come
    int route
    int format
    bint keep_alive
    # --- the loop's
    void *transport  # a reference to the Link; set and dropped with the GIL held


cdef struct RelaySlot:
    int kind
    int fd
    Relay relay
    Connection *connection  # NULL: the client has its answer (504), or is gone
    bint busy
    bint slow  # py-spy's
    double deadline


cdef struct Witness:  # what invariants.pyx remembers; written in debug builds only
    bint waiting  # the I/O thread waits in epoll, without a timeout
    bint turning  # a turn of the loop is under way, and will look at the queue again
    const Connection *claimed  # what turn_next() returned, until the protocol knows; only compared
    pthread_t loop  # the thread of the last turn; 0: none yet
    double scan_floor  # the last scan allowed no other one before
    int count  # of connections at the last check
    int skipped  # checks since then


cdef struct Hub:
    pthread_mutex_t lock
    int waiters  # threads that wait for the lock; atomic
    size_t unclaimed  # bytes that all connections keep for the loop
    int epoll
    Source wake  # eventfd: the loop -> the I/O thread
    int turn  # eventfd: the I/O thread -> the loop
    bint woken  # wake is signalled
    bint asked  # a turn was asked for and has not come
    double asked_at
    bint entered  # the I/O thread is in hub_run()
    bint stopping
    double now  # when the I/O thread last woke up
    uint64_t waits  # how often it has waited
    double scan_at  # when to scan the deadlines
    Source timer  # timerfd: a wait with a timeout would cost each request a kernel timer
    double timer_at  # when the timer goes off
    double watch  # the GIL watch: seconds between two turns that are only timed; 0: never
    double watch_at
    Listener *listeners
    Connection *connections
    Connection *queue
    Connection *queue_last
    uint64_t number  # how often something has come for the loop
    Connection *reap  # to be closed or freed
    bint sweep  # a listener may be ready to be freed
    Connection *dumps  # those that want a snapshot
    double dump_rate  # snapshots in a second; 0: no limit
    double dumps_left  # of this second
    double dumps_at  # when that was reckoned
    double dump_wait_until  # when the next snapshot may be taken; 0: now
    Connection *dumping  # those whose snapshot is taken now
    Connection *scrapes  # those that want the metrics
    Connection *scraping  # those that get them now
    Chunk *done  # sent; the loop drops the references
    RelaySlot relays[RELAYS]
    char relay_path[108]  # of torch's own server; empty: there is none
    int relay_listener  # its descriptor and inode
    uint64_t relay_inode
    int standing[STANDINGS]  # open connections
    Peer *peers[PEER_BUCKETS]
    uint64_t evicted  # connections that made room
    uint64_t refused  # newcomers without a place
    int canary  # a descriptor of the process's, with its device and inode; -1: there is none
    uint64_t canary_device
    uint64_t canary_inode
    bint gone  # the canary is dead: no descriptor is ours any more
    HttpDate date
    char *page  # READ_SIZE bytes to read into
    char *joined  # JOINED bytes, for answers to pipelined requests
    int answered  # requests of one route whose time is not counted yet ...
    int answered_route  # ... and that route
    Hub *next
    double box_at  # when the black box is due; NEVER: this thread writes none
    Source ending  # a pipe: a signal's handler -> the I/O thread; -1: no handler is installed
    int ending_wake  # the handlers' end of that pipe
    bint ends  # a handler waits
    int tid  # of the I/O thread
    Witness witness


cdef struct Event:  # what the loop tells one protocol, in this order
    char *data  # malloc'ed, freed by the receiver; NULL: none
    size_t size
    bint eof
    bint resume
    bint lost
    int error  # of lost; 0: an orderly end


# --- either side
cdef void hub_lock(Hub *hub) noexcept nogil
cdef void hub_unlock(Hub *hub) noexcept nogil
cdef bint hub_gone(Hub *hub) noexcept nogil  # whether the descriptors are lost; under the lock
cdef void ask_turn(Hub *hub) noexcept nogil  # under the lock
# What a scrape of *listener* reads of the hub. Under the lock.
cdef void read_hub(const Hub *hub, const Listener *listener, Readings *out) noexcept nogil

# --- the loop's thread, which holds the GIL; these take the lock
cdef Chunk *turn_begin(Hub *hub, uint64_t *number) noexcept nogil
cdef Connection *turn_next(Hub *hub, uint64_t *number) noexcept nogil
cdef void connection_attach(Connection *connection, void *transport) noexcept nogil
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
cdef void connection_prove(Connection *connection) noexcept nogil
cdef void connection_detach(Connection *connection) noexcept nogil
