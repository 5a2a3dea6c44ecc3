"""The last heartbeats: when each step came, and how long a step usually takes.

Any thread reads, without the GIL, while the training loop writes. Times of steps come from a clock
that ticks every few milliseconds, so short steps are timed many at a time.
"""

from libc.stdint cimport int64_t
from libc.string cimport memset
from posix.unistd cimport getpid

from workerserver.process.clock cimport coarse_tick_ns, monotonic_ns, wall_ns


cdef enum:
    MAX_TIMES = 1024  # step times that are given; one heartbeat more than that
    MIN_TIMES = 8  # fewer give no usual time
    MAX_STEPS_TIMED = 64  # short steps that are timed together
    TICKS = 64  # steps are timed together until they take so many ticks of the clock
    KEPT = 2000  # of the heartbeats in the ring: a reader has time before the rest is overwritten
    LATE_STEPS = 3  # a step is late after so many usual ones
    LATE_NS = 1_000_000_000  # and after that time at least

cdef extern from *:
    """
    /* The median of the last step times, kept until another beat comes. */
    static struct {
        int64_t busy; /* whoever turned it from 0 to 1 may touch the rest */
        int64_t count; /* of beats when it was computed */
        int64_t median; /* ns; -1: too few steps */
    } ws_usual __attribute__((aligned(64))) = {0, -1, -1};

    /* All steps so far. Whoever turned busy from 0 to 1 may touch the rest. */
    static struct {
        int64_t busy;
        int64_t first;   /* the last beat before those that count */
        int64_t seen;    /* the last beat that is counted */
        int64_t step;    /* the step under way ... */
        int64_t began;   /* ... and when it began, in ns; 0: there is none */
        ws_histogram times;
    } ws_timed __attribute__((aligned(64)));

    /* In ns; a bound finer than the clock's tick would tell nothing. */
    static const int64_t WS_STEP_BOUNDS[] = {
        10000000, 25000000, 50000000, 100000000, 250000000, 500000000, 1000000000, 2500000000,
        5000000000, 10000000000, 30000000000, 60000000000, 300000000000,
    };

    /* The middle one of *values*, which are put into another order. */
    static int64_t ws_middle(int64_t *values, int length)
    {
        int middle = length / 2, low = 0, high = length - 1;
        while (low < high) {
            int64_t pivot = values[middle];
            int left = low, right = high;
            do {
                while (values[left] < pivot)
                    left++;
                while (pivot < values[right])
                    right--;
                if (left <= right) {
                    int64_t other = values[left];
                    values[left++] = values[right];
                    values[right--] = other;
                }
            } while (left <= right);
            if (right < middle)
                low = left;
            if (middle < left)
                high = right;
        }
        return values[middle];
    }
    """
    cdef struct ws_usual_fields:
        int64_t busy
        int64_t count
        int64_t median
    ws_usual_fields ws_usual
    cdef struct ws_timed_fields:
        int64_t busy
        int64_t first
        int64_t seen
        int64_t step
        int64_t began
        ws_histogram times
    ws_timed_fields ws_timed
    const int64_t *WS_STEP_BOUNDS
    int64_t ws_middle(int64_t *values, int length) noexcept nogil


@cython.cdivision(True)
cdef int _step_times(int64_t count, int64_t *times) noexcept nogil:
    """How long each of the last steps before beat *count* took, in nanoseconds, the newest first;
    how many they are, MAX_TIMES at most.

    A heartbeat that repeats its step adds to the time of that step. One that is several steps ahead
    gives the time of one of them, and one that goes back counts as one step.
    """
    cdef int64_t number, after_began = 0, after_step = 0
    cdef int length = -1  # the newest step has not ended
    cdef ws_beat beat
    cdef ws_beat first = ws_beat_at(count)  # the first heartbeat of a step
    if first.stamp == 0:
        return 0
    for number in range(count - 1, count - 1 - MAX_TIMES, -1):
        beat = ws_beat_at(number)
        if beat.stamp == 0:
            break
        if beat.step != first.step:
            if length >= 0:
                times[length] = (after_began - first.stamp) // max(after_step - first.step, 1)
            length += 1
            after_began, after_step = first.stamp, first.step
            first.step = beat.step
        first.stamp = beat.stamp
    if length < 0:
        return 0
    times[length] = (after_began - first.stamp) // max(after_step - first.step, 1)
    return length + 1


@cython.cdivision(True)
cdef int64_t _median(int64_t count) noexcept nogil:
    """How long a step before beat *count* usually takes, in nanoseconds; -1 if that isn't known.

    The clock's tick may hide a whole short step. So as many steps as take TICKS ticks are timed
    together, MAX_STEPS_TIMED at most, and the median of these times counts: one checkpoint, or one
    slow step, changes nothing.
    """
    cdef int64_t times[MAX_TIMES]
    cdef int length = _step_times(count, times)
    cdef int together = 1, i, j
    if length < MIN_TIMES:
        return -1
    cdef int64_t usual = ws_middle(times, length)
    while together < MAX_STEPS_TIMED and together * usual < TICKS * coarse_tick_ns():
        together *= 2
    if length < together:
        return -1
    length = min(_step_times(count, times), length)  # in their own order again
    length //= together
    for i in range(length):
        usual = 0
        for j in range(together):
            usual += times[i * together + j]
        times[i] = usual
    return ws_middle(times, length) // together if length else -1


cdef int64_t step_median_ns() noexcept nogil:
    """The same for the last heartbeat. It is computed once after each heartbeat."""
    cdef int64_t count = ws_beat_count(), median
    if not ws_turn(&ws_usual.busy, 0, 1):
        return _median(count)
    if ws_usual.count != count:
        ws_usual.median = _median(count)
        ws_usual.count = count
    median = ws_usual.median
    ws_store(&ws_usual.busy, 0)
    return median


cdef void forget_median() noexcept:
    """For a forked child, in which the thread that computed it may be gone."""
    ws_usual.count = -1
    ws_store(&ws_usual.busy, 0)


@cython.cdivision(True)
cdef void steps_fold() noexcept nogil:
    """See the .pxd. Steps are timed as in _step_times(). Of heartbeats that are overwritten already
    each counts as a step, and all of them took the same time."""
    cdef int64_t count = ws_beat_count(), number, missed
    cdef ws_beat beat
    if not ws_turn(&ws_timed.busy, 0, 1):
        return  # another thread is at it
    missed = max(count - ws_timed.seen - KEPT, 0)
    for number in range(ws_timed.seen + missed + 1, count + 1):
        beat = ws_beat_at(number)
        if beat.stamp == 0:
            missed += 1
            continue
        if ws_timed.began != 0 and (missed or beat.step != ws_timed.step):
            ws_observe(
                &ws_timed.times, WS_STEP_BOUNDS,
                (beat.stamp - ws_timed.began) // (
                    missed + 1 if missed else max(beat.step - ws_timed.step, 1)
                ),
                missed + 1,
            )
        if ws_timed.began == 0 or missed or beat.step != ws_timed.step:
            ws_timed.began = beat.stamp
            ws_timed.step = beat.step
        missed = 0
    ws_timed.seen = count
    ws_store(&ws_timed.busy, 0)


cdef const ws_histogram *step_times() noexcept nogil:
    """How long all steps took that steps_fold() has seen."""
    return &ws_timed.times


cdef int64_t heartbeats_so_far() noexcept nogil:
    return ws_beat_count() - ws_load(&ws_timed.first)


cdef void forget_steps() noexcept:
    """For a forked child, in which the thread that counted may be gone."""
    memset(&ws_timed, 0, sizeof(ws_timed))
    ws_timed.seen = ws_timed.first = ws_beat_count()


cdef int64_t beat_count() noexcept nogil:
    return ws_beat_count()


cdef bint step_is_late(int64_t now_ns) noexcept nogil:
    cdef int64_t age = _since(ws_beat_read().stamp, now_ns)
    cdef int64_t median
    if age < LATE_NS:
        return False
    median = step_median_ns()
    return median >= 0 and age > LATE_STEPS * median


def step_median():
    """How long a step usually takes, in seconds; None until that is known."""
    cdef int64_t median = step_median_ns()
    return None if median < 0 else median / 1e9


cdef Py_ssize_t steps_body(char *out, size_t capacity) noexcept nogil:
    cdef Text text
    cdef ws_beat beat
    cdef int64_t count = ws_beat_count()
    cdef int64_t rank = ws_load(&ws_watch.rank)
    cdef int64_t first = count, number
    cdef int64_t now = monotonic_ns(), wall = wall_ns()
    cdef bint any = False
    if ws_beat_at(count).stamp != 0:  # else all that was is forgotten
        while count - first < MAX_TIMES and ws_beat_at(first - 1).stamp != 0:
            first -= 1
    text.at = out
    text.end = out + capacity
    word(&text, b'{"version":1,"pid":')
    integer(&text, getpid())
    word(&text, b',"rank":')
    if rank < 0:
        word(&text, b"null")
    else:
        integer(&text, rank)
    word(&text, b',"time":')
    nanoseconds(&text, wall)
    word(&text, b',"tick_s":')
    nanoseconds(&text, coarse_tick_ns())
    word(&text, b',"step_median_s":')
    nanoseconds(&text, step_median_ns())
    word(&text, b',"beats":[')
    for number in range(first, count + 1):
        beat = ws_beat_at(number)
        if beat.stamp == 0:
            continue
        word(&text, b",[" if any else b"[")
        integer(&text, beat.step)
        word(&text, b",")
        nanoseconds(&text, _since(beat.stamp, now))
        word(&text, b"]")
        any = True
    word(&text, b"]}")
    return -1 if text.at is NULL else text.at - out


def steps():
    """The body of the handler ``steps``, as steps_body gives it to the native I/O thread."""
    cdef bytearray out = bytearray(STEPS_CAPACITY)
    cdef Py_ssize_t length = steps_body(out, STEPS_CAPACITY)
    return bytes(out[:length])
