"""The clock of time.monotonic(), without Python."""

from libc.stdint cimport int64_t


cdef extern from *:
    """
    #include <stdint.h>
    #include <time.h>

    /* The clock of time.monotonic(). */
    #if defined(__APPLE__)
    #define WS_CLOCK CLOCK_UPTIME_RAW
    #else
    #define WS_CLOCK CLOCK_MONOTONIC
    #endif

    /* The same clock as of the last timer tick, 1 to 10 ms ago: never ahead of it, read in a third
     * of the time, and never a system call, which CLOCK_MONOTONIC is on some virtual machines. */
    #if defined(CLOCK_MONOTONIC_COARSE)
    #define WS_CLOCK_COARSE CLOCK_MONOTONIC_COARSE
    #else
    #define WS_CLOCK_COARSE WS_CLOCK
    #endif

    static inline int64_t ws_clock_ns(clockid_t clock)
    {
        struct timespec now;
        clock_gettime(clock, &now);
        return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    }

    static inline int64_t ws_clock_tick_ns(clockid_t clock)
    {
        struct timespec tick;
        return clock_getres(clock, &tick) ? 0 : (int64_t)tick.tv_sec * 1000000000 + tick.tv_nsec;
    }
    """
    ctypedef int clockid_t
    const clockid_t CLOCK_PROCESS_CPUTIME_ID
    const clockid_t CLOCK_REALTIME
    const clockid_t CLOCK_THREAD_CPUTIME_ID
    const clockid_t WS_CLOCK
    const clockid_t WS_CLOCK_COARSE
    int64_t ws_clock_ns(clockid_t clock) noexcept nogil
    int64_t ws_clock_tick_ns(clockid_t clock) noexcept nogil


cdef inline int64_t monotonic_ns() noexcept nogil:
    return ws_clock_ns(WS_CLOCK)


cdef inline int64_t monotonic_coarse_ns() noexcept nogil:
    return ws_clock_ns(WS_CLOCK_COARSE)


cdef inline int64_t coarse_tick_ns() noexcept nogil:
    """Nanoseconds between two ticks of monotonic_coarse_ns()."""
    return ws_clock_tick_ns(WS_CLOCK_COARSE)


cdef inline int64_t wall_ns() noexcept nogil:
    """Since the epoch."""
    return ws_clock_ns(CLOCK_REALTIME)


cdef inline int64_t process_cpu_ns() noexcept nogil:
    """Processor time of all threads, those that have ended too."""
    return ws_clock_ns(CLOCK_PROCESS_CPUTIME_ID)


cdef inline int64_t thread_cpu_ns() noexcept nogil:
    """Processor time of the calling thread."""
    return ws_clock_ns(CLOCK_THREAD_CPUTIME_ID)


cdef inline double monotonic() noexcept nogil:
    """Seconds."""
    return <double>ws_clock_ns(WS_CLOCK) * 1e-9
