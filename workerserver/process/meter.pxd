"""What a server counts, in C memory: any thread reads it, with the GIL or without it.

There is no lock. Each number is a 64-bit atomic of its own, so a reader may see one number before
and another one after the same event.
"""

from libc.stdint cimport int64_t


cdef extern from *:
    """
    #include <stdint.h>

    enum {
        WS_BUCKETS = 14,   /* of a histogram; the last one is for whatever is longer */
        WS_TALLIES = 128,  /* handlers with figures of their own; the last one is for all others */
        WS_STATUSES = 16,  /* of one handler; the last one is for all others */
        WS_LABEL_BYTES = 192,
        WS_BUDGETS = 9
    };

    typedef struct {
        int64_t sum; /* ns */
        int64_t buckets[WS_BUCKETS];
    } ws_histogram;

    typedef struct {
        int64_t status;  /* 0: free, or in the last place every other one */
        int64_t loop;    /* replies that the loop wrote */
        int64_t alone;   /* replies that the I/O thread wrote by itself */
    } ws_replies;

    typedef struct {
        int64_t running; /* requests inside the handler now */
        int64_t listed;  /* whether it can be called now */
        ws_histogram times;
        ws_replies replies[WS_STATUSES];
        int64_t size;
        char label[WS_LABEL_BYTES]; /* the name as the value of a label */
    } ws_tally;

    /* How much of the loop's share is left, and when that was reckoned. */
    typedef struct {
        int64_t references;
        double credit, looked_at, share;
    } ws_credit;

    typedef struct {
        int64_t references;
        int64_t used; /* tallies: they are only added, and stay where they are */
        ws_tally *tallies[WS_TALLIES];
        int64_t body_bytes;
        int64_t threads;
        int64_t scrapes;
        int64_t standby; /* threads of torch's own server; -1: there can be none */
        ws_credit *credit;
        double limits[WS_BUDGETS];
    } ws_meter;

    static inline int64_t ws_get(const int64_t *field)
    {
        return __atomic_load_n(field, __ATOMIC_ACQUIRE);
    }

    static inline void ws_set(int64_t *field, int64_t value)
    {
        __atomic_store_n(field, value, __ATOMIC_RELEASE);
    }

    static inline int64_t ws_add(int64_t *field, int64_t change)
    {
        return __atomic_add_fetch(field, change, __ATOMIC_RELAXED);
    }

    static inline double ws_get_real(const double *field)
    {
        double value;
        __atomic_load(field, &value, __ATOMIC_RELAXED);
        return value;
    }

    static inline void ws_set_real(double *field, double value)
    {
        __atomic_store(field, &value, __ATOMIC_RELAXED);
    }

    /* *times* things took *ns* each. *bounds* are those of all buckets but the last, ascending. */
    static inline void ws_observe(ws_histogram *histogram, const int64_t *bounds, int64_t ns,
                                  int64_t times)
    {
        int at = 0;
        while (at < WS_BUCKETS - 1 && ns > bounds[at])
            at++;
        ws_add(&histogram->buckets[at], times);
        ws_add(&histogram->sum, ns * times);
    }

    /* Another reply of a handler. Two threads may find a new status at one time. */
    static inline void ws_reply(ws_tally *tally, int64_t status, int alone)
    {
        for (int i = 0; i < WS_STATUSES; i++) {
            int64_t known = ws_get(&tally->replies[i].status);
            if (known == 0 && i < WS_STATUSES - 1 &&
                __atomic_compare_exchange_n(&tally->replies[i].status, &known, status, 0,
                                            __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
                known = status;
            if (known == status || i == WS_STATUSES - 1) {
                ws_add(alone ? &tally->replies[i].alone : &tally->replies[i].loop, 1);
                return;
            }
        }
    }
    """
    enum:
        WS_BUCKETS
        WS_TALLIES
        WS_STATUSES
        WS_LABEL_BYTES
        WS_BUDGETS
    ctypedef struct ws_histogram:
        int64_t sum
        int64_t *buckets
    ctypedef struct ws_replies:
        int64_t status
        int64_t loop
        int64_t alone
    ctypedef struct ws_tally:
        int64_t running
        int64_t listed
        ws_histogram times
        ws_replies *replies
        int64_t size
        char *label
    ctypedef struct ws_credit:
        int64_t references
        double credit
        double looked_at
        double share
    ctypedef struct ws_meter:
        int64_t references
        int64_t used
        ws_tally **tallies
        int64_t body_bytes
        int64_t threads
        int64_t scrapes
        int64_t standby
        ws_credit *credit
        double *limits
    int64_t ws_get(const int64_t *field) noexcept nogil
    void ws_set(int64_t *field, int64_t value) noexcept nogil
    int64_t ws_add(int64_t *field, int64_t change) noexcept nogil
    double ws_get_real(const double *field) noexcept nogil
    void ws_set_real(double *field, double value) noexcept nogil
    void ws_observe(
        ws_histogram *histogram, const int64_t *bounds, int64_t ns, int64_t times
    ) noexcept nogil
    void ws_reply(ws_tally *tally, int64_t status, bint alone) noexcept nogil


cdef struct Readings:
    # What a scrape reads of a server, beside its meter.
    double started  # monotonic seconds
    int64_t connections
    int64_t unproven
    int64_t busiest
    int64_t evicted
    int64_t refused
    int64_t unsent
    double snapshots  # of this second, used up on the I/O thread


cdef class Meter:
    # The C part lives until its last user has called meter_drop().
    cdef ws_meter *data
    cdef dict _numbers  # name of a handler -> its place among the tallies
    cdef object __weakref__

    cpdef int number(self, str name) except -1
    cdef int reply(self, str name, int status, int64_t began_ns) except -1


# Another user of the C part, and one less. From any thread.
cdef void meter_keep(ws_meter *meter) noexcept nogil
cdef void meter_drop(ws_meter *meter) noexcept nogil

# The I/O thread has a reply of tally *number*, or *times* that took *took_ns* each.
cdef void meter_replied(ws_meter *meter, int number, int status) noexcept nogil
cdef void meter_took(ws_meter *meter, int number, int64_t took_ns, int64_t times) noexcept nogil

# The highest number that a connection's descriptor may have: a quarter of the soft limit is left to
# training. From any thread.
cdef long descriptor_line() noexcept nogil

cdef extern from *:
    """
    #define WS_TEXT_TYPE "text/plain; version=0.0.4; charset=utf-8"
    #define WS_OPENMETRICS_TYPE "application/openmetrics-text; version=1.0.0; charset=utf-8"
    """
    const char *WS_TEXT_TYPE
    const char *WS_OPENMETRICS_TYPE


# Writes the body of GET /metrics to *out*. Returns its length, or -1 if *capacity* is too small,
# which that of metrics_capacity() never is.
cdef size_t metrics_capacity(const ws_meter *meter) noexcept nogil
cdef Py_ssize_t metrics_body(
    char *out, size_t capacity, ws_meter *meter, const Readings *readings, bint openmetrics
) noexcept nogil

# The same as a bytes object.
cdef bytes metrics_bytes(ws_meter *meter, const Readings *readings, bint openmetrics)

# Counts the steps that have ended since the last call. Without it every few seconds, the times of
# many short steps are only known together.
cdef void steps_fold() noexcept nogil
