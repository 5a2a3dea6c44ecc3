"""Which form of ``/metrics`` a client wants, by its Accept field (RFC 9110, 12.5.1)."""


cdef enum:
    TEXT_PLAIN = 1
    OPENMETRICS = 2  # in a version that is written here


cdef inline bint _accept_is(const char *text, int length, const char *other) noexcept nogil:
    """Whether *text* is *other*, which is in lower case, but for its case."""
    cdef int i
    for i in range(length):
        if other[i] == 0 or (text[i] | 32 if c"A" <= text[i] <= c"Z" else text[i]) != other[i]:
            return False
    return other[length] == 0


cdef inline int _accept_word(const char *text, int begin, int end, int *length) noexcept nogil:
    """Where *text* begins without the space around it; *length* becomes its length."""
    while begin < end and (text[begin] == c" " or text[begin] == c"\t"):
        begin += 1
    while begin < end and (text[end - 1] == c" " or text[end - 1] == c"\t"):
        end -= 1
    length[0] = end - begin
    return begin


cdef inline int _accept_thousandths(const char *text, int length) noexcept nogil:
    """A weight, "1" or "0.25", in thousandths; 0 for anything that is none."""
    cdef int i, value = 0, unit = 100
    if length == 0 or length > 5 or not c"0" <= text[0] <= c"1":
        return 0
    value = 1000 * (text[0] - c"0")
    if length > 1 and text[1] != c".":
        return 0
    for i in range(2, length):
        if not c"0" <= text[i] <= c"9":
            return 0
        value += unit * (text[i] - c"0")
        unit //= 10
    return min(value, 1000)


cdef inline int _accept_kind(
    const char *text, int begin, int end, int *weight, int *precision
) noexcept nogil:
    """What one range of the list allows, how much it is wanted, and how precisely it is named."""
    cdef int kind, at, stop, length, equals
    stop = begin
    while stop < end and text[stop] != c";":
        stop += 1
    at = _accept_word(text, begin, stop, &length)
    precision[0] = 3
    weight[0] = 1000
    if _accept_is(&text[at], length, b"application/openmetrics-text"):
        kind = OPENMETRICS
    elif _accept_is(&text[at], length, b"text/plain"):
        kind = TEXT_PLAIN
    elif _accept_is(&text[at], length, b"text/*"):
        kind = TEXT_PLAIN
        precision[0] = 2
    elif _accept_is(&text[at], length, b"*/*"):
        kind = TEXT_PLAIN
        precision[0] = 1
    else:
        return 0
    while stop < end:
        begin = stop + 1
        stop = begin
        while stop < end and text[stop] != c";":
            stop += 1
        equals = begin
        while equals < stop and text[equals] != c"=":
            equals += 1
        if equals == stop:
            continue
        at = _accept_word(text, begin, equals, &length)
        if _accept_is(&text[at], length, b"q"):
            at = _accept_word(text, equals + 1, stop, &length)
            weight[0] = _accept_thousandths(&text[at], length)
        elif kind == OPENMETRICS and _accept_is(&text[at], length, b"version"):
            at = _accept_word(text, equals + 1, stop, &length)
            if not _accept_is(&text[at], length, b"1.0.0") and not _accept_is(
                &text[at], length, b"0.0.1"
            ):
                return 0
    return kind


cdef inline bint openmetrics_wanted(const char *text, int length) noexcept nogil:
    """Whether the value of an Accept field names OpenMetrics, and wants it no less than plain
    text."""
    cdef int begin = 0, end, kind, weight = 0, precision = 0
    cdef int openmetrics = 0, plain = 0, precise = 0
    while begin < length:
        end = begin
        while end < length and text[end] != c",":
            end += 1
        kind = _accept_kind(text, begin, end, &weight, &precision)
        if kind == OPENMETRICS:
            openmetrics = max(openmetrics, weight)
        elif kind == TEXT_PLAIN and precision >= precise:
            plain = max(plain, weight) if precision == precise else weight
            precise = precision
        begin = end + 1
    return openmetrics > 0 and openmetrics >= plain
