/* Values of Python objects whose class is known: ints, strings. Any thread; no part of the work
 * space. */
#include "cpython.h"

#include "internal.h"

#include <string.h>

enum { DIGITS = 3 }; /* 30 bits each: more than an ident has */

uintptr_t ws_type_read(uintptr_t object) {
    uintptr_t type;
    if (object == 0 || object % sizeof(void *) != 0
        || !ws_read_one(object + ws_layout.object_type, &type, sizeof type)) {
        return 0;
    }
    return type;
}

bool ws_int_read(uintptr_t object, int64_t *value) {
    struct {
        PyLongObject number;
        digit more[DIGITS];
    } copy;
    memset(&copy, 0, sizeof copy);
    if (object == 0 || !ws_read_one(object, &copy.number, sizeof copy.number)
        || ws_pointer(&copy.number, ws_layout.object_type) != ws_layout.long_type) {
        return false;
    }
    Py_ssize_t size = CPY_INT_SIZE(&copy.number);
    const char *start = (const char *)CPY_INT_DIGITS(&copy.number);
    size_t offset = (size_t)(start - (const char *)&copy);
    digit digits[DIGITS] = {0};
    if (size < 0 || size > DIGITS
        || (size > 0
            && !ws_read_one(object + offset, digits, (size_t)size * sizeof digits[0]))) {
        return false;
    }
    uint64_t total = 0;
    for (Py_ssize_t i = size - 1; i >= 0; i--) {
        if (digits[i] > PyLong_MASK || total >> (62 - PyLong_SHIFT) != 0) {
            return false;
        }
        total = total << PyLong_SHIFT | digits[i];
    }
    *value = CPY_INT_NEGATIVE(&copy.number) ? -(int64_t)total : (int64_t)total;
    return true;
}

bool ws_text_read(ws_arena *arena, uintptr_t object, ws_name *name) {
    char head[WS_TEXT_HEAD];
    uint32_t size = ws_read_length(object, ws_string_header_size(), sizeof head);
    memset(name, 0, sizeof *name);
    if (object == 0 || object % sizeof(void *) != 0 || !ws_read_one(object, head, size)) {
        return false;
    }
    ws_string_finish(arena, object, head, size, name);
    return name->kind != 0;
}
