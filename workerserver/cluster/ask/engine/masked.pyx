"""The body of a flight recorder's summary without what differs from rank to rank.

What a time and a rank look like is said in cluster/read/columns/summaries.py: bodies that are equal
here have one Shape there.
"""

cdef enum:
    MAX_MASKED = 16384      # bytes of a body
    MAX_TIMES = 128         # different ones in a body
    TIME_DIGITS = 19
    RANK_DIGITS = 7
    NAME = 5                # the size of `_ns":`
    RANK = 8                # the size of `{"rank":`

cdef struct Span:
    size_t at
    size_t size


def masked(bytes body not None):
    """(what is equal in the summaries of one shape, the rank, the different times in the order of
    the body). None if the body does not begin with a rank, is too large, or has too many times."""
    cdef const char *data = PyBytes_AS_STRING(body)
    cdef size_t size = <size_t>PyBytes_GET_SIZE(body)
    cdef char out[MAX_MASKED]
    cdef Span times[MAX_TIMES]
    cdef size_t at = RANK, length = 2, digits
    cdef int count = 0, place
    cdef int64_t rank
    cdef tuple found
    # A NUL stands before what stands for a number, so it has to be nowhere else.
    if size > MAX_MASKED or size < RANK or memchr(data, 0, size) is not NULL:
        return None
    if memcmp(data, b'{"rank":', RANK) != 0:
        return None
    digits = digits_at(data + at, size - at)
    if not 0 < digits <= RANK_DIGITS or at + digits >= size or data[at + digits] != c",":
        return None
    if data[at] == c"0" and digits > 1:
        return None
    rank = number_of(data + at, digits)
    out[0] = 0
    out[1] = <char>MAX_TIMES
    at += digits
    while at < size:
        if length + 2 > MAX_MASKED:
            return None
        digits = time_at(data, at, size)
        if digits == 0:
            out[length] = data[at]
            length += 1
            at += 1
            continue
        place = place_of(data, at, digits, times, count)
        if place == MAX_TIMES:
            return None
        if place == count:
            times[count].at = at
            times[count].size = digits
            count += 1
        out[length] = 0
        out[length + 1] = <char>place
        length += 2
        at += digits
    found = tuple([number_of(data + times[place].at, times[place].size) for place in range(count)])
    return PyBytes_FromStringAndSize(out, <Py_ssize_t>length), rank, found


cdef inline size_t digits_at(const char *data, size_t size) noexcept nogil:
    cdef size_t count = 0
    while count < size and c"0" <= data[count] <= c"9":
        count += 1
    return count


cdef inline int64_t number_of(const char *data, size_t digits) noexcept nogil:
    cdef int64_t value = 0
    cdef size_t i
    for i in range(digits):
        value = value * 10 + (data[i] - c"0")
    return value


cdef inline size_t time_at(const char *data, size_t at, size_t size) noexcept nogil:
    """The digits of the time that begins here; 0 if none does."""
    cdef size_t digits
    if not c"1" <= data[at] <= c"9" or data[at - 1] != c":" or at < NAME:
        return 0
    if memcmp(data + at - NAME, b'_ns":', NAME) != 0:
        return 0
    digits = digits_at(data + at, size - at)
    if digits > TIME_DIGITS or (digits == TIME_DIGITS and data[at] > c"3") or at + digits >= size:
        return 0
    return digits if data[at + digits] == c"," or data[at + digits] == c"}" else 0


cdef inline int place_of(
    const char *data, size_t at, size_t digits, const Span *times, int count
) noexcept nogil:
    """The place of a time among the different ones: *count* if it is a new one."""
    cdef int i
    for i in range(count):
        if times[i].size == digits and memcmp(data + times[i].at, data + at, digits) == 0:
            return i
    return count
