"""What becomes of requests; on the I/O thread, under the hub's lock."""


cdef bint make_room(Connection *connection, size_t more) noexcept nogil
cdef void broken(Connection *connection, int error) noexcept nogil
cdef void proceed(Connection *connection, const char *data, size_t size) noexcept nogil
cdef void hand_over(Connection *connection) noexcept nogil
cdef void take_back(Connection *connection) noexcept nogil
cdef void refuse(Connection *connection) noexcept nogil
cdef void answer_dumps(Hub *hub) noexcept nogil
cdef void relayed(Hub *hub, RelaySlot *slot) noexcept nogil
cdef void relay_late(RelaySlot *slot) noexcept nogil
