"""The C headers of snapshots, for Cython. Declarations only: the code is linked into _stacks alone.

A module that cimports this has the package's folder among its include_dirs.
"""


cdef extern from "snapshot.h":
    ctypedef struct ws_name:
        const void *data
        size_t length
        unsigned char kind
        bint cut
    ctypedef struct ws_frame:
        ws_name file
        ws_name function
        ws_name qualname
        int line
    ctypedef struct ws_thread:
        unsigned long ident
        long native_id
        ws_name name
        size_t start
        size_t count
        signed char daemon
        bint truncated
        bint unstable
    ctypedef enum ws_mode:
        WS_MODE_GIL
        WS_MODE_NOGIL
        WS_MODE_KERNEL
    ctypedef struct ws_place:
        pass
    ctypedef enum ws_wait_kind:
        WS_WAIT_NONE
        WS_WAIT_LOCK
        WS_WAIT_CONDITION
        WS_WAIT_EVENT
        WS_WAIT_SEMAPHORE
        WS_WAIT_BARRIER
        WS_WAIT_THREAD
        WS_WAIT_PROCESS
        WS_WAIT_QUEUE
        WS_WAIT_FUTURE
        WS_WAIT_IMPORT_LOCK
        WS_WAIT_STORE
        WS_WAIT_OPERATION
        WS_WAIT_RENDEZVOUS
    struct ws_native:
        pass
    ctypedef struct ws_snapshot:
        ws_thread *threads
        size_t thread_count
        ws_frame *frames
        size_t frame_count
        ws_mode mode
        int pid
        double time
        unsigned long holder
        unsigned long main_ident
        bint truncated
        ws_native *native
    enum:
        WS_MAX_DEPTH
        WS_MAX_THREADS
        WS_MAX_FRAMES
        WS_MAX_NAME

cdef extern from "render.h":
    ctypedef struct ws_buffer:
        char *data
        size_t size
        size_t capacity
    ctypedef enum ws_format:
        WS_TEXT
        WS_JSON
        WS_DIGEST
        WS_NATIVE_TEXT
        WS_NATIVE_JSON
    ctypedef struct ws_kernel:
        char state
        char wchan[64]
    int ws_render(const ws_snapshot *snapshot, ws_format format, ws_buffer *out) noexcept nogil
    int ws_render_stack(
        const ws_snapshot *snapshot, size_t index, ws_buffer *out
    ) noexcept nogil
    int ws_render_headers(const ws_snapshot *snapshot, ws_buffer *out) noexcept nogil
    void ws_buffer_free(ws_buffer *buffer) noexcept nogil
    double ws_now() noexcept nogil
    void ws_kernel_state(long native_id, ws_kernel *out) noexcept nogil
    int ws_kernel_take(ws_snapshot *out) noexcept nogil
    void ws_kernel_free(ws_snapshot *snapshot) noexcept nogil

cdef extern from "children.h":
    bint ws_has_children() noexcept nogil

cdef extern from "waits.h":
    void ws_waits_store(int port) noexcept nogil

cdef extern from "check.h":
    void ws_check_snapshot(const ws_snapshot *snapshot) noexcept nogil

cdef extern from "selfread.h":
    ctypedef struct ws_gil:
        bint known
        bint locked
        unsigned long holder
        unsigned long switches
    const char *ws_selfread_problem() noexcept nogil
    void ws_selfread_free(ws_snapshot *snapshot) noexcept nogil
    void ws_selfread_gil(ws_gil *out) noexcept nogil

cdef extern from "facts.h":
    void ws_waits_with_gil(ws_snapshot *snapshot, const ws_place *places) noexcept  # with the GIL
    void ws_waits_free(ws_snapshot *snapshot) noexcept nogil

cdef extern from "unwind.h":
    void ws_native_free(ws_native *native) noexcept nogil

cdef extern from "dump.h":
    int ws_dump_init() noexcept nogil
    int ws_dump_prepare() noexcept  # with the GIL
    int ws_dump_take(ws_snapshot *out, bint facts) noexcept nogil
    int ws_dump_take_native(ws_snapshot *out, bint facts) noexcept nogil
    int ws_dump(int wanted, ws_buffer *outs, ws_buffer *headers) noexcept nogil
    int ws_dump_within(size_t limit, ws_buffer *outs, ws_buffer *headers) noexcept nogil
    unsigned long long ws_dumps_taken() noexcept nogil

cdef extern from *:
    ctypedef bint ws_bool "bool"  # of C: an int is wider

cdef extern from "sampler.h":
    ctypedef enum ws_sampling:
        WS_BY_WALL
        WS_ON_CPU
    ctypedef struct ws_recording:
        pass
    ws_recording *ws_recording_start(
        double seconds, double hz, ws_sampling how, ws_bool *busy
    ) noexcept nogil
    void ws_recording_stop(ws_recording *recording) noexcept nogil
    bint ws_recording_runs(ws_recording *recording) noexcept nogil
    double ws_recording_left() noexcept nogil
    int ws_recording_render(const ws_recording *recording, ws_buffer *out) noexcept nogil
    void ws_recording_free(ws_recording *recording) noexcept nogil
