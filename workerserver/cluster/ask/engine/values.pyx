"""The body of an answer for health, if it is plain: a flat JSON object as our workers write it.

What is not plain is no error yet. Python reads such a body, and says what is wrong with it.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeASCII
from libc.stdint cimport int64_t
from libc.string cimport memchr, memcmp


cdef extern from "Python.h":
    double PyOS_string_to_double(const char *text, char **end, void *overflow) except? -1.0

cdef enum:
    MOST_DIGITS = 17        # of a number: it fits in an int64


def plain_values(bytes body not None, dict places not None, int count):
    """The values of *count* fields of the object in *body*, None for those that it lacks.

    *places*: of each field its place and its kind: "i" for an integer of at least 0, "s" for
    seconds of at least 0 and less than 1e12, as a float, "t" for a text of 1 to 256 characters. The
    result is None if the body is not plain, has another field or one twice, or if a value is of
    another kind.
    """
    cdef const char *at = PyBytes_AS_STRING(body)
    cdef const char *end = at + PyBytes_GET_SIZE(body)
    cdef const char *stop
    cdef list values = [None] * count
    cdef set seen = set()
    cdef object place, kind
    cdef double seconds
    if at == end or at[0] != c"{":
        return None
    at += 1
    while at < end:
        if at[0] != c'"':
            return None
        stop = <const char *>memchr(at + 1, c'"', <size_t>(end - at - 1))
        if stop is NULL or end - stop < 3 or stop[1] != c":":
            return None
        field = places.get(PyBytes_FromStringAndSize(at + 1, stop - at - 1))
        if field is None:
            return None
        place, kind = field
        if place in seen:
            return None
        seen.add(place)
        at = stop + 2
        if end - at > 4 and memcmp(at, b"null", 4) == 0:
            at += 4
        elif at[0] == c'"':
            stop = text_end(at + 1, end)
            if kind != "t" or stop is NULL or not 0 < stop - at - 1 <= 256:
                return None
            values[place] = PyUnicode_DecodeASCII(at + 1, stop - at - 1, NULL)
            at = stop + 1
        else:
            stop = number_end(at, end)
            if stop is NULL or kind == "t":
                return None
            if kind == "s":
                seconds = to_double(at)
                if seconds >= 1e12:
                    return None
                values[place] = seconds
            else:
                if memchr(at, c".", <size_t>(stop - at)) is not NULL:
                    return None
                values[place] = to_integer(at, stop)
            at = stop
        if at + 1 == end and at[0] == c"}":
            return values
        if at >= end or at[0] != c",":
            return None
        at += 1
    return None


cdef const char *text_end(const char *at, const char *end) noexcept nogil:
    """The quote at the end of a text; NULL if there is none, or if the text is not plain."""
    cdef unsigned char c
    while at < end:
        c = <unsigned char>at[0]
        if c == c'"':
            return at
        if c < 32 or c > 126 or c == c"\\":
            return NULL
        at += 1
    return NULL


cdef const char *number_end(const char *at, const char *end) noexcept nogil:
    """The end of a number of digits, with a point or without; NULL if it is another one."""
    cdef const char *first = at
    cdef bint point = False
    if at < end - 1 and at[0] == c"0" and c"0" <= at[1] <= c"9":
        return NULL
    while at < end and (c"0" <= at[0] <= c"9" or at[0] == c"."):
        if at[0] == c".":
            if point or at == first or at + 1 == end or not c"0" <= at[1] <= c"9":
                return NULL
            point = True
        at += 1
    # What would go on with an exponent is refused where a comma or a brace has to follow.
    return at if first < at <= first + MOST_DIGITS else NULL


cdef inline object to_integer(const char *at, const char *stop):
    cdef int64_t value = 0
    while at < stop:
        value = value * 10 + (at[0] - c"0")
        at += 1
    return value


cdef inline double to_double(const char *at) except? -1.0:
    """The number that begins here. Behind it is no digit, since something follows in the object."""
    cdef char *behind = NULL
    return PyOS_string_to_double(at, &behind, NULL)
