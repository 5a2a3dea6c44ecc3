"""The life of a hub and of its listeners; from any thread, without the GIL."""


cdef Hub *hub_new(double watch, int canary) noexcept nogil
cdef bint hub_await(Hub *hub, double seconds) noexcept nogil
cdef void hub_stop(Hub *hub) noexcept nogil
cdef void hub_free(Hub *hub) noexcept nogil
cdef Listener *hub_listen(Hub *hub, const Listener *model) noexcept nogil
cdef void hub_ignore(Hub *hub, Listener *listener, bint closing) noexcept nogil
cdef void hub_forget(Hub *hub, Listener *listener) noexcept nogil
cdef void hub_drop(Hub *hub, Listener *listener, bint everything) noexcept nogil
