"""The hub's lock, and how each of the two threads wakes the other.

The lock guards everything in a Hub. A thread holds it for a few microseconds at a time, never
during a wait, a snapshot or a large copy. So the loop's thread may take it while it holds the GIL.
"""

from libc.errno cimport EINTR, errno
from libc.stdint cimport uint64_t
from posix.unistd cimport write

from workerserver.native.system cimport (
    fstat, pthread_mutex_lock, pthread_mutex_trylock, pthread_mutex_unlock, sched_yield, stat_t,
)
from workerserver.process.clock cimport monotonic, monotonic_ns
from workerserver.process._pulse cimport watch_asked


cdef extern from * nogil:
    """
    static inline int ws_count(int *counter, int change) {
        return __atomic_add_fetch(counter, change, __ATOMIC_RELAXED);
    }
    """
    int ws_count(int *counter, int change)


cdef enum:
    PATIENCE = 100  # times to yield to a thread that waits for the lock


cdef void hub_lock(Hub *hub) noexcept nogil:
    if pthread_mutex_trylock(&hub.lock) != 0:
        ws_count(&hub.waiters, 1)
        pthread_mutex_lock(&hub.lock)
        ws_count(&hub.waiters, -1)
    if WS_DEBUG:
        lock_taken()


cdef void hub_unlock(Hub *hub) noexcept nogil:
    if WS_DEBUG:
        lock_given(hub)
    pthread_mutex_unlock(&hub.lock)


cdef void give_way(Hub *hub) noexcept nogil:
    """On the I/O thread, between two pieces of work: let a thread that waits have the lock.

    That thread may hold the GIL, so training may wait with it. A mutex alone is not fair.
    """
    cdef int waiting = ws_count(&hub.waiters, 0)
    cdef int _i
    if waiting == 0:
        return
    hub_unlock(hub)
    for _i in range(PATIENCE):
        if ws_count(&hub.waiters, 0) < waiting:
            break
        sched_yield()
    hub_lock(hub)


# --- the canary


cdef void set_canary(Hub *hub, int fd) noexcept nogil:
    cdef stat_t found
    hub.canary = -1
    if fd >= 0 and fstat(fd, &found) == 0:
        hub.canary = fd
        hub.canary_device = found.st_dev
        hub.canary_inode = found.st_ino


cdef bint hub_gone(Hub *hub) noexcept nogil:
    """Whether something has closed the process's descriptors (os.closerange(), say).

    Then every number of ours may be somebody else's file, and none is touched again. Asked before a
    descriptor is closed or written to outside of an event for it, and before a thread is woken.
    Between this question and the system call behind it, a microsecond, the numbers may change
    hands: nothing can be done about that.
    """
    cdef stat_t found
    if hub.canary >= 0 and not hub.gone:
        hub.gone = (
            fstat(hub.canary, &found) != 0
            or found.st_ino != hub.canary_inode
            or found.st_dev != hub.canary_device
        )
    return hub.gone


# --- waking


cdef void _signal(Hub *hub, int fd) noexcept nogil:
    cdef uint64_t one = 1
    if hub_gone(hub):
        return
    # A signal that is lost is never sent again: the other thread would sleep until the end. Linux
    # itself never interrupts this call, but a kernel in user space (gVisor) or a tracer may.
    while write(fd, &one, sizeof(one)) < 0 and errno == EINTR:
        pass  # with another error the counter is full, so a signal is already there


cdef void wake_io(Hub *hub) noexcept nogil:
    """Wake the I/O thread: a list or a deadline of the hub has changed."""
    if not hub.woken:
        hub.woken = True
        _signal(hub, hub.wake.fd)


cdef void ask_turn(Hub *hub) noexcept nogil:
    """Ask the loop for a turn. The GIL watch counts the wait from here."""
    if not hub.asked:
        hub.asked = True
        hub.asked_at = monotonic()
        watch_asked(monotonic_ns())
        _signal(hub, hub.turn)


cdef void arm(Hub *hub, double at) noexcept nogil:
    """Scan the deadlines at *at* or earlier. For the I/O thread, which sets its timer before it
    waits."""
    if at < hub.scan_at:
        hub.scan_at = at


cdef void _arm_io(Hub *hub, double at) noexcept nogil:
    """The same for the loop's thread. Nearly always an earlier scan is due already, so a request
    costs no wake-up."""
    if at < hub.scan_at:
        hub.scan_at = at
        wake_io(hub)
