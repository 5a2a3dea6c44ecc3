"""What goes into the black box, and when. No Python, no GIL; what is written is box.c's.

The I/O thread writes: each TICK_SECONDS what the process is doing in figures, each interval the
stacks of all threads, and more often once the training loop's step is late. The thread that ends
the interpreter writes too: the box has a lock of its own, which nobody holds while it waits.
"""

from libc.errno cimport errno
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memset

from workerserver.native.system cimport O_CLOEXEC, O_NONBLOCK, pipe2
from workerserver.process._pulse cimport (
    HEALTH_CAPACITY, beat_count, health_body, step_is_late, steps_body,
)
from workerserver.process.clock cimport monotonic, monotonic_ns
from workerserver.process.epoll cimport EPOLLIN
from workerserver.stacks._stacks cimport buffer_free, dump_within, gil_state
from workerserver.stacks.snapshot cimport WS_DIGEST, WS_JSON, ws_buffer, ws_gil


cdef extern from "box.h":
    ctypedef enum ws_lane:
        WS_BOX_IDENTITY
        WS_BOX_STATE
        WS_BOX_STEPS
        WS_BOX_STACKS
        WS_BOX_END
        WS_BOX_LAST
        WS_BOX_RECORDER
        WS_BOX_COUNTERS
    ctypedef struct ws_ending:
        int signal
        int code
        int pid
        int uid
        int tid
        uint64_t address
        int64_t wall_ns
    int ws_box_open(int fd, size_t size) noexcept nogil
    bint ws_box_lock(int milliseconds) noexcept nogil
    void ws_box_unlock() noexcept nogil
    size_t ws_box_room(ws_lane lane) noexcept nogil
    char *ws_box_begin(ws_lane lane, size_t *capacity) noexcept nogil
    void ws_box_commit(ws_lane lane, size_t length) noexcept nogil
    bint ws_box_watch(const char *name, const char *path) noexcept nogil
    size_t ws_box_put_files(char *out, size_t capacity) noexcept nogil
    int ws_ends_install(int wake) noexcept nogil
    void ws_ends_writer(int tid) noexcept nogil
    void ws_ends_restore() noexcept nogil
    bint ws_ends_take(ws_ending *out) noexcept nogil
    void ws_ends_written() noexcept nogil
    size_t ws_ends_put_replaced(char *out, size_t capacity) noexcept nogil

cdef extern from "<stdio.h>" nogil:
    int snprintf(char *out, size_t capacity, const char *format, ...)

cdef extern from *:
    """
    #include <sys/syscall.h>
    #include <unistd.h>
    static inline int ws_tid(void) { return (int)syscall(SYS_gettid); }
    """
    int ws_tid() noexcept nogil


cdef enum:
    LOCK_MS = 200  # a writer holds the box's lock for less
    HEADERS = 256  # bytes of what a snapshot says of itself

cdef double TICK_SECONDS = 1.0

# Of the I/O thread that writes the box.
cdef double _started = 0.0  # monotonic seconds
cdef double _interval = 5.0
cdef double _sampled = 0.0
cdef int64_t _beats = -1


cdef int box_open(int fd, size_t size) noexcept nogil:
    """0, or an errno: as ws_box_open()."""
    global _started, _beats, _sampled
    _started = monotonic()
    _beats = -1
    _sampled = 0.0
    return ws_box_open(fd, size)


cdef bint box_watch(const char *name, const char *path) noexcept nogil:
    return ws_box_watch(name, path)


cdef bint box_write(ws_lane lane, const char *data, size_t size) noexcept nogil:
    """Write one record. False: there is no box, it is too long, or a writer was stopped."""
    cdef size_t capacity
    cdef char *out
    cdef bint written = False
    if not ws_box_lock(LOCK_MS):
        return False
    out = ws_box_begin(lane, &capacity)
    if out != NULL and size <= capacity:
        memcpy(out, data, size)
        ws_box_commit(lane, size)
        written = True
    ws_box_unlock()
    return written


cdef bint box_identity(const char *data, size_t size) noexcept nogil:
    return box_write(WS_BOX_IDENTITY, data, size)


cdef bint box_recorder(const char *data, size_t size) noexcept nogil:
    return box_write(WS_BOX_RECORDER, data, size)


cdef bint box_counters(const char *data, size_t size) noexcept nogil:
    return box_write(WS_BOX_COUNTERS, data, size)


cdef bint box_end(const char *data, size_t size) noexcept nogil:
    """Why the process ends, and with it the last figures and stacks."""
    cdef bint written = box_write(WS_BOX_END, data, size)
    write_figures()
    write_stacks(WS_BOX_LAST)
    return written


cdef void write_figures() noexcept nogil:
    """What /healthz would say, the GIL's state, the watched files; the steps, if one has come."""
    global _beats
    cdef size_t capacity, at = 0, files
    cdef Py_ssize_t length
    cdef int status = 0, put
    cdef ws_gil gil
    cdef int64_t beats
    cdef char *out
    gil_state(&gil)
    if not ws_box_lock(LOCK_MS):
        return
    out = ws_box_begin(WS_BOX_STATE, &capacity)
    if out != NULL:
        memcpy(out, b'{"health":', 10)
        at = 10
        length = health_body(
            out + at, min(capacity - at, <size_t>HEALTH_CAPACITY), monotonic_ns(), _started, -1.0,
            &status,
        )
        if length > 0:
            at += <size_t>length
            put = snprintf(
                out + at, capacity - at,
                b',"gil":{"known":%s,"locked":%s,"holder":%lu,"switches":%lu},"replaced":',
                b"true" if gil.known else b"false", b"true" if gil.locked else b"false",
                gil.holder, gil.switches,
            )
            at += <size_t>put
            at += ws_ends_put_replaced(out + at, capacity - at)
            memcpy(out + at, b',"files":', 9)
            at += 9
            files = ws_box_put_files(out + at, capacity - at - 1)
            if files == 0:
                memcpy(out + at, b"{}", 2)
                files = 2
            at += files
            out[at] = c"}"
            ws_box_commit(WS_BOX_STATE, at + 1)
        beats = beat_count()
        if beats != _beats:
            out = ws_box_begin(WS_BOX_STEPS, &capacity)
            length = steps_body(out, capacity)
            if length > 0:
                ws_box_commit(WS_BOX_STEPS, <size_t>length)
                _beats = beats
    ws_box_unlock()


cdef void write_stacks(ws_lane lane) noexcept nogil:
    """The stacks of all threads, as ``{"digest":...,"headers":"...","stacks":...}``."""
    cdef ws_buffer bodies[3]
    cdef ws_buffer headers
    cdef size_t capacity, at = 0, i, room = ws_box_room(lane)
    cdef char *out
    if room == 0:
        return
    memset(bodies, 0, sizeof(bodies))
    memset(&headers, 0, sizeof(headers))
    # The lock is not held: a snapshot may wait for another thread's.
    if (
        dump_within(room - 2 * HEADERS - 1024, bodies, &headers) == 0
        and headers.size <= HEADERS and bodies[<int>WS_DIGEST].size < 1024 - 64
        and ws_box_lock(LOCK_MS)
    ):
        out = ws_box_begin(lane, &capacity)
        if out != NULL:
            at = _append(out, at, b'{"digest":', 10)
            at = _append(out, at, bodies[<int>WS_DIGEST].data, bodies[<int>WS_DIGEST].size)
            at = _append(out, at, b',"headers":"', 12)
            for i in range(headers.size):
                if headers.data[i] == c"\n":
                    at = _append(out, at, b"\\n", 2)
                elif headers.data[i] != c"\r":
                    at = _append(out, at, headers.data + i, 1)
            at = _append(out, at, b'","stacks":', 11)
            at = _append(out, at, bodies[<int>WS_JSON].data, bodies[<int>WS_JSON].size)
            at = _append(out, at, b"}", 1)
            ws_box_commit(lane, at)
        ws_box_unlock()
    for i in range(3):
        buffer_free(&bodies[i])
    buffer_free(&headers)


cdef inline size_t _append(char *out, size_t at, const char *data, size_t size) noexcept nogil:
    memcpy(out + at, data, size)
    return at + size


# --- the I/O thread


cdef void box_begin(Hub *hub, double interval) noexcept nogil:
    """From now on the I/O thread of *hub* writes the box. From any thread."""
    global _interval
    hub_lock(hub)
    _interval = interval
    hub.box_at = monotonic()
    if hub.watch > 0.0 and hub.watch_at == NEVER:
        hub.watch_at = hub.box_at
    if hub.box_at < hub.scan_at:
        hub.scan_at = hub.box_at
    wake_io(hub)
    hub_unlock(hub)


cdef void box_turn(Hub *hub) noexcept nogil:
    """Write what is due. Under the hub's lock, which is given back meanwhile."""
    global _sampled
    cdef double now = hub.now, pause = min(TICK_SECONDS, _interval)
    cdef bint due
    hub_unlock(hub)
    write_figures()
    due = now - _sampled >= _interval - 0.5 * pause
    if due or (now - _sampled >= 0.5 * pause and step_is_late(monotonic_ns())):
        _sampled = now
        write_stacks(WS_BOX_STACKS)
    hub_lock(hub)
    hub.now = monotonic()
    hub.box_at = hub.now + pause
    arm(hub, hub.box_at)


# --- why it ends


cdef int ends_begin(Hub *hub) noexcept nogil:
    """Install the handlers of signals that end a process. 0, or an errno."""
    cdef int pipe[2]
    cdef int failed
    if pipe2(pipe, O_CLOEXEC | O_NONBLOCK) != 0:
        return errno
    hub_lock(hub)
    hub.ending.kind = KIND_ENDING
    hub.ending.fd = pipe[0]
    hub.ending_wake = pipe[1]
    failed = 0 if epoll_add(hub, &hub.ending, pipe[0], EPOLLIN) else errno
    ws_ends_writer(hub.tid)
    hub_unlock(hub)
    return failed if failed else ws_ends_install(pipe[1])


cdef void ends_restore() noexcept nogil:
    ws_ends_restore()


cdef void ends_turn(Hub *hub) noexcept nogil:
    """A handler waits: write why the process ends. Under the hub's lock, which is given back
    meanwhile."""
    cdef ws_ending ending
    cdef char text[320]
    cdef int size
    hub.ends = False
    hub_unlock(hub)
    if ws_ends_take(&ending):
        size = snprintf(
            text, sizeof(text),
            b'{"why":"signal","signal":%d,"code":%d,"pid":%d,"uid":%d,"thread":%d,"address":%llu,'
            b'"time":%.6f}',
            ending.signal, ending.code, ending.pid, ending.uid, ending.tid,
            <unsigned long long>ending.address, <double>ending.wall_ns * 1e-9,
        )
        box_end(text, <size_t>size)
        ws_ends_written()
    hub_lock(hub)
    hub.now = monotonic()
