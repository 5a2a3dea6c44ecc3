"""Faults that are planted into the native engine, for its checks to find.

The test copies this file into a debug build as one more part of native/_engine, so that everything
of the engine can be reached. Each fault is planted in a child of its own, which is made by the
system call alone: with fork(), the engine would close what the child inherits, and check nothing.
"""

from libc.stdlib cimport calloc
from libc.string cimport strcmp
from libc.signal cimport SIGCHLD
from posix.unistd cimport _exit, close, dup2, pipe, read


cdef extern from "<sys/wait.h>" nogil:
    int waitpid(int pid, int *status, int options)

cdef extern from "<sys/syscall.h>" nogil:
    int SYS_clone

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)


cdef enum:
    UNKNOWN = 77  # a child's exit status: no such plant, or no connection for it


cdef Connection *_at(Hub *hub, Stage stage) noexcept nogil:
    """The first connection in the stage."""
    cdef Connection *connection = hub.connections
    while connection.stage != stage:
        connection = connection.next
        if connection == NULL:
            _exit(UNKNOWN)
    return connection


cdef Connection *_half(Hub *hub) noexcept nogil:
    """The connection that has sent half a head."""
    cdef Connection *connection = hub.connections
    while connection.stage != STAGE_IO or connection.size == connection.start:
        connection = connection.next
        if connection == NULL:
            _exit(UNKNOWN)
    return connection


cdef Connection *_stuffed(Hub *hub) noexcept nogil:
    """The connection whose client reads nothing."""
    cdef Connection *connection = hub.connections
    while connection.out == NULL:
        connection = connection.next
        if connection == NULL:
            _exit(UNKNOWN)
    return connection


cdef Connection *_idle(Hub *hub) noexcept nogil:
    cdef Connection *connection = hub.connections
    while connection.stage != STAGE_IO or connection.size != connection.start:
        connection = connection.next
        if connection == NULL:
            _exit(UNKNOWN)
    return connection


cdef void _late(Hub *hub) noexcept nogil:
    """The next scan comes after second 1 of the clock."""
    hub.witness.scan_floor = 0.0
    hub.scan_at = hub.timer_at = 2.0


cdef void _sleeping(Hub *hub) noexcept nogil:
    hub.witness.waiting = True
    hub.woken = False


cdef bint _plant_move(Hub *hub, const char *fault) noexcept nogil:
    cdef Connection *connection = _idle(hub)
    if not strcmp(fault, b"the connection is in another stage than its mover thinks"):
        move(connection, STAGE_WAIT, STAGE_LOOP)
    elif not strcmp(fault, b"a forked child may only bury connections"):
        enter_side(SIDE_CHILD)
        move(connection, STAGE_IO, STAGE_LOOP)
    elif not strcmp(fault, b"a connection is moved without the hub's lock"):
        enter_side(SIDE_CHILD)
        enter_side(SIDE_IO)
        move(connection, STAGE_IO, STAGE_QUEUED)
    elif not strcmp(fault, b"there is no such transition"):
        move(connection, STAGE_IO, STAGE_WAIT)
    elif not strcmp(fault, b"the transition is for the other thread to make"):
        enter_side(SIDE_IO)
        move(connection, STAGE_IO, STAGE_LOOP)
    elif not strcmp(fault, b"a thread that is not the loop's moves a connection"):
        move(connection, STAGE_IO, STAGE_LOOP)
    else:
        return False
    return True


cdef bint _plant_connection(Hub *hub, const char *fault) noexcept nogil:
    cdef Connection *c
    cdef Listener *other
    if not strcmp(fault, b"connections: a link back is wrong"):
        hub.connections.next.previous = NULL
    elif not strcmp(fault, b"connections: one of another hub"):
        _idle(hub).hub = NULL
    elif not strcmp(fault, b"NEW: in the hub's list"):
        _idle(hub).stage = STAGE_NEW
    elif not strcmp(fault, b"IO: no deadline"):
        _idle(hub).deadline = 0.0
    elif not strcmp(fault, b"IO: closing, and nothing ends it"):
        _idle(hub).closing = True
    elif not strcmp(fault, b"QUEUED: not in the queue"):
        dequeue(_at(hub, STAGE_QUEUED))
    elif not strcmp(fault, b"QUEUED: nothing for the loop"):
        c = _at(hub, STAGE_QUEUED)
        c.start = c.size
    elif not strcmp(fault, b"LOOP: a deadline of the I/O thread"):
        _at(hub, STAGE_LOOP).deadline = NEVER
    elif not strcmp(fault, b"LOOP: an error that the loop does not hear of"):
        _at(hub, STAGE_LOOP).error = 5
    elif not strcmp(fault, b"LOOP: bytes that the loop does not hear of"):
        c = _at(hub, STAGE_LOOP)
        make_room(c, 1)
        c.size += 1
        set_events(c)
    elif not strcmp(fault, b"LOOP: closing, and nothing ends it"):
        c = _at(hub, STAGE_LOOP)
        while c.out != NULL:
            discard_out(c)
        c.closing = True
    elif not strcmp(fault, b"DRAIN: our side is not to end"):
        _at(hub, STAGE_DRAIN).shut = False
    elif not strcmp(fault, b"DRAIN: no deadline"):
        _at(hub, STAGE_DRAIN).deadline = 0.0
    elif not strcmp(fault, b"DRAIN: bytes are kept"):
        make_room(_at(hub, STAGE_DRAIN), 1)
    elif not strcmp(fault, b"CLOSING: nothing closes it"):
        _idle(hub).stage = STAGE_CLOSING
    elif not strcmp(fault, b"DEAD: known to epoll"):
        _at(hub, STAGE_DEAD).polled = True
    elif not strcmp(fault, b"DEAD: a deadline"):
        _at(hub, STAGE_DEAD).deadline = NEVER
    elif not strcmp(fault, b"DEAD: memory is left"):
        make_room(_at(hub, STAGE_DEAD), 1)
    elif not strcmp(fault, b"DEAD: nothing frees it"):
        _at(hub, STAGE_DEAD).transport = NULL
    elif not strcmp(fault, b"an error, and the I/O thread has not closed it"):
        _idle(hub).error = 5
    elif not strcmp(fault, b"doomed, and not ANSWERING"):
        _idle(hub).doomed = True
    elif not strcmp(fault, b"WAIT: closing"):
        _at(hub, STAGE_WAIT).closing = True
    elif not strcmp(fault, b"QUEUED: closing"):
        _at(hub, STAGE_QUEUED).closing = True
    elif not strcmp(fault, b"in the queue, without a transport"):
        c = _at(hub, STAGE_LOOP)
        enqueue(c)
        c.transport = NULL
    elif not strcmp(fault, b"start, size and capacity are out of order"):
        c = _half(hub)
        c.size = c.capacity + 1
        c.accounted += 1
    elif not strcmp(fault, b"data and capacity disagree"):
        c = _at(hub, STAGE_LOOP)
        c.capacity = 10
    elif not strcmp(fault, b"accounted is not what is kept"):
        _half(hub).accounted += 1
    elif not strcmp(fault, b"an end was told that has not come"):
        _at(hub, STAGE_WAIT).eof_told = True
    elif not strcmp(fault, b"IO: the deadline of a head, and no byte of it"):
        _idle(hub).heading = True
    elif not strcmp(fault, b"out: a chunk that is sent"):
        c = _stuffed(hub)
        c.out.sent = c.out.size
    elif not strcmp(fault, b"out: out_last is not the last chunk"):
        _stuffed(hub).out_last = NULL
    elif not strcmp(fault, b"out_size is not the sum of the chunks"):
        _stuffed(hub).out_size += 1
    elif not strcmp(fault, b"full, and to be resumed"):
        _stuffed(hub).resume = True
    elif not strcmp(fault, b"full, and nothing will resume it"):
        _idle(hub).full = True
    elif not strcmp(fault, b"resume_writing() would never be called"):
        _at(hub, STAGE_WAIT).resume = True
    elif not strcmp(fault, b"epoll does not know the connection"):
        _idle(hub).polled = False
    elif not strcmp(fault, b"EPOLLOUT is not what out needs"):
        _stuffed(hub).events &= ~<uint32_t>EPOLLOUT
    elif not strcmp(fault, b"EPOLLIN after the end"):
        _at(hub, STAGE_WAIT).eof = True
    elif not strcmp(fault, b"nothing reads from the connection"):
        _idle(hub).events = 0
    elif not strcmp(fault, b"no scan sees the deadline"):
        _late(hub)
        _idle(hub).deadline = 1.0
    elif not strcmp(fault, b"no scan sees the end of the wait for the loop"):
        _late(hub)
        _at(hub, STAGE_QUEUED).queued_at = -1000.0
    elif not strcmp(fault, b"a connection of no listener"):
        c = _idle(hub)
        other = <Listener *>calloc(1, sizeof(Listener))
        c.listener.references -= 1
        c.listener.connections -= 1
        c.listener = other
    else:
        return False
    return True


cdef bint _plant_hub(Hub *hub, const char *fault) noexcept nogil:
    if not strcmp(fault, b"unclaimed is not the sum of accounted"):
        hub.unclaimed += 1
    elif not strcmp(fault, b"a thread gives back a lock that it does not have"):
        enter_side(SIDE_CHILD)
    elif not strcmp(fault, b"queue: one that is not queued"):
        enqueue(_at(hub, STAGE_WAIT))
        _at(hub, STAGE_WAIT).queued = False
    elif not strcmp(fault, b"queue: a link back is wrong"):
        hub.queue_last.queue_previous = NULL
    elif not strcmp(fault, b"queue: queue_last is not the last"):
        hub.queue_last = hub.queue
    elif not strcmp(fault, b"queue: one that is queued is missing"):
        _at(hub, STAGE_WAIT).queued = True
    elif not strcmp(fault, b"reap: one that is not reaping"):
        hub.reap = _idle(hub)
    elif not strcmp(fault, b"reap: one that is reaping is missing"):
        _idle(hub).reaping = True
    elif not strcmp(fault, b"done: a chunk without a reference"):
        hub.done = chunk_new(b"x", 1, NULL)
    elif not strcmp(fault, b"relays: busy and descriptor disagree"):
        hub.relays[3].busy = True
    elif not strcmp(fault, b"relays: a free slot has a connection"):
        hub.relays[3].connection = _at(hub, STAGE_ANSWERING)
    elif not strcmp(fault, b"relays: one that is not ANSWERING"):
        hub.relays[0].connection = _idle(hub)
    elif not strcmp(fault, b"relays: no scan sees the deadline"):
        _late(hub)
        hub.relays[0].deadline = 1.0
    elif not strcmp(fault, b"relays: one in two slots"):
        hub.relays[3] = hub.relays[0]
    elif not strcmp(fault, b"ANSWERING: nobody answers"):
        hub.relays[0].connection = NULL
    elif not strcmp(fault, b"dumps: one that is not ANSWERING"):
        hub.dumps = _idle(hub)
    elif not strcmp(fault, b"places: a count is wrong"):
        hub.standing[<int>STANDING_TRUSTED] += 1
    elif not strcmp(fault, b"places: a peer without a connection"):
        hub.peers[0] = <Peer *>calloc(1, sizeof(Peer))
    elif not strcmp(fault, b"places: the peers' connections are not all"):
        hub.peers[0] = <Peer *>calloc(1, sizeof(Peer))
        hub.peers[0].connections = 1
    elif not strcmp(fault, b"listener: unsent is not the sum of out_size"):
        hub.listeners.unsent += 1
    elif not strcmp(fault, b"listener: references is wrong"):
        hub.listeners.references += 1
    elif not strcmp(fault, b"listener: connections is wrong"):
        hub.listeners.connections += 1
    elif not strcmp(fault, b"listener: accepts on no descriptor"):
        hub.listeners.fd = -1
    elif not strcmp(fault, b"listener: dropped, with an owner"):
        hub.listeners.dropped = True
    elif not strcmp(fault, b"listener: never accepts again"):
        _late(hub)
        hub.listeners.resume_at = 1.0
    elif not strcmp(fault, b"the GIL watch is not seen to"):
        _late(hub)
        hub.watch = hub.watch_at = 1.0
    elif not strcmp(fault, b"the I/O thread sleeps, with connections to close"):
        _sleeping(hub)
        reap(_idle(hub))
    elif not strcmp(fault, b"the I/O thread sleeps, with listeners to free"):
        _sleeping(hub)
        hub.sweep = True
    elif not strcmp(fault, b"the I/O thread sleeps, with snapshots to take"):
        _sleeping(hub)
        hub.dumps = _at(hub, STAGE_ANSWERING)
        hub.relays[0].connection = NULL
    elif not strcmp(fault, b"the I/O thread sleeps, with metrics to write"):
        _sleeping(hub)
        hub.scrapes = _at(hub, STAGE_ANSWERING)
        hub.relays[0].connection = NULL
    elif not strcmp(fault, b"the I/O thread sleeps, and should stop"):
        _sleeping(hub)
        hub.stopping = True
    elif not strcmp(fault, b"the I/O thread sleeps beyond its next scan"):
        _sleeping(hub)
        hub.timer_at = NEVER
    elif not strcmp(fault, b"the loop is not asked to drop references"):
        hub.done = chunk_new(b"x", 1, hub)
        hub.asked = False
    elif not strcmp(fault, b"the loop is not asked to look at the queue"):
        hub.asked = hub.witness.turning = False
    else:
        return False
    return True


cdef bint _plant_end(Hub *hub, const char *fault) noexcept nogil:
    cdef Connection *idle = _idle(hub)
    if not strcmp(fault, b"the end: a connection is open"):
        check_end(hub)
    elif not strcmp(fault, b"the end: a connection is not freed"):
        hub.connections.stage = STAGE_DEAD
        hub.connections.transport = NULL
        check_end(hub)
    hub.connections = NULL
    if not strcmp(fault, b"the end: connections to free"):
        hub.reap = idle
    elif not strcmp(fault, b"the end: snapshots to take, or metrics to write"):
        hub.dumping = idle
    elif strcmp(fault, b"the end: a relay is open"):
        return False
    check_end(hub)
    return True


cdef void _in_child(Hub *hub, const char *fault, int old, int new, int side) noexcept nogil:
    if fault != NULL:
        if not (
            _plant_move(hub, fault) or _plant_connection(hub, fault) or _plant_hub(hub, fault)
            or _plant_end(hub, fault)
        ):
            _exit(UNKNOWN)
        hub_unlock(hub)
    else:
        hub.witness.loop = 0
        enter_side(<Side>side)
        hub.connections.stage = <Stage>old
        move(hub.connections, <Stage>old, <Stage>new)
    _exit(0)


cdef _watch(const char *fault, int old, int new, int side):
    """The exit status of a child, and what it has written to stderr."""
    cdef Hub *hub = _hubs
    cdef int[2] ends
    cdef int status = 0
    cdef long pid
    cdef char[4096] said
    cdef ssize_t size, got
    if pipe(ends) < 0:
        raise OSError
    with nogil:
        hub_lock(hub)
        pid = syscall(SYS_clone, <long>SIGCHLD, <long>0, <long>0, <long>0, <long>0)
        if pid == 0:
            dup2(ends[1], 2)
            _in_child(hub, fault, old, new, side)
        hub_unlock(hub)
        close(ends[1])
        size = 0
        while True:
            got = read(ends[0], &said[size], sizeof(said) - size)
            if got <= 0:
                break
            size += got
        close(ends[0])
        waitpid(<int>pid, &status, 0)
    return status, said[:size].decode()


def plant(bytes fault):
    return _watch(fault, 0, 0, 0)


def move_in_child(int old, int new, bint io):
    return _watch(NULL, old, new, SIDE_IO if io else SIDE_LOOP)


def corrupt():
    """A fault in this very process, which the next thread that gives the lock back finds."""
    _hubs.unclaimed += 1


def stages():
    """The stages of all connections. Those in DRAIN stay there."""
    cdef Connection *connection
    cdef list found = []
    hub_lock(_hubs)
    connection = _hubs.connections
    while connection != NULL:
        if connection.stage == STAGE_DRAIN:
            connection.deadline = NEVER  # the client gets no more than two seconds
        found.append(connection.stage)
        connection = connection.next
    hub_unlock(_hubs)
    return [(<bytes>stage_name(stage)).decode() for stage in found]
