"""The black box, without Python; from any thread."""


# 0, or an errno: ENOTSUP if the file is on no tmpfs, EINVAL if it is too small, EBUSY if this
# process has a box already. box.h says more.
cdef int box_open(int fd, size_t size) noexcept nogil
cdef bint box_watch(const char *name, const char *path) noexcept nogil
# False: the record could not be written.
cdef bint box_identity(const char *data, size_t size) noexcept nogil
cdef bint box_recorder(const char *data, size_t size) noexcept nogil
cdef bint box_counters(const char *data, size_t size) noexcept nogil
cdef bint box_end(const char *data, size_t size) noexcept nogil
# The I/O thread of *hub* writes the box, with stacks every *interval* seconds.
cdef void box_begin(Hub *hub, double interval) noexcept nogil
# Handlers of the signals that end a process. 0, or an errno.
cdef int ends_begin(Hub *hub) noexcept nogil
cdef void ends_restore() noexcept nogil
