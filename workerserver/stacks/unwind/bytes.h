/* Numbers of DWARF's tables and expressions, one after the other, within strict bounds. */
#ifndef WS_BYTES_H
#define WS_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    const unsigned char *bytes;
    size_t at, end;
    bool bad; /* something was cut short or unknown; all that is read from then on is 0 */
} cursor;

static inline uint64_t take(cursor *from, size_t size) {
    uint64_t value = 0;
    if (from->bad || size > from->end - from->at) {
        from->bad = true;
        return 0;
    }
    memcpy(&value, from->bytes + from->at, size); /* little-endian, as both machines are */
    from->at += size;
    return value;
}

static inline uint64_t take_leb(cursor *from, bool is_signed) {
    uint64_t value = 0, byte;
    unsigned shift = 0;
    do {
        byte = take(from, 1);
        if (shift < 64) {
            value |= (byte & 0x7f) << shift;
        }
        shift += 7;
    } while (byte & 0x80 && !from->bad);
    if (shift > 70) {
        from->bad = true;
    }
    if (is_signed && byte & 0x40 && shift < 64) {
        value |= ~(uint64_t)0 << shift;
    }
    return from->bad ? 0 : value;
}

static inline int64_t sign_extended(uint64_t value, unsigned bytes) {
    unsigned shift = 64 - 8 * bytes;
    return (int64_t)(value << shift) >> shift;
}

#endif
