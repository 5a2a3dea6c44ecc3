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


cdef void enlist(Loop *loop, Peer *peer) noexcept nogil:
    """The peer is among those that have begun."""
    list_add(&loop.begun, peer)
    loop.begun_count += 1


cdef void begin(Loop *loop, Peer *peer) noexcept nogil:
    peer.begun = loop.now
    peer.deadline = loop.now + peer.seconds_ns
    look_at(loop, peer.deadline)
    enlist(loop, peer)
    peer.young = True
    peer.younger = NULL
    peer.older = loop.youngest
    if loop.youngest is NULL:
        loop.oldest_young = peer
    else:
        loop.youngest.younger = peer
    loop.youngest = peer
    loop.young += 1
    if peer.resumed:
        resume(loop, peer)
    elif peer.address_count:
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
        # Who has not been asked comes before who may be asked more.
        while loop.kept is not NULL and loop.begun_count + loop.kept_count >= loop.most:
            give_up(loop, loop.kept)
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
        if peer.stage == ENDED:  # with its twin, in this search
            peer = after
            continue
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
        elif is_silent(loop, peer):
            try_another(loop, peer)
        if peer.stage != ENDED:
            look_at(loop, next_moment(loop, peer))
        peer = after
    loop.next_scan = max(loop.next_scan, loop.now + PAUSE_NS)


cdef inline bint is_stalled(Loop *loop, Peer *peer) noexcept nogil:
    """Some answers have come, and of the next one nothing comes. The server may have lost it (one
    that reads no second request), or it may wait for what is stuck: another connection tells."""
    return waits_for_next(peer) and peer.moved + loop.stall_ns <= loop.now


cdef inline bint waits_for_next(const Peer *peer) noexcept nogil:
    return peer.stage == ASKING and (peer.at > 0 or peer.resumed) and peer.size == peer.start


cdef inline bint is_silent(Loop *loop, const Peer *peer) noexcept nogil:
    """Nothing has come on the peer's first connection."""
    return waits_for_first(peer) and peer.moved + loop.stall_ns <= loop.now


cdef inline bint waits_for_first(const Peer *peer) noexcept nogil:
    return (
        (peer.stage == CONNECTING or (peer.stage == ASKING and peer.size == peer.start))
        and peer.at == 0
        and not peer.resumed
        and not peer.twice
    )


cdef inline int64_t next_moment(Loop *loop, Peer *peer) noexcept nogil:
    """When the peer has to be looked at again, if nothing happens."""
    cdef int64_t moment = peer.deadline
    if peer.stage == CONNECTING:
        moment = min(moment, peer.share)
    if peer.stage == PAUSED:
        moment = min(moment, peer.wake)
    if waits_for_next(peer) or waits_for_first(peer):
        moment = min(moment, peer.moved + loop.stall_ns)
    return moment


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
