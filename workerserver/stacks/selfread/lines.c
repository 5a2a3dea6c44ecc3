/* Line tables: from an offset in the bytecode to a line. CPY_LINES says which form they have. */
#include "cpython.h"

#include "internal.h"

#include <assert.h>

/* Pairs of bytes: a distance in the bytecode, a signed distance in lines; -128: no line. */
static int64_t in_pairs(const unsigned char *table, size_t size, int64_t first, int64_t at) {
    int64_t end = 0, line = first, found = -1;
    size_t i = 0;
    while (end <= at) {
        if (size < 2 || i > size - 2) {
            return -1;
        }
        int delta = table[i + 1] < 128 ? table[i + 1] : (int)table[i + 1] - 256;
        if (delta == -128) {
            found = -1;
        } else {
            line += delta;
            found = line;
        }
        end += table[i];
        i += 2;
    }
    return found;
}

/* Six bits a byte, the lowest first; bit 6: there is more. Bit 7 starts the next entry. */
static int64_t signed_number(const unsigned char *table, size_t size, size_t i) {
    uint64_t value = 0;
    for (unsigned shift = 0; i < size && shift < 36; shift += 6, i++) {
        value |= (uint64_t)(table[i] & 63) << shift;
        if (!(table[i] & 64)) {
            break;
        }
    }
    return value & 1 ? -(int64_t)(value >> 1) : (int64_t)(value >> 1);
}

static int64_t in_locations(const unsigned char *table, size_t size, int64_t first,
                            int64_t at) {
    int64_t end = 0, line = first;
    for (size_t i = 0; i < size;) {
        unsigned kind = table[i] >> 3 & 15;
        if (!(table[i] & 128)) {
            return -1;
        }
        end += ((table[i] & 7) + 1) * 2;
        if (kind == 13 || kind == 14) { /* no columns, long form */
            line += signed_number(table, size, i + 1);
        } else if (kind >= 10 && kind <= 12) { /* one-line forms */
            line += kind - 10;
        }
        if (end > at) {
            return kind == 15 ? -1 : line; /* 15: no line */
        }
        do {
            i++;
        } while (i < size && !(table[i] & 128));
    }
    return -1;
}

static int64_t find(const unsigned char *table, size_t size, int64_t first, int64_t at) {
    return CPY_LINES == CPY_LINES_PAIRS ? in_pairs(table, size, first, at)
                                        : in_locations(table, size, first, at);
}

int ws_line(ws_code *code, int64_t at) {
    assert(code->good && code->first_line >= -1 && at < code->units * 2);
    assert(code->table == NULL || code->table_size <= WS_LINES_MAX);
    if (at < 0) {
        return code->first_line; /* not started */
    }
    if (code->table == NULL || at >= code->units * 2) {
        return -1;
    }
    if (at != code->last_at) {
        int64_t line = find(code->table, code->table_size, code->first_line, at);
        code->last_line = line < 0 || line > INT32_MAX ? -1 : (int)line;
        code->last_at = at;
    }
    return code->last_line;
}
