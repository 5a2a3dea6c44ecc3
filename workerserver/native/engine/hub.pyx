"""The life of a hub and its listeners, and what a fork does to them."""

from libc.stdlib cimport calloc, free, malloc
from posix.time cimport CLOCK_MONOTONIC, nanosleep, timespec
from posix.unistd cimport close

from workerserver.native.system cimport (
    EFD_CLOEXEC, EFD_NONBLOCK, TFD_CLOEXEC, TFD_NONBLOCK, eventfd, pthread_atfork,
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t,
    pthread_mutex_unlock, timerfd_create,
)
from workerserver.process.clock cimport monotonic
from workerserver.process._pulse cimport meter_drop, meter_keep
from workerserver.process.epoll cimport EPOLL_CLOEXEC, EPOLLIN, epoll_create1


# All hubs of the process, for fork().
cdef Hub *_hubs = NULL
cdef pthread_mutex_t _hubs_lock


cdef Hub *hub_new(double watch, int canary) noexcept nogil:
    """A hub with its descriptors; NULL, with errno set, if the system refuses one.

    *canary* is a socket that the process keeps for as long as nothing closes all its descriptors;
    -1: there is none.
    """
    global _hubs
    cdef Hub *hub = <Hub *>calloc(1, sizeof(Hub))
    cdef int i
    if hub == NULL:
        return NULL
    pthread_mutex_init(&hub.lock, NULL)
    hub.page = <char *>malloc(READ_SIZE)
    hub.joined = <char *>malloc(JOINED)
    hub.epoll = epoll_create1(EPOLL_CLOEXEC)
    hub.wake.kind = KIND_WAKE
    hub.wake.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    hub.turn = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    hub.watch = watch
    set_canary(hub, canary)
    hub.timer.kind = KIND_TIMER
    hub.timer.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)
    hub.scan_at = hub.timer_at = hub.watch_at = hub.box_at = NEVER
    hub.ending.fd = hub.ending_wake = -1
    for i in range(RELAYS):
        hub.relays[i].kind = KIND_RELAY
        relay_init(&hub.relays[i].relay)
    if (
        hub.page == NULL or hub.joined == NULL or hub.epoll < 0 or hub.wake.fd < 0 or hub.turn < 0
        or hub.timer.fd < 0
        or not epoll_add(hub, &hub.wake, hub.wake.fd, EPOLLIN)
        or not epoll_add(hub, &hub.timer, hub.timer.fd, EPOLLIN)
    ):
        hub_free(hub)
        return NULL
    pthread_mutex_lock(&_hubs_lock)
    hub.next = _hubs
    _hubs = hub
    pthread_mutex_unlock(&_hubs_lock)
    return hub


cdef void hub_free(Hub *hub) noexcept nogil:
    """After hub_run() has returned and no transport is left."""
    cdef Hub **place = &_hubs
    cdef Listener *listener
    pthread_mutex_lock(&_hubs_lock)
    while place[0] != NULL and place[0] != hub:
        place = &place[0].next
    if place[0] == hub:
        place[0] = hub.next
    pthread_mutex_unlock(&_hubs_lock)
    _close_descriptors(hub)
    pthread_mutex_destroy(&hub.lock)
    while hub.listeners != NULL:
        listener = hub.listeners
        hub.listeners = listener.next
        meter_drop(listener.meter)
        free(listener)
    free(hub.joined)
    free(hub.page)
    free(hub)


cdef void _close_descriptors(Hub *hub) noexcept nogil:
    if hub.epoll >= 0:
        close(hub.epoll)
    if hub.wake.fd >= 0:
        close(hub.wake.fd)
    if hub.timer.fd >= 0:
        close(hub.timer.fd)
    if hub.turn >= 0:
        close(hub.turn)
    if hub.ending.fd >= 0:
        close(hub.ending.fd)
    if hub.ending_wake >= 0:
        close(hub.ending_wake)


cdef bint hub_await(Hub *hub, double seconds) noexcept nogil:
    """Wait until a thread is in hub_run(); False if none has come there within *seconds*.

    A condition variable would wait by a clock that may jump. A hub starts once, so a look each
    0.1 ms costs nothing that counts.
    """
    cdef double give_up = monotonic() + seconds
    cdef timespec pause
    cdef bint entered
    pause.tv_sec = 0
    pause.tv_nsec = 100_000
    while True:
        hub_lock(hub)
        entered = hub.entered
        hub_unlock(hub)
        if entered or monotonic() >= give_up:
            return entered
        nanosleep(&pause, NULL)


cdef void hub_stop(Hub *hub) noexcept nogil:
    hub_lock(hub)
    hub.stopping = True
    wake_io(hub)
    hub_unlock(hub)


cdef Listener *hub_listen(Hub *hub, const Listener *model) noexcept nogil:
    """Accept from ``model.fd`` with *model*'s settings; NULL, with errno set, if that fails."""
    cdef Listener *listener = <Listener *>malloc(sizeof(Listener))
    if listener == NULL:
        return NULL
    listener[0] = model[0]
    listener.kind = KIND_LISTENER
    listener.hub = hub
    listener.accepting = True
    hub_lock(hub)
    if not epoll_add(hub, listener, listener.fd, EPOLLIN):
        hub_unlock(hub)
        free(listener)
        return NULL
    meter_keep(listener.meter)
    listener.next = hub.listeners
    hub.listeners = listener
    if hub.watch > 0.0:
        if hub.watch_at == NEVER:
            hub.watch_at = monotonic()
        arm(hub, hub.watch_at)  # no scan asks for turns while a hub has no listener
    wake_io(hub)
    hub_unlock(hub)
    return listener


cdef void hub_ignore(Hub *hub, Listener *listener, bint closing) noexcept nogil:
    """Accept no more. With *closing* the descriptor is the caller's from now on."""
    hub_lock(hub)
    if listener.accepting:
        listener.accepting = False
        epoll_remove(hub, listener.fd)
    if closing:
        listener.fd = -1
    hub_unlock(hub)


cdef void hub_forget(Hub *hub, Listener *listener) noexcept nogil:
    """The owner lets go of *listener*, which is freed with its last connection."""
    hub_lock(hub)
    listener.dropped = True
    listener.owner = NULL
    hub.sweep = True
    wake_io(hub)
    hub_unlock(hub)


cdef void hub_drop(Hub *hub, Listener *listener, bint everything) noexcept nogil:
    """Close the listener's connections that wait for no reply, or all of them."""
    cdef Connection *connection
    hub_lock(hub)
    connection = hub.connections
    while connection != NULL:
        if connection.listener == listener and (
            everything or (connection.stage == STAGE_IO and connection.out == NULL)
        ):
            give_up(connection)
        connection = connection.next
    hub_unlock(hub)


# --- fork: the child closes the descriptors that it inherited, and touches nothing else


cdef void _before_fork() noexcept nogil:
    cdef Hub *hub
    pthread_mutex_lock(&_hubs_lock)
    hub = _hubs
    while hub != NULL:
        hub_lock(hub)
        hub = hub.next


cdef void _after_fork_in_parent() noexcept nogil:
    cdef Hub *hub = _hubs
    while hub != NULL:
        hub_unlock(hub)
        hub = hub.next
    pthread_mutex_unlock(&_hubs_lock)


cdef void _after_fork_in_child() noexcept nogil:
    """Close every descriptor. The hubs were locked during the fork, so their lists are complete.

    The structs stay, unused: the child has copies of the parent's transports, which point to them.
    """
    cdef Hub *hub = _hubs
    cdef Connection *connection
    cdef Listener *listener
    cdef int i
    _hubs_forget()
    if WS_DEBUG:
        enter_side(SIDE_CHILD)
    while hub != NULL:
        connection = hub.connections
        while connection != NULL:
            if connection.stage != STAGE_DEAD:
                if not hub_gone(hub):
                    close(connection.fd)
                connection.fd = -1
                move(connection, connection.stage, STAGE_DEAD)
            connection = connection.next
        listener = hub.listeners
        while listener != NULL:
            if listener.fd >= 0:
                if not hub_gone(hub):
                    close(listener.fd)
                listener.fd = -1
            listener.accepting = False
            listener = listener.next
        for i in range(RELAYS):
            if hub.relays[i].busy and not hub_gone(hub):
                close(hub.relays[i].relay.fd)
        if not hub_gone(hub):
            _close_descriptors(hub)
            if hub.canary >= 0:
                close(hub.canary)
        hub.canary = -1
        hub.epoll = hub.turn = hub.wake.fd = hub.timer.fd = -1
        hub.ending.fd = hub.ending_wake = -1
        hub.woken = hub.asked = True
        pthread_mutex_init(&hub.lock, NULL)
        hub = hub.next
    pthread_mutex_init(&_hubs_lock, NULL)
    if WS_DEBUG:
        enter_side(SIDE_LOOP)


cdef void _hubs_forget() noexcept nogil:
    global _hubs
    _hubs = NULL


pthread_mutex_init(&_hubs_lock, NULL)
pthread_atfork(_before_fork, _after_fork_in_parent, _after_fork_in_child)
