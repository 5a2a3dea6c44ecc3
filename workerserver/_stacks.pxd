"""What other compiled modules may do with stacks, all of it without the GIL and in any thread.

Functions that take a snapshot wait for one another, never for the GIL, and append to buffers that
the caller frees with buffer_free(). They return 0, or -1: no memory, or neither stacks nor /proc
can be read; the buffers are then as they were.
"""

from workerserver._snapshot cimport ws_buffer, ws_format, ws_gil, ws_mode

# One snapshot of mode nogil, or kernel if that fails, in one format. *holder*: 0 if unknown.
cdef int dump(
    ws_format format, ws_buffer *out, ws_mode *mode, unsigned long *holder
) noexcept nogil

# One snapshot in several formats: *wanted* has bit 1 << format for each, *outs* is indexed by
# format. *holder_name* gets printable ASCII and a NUL; empty if unknown.
cdef int dump_formats(
    int wanted, ws_buffer *outs, ws_mode *mode, unsigned long *holder,
    char *holder_name, int holder_name_size
) noexcept nogil

# The same, with what a reply says of the snapshot in *headers*: lines that end in CR LF.
cdef int dump_reply(int wanted, ws_buffer *outs, ws_buffer *headers) noexcept nogil

cdef void buffer_free(ws_buffer *buffer) noexcept nogil

# The GIL's state, now. Takes no lock.
cdef void gil_state(ws_gil *out) noexcept nogil

# Snapshots of mode nogil so far.
cdef unsigned long long nogil_taken() noexcept nogil
