"""The Date field of replies (RFC 9110, 6.6.1), made anew once a second, without Python."""

from libc.string cimport memcpy


cdef extern from "<time.h>" nogil:
    long time(long *seconds)


cdef enum:
    DATE_FIELD = 37  # bytes of "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
    DATE_AT = 6  # where the date itself begins
    DATE_SIZE = 29

cdef extern from *:
    """
    #define WS_LAST_DATE 253402300799L  /* the last second of the year 9999 */
    """
    const long WS_LAST_DATE


cdef struct HttpDate:
    long second  # since 1970; 0: none yet
    char field[DATE_FIELD]


cdef inline void _put_pair(char *at, long number) noexcept nogil:
    at[0] = <char>(c"0" + number // 10)
    at[1] = <char>(c"0" + number % 10)


cdef inline void write_date(HttpDate *date, long second) noexcept nogil:
    """Without gmtime_r(): in C's library that takes a lock, which another thread may hold for as
    long as it likes."""
    cdef const char *days = b"ThuFriSatSunMonTueWed"
    cdef const char *months = b"MarAprMayJunJulAugSepOctNovDecJanFeb"
    cdef long day, left, era, of_era, year, of_year, month
    second = max(0L, min(second, <long>WS_LAST_DATE))
    day = second // 86400
    left = second % 86400
    memcpy(date.field, b"Date: ddd, dd mmm yyyy hh:mm:ss GMT\r\n", DATE_FIELD)
    memcpy(&date.field[6], &days[3 * (day % 7)], 3)
    # Years that begin in March, in eras of 400: the leap day comes last.
    day += 719468
    era = day // 146097
    of_era = day % 146097
    year = (of_era - of_era // 1460 + of_era // 36524 - of_era // 146096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    month = (5 * of_year + 2) // 153
    year += era * 400 + (1 if month >= 10 else 0)
    _put_pair(&date.field[11], of_year - (153 * month + 2) // 5 + 1)
    memcpy(&date.field[14], &months[3 * month], 3)
    _put_pair(&date.field[18], year // 100)
    _put_pair(&date.field[20], year % 100)
    _put_pair(&date.field[23], left // 3600)
    _put_pair(&date.field[26], left // 60 % 60)
    _put_pair(&date.field[29], left % 60)
    date.second = second


cdef inline bint renew_date(HttpDate *date) noexcept nogil:
    """Have *date* be the present one; True if it was not."""
    cdef long now = time(NULL)
    if now == date.second:
        return False
    write_date(date, now)
    date.second = now
    return True
