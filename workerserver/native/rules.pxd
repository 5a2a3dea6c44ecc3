"""What the I/O thread uses of the rules: plain C data and functions that need no GIL."""


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
    int max_parameters


# Whether AccessPolicy.check() is sure to pass, and the server's limits hold. False: forward.
cdef bint allowed(
    const TableData* table, const char* data, const Recognised* request
) noexcept nogil

# The route, with *parameters* filled, or NULL: forward.
cdef const Route* find(
    const TableData* table, const char* data, const Recognised* request, Parameters* parameters
) noexcept nogil

# *c*, of a host name, in lower case; 0 for any other character.
cdef unsigned char name_byte(unsigned char c) noexcept nogil
