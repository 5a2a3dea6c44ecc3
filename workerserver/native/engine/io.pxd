"""The native I/O thread; it runs without the GIL."""


cdef void hub_run(Hub *hub) noexcept nogil
