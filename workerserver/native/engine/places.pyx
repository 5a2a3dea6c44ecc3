"""Which connections have a place: what accept() may take of the process's descriptors. On the I/O
thread, under the hub's lock, unless it says otherwise.

Training needs descriptors too. The number that accept() returned is the real measure, for all
listeners and for everything else in the process: beyond the *line*, a quarter of the soft limit is
left, and at least 64. Then, and where one kind of client has all the places of its kind, the
connection that has owed us bytes for the longest time is closed, and not the newcomer. A connection
to which we owe a reply is never closed.
"""

from libc.errno cimport EMFILE, ENFILE
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy
from posix.fcntl cimport F_DUPFD_CLOEXEC, fcntl
from posix.unistd cimport close

from workerserver.native.system cimport ws_address, ws_peer_name
from workerserver.process.clock cimport monotonic
from workerserver.process._pulse cimport Readings, descriptor_line


cdef enum:
    KEPT = 4  # places for Unix clients and for those with the token, whatever training has opened


# --- peers


cdef Peer **_bucket(Hub *hub, const unsigned char *address) noexcept nogil:
    """Where the chain of *address* begins. The bytes of an address that a client can choose freely
    are at its end; a chain is as long as the number of connections at most."""
    cdef unsigned int hash = 0
    cdef int i
    for i in range(PEER_BYTES):
        hash = hash * 31 + address[i]
    return &hub.peers[hash % PEER_BUCKETS]


cdef Peer *peer_of(Hub *hub, const ws_peer_name *name) noexcept nogil:
    """The peer with the address in *name*, with one connection more; NULL without memory.
    peer_leave() takes the connection away again."""
    cdef unsigned char address[PEER_BYTES]
    cdef Peer **bucket
    cdef Peer *peer
    ws_address(name, address)
    bucket = _bucket(hub, address)
    peer = bucket[0]
    while peer != NULL:
        if memcmp(peer.address, address, sizeof(address)) == 0:
            peer.connections += 1
            return peer
        peer = peer.next
    peer = <Peer *>calloc(1, sizeof(Peer))
    if peer != NULL:
        memcpy(peer.address, address, sizeof(address))
        peer.connections = 1
        peer.next = bucket[0]
        bucket[0] = peer
    return peer


cdef void peer_leave(Hub *hub, Peer *peer) noexcept nogil:
    """*peer* has one connection less; the last one ends it. Does nothing for NULL."""
    cdef Peer **place
    if peer == NULL:
        return
    peer.connections -= 1
    if peer.connections > 0:
        return
    place = _bucket(hub, peer.address)
    while place[0] != peer:
        place = &place[0].next
    place[0] = peer.next
    free(peer)


cdef void read_hub(const Hub *hub, const Listener *listener, Readings *out) noexcept nogil:
    """See the .pxd."""
    cdef const Peer *peer
    cdef int i
    out.started = listener.started
    out.connections = listener.connections
    out.unproven = hub.standing[<int>STANDING_UNPROVEN]
    out.evicted = <int64_t>hub.evicted
    out.refused = <int64_t>hub.refused
    out.unsent = <int64_t>listener.unsent
    out.busiest = 0
    for i in range(PEER_BUCKETS):
        peer = hub.peers[i]
        while peer != NULL:
            out.busiest = max(out.busiest, peer.connections)
            peer = peer.next
    out.snapshots = 0.0
    if hub.dump_rate > 0.0:
        out.snapshots = max(
            0.0, hub.dump_rate - hub.dumps_left - hub.dump_rate * (monotonic() - hub.dumps_at)
        )


# --- places


cdef Standing standing_of(const Listener *listener) noexcept nogil:
    """That of a new connection."""
    if listener.local:
        return STANDING_TRUSTED
    return STANDING_UNPROVEN if listener.asks_secret else STANDING_OPEN


cdef void place_take(Connection *connection, Peer *peer) noexcept nogil:
    cdef Hub *hub = connection.hub
    connection.standing = standing_of(connection.listener)
    connection.owes_since = hub.now
    connection.peer = peer
    hub.standing[<int>connection.standing] += 1


cdef void place_give(Connection *connection) noexcept nogil:
    """The connection is closed."""
    connection.hub.standing[<int>connection.standing] -= 1
    peer_leave(connection.hub, connection.peer)
    connection.peer = NULL


cdef void prove(Connection *connection) noexcept nogil:
    """The client has shown the token; from either thread."""
    if connection.standing == STANDING_UNPROVEN and connection.stage != STAGE_DEAD:
        connection.hub.standing[<int>STANDING_UNPROVEN] -= 1
        connection.standing = STANDING_TRUSTED
        connection.hub.standing[<int>STANDING_TRUSTED] += 1


cdef int _open(const Hub *hub) noexcept nogil:
    return (
        hub.standing[<int>STANDING_TRUSTED] + hub.standing[<int>STANDING_UNPROVEN]
        + hub.standing[<int>STANDING_OPEN]
    )


cdef bint owes(const Connection *connection) noexcept nogil:
    """Whether the client owes us bytes, and we owe it nothing."""
    return connection.out == NULL and (
        connection.stage == STAGE_IO
        or connection.stage == STAGE_WAIT
        or connection.stage == STAGE_DRAIN
    )


cdef bint _evict(Hub *hub, int standings, const Peer *peer) noexcept nogil:
    """Close the connection of one of *standings* (bits), and of *peer* unless that is NULL, that
    has owed us bytes for the longest time; False if there is none."""
    cdef Connection *connection = hub.connections
    cdef Connection *oldest = NULL
    while connection != NULL:
        if (
            standings & (1 << <int>connection.standing)
            and (peer == NULL or connection.peer == peer)
            and owes(connection)
            # The list begins with the newest one.
            and (oldest == NULL or connection.owes_since <= oldest.owes_since)
        ):
            oldest = connection
        connection = connection.next
    if oldest == NULL:
        return False
    hub.evicted += 1
    die(oldest)
    return True


cdef bint _evict_for(Hub *hub, Standing standing) noexcept nogil:
    """Make room for a newcomer of *standing*. A trusted connection gives way last, and to a
    stranger only if KEPT others stay."""
    if _evict(hub, 1 << <int>STANDING_UNPROVEN | 1 << <int>STANDING_OPEN, NULL):
        return True
    if standing != STANDING_TRUSTED and hub.standing[<int>STANDING_TRUSTED] <= KEPT:
        return False
    return _evict(hub, 1 << <int>STANDING_TRUSTED, NULL)


cdef int place_for(Listener *listener, const Peer *peer, int fd) noexcept nogil:
    """A place for the connection *fd* that was just accepted: its descriptor, which may have
    another number now. -1: there is none, and the descriptor is closed."""
    cdef Hub *hub = listener.hub
    cdef Standing standing = standing_of(listener)
    cdef int lower
    if (
        standing == STANDING_UNPROVEN
        and hub.standing[<int>STANDING_UNPROVEN] >= listener.max_unproven
        and not _evict(hub, 1 << <int>STANDING_UNPROVEN, NULL)
    ) or (
        peer != NULL and peer.connections > listener.max_peer
        and not _evict(hub, ~0, peer)
    ):
        hub.refused += 1
        close(fd)
        return -1
    if fd <= descriptor_line() or _open(hub) < KEPT or (
        standing == STANDING_TRUSTED and hub.standing[<int>STANDING_TRUSTED] < KEPT
    ):
        return fd
    if not _evict_for(hub, standing):
        hub.refused += 1
        close(fd)
        return -1
    # The number of the one that went is free. With it, the next number that accept() returns goes
    # on to be a measure.
    lower = fcntl(fd, F_DUPFD_CLOEXEC, 3)
    close(fd)
    return lower


cdef bint place_after_failure(Hub *hub, int error) noexcept nogil:
    """accept() found no descriptor: close a stranger that owes us bytes. False if there is none."""
    if error != EMFILE and error != ENFILE:
        return False
    return _evict(hub, 1 << <int>STANDING_UNPROVEN | 1 << <int>STANDING_OPEN, NULL)
