"""The process's pulse in C memory: the training loop's last step, and how long the GIL was away.

Three threads write: the training loop (``heartbeat``), the server loop's thread and the native I/O
thread (``watch_*``). Any thread reads, with the GIL or without it. There is no lock: each field is
a 64-bit atomic. No writer ever waits for a reader, and no reader waits for a writer that was
stopped half way.
"""

import os

cimport cython
from cpython.long cimport PyLong_CheckExact
from cpython.number cimport PyNumber_Index
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcmp, memcpy, memset, strlen
from posix.unistd cimport getpid

from workerserver.process.clock cimport monotonic_coarse_ns, monotonic_ns, process_cpu_ns

cdef extern from *:
    """
    #include <pthread.h>
    #include <stdint.h>
    #include <string.h>

    typedef struct {
        int64_t step;
        int64_t stamp; /* ns; 0: no step yet */
    } ws_beat;

    /* Beat n lies in slot n % WS_SLOTS, so the last ones stay whole while the next is written.
     * steps.pyx gives the last half of them: a reader that is overtaken still has room. */
    enum { WS_SLOTS = 2048 };
    static struct {
        int64_t count;
        uint64_t thread; /* of the last beat, as Python calls it: its ident; 0: none */
        ws_beat slots[WS_SLOTS] __attribute__((aligned(64)));
    } ws_pulse __attribute__((aligned(64)));

    static inline ws_beat *ws_slot(int64_t beat)
    {
        return &ws_pulse.slots[beat & (WS_SLOTS - 1)];
    }

    /* One writer at a time: the thread that holds the GIL. Each store is a release. So a reader
     * that sees a value of beat n also sees that beat n - 1 was counted. */
    static inline void ws_beat_write(int64_t step, int64_t stamp, uint64_t thread)
    {
        int64_t count = __atomic_load_n(&ws_pulse.count, __ATOMIC_RELAXED) + 1;
        ws_beat *slot = ws_slot(count);
        __atomic_store_n(&slot->step, step, __ATOMIC_RELEASE);
        __atomic_store_n(&slot->stamp, stamp, __ATOMIC_RELEASE);
        __atomic_store_n(&ws_pulse.thread, thread, __ATOMIC_RELAXED);
        __atomic_store_n(&ws_pulse.count, count, __ATOMIC_RELEASE);
    }

    /* The last beat. If another one was counted during the reading, it reads again. */
    static inline ws_beat ws_beat_read(void)
    {
        ws_beat beat;
        int64_t count;
        int tries = 100;
        do {
            count = __atomic_load_n(&ws_pulse.count, __ATOMIC_ACQUIRE);
            ws_beat *slot = ws_slot(count);
            beat.step = __atomic_load_n(&slot->step, __ATOMIC_ACQUIRE);
            beat.stamp = __atomic_load_n(&slot->stamp, __ATOMIC_ACQUIRE);
        } while (count != __atomic_load_n(&ws_pulse.count, __ATOMIC_RELAXED) && --tries);
        return beat;
    }

    /* The calling thread, as PyThread_get_thread_ident() has it. */
    static inline uint64_t ws_this_thread(void)
    {
        return (uint64_t)(uintptr_t)pthread_self();
    }

    static inline uint64_t ws_beat_thread(void)
    {
        return __atomic_load_n(&ws_pulse.thread, __ATOMIC_RELAXED);
    }

    static inline int64_t ws_beat_count(void)
    {
        return __atomic_load_n(&ws_pulse.count, __ATOMIC_ACQUIRE);
    }

    /* Beat *number*, one of the last WS_SLOTS - 1; its stamp is 0 if there is no such beat (any
     * more). The beat that is being written now may lie in the slot of the oldest one. */
    static inline ws_beat ws_beat_at(int64_t number)
    {
        ws_beat beat = {0, 0};
        if (number <= 0)
            return beat;
        ws_beat *slot = ws_slot(number);
        beat.step = __atomic_load_n(&slot->step, __ATOMIC_ACQUIRE);
        beat.stamp = __atomic_load_n(&slot->stamp, __ATOMIC_ACQUIRE);
        if (__atomic_load_n(&ws_pulse.count, __ATOMIC_RELAXED) - number >= WS_SLOTS - 1)
            beat.stamp = 0;
        return beat;
    }

    /* On a cache line of its own: the training loop doesn't pay for the watch. */
    static struct ws_watch_fields {
        int64_t on;
        int64_t asked; /* ns; 0: nobody waits for a turn */
        int64_t last;  /* ns; -1: never measured */
        int64_t longest;
        int64_t rank; /* -1: unknown */
    } ws_watch __attribute__((aligned(64))) = {0, 0, -1, -1, -1};

    static inline int64_t ws_load(const int64_t *field)
    {
        return __atomic_load_n(field, __ATOMIC_ACQUIRE);
    }

    static inline void ws_store(int64_t *field, int64_t value)
    {
        __atomic_store_n(field, value, __ATOMIC_RELEASE);
    }

    /* What the process is told apart by, as the last fields of a JSON object. Text n lies in slot
     * n % 4: it stays whole while the next three are written, and no reader takes so long. One
     * writer at a time: the thread that holds the GIL. */
    enum { WS_TEXTS = 4, WS_TEXT_BYTES = 768 };
    static struct {
        int64_t count;
        struct {
            int64_t size;
            char bytes[WS_TEXT_BYTES];
        } slots[WS_TEXTS];
    } ws_identity;

    static inline void ws_identity_write(const char *bytes, size_t size)
    {
        int64_t count = __atomic_load_n(&ws_identity.count, __ATOMIC_RELAXED) + 1;
        memcpy(ws_identity.slots[count % WS_TEXTS].bytes, bytes, size);
        ws_identity.slots[count % WS_TEXTS].size = (int64_t)size;
        __atomic_store_n(&ws_identity.count, count, __ATOMIC_RELEASE);
    }

    /* Copies the text to *out*, which has room for WS_TEXT_BYTES, and returns its size. */
    static inline size_t ws_identity_read(char *out)
    {
        int tries = 100;
        for (;;) {
            int64_t count = __atomic_load_n(&ws_identity.count, __ATOMIC_ACQUIRE);
            int64_t size = ws_identity.slots[count % WS_TEXTS].size;
            if (size < 0 || size > WS_TEXT_BYTES)
                size = 0;
            memcpy(out, ws_identity.slots[count % WS_TEXTS].bytes, (size_t)size);
            int64_t now = __atomic_load_n(&ws_identity.count, __ATOMIC_ACQUIRE);
            if (now < count + WS_TEXTS - 1)
                return (size_t)size;
            if (--tries == 0)
                return 0;
        }
    }

    /* Whether this call turned *field* from *before* into *after*. */
    static inline int ws_turn(int64_t *field, int64_t before, int64_t after)
    {
        return __atomic_compare_exchange_n(field, &before, after, 0, __ATOMIC_ACQ_REL,
                                           __ATOMIC_ACQUIRE);
    }
    """
    ctypedef struct ws_beat:
        int64_t step
        int64_t stamp
    void ws_beat_write(int64_t step, int64_t stamp, uint64_t thread) noexcept nogil
    uint64_t ws_this_thread() noexcept nogil
    uint64_t ws_beat_thread() noexcept nogil
    ws_beat ws_beat_read() noexcept nogil
    int64_t ws_beat_count() noexcept nogil
    ws_beat ws_beat_at(int64_t number) noexcept nogil

    cdef struct ws_watch_fields:
        int64_t on
        int64_t asked
        int64_t last
        int64_t longest
        int64_t rank
    ws_watch_fields ws_watch
    int64_t ws_load(const int64_t *field) noexcept nogil
    void ws_store(int64_t *field, int64_t value) noexcept nogil
    bint ws_turn(int64_t *field, int64_t before, int64_t after) noexcept nogil
    enum:
        WS_TEXT_BYTES
    void ws_identity_write(const char *bytes, size_t size) noexcept nogil
    size_t ws_identity_read(char *out) noexcept nogil


cdef inline int64_t _since(int64_t then, int64_t now) noexcept nogil:
    """Nanoseconds from *then* to *now*; 0 if another thread wrote *then* after *now* was read."""
    return now - then if now > then else 0


# --- the training loop ------------------------------------------------------------------------


# A call of a bound function with keywords would cost twice as much.
@cython.binding(False)
@cython.always_allow_keywords(False)
def heartbeat(step, /):
    """heartbeat(step, /)
--

Note that the training loop has reached *step* now, in this thread: some nanoseconds, no lock.

TypeError if *step* is no integer, OverflowError if it doesn't fit 64 bits. An integer tensor counts
as an integer; on a GPU, reading it waits for the GPU.
"""
    cdef int64_t value
    if PyLong_CheckExact(step):
        value = step
    else:
        value = PyNumber_Index(step)  # C conversion alone would take floats
    ws_beat_write(value, monotonic_coarse_ns(), ws_this_thread())


cpdef void beat_at(int64_t step, int64_t now_ns) noexcept nogil:
    """heartbeat(*step*) at the time *now_ns* of monotonic_ns()."""
    ws_beat_write(step, now_ns, ws_this_thread())


def last_heartbeat():
    """``(step, age in seconds)`` of the last heartbeat, or ``(None, None)`` if none ever came."""
    cdef ws_beat beat = ws_beat_read()
    if beat.stamp == 0:
        return None, None
    return beat.step, _since(beat.stamp, monotonic_ns()) / 1e9


# --- the GIL watch ----------------------------------------------------------------------------


cpdef void watch_switch(bint on) noexcept nogil:
    """Begin or end the watch. What was measured stays."""
    ws_store(&ws_watch.on, on)
    ws_store(&ws_watch.asked, 0)


cpdef void watch_asked(int64_t now_ns) noexcept nogil:
    """The loop is asked for a turn. If it owes one already, the wait began with that one."""
    ws_turn(&ws_watch.asked, 0, now_ns if now_ns > 0 else 1)


cpdef void watch_answered(int64_t now_ns) noexcept nogil:
    """The loop's turn has come. Does nothing if the loop owed none."""
    cdef int64_t asked = ws_load(&ws_watch.asked)
    cdef int64_t waited = _since(asked, now_ns)
    if asked == 0 or not ws_turn(&ws_watch.asked, asked, 0):
        return
    ws_store(&ws_watch.last, waited)
    ws_observe(&ws_waits, WS_REQUEST_BOUNDS, waited, 1)
    if waited > ws_load(&ws_watch.longest):
        ws_store(&ws_watch.longest, waited)


def gil_watch():
    """``(last wait, longest wait, unavailable for)`` in seconds.

    Both waits are None if none was ever measured. The third value is None while the watch is off.
    """
    cdef int64_t last = ws_load(&ws_watch.last)
    cdef int64_t longest = ws_load(&ws_watch.longest)
    return (
        None if last < 0 else last / 1e9,
        None if longest < 0 else longest / 1e9,
        _unavailable(monotonic_ns()) / 1e9 if ws_load(&ws_watch.on) else None,
    )


cdef inline int64_t _unavailable(int64_t now_ns) noexcept nogil:
    cdef int64_t asked = ws_load(&ws_watch.asked)
    return _since(asked, now_ns) if asked else 0


# --- the process ------------------------------------------------------------------------------


def set_rank(rank):
    """What ``/healthz`` gives as the rank: an int that is not negative, or None."""
    cdef int64_t value = -1 if rank is None else rank
    ws_store(&ws_watch.rank, value)


def set_identity(bytes fields):
    """What ``/healthz`` tells last: *fields* of a JSON object, each with a comma before it, or b"".

    ValueError if they are longer than 768 bytes.
    """
    if len(fields) > WS_TEXT_BYTES:
        raise ValueError(f"an identity of {len(fields)} bytes")
    ws_identity_write(fields, len(fields))


def reset():
    """Forget everything: a forked child has made no step of its own, and nobody watches it."""
    ws_beat_write(-1, 0, 0)
    forget_median()
    forget_steps()
    forget_published()
    memset(&ws_waits, 0, sizeof(ws_waits))
    watch_switch(False)
    ws_store(&ws_watch.last, -1)
    ws_store(&ws_watch.longest, -1)
    ws_store(&ws_watch.rank, -1)
    ws_identity_write(b"", 0)


# Here and not in the server: a program may call heartbeat() and fork without importing the server.
os.register_at_fork(after_in_child=reset)


cdef extern from *:
    """
    #include <fcntl.h>
    #include <stdbool.h>
    #include <stdint.h>
    #include <stdlib.h>
    #include <string.h>
    #include <unistd.h>

    /* What a file of /proc holds, with a NUL behind it; nothing if it can't be read. */
    static void ws_read_proc(const char *path, char *text, size_t size)
    {
        ssize_t length = 0;
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0) {
            length = read(fd, text, size - 1);
            close(fd);
        }
        text[length > 0 ? length : 0] = 0;
    }

    /* Bytes that the process has in RAM, and those of its address space; -1 where the kernel
       doesn't tell (proc(5), statm). */
    static void ws_memory(int64_t *resident, int64_t *address_space)
    {
        char text[128], *end;
        int64_t page = sysconf(_SC_PAGESIZE);
        ws_read_proc("/proc/self/statm", text, sizeof text);
        int64_t pages = strtoll(text, &end, 10);
        bool told = end != text;
        *address_space = told ? pages * page : -1;
        *resident = told ? strtoll(end, NULL, 10) * page : -1;
    }
    """
    void ws_memory(int64_t *resident, int64_t *address_space) noexcept nogil


# --- GET /healthz -----------------------------------------------------------------------------


cdef struct Text:
    char *at  # NULL: it did not fit
    char *end


cdef inline void put(Text *text, const char *data, size_t length) noexcept nogil:
    if text.at is NULL or <size_t>(text.end - text.at) < length:
        text.at = NULL
        return
    memcpy(text.at, data, length)
    text.at += length


cdef inline void word(Text *text, const char *data) noexcept nogil:
    put(text, data, strlen(data))


@cython.cdivision(True)
cdef void natural(Text *text, uint64_t value) noexcept nogil:
    cdef char digits[20]
    cdef size_t at = sizeof(digits)
    while True:
        at -= 1
        digits[at] = <char>(c'0' + value % 10)
        value //= 10
        if value == 0:
            break
    put(text, digits + at, sizeof(digits) - at)


cdef void integer(Text *text, int64_t value) noexcept nogil:
    if value < 0:
        word(text, b"-")
        natural(text, 0 - <uint64_t>value)  # unsigned: the smallest int64 has no opposite
    else:
        natural(text, <uint64_t>value)


@cython.cdivision(True)
cdef void seconds(Text *text, uint64_t value, unsigned int unit) noexcept nogil:
    """*value* units, *unit* (a power of ten) to the second, as a decimal fraction: ``0.25``."""
    natural(text, value // unit)
    word(text, b".")
    value %= unit
    while True:  # at least one digit, and no zeros at the end
        value *= 10
        natural(text, value // unit)
        value %= unit
        if value == 0:
            break


cdef void nanoseconds(Text *text, int64_t value) noexcept nogil:
    """As seconds, to the microsecond; null if negative."""
    if value < 0:
        word(text, b"null")
    else:
        seconds(text, (<uint64_t>value + 500) // 1000, 1000000)


cdef void bytes_or_null(Text *text, int64_t value) noexcept nogil:
    if value < 0:
        word(text, b"null")
    else:
        integer(text, value)


cdef Py_ssize_t health_body(
    char *out,
    size_t capacity,
    int64_t now_ns,
    double started,
    double max_step_age,
    int *status,
) noexcept nogil:
    cdef int64_t resident, address_space
    cdef Text text
    cdef char identity[WS_TEXT_BYTES]
    cdef ws_beat beat = ws_beat_read()
    cdef bint never = beat.stamp == 0
    cdef int64_t age = -1 if never else _since(beat.stamp, now_ns)
    cdef int64_t rank = ws_load(&ws_watch.rank)
    cdef double uptime = now_ns / 1e9 - started
    cdef bint stalled = max_step_age >= 0.0 and (never or age / 1e9 > max_step_age)
    if not uptime > 0.0:  # not a number, too
        uptime = 0.0
    elif uptime > 1e12:  # of what an int64 holds
        uptime = 1e12
    text.at = out
    text.end = out + capacity
    word(&text, b'{"status":"stalled","pid":' if stalled else b'{"status":"ok","pid":')
    integer(&text, getpid())
    word(&text, b',"rank":')
    if rank < 0:
        word(&text, b"null")
    else:
        integer(&text, rank)
    word(&text, b',"uptime_s":')
    seconds(&text, <uint64_t>(uptime * 1e3 + 0.5), 1000)
    word(&text, b',"step":')
    if never:
        word(&text, b"null")
    else:
        integer(&text, beat.step)
    word(&text, b',"step_age_s":')
    nanoseconds(&text, age)
    word(&text, b',"gil_wait_s":')
    nanoseconds(&text, ws_load(&ws_watch.last))
    word(&text, b',"gil_wait_max_s":')
    nanoseconds(&text, ws_load(&ws_watch.longest))
    word(&text, b',"gil_unavailable_s":')
    nanoseconds(&text, _unavailable(now_ns) if ws_load(&ws_watch.on) else -1)
    word(&text, b',"cpu_s":')
    nanoseconds(&text, process_cpu_ns())
    word(&text, b',"rss_bytes":')
    ws_memory(&resident, &address_space)
    bytes_or_null(&text, resident)
    word(&text, b',"step_median_s":')
    nanoseconds(&text, step_median_ns())
    word(&text, b',"step_thread":')
    if never:
        word(&text, b"null")
    else:
        natural(&text, ws_beat_thread())
    put(&text, identity, ws_identity_read(identity))
    word(&text, b"}")
    status[0] = 503 if stalled else 200
    return -1 if text.at is NULL else text.at - out


cdef const char *_JOB = b',"job":"'  # how the identity's fields begin


cdef size_t worker_text(char *out, size_t capacity) noexcept nogil:
    cdef Text text
    cdef char identity[WS_TEXT_BYTES]
    cdef int64_t rank = ws_load(&ws_watch.rank)
    cdef size_t size = ws_identity_read(identity)
    cdef size_t begin = strlen(_JOB)
    cdef size_t end = begin
    cdef char *whole
    text.at = out
    text.end = out + capacity
    integer(&text, getpid())
    word(&text, b" ")
    if rank < 0:
        word(&text, b"-")
    else:
        integer(&text, rank)
    word(&text, b" ")
    whole = text.at
    if size > begin and memcmp(identity, _JOB, begin) == 0:
        while end < size and identity[end] != c'"':
            end += 2 if identity[end] == c"\\" else 1
        put(&text, &identity[begin], min(end, size) - begin)
        if text.at is NULL:
            text.at = whole
    return 0 if text.at is NULL else text.at - out


# 1536 is HEALTH_CAPACITY, a name of C that the signature can't show to Python.
def health(double started, max_step_age=None, *, now_ns=None, size_t capacity=1536):
    """``(body, status)`` of GET /healthz, as health_body gives them to the native I/O thread.

    *started* is the server's start by ``time.monotonic()``, *now_ns* the time to answer for.
    ValueError if the body is longer than *capacity*.
    """
    cdef char out[HEALTH_CAPACITY]
    cdef int status = 0
    cdef double limit = -1.0 if max_step_age is None else max_step_age
    cdef int64_t now = monotonic_ns() if now_ns is None else now_ns
    cdef Py_ssize_t length = health_body(
        out, min(capacity, sizeof(out)), now, started, limit, &status
    )
    if length < 0:
        raise ValueError(f"/healthz needs more than {capacity} bytes")
    return out[:length], status
