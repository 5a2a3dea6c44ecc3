"""What may be asked of torch's own server in the loop's place."""

from libc.string cimport memchr, memcmp, strlen


cdef bint relay_needs_gil(
    const char* name, size_t name_size, const char* query, size_t query_size
) noexcept nogil:
    """Whether torch's C++ handler *name* would wait for the GIL, asked with *query*.

    ``dump_nccl_trace_pickle`` turns code objects into names, under the GIL, unless it is told
    ``includestacktraces=false``. Such a request must not be sent: torch's thread would run it
    after the client was refused, or, at the process's exit, be ended inside C++ code that lets no
    exception pass, which aborts. A query that could mean anything else counts as needing the GIL.
    """
    cdef const char* wanted = b"includestacktraces=false"
    cdef size_t wanted_size = strlen(wanted), start = 0, stop
    cdef const char* found
    cdef bint told = False
    if not _is_name(name, name_size, b"dump_nccl_trace_pickle"):
        return False
    for stop in range(query_size):
        if query[stop] == c"%" or query[stop] == c"+" or query[stop] == c";":
            return True
    while start < query_size:
        found = <const char*>memchr(query + start, c"&", query_size - start)
        stop = query_size if found == NULL else <size_t>(found - query)
        if stop - start == wanted_size and memcmp(query + start, wanted, wanted_size) == 0:
            told = True
        elif stop - start >= 18 and memcmp(query + start, wanted, 18) == 0:
            return True  # given twice, it is the other one that may count
        start = stop + 1
    return not told
