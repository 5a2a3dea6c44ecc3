"""What is true of a hub and its connections whenever a thread gives the hub's lock back.

Debug and sanitizer builds (``WS_DEBUG``) check all of it at each hub_unlock(). A violation ends the
process, after a message on stderr or in the file that ``WS_DEBUG_LOG`` names. The compiler leaves
the checks out of every other build. With many connections not every unlock is checked, so a check
costs each unlock about the same.

Three things look like invariants, and are none:

* ``scan_at <= deadline``. A scan of many connections allows no other scan for a while
  (``scan_floor``), so a deadline may pass some milliseconds unseen.
* ``events`` is what the stage wants. After a claim or a close, EPOLLIN may stay: one needless event
  costs less than a system call for each transition. What matters holds: a reply that waits has
  EPOLLOUT, an idle connection has EPOLLIN, and nothing asks for an event that epoll would report
  again and again.
* A connection outside of QUEUED has nothing for the loop. Bytes, errors and room to write again
  come at any time, so ``queued`` says more than the stage.
"""

from libc.stdio cimport FILE, fflush, fopen, fprintf, stderr
from libc.stdlib cimport abort, getenv
from libc.string cimport memset

from workerserver.process.epoll cimport EPOLLIN, EPOLLOUT


cdef enum:
    MANY = 64  # connections that each unlock looks at


cdef struct Seen:  # counted over all connections of a hub
    size_t unclaimed
    int all
    int queued
    int reaping
    int answering
    int standing[STANDINGS]
    int peers  # connections that have one


cdef void lock_taken() noexcept nogil:
    global ws_locks
    ws_locks += 1


cdef void lock_given(Hub *hub) noexcept nogil:
    global ws_locks
    _must(ws_locks > 0, b"a thread gives back a lock that it does not have", hub, NULL)
    check_hub(hub)
    ws_locks -= 1


cdef void violated(const char *what, const Hub *hub, const Connection *c) noexcept nogil:
    """Say what is wrong, and end the process."""
    cdef FILE *out = debug_output()
    fprintf(out, b"workerserver: broken invariant: %s\n", what)
    fprintf(
        out,
        b"  hub %p: now %.3f, scan_at %.3f, timer_at %.3f, unclaimed %zu, asked %d, woken %d, "
        b"turning %d, waiting %d, stopping %d\n",
        <const void *>hub, hub.now, hub.scan_at, hub.timer_at, hub.unclaimed, <int>hub.asked,
        <int>hub.woken, <int>hub.witness.turning, <int>hub.witness.waiting, <int>hub.stopping,
    )
    if c != NULL:
        fprintf(
            out, b"  connection %p: fd %d, stage %s, events %#x, transport %p, deadline %.3f, "
            b"error %d\n", <const void *>c, c.fd, stage_name(c.stage), <unsigned int>c.events,
            c.transport, c.deadline, c.error,
        )
        fprintf(
            out, b"  bytes: start %zu, size %zu, capacity %zu, accounted %zu, out_size %zu, "
            b"low %zu, high %zu\n", c.start, c.size, c.capacity, c.accounted, c.out_size, c.low,
            c.high,
        )
        fprintf(
            out, b"  flags: polled %d, queued %d, reaping %d, boundary %d, heading %d, "
            b"judged %d, paused %d, eof %d, eof_told %d, hung_up %d, ", <int>c.polled,
            <int>c.queued, <int>c.reaping, <int>c.boundary, <int>c.heading, <int>c.judged,
            <int>c.paused, <int>c.eof, <int>c.eof_told, <int>c.hung_up,
        )
        fprintf(
            out, b"full %d, resume %d, closing %d, shut %d, doomed %d\n", <int>c.full,
            <int>c.resume, <int>c.closing, <int>c.shut, <int>c.doomed,
        )
    fflush(out)  # abort() does not
    abort()


cdef FILE *debug_output() noexcept nogil:
    cdef const char *name = getenv(b"WS_DEBUG_LOG")
    cdef FILE *out = NULL
    if name != NULL:
        out = fopen(name, b"a")
    return stderr if out == NULL else out


cdef inline void _must(
    bint holds, const char *what, const Hub *hub, const Connection *connection
) noexcept nogil:
    if not holds:
        violated(what, hub, connection)


cdef void check_hub(Hub *hub) noexcept nogil:
    """Everything on this page that has to do with *hub*."""
    cdef Witness *witness = &hub.witness
    cdef Connection *connection = hub.connections
    cdef Connection *before = NULL
    cdef Seen seen
    if hub.epoll < 0 or hub.gone:
        return  # a forked child's, or one without descriptors: it is never used
    if witness.count > MANY and witness.skipped < witness.count // MANY:
        witness.skipped += 1
        return
    seen.unclaimed = 0
    memset(&seen.standing, 0, sizeof(seen.standing))
    seen.peers = 0
    seen.all = seen.queued = seen.reaping = seen.answering = 0
    while connection != NULL:
        _must(connection.previous == before, b"connections: a link back is wrong", hub, connection)
        _must(connection.hub == hub, b"connections: one of another hub", hub, connection)
        seen.all += 1
        seen.unclaimed += connection.accounted
        seen.queued += connection.queued
        seen.reaping += connection.reaping
        seen.standing[<int>connection.standing] += connection.stage != STAGE_DEAD
        seen.peers += connection.peer != NULL
        seen.answering += connection.stage == STAGE_ANSWERING
        _check_stage(hub, connection)
        _check_in(hub, connection)
        _check_out(hub, connection)
        _check_events(hub, connection)
        _check_waits(hub, connection)
        before = connection
        connection = connection.next
    witness.count = seen.all
    witness.skipped = 0
    _must(hub.unclaimed == seen.unclaimed, b"unclaimed is not the sum of accounted", hub, NULL)
    _check_places(hub, &seen)
    _check_lists(hub, &seen)
    _check_slots(hub, &seen)
    _check_listeners(hub, &seen)
    _check_wakes(hub)


# --- one connection


cdef void _check_stage(const Hub *hub, const Connection *c) noexcept nogil:
    cdef Stage stage = c.stage
    cdef bint told = c.queued or hub.witness.claimed == c  # the loop will look at it
    _must(stage != STAGE_NEW, b"NEW: in the hub's list", hub, c)
    if stage == STAGE_IO:
        _must(c.deadline > 0.0, b"IO: no deadline", hub, c)
        _must(
            not c.closing or (c.eof and c.out != NULL), b"IO: closing, and nothing ends it", hub, c
        )
    elif stage == STAGE_QUEUED:
        _must(c.queued, b"QUEUED: not in the queue", hub, c)
        _must(
            c.size > c.start or (c.eof and not c.eof_told), b"QUEUED: nothing for the loop", hub, c
        )
    elif stage == STAGE_LOOP:
        _must(c.deadline == 0.0, b"LOOP: a deadline of the I/O thread", hub, c)
        _must(told or not c.error, b"LOOP: an error that the loop does not hear of", hub, c)
        _must(
            told or c.paused or c.closing or c.size == c.start,
            b"LOOP: bytes that the loop does not hear of", hub, c,
        )
        _must(
            not c.closing or c.out != NULL or c.error, b"LOOP: closing, and nothing ends it", hub, c
        )
    elif stage == STAGE_DRAIN:
        _must(c.shut, b"DRAIN: our side is not to end", hub, c)
        _must(c.deadline > 0.0, b"DRAIN: no deadline", hub, c)
        _must(c.capacity == 0, b"DRAIN: bytes are kept", hub, c)
    elif stage == STAGE_CLOSING:
        _must(c.reaping, b"CLOSING: nothing closes it", hub, c)
    elif stage == STAGE_DEAD:
        _must(not c.polled, b"DEAD: known to epoll", hub, c)
        _must(c.deadline == 0.0, b"DEAD: a deadline", hub, c)
        _must(c.capacity == 0 and c.out == NULL, b"DEAD: memory is left", hub, c)
        _must(c.transport != NULL or c.reaping, b"DEAD: nothing frees it", hub, c)
    if stage == STAGE_IO or stage == STAGE_WAIT or stage == STAGE_QUEUED:
        _must(not c.error, b"an error, and the I/O thread has not closed it", hub, c)
    _must(
        not c.doomed or stage == STAGE_ANSWERING or stage == STAGE_DEAD,
        b"doomed, and not ANSWERING", hub, c,
    )
    _must(not c.closing or stage != STAGE_WAIT, b"WAIT: closing", hub, c)
    _must(not c.closing or stage != STAGE_QUEUED, b"QUEUED: closing", hub, c)
    if c.queued and c.transport == NULL:
        _must(
            stage == STAGE_QUEUED or (stage == STAGE_LOOP and hub.witness.claimed == c),
            b"in the queue, without a transport", hub, c,
        )


cdef void _check_in(const Hub *hub, const Connection *c) noexcept nogil:
    _must(c.start <= c.size <= c.capacity, b"start, size and capacity are out of order", hub, c)
    _must((c.data == NULL) == (c.capacity == 0), b"data and capacity disagree", hub, c)
    _must(c.accounted == c.size - c.start, b"accounted is not what is kept", hub, c)
    _must(c.eof or not c.eof_told, b"an end was told that has not come", hub, c)
    if c.stage == STAGE_IO and c.heading:
        _must(c.size > c.start, b"IO: the deadline of a head, and no byte of it", hub, c)


cdef void _check_out(const Hub *hub, const Connection *c) noexcept nogil:
    cdef const Chunk *chunk = c.out
    cdef const Chunk *last = NULL
    cdef size_t size = 0
    while chunk != NULL:
        _must(chunk.sent < chunk.size, b"out: a chunk that is sent", hub, c)
        size += chunk.size - chunk.sent
        last = chunk
        chunk = chunk.next
    _must(c.out_last == last, b"out: out_last is not the last chunk", hub, c)
    _must(c.out_size == size, b"out_size is not the sum of the chunks", hub, c)
    if c.stage == STAGE_DEAD:
        return
    _must(not (c.full and c.resume), b"full, and to be resumed", hub, c)
    _must(not c.full or c.out != NULL or c.error, b"full, and nothing will resume it", hub, c)
    if c.resume and c.transport != NULL:
        _must(
            c.queued or hub.witness.claimed == c, b"resume_writing() would never be called", hub, c
        )


cdef void _check_events(const Hub *hub, const Connection *c) noexcept nogil:
    if c.stage == STAGE_DEAD:
        return
    if not c.polled:
        _must(
            c.hung_up or c.error or c.doomed, b"epoll does not know the connection", hub, c
        )
        return
    _must(
        ((c.events & EPOLLOUT) != 0) == (c.out != NULL), b"EPOLLOUT is not what out needs", hub, c
    )
    _must(not c.eof or not c.events & EPOLLIN, b"EPOLLIN after the end", hub, c)
    if (
        c.out == NULL and c.size == c.start and not c.eof and not c.paused and not c.closing
        and c.stage != STAGE_CLOSING
    ):
        _must(c.events & EPOLLIN, b"nothing reads from the connection", hub, c)


cdef void _check_waits(const Hub *hub, const Connection *c) noexcept nogil:
    """Each deadline is seen by the next scan, or by the first one that the last one allows."""
    cdef const Listener *listener = c.listener
    cdef double wait
    if c.deadline > 0.0:
        _must(_seen(hub, c.deadline), b"no scan sees the deadline", hub, c)
    if c.stage == STAGE_QUEUED:
        wait = listener.gil_timeout
        if not c.judged:
            wait = min(wait, listener.gil_deadline)
        # A request that waits for a slot at torch's server is not judged, but retried.
        _must(
            _seen(hub, c.queued_at + wait) or _seen(hub, hub.witness.scan_floor + RETRY_SECONDS),
            b"no scan sees the end of the wait for the loop", hub, c,
        )


cdef bint _seen(const Hub *hub, double at) noexcept nogil:
    return hub.scan_at <= max(at, hub.witness.scan_floor)


# --- the hub


cdef void _check_places(const Hub *hub, const Seen *seen) noexcept nogil:
    cdef const Peer *peer
    cdef int i, connections = 0
    for i in range(STANDINGS):
        _must(hub.standing[i] == seen.standing[i], b"places: a count is wrong", hub, NULL)
    for i in range(PEER_BUCKETS):
        peer = hub.peers[i]
        while peer != NULL:
            _must(peer.connections > 0, b"places: a peer without a connection", hub, NULL)
            connections += peer.connections
            peer = peer.next
    _must(connections == seen.peers, b"places: the peers' connections are not all", hub, NULL)


cdef void _check_lists(const Hub *hub, const Seen *seen) noexcept nogil:
    cdef const Connection *c = hub.queue
    cdef const Connection *before = NULL
    cdef const Chunk *chunk = hub.done
    cdef int number = 0
    while c != NULL:
        _must(c.queued, b"queue: one that is not queued", hub, c)
        _must(c.queue_previous == before, b"queue: a link back is wrong", hub, c)
        number += 1
        before = c
        c = c.queue_next
    _must(hub.queue_last == before, b"queue: queue_last is not the last", hub, before)
    _must(number == seen.queued, b"queue: one that is queued is missing", hub, NULL)
    number = 0
    c = hub.reap
    while c != NULL:
        number += 1
        _must(c.reaping and number <= seen.reaping, b"reap: one that is not reaping", hub, c)
        c = c.reap_next
    _must(number == seen.reaping, b"reap: one that is reaping is missing", hub, NULL)
    while chunk != NULL:
        _must(chunk.owner != NULL, b"done: a chunk without a reference", hub, NULL)
        chunk = chunk.next


cdef void _check_slots(const Hub *hub, const Seen *seen) noexcept nogil:
    """Each ANSWERING connection is referred to exactly once."""
    cdef const RelaySlot *slot
    cdef int i, j, number = 0
    number += _check_dumps(hub, hub.dumps, seen)
    number += _check_dumps(hub, hub.dumping, seen)
    number += _check_dumps(hub, hub.scrapes, seen)
    number += _check_dumps(hub, hub.scraping, seen)
    for i in range(RELAYS):
        slot = &hub.relays[i]
        _must(slot.busy == (slot.relay.fd >= 0), b"relays: busy and descriptor disagree", hub, NULL)
        if slot.connection == NULL:
            continue
        number += 1
        _must(slot.busy, b"relays: a free slot has a connection", hub, slot.connection)
        _must(
            slot.connection.stage == STAGE_ANSWERING, b"relays: one that is not ANSWERING", hub,
            slot.connection,
        )
        _must(_seen(hub, slot.deadline), b"relays: no scan sees the deadline", hub, NULL)
        for j in range(i):
            _must(
                hub.relays[j].connection != slot.connection, b"relays: one in two slots", hub,
                slot.connection,
            )
    _must(number == seen.answering, b"ANSWERING: nobody answers", hub, NULL)


cdef int _check_dumps(const Hub *hub, const Connection *c, const Seen *seen) noexcept nogil:
    cdef int number = 0
    while c != NULL:
        number += 1
        _must(
            c.stage == STAGE_ANSWERING and number <= seen.answering,
            b"dumps: one that is not ANSWERING", hub, c,
        )
        c = c.dump_next
    return number


cdef void _check_listeners(const Hub *hub, const Seen *seen) noexcept nogil:
    cdef const Listener *listener = hub.listeners
    cdef const Connection *c
    cdef int alive, all = 0, references
    cdef size_t unsent
    while listener != NULL:
        alive = references = 0
        unsent = 0
        c = hub.connections
        while c != NULL:
            if c.listener == listener:
                references += 1
                unsent += c.out_size
                alive += c.stage != STAGE_DEAD
            c = c.next
        all += references
        _must(listener.unsent == unsent, b"listener: unsent is not the sum of out_size", hub, NULL)
        _must(listener.references == references, b"listener: references is wrong", hub, NULL)
        _must(listener.connections == alive, b"listener: connections is wrong", hub, NULL)
        _must(
            listener.fd >= 0 or not listener.accepting, b"listener: accepts on no descriptor", hub,
            NULL,
        )
        _must(
            listener.owner == NULL or not listener.dropped, b"listener: dropped, with an owner",
            hub, NULL,
        )
        if listener.resume_at > 0.0:
            _must(_seen(hub, listener.resume_at), b"listener: never accepts again", hub, NULL)
        listener = listener.next
    _must(all == seen.all, b"a connection of no listener", hub, NULL)
    if hub.watch > 0.0 and hub.listeners != NULL:
        _must(_seen(hub, hub.watch_at), b"the GIL watch is not seen to", hub, NULL)


cdef void _check_wakes(const Hub *hub) noexcept nogil:
    """Neither thread sleeps while the other one has left something for it."""
    cdef bint awake = not hub.witness.waiting or hub.woken
    _must(awake or hub.reap == NULL, b"the I/O thread sleeps, with connections to close", hub, NULL)
    _must(awake or not hub.sweep, b"the I/O thread sleeps, with listeners to free", hub, NULL)
    _must(
        awake or hub.dumps == NULL
        or (hub.dump_wait_until > 0.0 and _seen(hub, hub.dump_wait_until)),
        b"the I/O thread sleeps, with snapshots to take", hub, NULL,
    )
    _must(
        awake or hub.scrapes == NULL, b"the I/O thread sleeps, with metrics to write", hub, NULL
    )
    _must(awake or not hub.stopping, b"the I/O thread sleeps, and should stop", hub, NULL)
    _must(
        awake or hub.timer_at <= hub.scan_at, b"the I/O thread sleeps beyond its next scan", hub,
        NULL,
    )
    _must(hub.done == NULL or hub.asked, b"the loop is not asked to drop references", hub, NULL)
    _must(
        hub.queue == NULL or hub.asked or hub.witness.turning,
        b"the loop is not asked to look at the queue", hub, hub.queue,
    )


cdef void check_end(const Hub *hub) noexcept nogil:
    """hub_run() is over: what is left belongs to transports, which have to let go of it."""
    cdef const Connection *c = hub.connections
    cdef int i
    while c != NULL:
        _must(c.stage == STAGE_DEAD, b"the end: a connection is open", hub, c)
        _must(c.transport != NULL, b"the end: a connection is not freed", hub, c)
        c = c.next
    _must(hub.reap == NULL, b"the end: connections to free", hub, hub.reap)
    _must(
        hub.dumps == NULL and hub.dumping == NULL and hub.scrapes == NULL and hub.scraping == NULL,
        b"the end: snapshots to take, or metrics to write", hub, NULL,
    )
    for i in range(RELAYS):
        _must(not hub.relays[i].busy, b"the end: a relay is open", hub, NULL)
