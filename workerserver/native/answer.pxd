"""What the I/O thread writes by itself, and how it ends a connection. Under the hub's lock."""


cdef void count(Listener *listener, int route, int status) noexcept nogil
cdef void emit(Connection *connection, const char *data, size_t size) noexcept nogil
cdef void send_answer(
    Connection *connection, const Answer *answer, int route, bint keep_alive, size_t *joined
) noexcept nogil
cdef void send_joined(Connection *connection, size_t *joined) noexcept nogil
cdef void send_final(
    Connection *connection, const Answer *answer, int status
) noexcept nogil
cdef void send_health(
    Connection *connection, int route, double max_step_age, bint keep_alive
) noexcept nogil
cdef void send_reply(
    Connection *connection, int route, int status, const char *content_type, size_t type_size,
    const char *extra, size_t extra_size, const char *body, size_t size, bint keep_alive
) noexcept nogil
cdef void send_unavailable(
    Connection *connection, int route, const char *about, double seconds, bint keep_alive
) noexcept nogil
cdef void flush(Connection *connection) noexcept nogil
cdef void finish(Connection *connection) noexcept nogil
cdef void die(Connection *connection) noexcept nogil
