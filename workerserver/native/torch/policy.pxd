"""What may be asked of torch's own server."""

cdef bint relay_needs_gil(
    const char* name, size_t name_size, const char* query, size_t query_size
) noexcept nogil
