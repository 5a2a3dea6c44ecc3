"""The loop over all peers: what may begin begins, what is ready goes on, what is late ends."""

from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from posix.unistd cimport close, read

from workerserver.process.clock cimport monotonic_ns
from workerserver.process.epoll cimport (
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLLIN, EPOLLOUT, epoll_create1, epoll_ctl, epoll_event,
    epoll_wait
)


cdef extern from *:
    """
    #include <sys/timerfd.h>
    #include <time.h>

    static inline int ask_timer(void)
    {
        return timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    }

    static inline void ask_set_timer(int fd, int64_t moment)
    {
        struct itimerspec when = {
            .it_value = {.tv_sec = moment / 1000000000, .tv_nsec = moment % 1000000000}
        };
        timerfd_settime(fd, TFD_TIMER_ABSTIME, &when, NULL);
    }
    """
    int ask_timer() noexcept nogil
    void ask_set_timer(int fd, int64_t moment) noexcept nogil

cdef enum:
    EVENTS = 256

cdef int64_t PAUSE_NS = 10_000_000      # between two searches for late peers


cdef inline void put(Line *line, Peer *peer) noexcept nogil:
    peer.next = NULL
    if line.last is NULL:
        line.first = peer
    else:
        line.last.next = peer
    line.last = peer
    line.size += 1


cdef inline Peer *take(Line *line) noexcept nogil:
    """The first peer of the line, or NULL."""
    cdef Peer *peer = line.first
    if peer is not NULL:
        line.first = peer.next
        if line.first is NULL:
            line.last = NULL
        line.size -= 1
    return peer


cdef bint loop_open(Loop *loop) noexcept nogil:
    """False if the system gives no descriptors. loop_close() has to follow in both cases."""
    cdef epoll_event event
    loop.poller = epoll_create1(EPOLL_CLOEXEC)
    loop.timer = ask_timer()
    loop.next_scan = INT64_MAX
    if loop.poller < 0 or loop.timer < 0:
        return False
    event.events = EPOLLIN
    event.data.ptr = NULL
    return epoll_ctl(loop.poller, EPOLL_CTL_ADD, loop.timer, &event) == 0


cdef void loop_close(Loop *loop) noexcept nogil:
    """The peers are Python's, to be freed before."""
    if loop.timer >= 0:
        close(loop.timer)
    if loop.poller >= 0:
        close(loop.poller)
    loop.timer = loop.poller = -1


cdef void begin(Loop *loop, Peer *peer) noexcept nogil:
    peer.begun = loop.now
    peer.deadline = loop.now + peer.seconds_ns
    look_at(loop, peer.deadline)
    peer.before = NULL
    peer.after = loop.begun
    if loop.begun is not NULL:
        loop.begun.before = peer
    loop.begun = peer
    loop.begun_count += 1
    peer.young = True
    peer.younger = NULL
    peer.older = loop.youngest
    if loop.youngest is NULL:
        loop.oldest_young = peer
    else:
        loop.youngest.younger = peer
    loop.youngest = peer
    loop.young += 1
    if peer.address_count:
        dial(loop, peer)
    else:
        peer.stage = NAMING
        loop.naming_came = True


cdef bint begin_more(Loop *loop) noexcept nogil:
    """Begin as many peers as may be. Whether there were any."""
    cdef Peer *oldest = loop.oldest_young
    cdef bint some = False
    while oldest is not NULL and oldest.begun + loop.patience_ns <= loop.now:
        # A peer that takes longer mostly waits, so another one may begin beside it.
        grow_old(loop, oldest)
        oldest = loop.oldest_young
    while (
        loop.queued.size
        and loop.young < loop.working
        and loop.begun_count < loop.most
        and not loop.stopped
    ):
        begin(loop, take(&loop.queued))
        some = True
    if loop.queued.size and oldest is not NULL:
        look_at(loop, oldest.begun + loop.patience_ns)
    return some


cdef void scan(Loop *loop) noexcept nogil:
    """End what is late; go on with what has paused."""
    cdef Peer *peer = loop.begun
    cdef Peer *after
    loop.next_scan = INT64_MAX
    while peer is not NULL:
        after = peer.after
        if peer.deadline <= loop.now:
            end(loop, peer, LATE)
        elif peer.stage == CONNECTING and peer.share <= loop.now:
            unreached(loop, peer, 0)
        elif peer.stage == PAUSED and peer.share <= loop.now:
            unreached(loop, peer, 0)
        elif peer.stage == PAUSED and peer.wake <= loop.now:
            redial(loop, peer, &peer.addresses[peer.address])
        elif is_stalled(loop, peer):
            end(loop, peer, STRANGE)
        if peer.stage != ENDED:
            look_at(loop, next_moment(loop, peer))
        peer = after
    loop.next_scan = max(loop.next_scan, loop.now + PAUSE_NS)


cdef inline bint is_stalled(Loop *loop, Peer *peer) noexcept nogil:
    """Some answers have come, and of the next one nothing comes. The server may have lost it (one
    that reads no second request), or it may wait for what is stuck: another connection tells."""
    return (
        peer.stage == ASKING
        and peer.at > 0
        and peer.size == peer.start
        and peer.moved + loop.stall_ns <= loop.now
    )


cdef inline int64_t next_moment(Loop *loop, Peer *peer) noexcept nogil:
    """When the peer has to be looked at again, if nothing happens."""
    if peer.stage == CONNECTING:
        return min(peer.deadline, peer.share)
    if peer.stage == PAUSED:
        return min(peer.deadline, peer.wake)
    if peer.stage == ASKING and peer.at > 0 and peer.size == peer.start:
        return min(peer.deadline, peer.moved + loop.stall_ns)
    return peer.deadline


cdef void turn(Loop *loop, int batch) noexcept nogil:
    """Go on until *batch* peers have ended or nothing is ready any more."""
    cdef epoll_event events[EVENTS]
    cdef uint64_t times
    cdef Peer *peer
    cdef int i, count
    while True:
        count = epoll_wait(loop.poller, events, EVENTS, 0)
        loop.now = monotonic_ns()
        for i in range(max(count, 0)):
            peer = <Peer *>events[i].data.ptr
            if peer is NULL:
                read(loop.timer, &times, sizeof(times))
                loop.armed = 0
            else:
                event(loop, peer, events[i].events & EPOLLOUT != 0)
                if peer.stage == ASKING and peer.at:
                    look_at(loop, next_moment(loop, peer))
        if loop.now >= loop.next_scan:
            scan(loop)
        if not begin_more(loop) and count <= 0:
            break
        if loop.ended.size >= batch:
            break
    if loop.next_scan < INT64_MAX and (loop.armed == 0 or loop.next_scan < loop.armed):
        loop.armed = loop.next_scan
        ask_set_timer(loop.timer, loop.armed)
