"""One worker, from connecting to its last answer."""

cimport cython
from libc.errno cimport (
    EADDRNOTAVAIL, EAGAIN, EINPROGRESS, EINTR, EMFILE, ENFILE, ENOBUFS, errno
)
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy
from posix.unistd cimport close

from workerserver.process.epoll cimport (
    EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT, epoll_ctl, epoll_event
)


cdef extern from "dial.h" nogil:
    int AF_UNIX, MSG_NOSIGNAL, MSG_DONTWAIT
    int connect(int fd, const sockaddr *address, socklen_t size) noexcept
    Py_ssize_t send(int fd, const void *data, size_t size, int flags) noexcept
    Py_ssize_t recv(int fd, void *data, size_t size, int flags) noexcept
    int dial_socket(int family) noexcept
    int dial_error(int fd) noexcept

cdef extern from *:
    """
    #include <sys/socket.h>
    /* Who called listen() on a Unix socket: unix(7). The struct is the kernel's ucred, whose name
     * glibc hides without _GNU_SOURCE. */
    static inline int ask_listener(int fd, int *pid, int *uid)
    {
        struct { int pid, uid, gid; } peer;
        socklen_t size = sizeof peer;
        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0)
            return 0;
        *pid = peer.pid;
        *uid = peer.uid;
        return 1;
    }
    """
    bint ask_listener(int fd, int *pid, int *uid) noexcept nogil

cdef enum:
    MAX_READS = 16              # of one peer in a row
    GREETING_BYTES = 64 << 10   # the largest body of an answer to the greeting

cdef int64_t RETRY_NS = 20_000_000      # until a full backlog is tried again
cdef int64_t LEAST_NS = 1_000_000       # for one address


cdef inline bint is_passing(int error) noexcept nogil:
    """The backlog of a Unix listener is full; no descriptor or no port is free."""
    return error in (EAGAIN, EMFILE, ENFILE, ENOBUFS, EADDRNOTAVAIL)


cdef inline void look_at(Loop *loop, int64_t moment) noexcept nogil:
    loop.next_scan = min(loop.next_scan, moment)


cdef inline void list_add(Peer **first, Peer *peer) noexcept nogil:
    peer.before = NULL
    peer.after = first[0]
    if first[0] is not NULL:
        first[0].before = peer
    first[0] = peer


cdef inline void list_remove(Peer **first, Peer *peer) noexcept nogil:
    if peer.before is NULL:
        first[0] = peer.after
    else:
        peer.before.after = peer.after
    if peer.after is not NULL:
        peer.after.before = peer.before


cdef inline void hang_up(Peer *peer) noexcept nogil:
    if peer.fd >= 0:
        close(peer.fd)  # epoll forgets it
    peer.fd = -1


cdef void end(Loop *loop, Peer *peer, How how) noexcept nogil:
    """The peer has ended: Python takes it. Of two that ask one worker, one counts."""
    cdef Peer *other = peer.twin
    if other is NULL:
        leave(loop, peer, how, &loop.ended)
        return
    peer.twin = other.twin = NULL
    if how == UNREACHED or how == SHUT or how == CUT:
        own(other, peer)
        leave(loop, peer, how, &loop.dropped)
        return
    if (how == LATE or how == STOPPED) and other.stage > peer.stage:
        peer, other = other, peer
    own(peer, other)
    leave(loop, other, how, &loop.dropped)
    leave(loop, peer, how, &loop.ended)


cdef inline void own(Peer *peer, Peer *other) noexcept nogil:
    """The *peer* frees what is Python's, not the *other* one."""
    other.owns = False
    peer.owns = True


cdef void leave(Loop *loop, Peer *peer, How how, Line *line) noexcept nogil:
    """The peer goes from those that have begun into *line*."""
    peer.how = how
    peer.was = peer.stage
    peer.stage = ENDED
    grow_old(loop, peer)
    list_remove(&loop.begun, peer)
    loop.begun_count -= 1
    put(line, peer)
    if how == ANSWERED and peer.keeps and not peer.reply.closes:
        keep(loop, peer)
    else:
        hang_up(peer)


cdef void keep(Loop *loop, Peer *peer) noexcept nogil:
    """The connection stays open for more questions."""
    peer.listed = True
    list_add(&loop.kept, peer)
    loop.kept_count += 1


cdef void unlist(Loop *loop, Peer *peer) noexcept nogil:
    if not peer.listed:
        return
    peer.listed = False
    list_remove(&loop.kept, peer)


cdef void give_up(Loop *loop, Peer *peer) noexcept nogil:
    """A connection that was kept is kept no more."""
    unlist(loop, peer)
    if peer.fd >= 0:
        loop.kept_count -= 1
    hang_up(peer)


cdef void grow_old(Loop *loop, Peer *peer) noexcept nogil:
    """The peer no longer counts as one that works."""
    if not peer.young:
        return
    peer.young = False
    loop.young -= 1
    if peer.older is NULL:
        loop.oldest_young = peer.younger
    else:
        peer.older.younger = peer.younger
    if peer.younger is NULL:
        loop.youngest = peer.older
    else:
        peer.younger.older = peer.older


cdef inline void watch(Loop *loop, Peer *peer, int operation, bint writes) noexcept nogil:
    cdef epoll_event event
    event.events = EPOLLIN | EPOLLOUT if writes else EPOLLIN
    event.data.ptr = peer
    if epoll_ctl(loop.poller, operation, peer.fd, &event) < 0:
        end(loop, peer, STRANGE)


@cython.cdivision(True)
cdef void dial(Loop *loop, Peer *peer) noexcept nogil:
    """Connect to the peer's address."""
    cdef dial_address *address = &peer.addresses[peer.address]
    cdef int left = peer.address_count - peer.address
    peer.share = peer.deadline
    peer.moved = loop.now
    look_at(loop, loop.now + loop.stall_ns)
    if left > 1:
        peer.share = loop.now + max((peer.deadline - loop.now) // left, LEAST_NS)
        look_at(loop, peer.share)
    redial(loop, peer, address)


cdef void redial(Loop *loop, Peer *peer, dial_address *address) noexcept nogil:
    peer.fd = dial_socket(address.family)
    if peer.fd < 0:
        unreached(loop, peer, errno)
    elif connect(peer.fd, <sockaddr *>&address.storage, address.size) == 0:
        connected(loop, peer, EPOLL_CTL_ADD)
    elif errno == EINPROGRESS or errno == EINTR:
        peer.stage = CONNECTING
        watch(loop, peer, EPOLL_CTL_ADD, True)
    else:
        unreached(loop, peer, errno)


cdef void unreached(Loop *loop, Peer *peer, int error) noexcept nogil:
    """The address can't be connected to; *error* 0: its share of the time is over."""
    hang_up(peer)
    if is_passing(error):
        peer.stage = PAUSED
        peer.wake = loop.now + RETRY_NS
        look_at(loop, peer.wake)
    elif peer.address + 1 < peer.address_count:
        peer.address += 1
        dial(loop, peer)
    else:
        peer.error = error
        end(loop, peer, UNREACHED)


cdef void connected(Loop *loop, Peer *peer, int operation) noexcept nogil:
    cdef int uid = -1
    peer.stage = ASKING
    peer.moved = loop.now
    if peer.proving is not NULL and not greet(loop, peer):
        end(loop, peer, STRANGE)
        return
    if peer.addresses[peer.address].family == AF_UNIX:
        if not ask_listener(peer.fd, &peer.pid, &uid):
            peer.pid = 0
        # After connect(), and of the connection itself: what a path names may change at any time.
        if peer.trusting and uid != 0 and uid != loop.uid:
            end(loop, peer, STRANGE)
            return
    watch(loop, peer, operation, not send_on(peer))


cdef void resume(Loop *loop, Peer *peer) noexcept nogil:
    """Put more questions on the connection that was kept."""
    if peer.fd < 0:
        end(loop, peer, STRANGE)
        return
    loop.kept_count -= 1
    peer.stage = ASKING
    peer.moved = loop.now
    look_at(loop, loop.now + loop.stall_ns)
    if peer.proving is not NULL and not sign_more(peer):
        end(loop, peer, STRANGE)
        return
    watch(loop, peer, EPOLL_CTL_MOD, not send_on(peer))


cdef void try_another(Loop *loop, Peer *peer) noexcept nogil:
    """Try a second connection beside the first, on which nothing comes: a packet may have been
    lost, or what should answer on the first one is stuck."""
    cdef Peer *twin
    peer.twice = True
    if loop.begun_count + loop.kept_count >= loop.most or loop.stopped:
        return
    twin = copy(peer)
    if twin is NULL:
        return
    peer.twin = twin
    twin.twin = peer
    enlist(loop, twin)
    dial(loop, twin)


cdef Peer *copy(const Peer *peer) noexcept nogil:
    """A peer that asks the same worker the same. NULL without memory."""
    cdef Peer *twin = <Peer *>calloc(1, sizeof(Peer))
    cdef size_t size = <size_t>peer.address_count * sizeof(dial_address)
    if twin is NULL:
        return NULL
    twin.number = peer.number
    twin.request = peer.request
    twin.out = peer.out
    twin.out_size = peer.out_size
    twin.fd = -1
    twin.address_count = peer.address_count
    twin.address = peer.address
    twin.keeps = peer.keeps
    twin.twice = True
    twin.trusting = peer.trusting
    twin.begun = peer.begun
    twin.deadline = peer.deadline
    twin.question_count = peer.question_count
    memcpy(twin.limits, peer.limits, sizeof(peer.limits))
    twin.addresses = <dial_address *>malloc(size)
    if peer.proving is not NULL:
        twin.proving = <Proving *>malloc(sizeof(Proving))
    if twin.addresses is NULL or (peer.proving is not NULL and twin.proving is NULL):
        free(twin.addresses)
        free(twin.proving)
        free(twin)
        return NULL
    memcpy(twin.addresses, peer.addresses, size)
    if twin.proving is not NULL:
        memcpy(twin.proving, peer.proving, sizeof(Proving))
        twin.proving.out = NULL
    return twin


cdef bint send_on(Peer *peer) noexcept nogil:
    """Send the rest of the requests. False if the socket is full."""
    cdef Py_ssize_t count
    while peer.sent < peer.out_size:
        count = send(
            peer.fd, peer.out + peer.sent, peer.out_size - peer.sent, MSG_NOSIGNAL | MSG_DONTWAIT
        )
        if count >= 0:
            peer.sent += <size_t>count
        elif errno == EAGAIN:
            return False
        elif errno != EINTR:
            peer.sent = peer.out_size  # what it has sent before it closed is still to be read
    return True


cdef bint make_room(Peer *peer) noexcept nogil:
    cdef size_t wanted = peer.capacity * 2 if peer.capacity else FIRST_BYTES
    cdef char *found
    if peer.size < peer.capacity:
        return True
    found = <char *>realloc(peer.data, wanted)
    if found is NULL:
        return False
    peer.data = found
    peer.capacity = wanted
    return True


cdef void event(Loop *loop, Peer *peer, bint writable) noexcept nogil:
    """Something is ready on the peer's socket."""
    cdef int error
    if peer.stage == CONNECTING:
        error = dial_error(peer.fd)
        if error:
            unreached(loop, peer, error)
        else:
            connected(loop, peer, EPOLL_CTL_MOD)
    elif peer.stage == ASKING:
        if writable and peer.sent < peer.out_size and send_on(peer):
            watch(loop, peer, EPOLL_CTL_MOD, False)
        if peer.stage == ASKING:
            receive(loop, peer)
    elif peer.fd >= 0:
        # A kept connection has ended, or the worker speaks without being asked.
        give_up(loop, peer)


cdef void receive(Loop *loop, Peer *peer) noexcept nogil:
    cdef Py_ssize_t count
    cdef size_t room
    for _ in range(MAX_READS):
        if not make_room(peer):
            end(loop, peer, STRANGE)
            return
        room = peer.capacity - peer.size
        count = recv(peer.fd, peer.data + peer.size, room, MSG_DONTWAIT)
        if count > 0:
            peer.size += <size_t>count
            peer.moved = loop.now
            read_answers(loop, peer)
            if peer.stage != ASKING or <size_t>count < room:
                return
        elif count < 0 and errno == EAGAIN:
            return
        elif count == 0 or errno != EINTR:
            closed_by_peer(loop, peer)
            return


cdef void closed_by_peer(Loop *loop, Peer *peer) noexcept nogil:
    """A server may close a connection at any time after an answer."""
    if peer.at or peer.resumed:
        end(loop, peer, STRANGE)
    else:
        end(loop, peer, CUT if peer.size > peer.start else SHUT)


cdef void surplus(Loop *loop, Peer *peer) noexcept nogil:
    """There are bytes behind an answer that are none. Its length may be wrong, or the worker says
    more than it was asked: no answer on this connection counts."""
    peer.at = 0
    end(loop, peer, STRANGE)


cdef void read_answers(Loop *loop, Peer *peer) noexcept nogil:
    """Read the answers that have come."""
    cdef Answered *found
    cdef const char *data
    cdef size_t size, limit
    while peer.at < peer.question_count:
        data = peer.data + peer.start
        size = peer.size - peer.start
        if size == 0:
            return
        if not peer.head_size:
            if memcmp(data, b"HTTP/", min(size, <size_t>5)) != 0:
                surplus(loop, peer)
                return
            peer.head_size = head_end(data, size, peer.scanned)
            peer.scanned = size
            if not peer.head_size:
                if size > loop.max_head:
                    end(loop, peer, STRANGE)
                return
            limit = peer.limits[peer.at]
            if peer.proving is not NULL and not peer.met:
                limit = GREETING_BYTES
            if (
                not read_head(data, peer.head_size, loop.max_fields, &peer.reply)
                or peer.reply.length > limit
            ):
                end(loop, peer, STRANGE)
                return
        if size - peer.head_size < peer.reply.length:
            return
        if peer.proving is not NULL:
            if not peer.met:
                if size > peer.head_size + peer.reply.length or peer.reply.closes:
                    end(loop, peer, STRANGE)
                elif not meet(peer, data):
                    end(loop, peer, STRANGE)
                else:
                    peer.start = peer.size
                    peer.head_size = peer.scanned = 0
                    watch(loop, peer, EPOLL_CTL_MOD, not send_on(peer))
                return
            if not is_own(peer, data):
                end(loop, peer, STRANGE)
                return
        found = &peer.answers[peer.at]
        found.status = peer.reply.status
        found.begin = peer.start
        found.reason = peer.start + peer.reply.reason
        found.fields = peer.start + peer.reply.fields
        found.body = peer.start + peer.head_size
        found.head_end = found.body - 2
        found.end = found.body + peer.reply.length
        peer.start = found.end
        peer.head_size = peer.scanned = 0
        peer.at += 1
        # The next answer may need the GIL: the client asks for what can be had without.
        if peer.at < peer.question_count and (
            peer.reply.closes or (peer.reply.without_gil and not peer.resumed)
        ):
            end(loop, peer, STRANGE)
            return
    if peer.size > peer.start:
        surplus(loop, peer)
    else:
        end(loop, peer, ANSWERED)
