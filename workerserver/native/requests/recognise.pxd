"""What the I/O thread uses of the recogniser: plain C data and functions that need no GIL."""

from workerserver.authority cimport Authority


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
    int accept  # 0: no such field; -1: several
    int accept_length
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
    Authority authority  # of the Host field
    Recognised request


# *data* is where the request begins and *size* all that has come since, at each call: the bytes
# that were judged already are not read again. *request* is filled if they are recognised, and
# *state* is then ready for the next request; after VERDICT_FORWARD it stays so until it is zeroed.
cdef Verdict recognise(
    const char* data, size_t size, Recognition* state, Recognised* request
) noexcept nogil

# Whether recognise() looks at the field *name*, and doesn't pass over its value.
cdef bint field_is_judged(const unsigned char* name, int length) noexcept nogil

cdef inline bint folds_to(
    const unsigned char* folded, const unsigned char* text, const char* other, int length
) noexcept nogil:
    """Whether *text* is *other*, which is in lower case, once *folded* has replaced each byte."""
    cdef int i
    for i in range(length):
        if folded[text[i]] != <unsigned char>other[i]:
            return False
    return True
