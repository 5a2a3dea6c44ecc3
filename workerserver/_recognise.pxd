"""What the I/O thread uses of the recogniser: plain C data and functions that need no GIL."""


cdef enum:
    NATIVE_HEAD = 8192  # bytes of a request that may be recognised, its last empty line included
    NATIVE_FIELDS = 100


cdef enum Verdict:
    VERDICT_INCOMPLETE  # more bytes may make it a recognised request
    VERDICT_RECOGNISED
    VERDICT_FORWARD  # for the real parser, whatever it makes of it


cdef enum Method:
    METHOD_GET
    METHOD_POST


cdef struct Recognised:
    # A complete HTTP/1.1 request without a body. Offsets count from the request's first byte.
    int length  # bytes, the last empty line included
    Method method
    int path
    int path_length
    int query  # behind the "?"; 0 if there is none
    int query_length
    int host
    int host_length
    int authorization  # 0: no such field
    int authorization_length
    int fields
    bint keep_alive


cdef struct Recognition:
    # How far one request was judged; all zero at a message boundary. recognise() alone looks
    # inside. It holds no pointer into the bytes: they may be moved between two calls.
    int phase
    int then  # the phase behind `rest`
    int at  # bytes judged
    int begin  # of the field's name
    int seen
    const char* rest  # what has to come next, to the letter; static
    Recognised request


cdef enum QueryRule:
    QUERY_ANY  # parameters are ignored
    QUERY_NONE
    QUERY_HEALTHZ  # nothing, or max_step_age=SECONDS
    QUERY_DUMP  # nothing, or format= and mode=, in either order
    QUERY_OPAQUE  # somebody else's: passed on as it is


cdef enum DumpFormat:
    DUMP_TEXT
    DUMP_JSON
    DUMP_DIGEST


cdef enum DumpMode:
    DUMP_AUTO
    DUMP_GIL
    DUMP_NOGIL


cdef struct Parameters:
    double max_step_age  # seconds; negative: not given
    DumpFormat format
    DumpMode mode


cdef struct Text:
    const char* data  # not NUL-terminated
    int length


cdef struct Route:
    Text path
    Method method
    QueryRule rule
    int action  # the owner's own number


cdef struct TableData:
    # Who may ask, and for what. Never changes; lives as long as its Table.
    const Route* routes
    int route_count
    const Text* names  # lower case
    int name_count
    Text prefix  # of further names, lower case, ends in "."; length 0: none
    Text token  # data NULL: none is asked for
    bint check_host
    int max_head
    int max_fields


# *data* is where the request begins and *size* all that has come since, at each call: the bytes
# that were judged already are not read again. *request* is filled if they are recognised, and
# *state* is then ready for the next request; after VERDICT_FORWARD it stays so until it is zeroed.
cdef Verdict recognise(
    const char* data, size_t size, Recognition* state, Recognised* request
) noexcept nogil

# Whether AccessPolicy.check() is sure to pass, and the server's limits hold. False: forward.
cdef bint allowed(
    const TableData* table, const char* data, const Recognised* request
) noexcept nogil

# The route, with *parameters* filled, or NULL: forward.
cdef const Route* find(
    const TableData* table, const char* data, const Recognised* request, Parameters* parameters
) noexcept nogil


cdef class Table:
    cdef TableData data
    cdef Route* _routes
    cdef Text* _names
    cdef char* _text
    cdef Py_ssize_t _used  # bytes of _text

    cdef Text _keep(self, bytes text) except *
