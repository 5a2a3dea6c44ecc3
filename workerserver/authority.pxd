"""``host [":" port]``, the authority of a request: one grammar for the parser and the I/O thread.

RFC 3986, 3.2.2 and 3.2.3: a name, an IPv4 address (which is a name for this grammar), or in
brackets an IPv6 address or one of a later version; then a colon and any number of digits, also
none. Nothing here reads a port, so one above 65535 is no error.

Three things differ from that RFC. The host is not empty, as http and https ask for (RFC 9110,
4.2.1). A name has no comma: two Host fields that something on the way has joined are not one. And
an IPv6 address may have a zone behind a percent sign, since clients send what they were given.

The grammar is judged byte by byte, and the first byte is refused from which on no authority can
come of it.
"""


cdef extern from *:
    """
    /* unreserved and sub-delims, without the comma (RFC 3986, 2.2 and 2.3) */
    static const unsigned char ws_in_name[256] = {
        ['0'] = 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
        ['A'] = 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
        ['a'] = 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
        ['-'] = 1, ['.'] = 1, ['_'] = 1, ['~'] = 1, ['!'] = 1, ['$'] = 1, ['&'] = 1, [39] = 1,
        ['('] = 1, [')'] = 1, ['*'] = 1, ['+'] = 1, [';'] = 1, ['='] = 1,
    };
    """
    const unsigned char *ws_in_name


cdef enum AuthorityPart:
    # Zero: nothing has come yet.
    AUTHORITY_BEGIN
    AUTHORITY_NAME
    AUTHORITY_PERCENT  # in a name
    AUTHORITY_DIGIT  # the first one behind a percent sign has come
    AUTHORITY_BRACKET
    AUTHORITY_FIRST_COLON  # of an IPv6 address that begins with two
    AUTHORITY_GAP  # behind "::"
    AUTHORITY_GROUP  # hexadecimal digits of an IPv6 address
    AUTHORITY_COLON  # behind a group
    AUTHORITY_BYTES  # an IPv4 address at the end of an IPv6 address
    AUTHORITY_ZONE
    AUTHORITY_VERSION  # of an address of a later version
    AUTHORITY_FUTURE  # that address
    AUTHORITY_CLOSED  # behind the bracket
    AUTHORITY_PORT


cdef struct Authority:
    # How far one authority was judged; all zero before its first byte.
    AuthorityPart part
    bint gap  # "::" has come
    int groups  # of an IPv6 address, with the one that has begun
    int digits  # of the group, or of the number between two points; else whether any came
    int points
    int number  # the decimal number that the digits are; 256: none from 0 to 255


cdef inline int _hexadecimal(unsigned char c) noexcept nogil:
    """The value of the digit *c*; -1 if it is none."""
    if c"0" <= c <= c"9":
        return c - c"0"
    c |= 32
    return c - c"a" + 10 if c"a" <= c <= c"f" else -1


cdef inline bint _add_digit(Authority* state, int digit) noexcept nogil:
    """Another digit of a group; False if that has four already."""
    cdef int number = 256
    if state.digits == 4:
        return False
    if state.digits == 0:
        number = digit
    elif state.number > 0:
        number = state.number * 10 + digit
    # Else the digits are 01, say, which is no number of an IPv4 address.
    state.number = 256 if digit > 9 or number > 255 else number
    state.digits += 1
    return True


cdef inline bint _address_is_whole(const Authority* state) noexcept nogil:
    if state.part == AUTHORITY_GAP:
        return True
    if state.part == AUTHORITY_BYTES:
        return state.points == 3 and state.digits > 0
    return state.part == AUTHORITY_GROUP and (state.gap or state.groups == 8)


cdef inline bint _take_of_address(Authority* state, unsigned char c) noexcept nogil:
    """Another byte of an IPv6 address, or the one behind it. "::" stands for one group at least."""
    cdef int digit = _hexadecimal(c)
    cdef int most = 7 if state.gap else 8
    if c == c"]" or c == c"%":
        if not _address_is_whole(state):
            return False
        state.part = AUTHORITY_CLOSED if c == c"]" else AUTHORITY_ZONE
        state.digits = 0
        return True
    if state.part == AUTHORITY_BYTES:
        if c == c"." and state.points < 3 and state.digits > 0:
            state.points += 1
            state.digits = 0
            return True
        return 0 <= digit <= 9 and _add_digit(state, digit) and state.number <= 255
    if state.part == AUTHORITY_GROUP:
        if digit >= 0:
            return _add_digit(state, digit)
        if c == c":" and state.groups < most:
            state.part = AUTHORITY_COLON
            return True
        # The four numbers stand for two groups, the last ones.
        if c == c"." and state.number <= 255 and (
            state.groups < most if state.gap else state.groups == 7
        ):
            state.part = AUTHORITY_BYTES
            state.points = 1
            state.digits = 0
            return True
        return False
    if c == c":":  # behind another one
        if state.part == AUTHORITY_GAP or state.gap:
            return False
        state.gap = True
        state.part = AUTHORITY_GAP
        return True
    if digit < 0 or state.part == AUTHORITY_FIRST_COLON or state.groups == most:
        return False
    state.groups += 1
    state.digits = 0
    state.part = AUTHORITY_GROUP
    return _add_digit(state, digit)


cdef inline bint _take_in_brackets(Authority* state, unsigned char c) noexcept nogil:
    if state.part == AUTHORITY_BRACKET:
        if c | 32 == c"v":
            state.part = AUTHORITY_VERSION
            return True
        if c == c":":
            state.part = AUTHORITY_FIRST_COLON
            return True
        return _take_of_address(state, c)
    if state.part == AUTHORITY_VERSION:
        if c == c"." and state.digits > 0:
            state.part = AUTHORITY_FUTURE
            state.digits = 0
            return True
        state.digits = 1
        return _hexadecimal(c) >= 0
    if state.part == AUTHORITY_ZONE or state.part == AUTHORITY_FUTURE:
        if c == c"]" and state.digits > 0:
            state.part = AUTHORITY_CLOSED
            return True
        state.digits = 1
        return ws_in_name[c] != 0 or (c == c":" and state.part == AUTHORITY_FUTURE)
    return _take_of_address(state, c)


cdef inline Py_ssize_t take_authority(
    Authority* state, const unsigned char* text, Py_ssize_t size
) noexcept nogil:
    """How many of the next *size* bytes belong to the authority: all, or those up to the first one
    that can't."""
    cdef Py_ssize_t begin, i = 0
    while i < size:
        if state.part == AUTHORITY_BEGIN or state.part == AUTHORITY_NAME:
            begin = i
            while i < size and ws_in_name[text[i]]:
                i += 1
            if i > begin:
                state.part = AUTHORITY_NAME
            if i == size:
                break
            if text[i] == c"%":
                state.part = AUTHORITY_PERCENT
            elif text[i] == c":" and state.part == AUTHORITY_NAME:
                state.part = AUTHORITY_PORT
            elif text[i] == c"[" and state.part == AUTHORITY_BEGIN:
                state.part = AUTHORITY_BRACKET
            else:
                break
        elif state.part == AUTHORITY_PORT:
            while i < size and c"0" <= text[i] <= c"9":
                i += 1
            break
        elif state.part == AUTHORITY_PERCENT or state.part == AUTHORITY_DIGIT:
            if _hexadecimal(text[i]) < 0:
                break
            state.part = (
                AUTHORITY_DIGIT if state.part == AUTHORITY_PERCENT else AUTHORITY_NAME
            )
        elif state.part == AUTHORITY_CLOSED:
            if text[i] != c":":
                break
            state.part = AUTHORITY_PORT
        elif not _take_in_brackets(state, text[i]):
            break
        i += 1
    return i


cdef inline bint authority_is_whole(const Authority* state) noexcept nogil:
    """Whether the bytes so far are an authority."""
    return (
        state.part == AUTHORITY_NAME
        or state.part == AUTHORITY_CLOSED
        or state.part == AUTHORITY_PORT
    )
