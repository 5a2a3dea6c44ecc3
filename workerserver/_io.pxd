"""The native I/O thread; it runs without the GIL."""

from workerserver._connection cimport Hub

cdef void hub_run(Hub *hub) noexcept nogil
