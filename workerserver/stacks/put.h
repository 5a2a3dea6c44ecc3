/* What the renderers write with. Internal to them; ASCII only, no malloc, no Python. */
#ifndef WS_PUT_H
#define WS_PUT_H

#include "render.h"

/* Where a rendering goes. After the first failure nothing more is written. */
typedef struct {
    ws_buffer *buffer;
    bool failed;
} sink;

/* Makes room for `more` bytes. False: no memory. */
bool ws_reserve(sink *out, size_t more);

void ws_put_bytes(sink *out, const void *data, size_t size);
void ws_put(sink *out, const char *text);
void ws_put_hex(sink *out, uint64_t value, int digits); /* at most 16 */
void ws_put_decimal(sink *out, uint64_t value);
void ws_put_ident(sink *out, unsigned long ident);

/* The code point at i < length of a name that is one (kind 1, 2 or 4). */
uint32_t ws_char_at(const ws_name *name, size_t i);

/* A name as faulthandler writes it. */
void ws_put_escaped(sink *out, const ws_name *name);

/* A name inside a JSON string, without quotes: from its character `start` on, at most `limit`. A
 * lone surrogate, which no encoding can carry, becomes six: a backslash, "u" and its digits. */
void ws_put_json_part(sink *out, const ws_name *name, size_t start, size_t limit);

/* As a JSON string. */
void ws_put_json_name(sink *out, const ws_name *name);
void ws_put_json_text(sink *out, const char *text);
void ws_put_json_bool(sink *out, bool value);

/* At most WS_MAX_BYTES bytes as the system has them, as a JSON string; what is no UTF-8 becomes a
 * lone surrogate, as Python has it. `cut`: there were more. */
void ws_put_json_bytes(sink *out, const char *bytes, size_t size, bool cut);

/* Microseconds as seconds, as Python writes such a float. */
void ws_put_json_micros(sink *out, uint64_t micros);

enum { WS_MAX_BYTES = 512 };

#endif
