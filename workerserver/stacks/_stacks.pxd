"""What other compiled modules may do with stacks, all of it without the GIL and in any thread."""

from workerserver.stacks.snapshot cimport ws_buffer, ws_gil

# One snapshot of mode nogil, or kernel if that fails, in several formats: *wanted* has bit
# 1 << format for each, *outs* is indexed by format. *headers* gets what a reply says of it, lines
# that end in CR LF. Waits for other readers, never for the GIL. Appends to buffers that the caller
# frees with buffer_free(). 0, or -1: no memory, or neither stacks nor /proc can be read; the
# buffers are then as they were.
cdef int dump_reply(int wanted, ws_buffer *outs, ws_buffer *headers) noexcept nogil

# The same as JSON and as a digest; the JSON has at most *limit* bytes (dump.h).
cdef int dump_within(size_t limit, ws_buffer *outs, ws_buffer *headers) noexcept nogil

cdef void buffer_free(ws_buffer *buffer) noexcept nogil

# The GIL's state, now. Takes no lock.
cdef void gil_state(ws_gil *out) noexcept nogil
