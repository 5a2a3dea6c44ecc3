/* Writing into a buffer that never comes from malloc: numbers, and names as text and as JSON. */
#define _GNU_SOURCE
#include "put.h"

#include "check.h"

#include <string.h>
#include <sys/mman.h>

/* Characters of a name in the text; everywhere else it is WS_MAX_NAME. faulthandler's own limit. */
enum { TEXT_NAME = 500 };

static const char HEX[] = "0123456789abcdef";

bool ws_reserve(sink *out, size_t more) {
    ws_buffer *buffer = out->buffer;
    ws_check_buffer(buffer);
    if (out->failed)
        return false;
    if (more <= buffer->capacity - buffer->size)
        return true;
    size_t capacity = buffer->capacity > 0 ? 2 * buffer->capacity : 1 << 16;
    while (capacity - buffer->size < more)
        capacity *= 2;
    void *grown;
#ifdef MREMAP_MAYMOVE
    if (buffer->data != NULL) {
        grown = mremap(buffer->data, buffer->capacity, capacity, MREMAP_MAYMOVE);
    } else
#endif
    {
        grown = mmap(
            NULL, capacity, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (grown != MAP_FAILED && buffer->data != NULL) {
            memcpy(grown, buffer->data, buffer->size);
            munmap(buffer->data, buffer->capacity);
        }
    }
    if (grown == MAP_FAILED) {
        out->failed = true;
        return false;
    }
    buffer->data = grown;
    buffer->capacity = capacity;
    ws_check_buffer(buffer);
    assert(more <= buffer->capacity - buffer->size);
    return true;
}

void ws_buffer_free(ws_buffer *buffer) {
    ws_check_buffer(buffer);
    if (buffer->data != NULL)
        munmap(buffer->data, buffer->capacity);
    memset(buffer, 0, sizeof *buffer);
}

void ws_put_bytes(sink *out, const void *data, size_t size) {
    if (size > 0 && ws_reserve(out, size)) {
        memcpy(out->buffer->data + out->buffer->size, data, size);
        out->buffer->size += size;
    }
}

void ws_put(sink *out, const char *text) {
    ws_put_bytes(out, text, strlen(text));
}

void ws_put_hex(sink *out, uint64_t value, int digits) {
    char text[16];
    assert(digits >= 1 && digits <= (int)sizeof text);
    for (int i = digits - 1; i >= 0; i--, value >>= 4)
        text[i] = HEX[value & 15];
    ws_put_bytes(out, text, (size_t)digits);
}

void ws_put_decimal(sink *out, uint64_t value) {
    char text[20];
    size_t at = sizeof text;
    do {
        text[--at] = (char)('0' + value % 10);
        value /= 10;
    } while (value > 0);
    ws_put_bytes(out, text + at, sizeof text - at);
}

void ws_put_ident(sink *out, unsigned long ident) {
    ws_put(out, "0x");
    ws_put_hex(out, ident, 2 * (int)sizeof ident);
}

/* ---- names ---- */

uint32_t ws_char_at(const ws_name *name, size_t i) {
    assert(i < name->length && (name->kind == 1 || name->kind == 2 || name->kind == 4));
    switch (name->kind) {
    case 1:
        return ((const uint8_t *)name->data)[i];
    case 2:
        return ((const uint16_t *)name->data)[i];
    default:
        return ((const uint32_t *)name->data)[i];
    }
}

static bool is_surrogate(uint32_t c) {
    return c >= 0xd800 && c <= 0xdfff;
}

/* Copies the characters from `start` to `end` that stand for themselves in text and in JSON, up to
 * the first that doesn't; returns how many. Most names are one such run. */
static size_t put_plain(sink *out, const ws_name *name, size_t start, size_t end) {
    const uint8_t *at = (const uint8_t *)name->data + start;
    size_t count = 0;
    if (name->kind != 1)
        return 0;
    while (start + count < end && at[count] >= 32 && at[count] <= 126 && at[count] != '"'
           && at[count] != '\\')
        count++;
    ws_put_bytes(out, at, count);
    return count;
}

/* As faulthandler writes it. */
void ws_put_escaped(sink *out, const ws_name *name) {
    size_t length = name->length < TEXT_NAME ? name->length : TEXT_NAME;
    if (name->kind == 0) {
        ws_put(out, "???");
        return;
    }
    for (size_t i = 0; i < length; i++) {
        i += put_plain(out, name, i, length);
        if (i == length)
            break;
        uint32_t c = ws_char_at(name, i);
        if (c >= 32 && c <= 126) {
            char plain = (char)c;
            ws_put_bytes(out, &plain, 1);
        } else if (c <= 0xff) {
            ws_put(out, "\\x");
            ws_put_hex(out, c, 2);
        } else if (c <= 0xffff) {
            ws_put(out, "\\u");
            ws_put_hex(out, c, 4);
        } else {
            ws_put(out, "\\U");
            ws_put_hex(out, c, 8);
        }
    }
    if (length < name->length || name->cut)
        ws_put(out, "...");
}

static void put_json_unit(sink *out, uint32_t unit) {
    ws_put(out, "\\u");
    ws_put_hex(out, unit, 4);
}

/* One character inside a JSON string. A lone surrogate, which no encoding can carry, becomes six:
 * a backslash, "u" and its digits. At most `limit` are written; returns how many. */
static size_t put_json_char(sink *out, uint32_t c, size_t limit) {
    char plain = (char)c;
    assert(limit > 0);
    if (is_surrogate(c)) {
        char six[6] = {'\\', 'u', HEX[c >> 12], HEX[c >> 8 & 15], HEX[c >> 4 & 15], HEX[c & 15]};
        size_t count = limit < sizeof six ? limit : sizeof six;
        ws_put(out, "\\");
        ws_put_bytes(out, six, count);
        return count;
    }
    if (c == '"' || c == '\\') {
        ws_put(out, "\\");
        ws_put_bytes(out, &plain, 1);
    } else if (c >= 32 && c <= 126) {
        ws_put_bytes(out, &plain, 1);
    } else if (c >= 8 && c <= 13 && c != 11) {
        ws_put_bytes(out, (char[]){'\\', "btn\0fr"[c - 8]}, 2);
    } else if (c <= 0xffff) {
        put_json_unit(out, c);
    } else if (c <= 0x10ffff) {
        put_json_unit(out, 0xd7c0 + (c >> 10));
        put_json_unit(out, 0xdc00 + (c & 0x3ff));
    } else {
        put_json_unit(out, 0xfffd);
    }
    return 1;
}

/* A name from its character `start` on, at most `limit` characters of it, without quotes. */
void ws_put_json_part(sink *out, const ws_name *name, size_t start, size_t limit) {
    ws_name dots = {.data = "...", .length = 3, .kind = 1};
    size_t end = name->length < WS_MAX_NAME ? name->length : WS_MAX_NAME;
    assert(start <= end);
    for (size_t i = start; i < end && limit > 0; i++) {
        size_t run = put_plain(out, name, i, limit < end - i ? i + limit : end);
        i += run;
        limit -= run;
        if (i < end && limit > 0)
            limit -= put_json_char(out, ws_char_at(name, i), limit);
    }
    if (end < name->length || name->cut) {
        for (size_t i = 0; i < dots.length && limit > 0; i++)
            limit -= put_json_char(out, ws_char_at(&dots, i), limit);
    }
}

void ws_put_json_name(sink *out, const ws_name *name) {
    ws_put(out, "\"");
    if (name->kind == 0)
        ws_put(out, "???");
    else
        ws_put_json_part(out, name, 0, SIZE_MAX);
    ws_put(out, "\"");
}

void ws_put_json_text(sink *out, const char *text) {
    ws_put_json_name(out, &(ws_name){.data = text, .length = strlen(text), .kind = 1});
}

void ws_put_json_bool(sink *out, bool value) {
    ws_put(out, value ? "true" : "false");
}

/* Bytes as the system has them, made into code points; what is no UTF-8 becomes a lone surrogate,
 * as Python has it. Returns how many. */
static size_t decode(const unsigned char *bytes, size_t size, uint32_t *to) {
    size_t count = 0;
    for (size_t i = 0; i < size; count++) {
        unsigned char first = bytes[i];
        size_t more = first < 0x80 ? 0 : first >= 0xf0 ? 3 : first >= 0xe0 ? 2 : 1;
        uint32_t value = first < 0x80 ? first : first & (0x3fu >> more);
        bool good = first < 0x80 || (first >= 0xc2 && first <= 0xf4);
        for (size_t k = 1; good && k <= more; k++) {
            good = i + k < size && (bytes[i + k] & 0xc0) == 0x80;
            if (good)
                value = value << 6 | (bytes[i + k] & 0x3fu);
        }
        static const uint32_t LEAST[] = {0, 0x80, 0x800, 0x10000};
        good = good && value >= LEAST[more] && value <= 0x10ffff
               && !(value >= 0xd800 && value <= 0xdfff);
        to[count] = good ? value : 0xdc00u + first;
        i += good ? more + 1 : 1;
    }
    return count;
}

void ws_put_json_bytes(sink *out, const char *bytes, size_t size, bool cut) {
    uint32_t points[WS_MAX_BYTES];
    assert(size <= WS_MAX_BYTES);
    size_t count = decode((const unsigned char *)bytes, size, points);
    ws_name name = {.data = points, .length = count, .kind = 4, .cut = cut};
    ws_put_json_name(out, &name);
}

void ws_put_json_micros(sink *out, uint64_t micros) {
    unsigned rest = (unsigned)(micros % 1000000);
    char text[] = ".000000";
    size_t size = strlen(text);
    for (size_t i = size - 1; i > 0; i--, rest /= 10)
        text[i] = (char)('0' + rest % 10);
    while (size > 2 && text[size - 1] == '0')
        size--;
    ws_put_decimal(out, micros / 1000000);
    ws_put_bytes(out, text, size);
}
