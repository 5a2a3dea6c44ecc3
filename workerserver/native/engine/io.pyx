"""The native I/O thread: one epoll loop that owns all plain sockets and never needs the GIL.

The loop accepts, reads and watches deadlines; dispatch.pyx decides what to do with requests. The
thread holds the hub's lock except while it waits in epoll, takes a snapshot, writes
metrics, or copies a large body into a socket. No Python runs between the first line of ``hub_run``
and its last.
"""

from libc.errno cimport EAGAIN, ECONNABORTED, EINTR, ENOMEM, errno
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.time cimport itimerspec
from posix.unistd cimport close, read

from workerserver.http.bounds cimport MAX_DRAINED_BYTES, MAX_REFUSED
from workerserver.native.system cimport (
    MSG_DONTWAIT, SOCK_CLOEXEC, SOCK_NONBLOCK, TFD_TIMER_ABSTIME, accept4, recv, socklen_t,
    ws_peer_name,
)
from workerserver.process.clock cimport monotonic
from workerserver.process._pulse cimport meter_drop, steps_fold
from workerserver.process.epoll cimport (
    EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, epoll_event, epoll_wait,
)


cdef extern from "<sys/timerfd.h>" nogil:
    int timerfd_settime(int fd, int flags, const itimerspec *value, itimerspec *old)


cdef enum:
    EVENTS = 16  # a batch
    ACCEPTS = 16
    REQUESTS = 16 * 1024  # bytes read at a time while requests are answered from them
    BUFFER = 65536  # high-water mark of what waits to be sent

cdef double COARSE = 0.005  # seconds between two scans of the deadlines, at least
cdef double ACCEPT_PAUSE = 0.1


# --- in


cdef void _accept(Hub *hub, Listener *listener) noexcept nogil:
    """Accept the connections that wait. Under the lock: a fork between accept() and the entry in
    the hub's list would leave the child a descriptor that it does not know.

    The usual client comes alone. A question for a second one costs a tenth of the whole request,
    because the kernel makes a socket and a file before it looks. So a second one is asked for only
    if epoll has reported the listener twice in succession.
    """
    cdef Connection *connection
    cdef Peer *peer = NULL
    cdef ws_peer_name name
    cdef socklen_t size
    cdef int _i, fd
    cdef int most = ACCEPTS if listener.reported + 1 == hub.waits else 1
    listener.reported = hub.waits
    for _i in range(most):
        if not listener.accepting:
            return
        size = sizeof(name)
        fd = accept4(
            listener.fd, NULL if listener.local else &name, NULL if listener.local else &size,
            SOCK_CLOEXEC | SOCK_NONBLOCK,
        )
        if fd < 0:
            if place_after_failure(hub, errno):
                continue
            if errno != EAGAIN and errno != EINTR and errno != ECONNABORTED:
                # Out of descriptors. epoll would report the listener again at once, so pause.
                epoll_change(hub, listener, listener.fd, 0)
                listener.resume_at = hub.now + ACCEPT_PAUSE
                arm(hub, listener.resume_at)
            return
        if not listener.local:
            peer = peer_of(hub, &name)
        fd = place_for(listener, peer, fd)
        if fd < 0:
            peer_leave(hub, peer)
            continue
        connection = <Connection *>calloc(1, sizeof(Connection))
        if connection == NULL or listener.connections >= listener.max_connections + MAX_REFUSED:
            free(connection)
            close(fd)
            peer_leave(hub, peer)
            continue
        connection.kind = KIND_CONNECTION
        connection.fd = fd
        connection.hub = hub
        connection.listener = listener
        place_take(connection, peer)
        move(connection, STAGE_NEW, STAGE_IO)
        connection.boundary = True
        connection.high = BUFFER
        connection.low = BUFFER // 4
        connection.events = EPOLLIN
        connection.polled = epoll_add(hub, connection, fd, EPOLLIN)
        connection.idle_since = hub.now
        connection.deadline = hub.now + listener.head_timeout
        arm(hub, connection.deadline)
        connection.next = hub.connections
        if connection.next != NULL:
            connection.next.previous = connection
        hub.connections = connection
        listener.connections += 1
        listener.references += 1
        if not connection.polled:
            die(connection)
        elif listener.connections > listener.max_connections:
            send_final(connection, &listener.too_many, 503)
        elif not admitted(listener.table, fd):
            send_final(connection, &listener.forbidden, 403)


cdef void _readable(Connection *connection) noexcept nogil:
    """Read once; epoll reports again if more bytes are there."""
    cdef Hub *hub = connection.hub
    cdef size_t size = REQUESTS if connection.stage == STAGE_IO else READ_SIZE
    cdef ssize_t n = recv(connection.fd, hub.page, size, MSG_DONTWAIT)
    if n < 0:
        if errno != EAGAIN and errno != EINTR:
            broken(connection, errno)
        return
    if connection.stage == STAGE_CLOSING:
        return
    if n == 0:
        _ended(connection)
        return
    if connection.stage == STAGE_DRAIN:
        connection.drained += <size_t>n
        if connection.drained > MAX_DRAINED_BYTES:
            die(connection)
        return
    if connection.stage == STAGE_IO and connection.start == connection.size:
        proceed(connection, hub.page, <size_t>n)
        return
    if not make_room(connection, <size_t>n):
        broken(connection, ENOMEM)
        return
    memcpy(connection.data + connection.size, hub.page, <size_t>n)
    connection.size += <size_t>n
    if connection.stage == STAGE_IO:
        proceed(connection, NULL, 0)
        return
    if connection.stage == STAGE_WAIT:
        hand_over(connection)
    elif connection.stage == STAGE_LOOP:
        enqueue(connection)
    elif connection.stage == STAGE_QUEUED:
        stamp(connection)
        if connection.judged:
            connection.judged = False  # the request may be complete now
            arm(hub, hub.now)
    set_events(connection)


cdef void _ended(Connection *connection) noexcept nogil:
    """The client sends no more. It may have closed only its own side, and wait for replies."""
    connection.eof = True
    if connection.out == NULL and (
        connection.stage == STAGE_IO or connection.stage == STAGE_DRAIN
    ):
        # A client that ends in the middle of a request wants no answer.
        die(connection)
        return
    set_events(connection)
    if connection.stage == STAGE_IO:
        connection.closing = True
    elif connection.stage == STAGE_WAIT:
        hand_over(connection)
    elif connection.stage == STAGE_LOOP:
        enqueue(connection)


cdef void _hung_up(Connection *connection) noexcept nogil:
    """Both directions are closed, and nobody wants to read. epoll would report that again and
    again, so take the connection out."""
    connection.hung_up = True
    unpoll(connection)
    if connection.stage == STAGE_LOOP:
        enqueue(connection)
    elif connection.stage == STAGE_IO or connection.stage == STAGE_DRAIN:
        die(connection)


# --- time


cdef void _scan(Hub *hub) noexcept nogil:
    """Act on every deadline that has passed, and find the next one."""
    cdef Connection *connection
    cdef Connection *following
    cdef Listener *listener
    cdef double owed_at, pause
    cdef bint over
    cdef int i
    hub.scan_at = NEVER
    if hub_gone(hub):
        return  # what follows from a deadline is a last reply, or a close
    connection = hub.queue
    while connection != NULL:
        following = connection.queue_next
        if connection.stage == STAGE_QUEUED:
            listener = connection.listener
            owed_at = min(hub.asked_at, connection.queued_at)
            over = hub.now - connection.queued_at >= listener.gil_timeout
            if not connection.judged and (over or hub.now - owed_at >= listener.gil_deadline):
                if connection.hung_up and connection.transport == NULL:
                    die(connection)  # the client is gone, and no protocol has seen it
                else:
                    take_back(connection)
            elif not connection.judged:
                arm(hub, min(owed_at + listener.gil_deadline,
                             connection.queued_at + listener.gil_timeout))
            # Still in the queue: what take_back() could not answer, or the next request behind an
            # answered one, with a queued_at of its own.
            if connection.stage == STAGE_QUEUED:
                if hub.now - connection.queued_at >= listener.gil_timeout:
                    refuse(connection)
                elif connection.judged:
                    arm(hub, connection.queued_at + listener.gil_timeout)
        connection = following
    connection = hub.connections
    while connection != NULL:
        following = connection.next
        if connection.deadline > 0.0:
            if connection.deadline > hub.now:
                arm(hub, connection.deadline)
            else:
                _expire(connection)
        connection = following
    for i in range(RELAYS):
        if hub.relays[i].busy:
            if hub.now < hub.relays[i].deadline:
                arm(hub, hub.relays[i].deadline)
            elif hub.relays[i].connection != NULL:
                relay_late(&hub.relays[i])
    listener = hub.listeners
    while listener != NULL:
        if listener.resume_at > 0.0:
            if hub.now >= listener.resume_at:
                listener.resume_at = 0.0
                if listener.accepting:
                    epoll_change(hub, listener, listener.fd, EPOLLIN)
            else:
                arm(hub, listener.resume_at)
        listener = listener.next
    if hub.dumps != NULL and hub.dump_wait_until > 0.0:
        arm(hub, hub.dump_wait_until)
    if hub.now < hub.box_at:  # else box_turn() comes next
        arm(hub, hub.box_at)
    if hub.watch > 0.0 and (hub.listeners != NULL or hub.box_at < NEVER):
        if hub.now >= hub.watch_at:
            hub.watch_at = hub.now + hub.watch
            ask_turn(hub)
            steps_fold()
        arm(hub, hub.watch_at)
    # A scan holds the lock. With ten thousand connections it must not take more than a twentieth of
    # the time.
    pause = max(COARSE, 20.0 * (monotonic() - hub.now))
    hub.scan_at = max(hub.scan_at, hub.now + pause)
    if WS_DEBUG:
        hub.witness.scan_floor = hub.now + pause


cdef void _expire(Connection *connection) noexcept nogil:
    connection.deadline = 0.0
    if connection.stage == STAGE_DRAIN or connection.out != NULL:
        die(connection)  # no end from the client, or it takes nothing of its reply
    elif connection.stage == STAGE_IO:
        if connection.start == connection.size:
            die(connection)
        else:
            send_final(connection, &connection.listener.head_late, 408)


# --- the thread


cdef void _sweep(Hub *hub) noexcept nogil:
    """Close the connections that are to be closed; free those that nothing refers to. Nothing is
    freed elsewhere: here no event is left of those that epoll has reported."""
    cdef Connection *connection
    cdef Listener *listener
    cdef Listener **place
    while hub.reap != NULL:
        connection = hub.reap
        hub.reap = connection.reap_next
        connection.reaping = False
        if connection.stage == STAGE_CLOSING:
            die(connection)
        elif connection.stage == STAGE_DEAD and connection.transport == NULL:
            dequeue(connection)
            if connection.previous != NULL:
                connection.previous.next = connection.next
            else:
                hub.connections = connection.next
            if connection.next != NULL:
                connection.next.previous = connection.previous
            listener = connection.listener
            listener.references -= 1
            free(connection)
    place = &hub.listeners
    while place[0] != NULL:
        listener = place[0]
        if listener.dropped and listener.references == 0:
            place[0] = listener.next
            meter_drop(listener.meter)
            free(listener)
        else:
            place = &listener.next


cdef void _set_timer(Hub *hub) noexcept nogil:
    cdef itimerspec when
    cdef double at = hub.scan_at
    memset(&when, 0, sizeof(when))
    when.it_value.tv_sec = <long>at
    when.it_value.tv_nsec = min(<long>((at - <double>when.it_value.tv_sec) * 1e9), 999_999_999)
    timerfd_settime(hub.timer.fd, TFD_TIMER_ABSTIME, &when, NULL)
    hub.timer_at = at


cdef void _handle(Hub *hub, Source *source, uint32_t events) noexcept nogil:
    cdef Connection *connection
    cdef char drained[8]
    if source.kind == KIND_CONNECTION:
        connection = <Connection *>source
        if connection.stage == STAGE_DEAD:
            return  # closed earlier in this batch
        if connection.doomed:
            unpoll(connection)  # until its answer is ready, epoll would report it again and again
            return
        if events & EPOLLOUT:
            flush(connection)
            if connection.doomed:
                return
            if connection.stage == STAGE_IO and connection.out == NULL:
                proceed(connection, NULL, 0)
        if connection.stage == STAGE_DEAD or not connection.polled:
            return
        if events & EPOLLIN and connection.events & EPOLLIN:
            _readable(connection)
        elif events & (EPOLLHUP | EPOLLERR):
            _hung_up(connection)
    elif source.kind == KIND_LISTENER:
        _accept(hub, <Listener *>source)
    elif source.kind == KIND_RELAY:
        if (<RelaySlot *>source).busy:
            relayed(hub, <RelaySlot *>source)
    else:
        if source.kind == KIND_TIMER:
            hub.timer_at = NEVER
        elif source.kind == KIND_ENDING:
            hub.ends = True
        else:
            hub.woken = False
        if read(source.fd, drained, 8) < 0:
            pass  # nothing was in it


cdef void hub_run(Hub *hub) noexcept nogil:
    """Serve until hub_stop(); at the end every connection is closed. If something closes the
    process's descriptors, return and leave everything as it is (hub.gone)."""
    cdef epoll_event events[EVENTS]
    cdef int i, n, timeout
    cdef bint failed
    cdef Connection *connection
    if WS_DEBUG:
        enter_side(SIDE_IO)
    hub_lock(hub)
    if not hub.stopping:
        hub.tid = ws_tid()
    hub.entered = True
    hub.now = monotonic()
    while not hub.stopping and not hub.gone:
        if hub.reap != NULL or hub.sweep:
            hub.sweep = False
            _sweep(hub)
        if hub.now >= hub.scan_at:
            _scan(hub)
        if hub.ends:
            ends_turn(hub)
        if hub.dumps != NULL:
            answer_dumps(hub)
        if hub.scrapes != NULL:
            answer_scrapes(hub)
        if hub.now >= hub.box_at and not hub.ends:
            box_turn(hub)
        if hub.reap != NULL or hub.gone:
            continue
        if hub.scan_at < hub.timer_at:
            _set_timer(hub)
        # A second snapshot may be wanted behind an answered one. Other connections come first.
        timeout = -1 if hub.dumps == NULL or hub.dump_wait_until > 0.0 else 0
        if hub.scrapes != NULL:
            timeout = 0
        if WS_DEBUG:
            hub.witness.waiting = timeout < 0
        hub_unlock(hub)
        n = epoll_wait(hub.epoll, events, EVENTS, timeout)
        failed = n < 0 and errno != EINTR
        hub_lock(hub)
        if WS_DEBUG:
            hub.witness.waiting = False
        hub.now = monotonic()
        hub.waits += 1
        if failed:
            hub.gone = True  # closed while this thread was at work; a sleeping one would sleep on
        for i in range(n):
            _handle(hub, <Source *>events[i].data.ptr, events[i].events)
            give_way(hub)
    if hub.ending_wake >= 0:
        ws_ends_writer(0)  # no handler waits for this thread any more
    if hub_gone(hub):
        hub_unlock(hub)
        if WS_DEBUG:
            enter_side(SIDE_LOOP)
        return
    connection = hub.connections
    while connection != NULL:
        die(connection)
        connection = connection.next
    for i in range(RELAYS):
        if hub.relays[i].busy:
            relay_close(&hub.relays[i].relay)
            hub.relays[i].busy = False
    hub.dumps = hub.scrapes = NULL
    _sweep(hub)
    if WS_DEBUG:
        check_end(hub)
    hub_unlock(hub)
    if WS_DEBUG:
        enter_side(SIDE_LOOP)
