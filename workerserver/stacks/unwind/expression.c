/* DWARF's expressions: those of functions that align their stack (GCC), of the linker's stubs for
 * calls to other libraries, and of the frame that a signal makes. */
#include "expression.h"

#include "bytes.h"

enum { DEPTH = 16 };

typedef struct {
    cursor from; /* also bad if the stack is too full, or empty, or a value is not known */
    uint64_t stack[DEPTH];
    int depth;
} machine;

static void push(machine *m, uint64_t value) {
    if (m->depth == DEPTH) {
        m->from.bad = true;
    } else {
        m->stack[m->depth++] = value;
    }
}

static uint64_t pop(machine *m) {
    if (m->depth == 0) {
        m->from.bad = true;
        return 0;
    }
    return m->stack[--m->depth];
}

static void push_register(machine *m, const ws_registers *frame, uint64_t number) {
    int64_t offset = (int64_t)take_leb(&m->from, true);
    if (number >= WS_REGISTERS || !(frame->known >> number & 1)) {
        m->from.bad = true;
    } else {
        push(m, frame->value[number] + (uint64_t)offset);
    }
}

/* Constants. False: another operation. */
static bool constant(machine *m, unsigned code) {
    if (code >= 0x30 && code <= 0x4f) { /* lit0 to lit31 */
        push(m, code - 0x30);
    } else if (code >= 0x08 && code <= 0x0f) { /* const1u, 1s, 2u, 2s, 4u, 4s, 8u, 8s */
        unsigned size = 1U << ((code - 0x08) / 2);
        uint64_t value = take(&m->from, size);
        push(m, code % 2 == 0 ? value : (uint64_t)sign_extended(value, size));
    } else if (code == 0x10 || code == 0x11) { /* constu, consts */
        push(m, take_leb(&m->from, code == 0x11));
    } else {
        return false;
    }
    return true;
}

static bool binary(unsigned code, uint64_t left, uint64_t right, uint64_t *value) {
    int64_t one = (int64_t)left, other = (int64_t)right;
    switch (code) {
    case 0x1a:
        *value = left & right;
        return true;
    case 0x1c:
        *value = left - right;
        return true;
    case 0x1e:
        *value = left * right;
        return true;
    case 0x21:
        *value = left | right;
        return true;
    case 0x22:
        *value = left + right;
        return true;
    case 0x24:
        *value = right < 64 ? left << right : 0;
        return true;
    case 0x25:
        *value = right < 64 ? left >> right : 0;
        return true;
    case 0x29:
        *value = one == other;
        return true;
    case 0x2a:
        *value = one >= other;
        return true;
    case 0x2b:
        *value = one > other;
        return true;
    case 0x2c:
        *value = one <= other;
        return true;
    case 0x2d:
        *value = one < other;
        return true;
    case 0x2e:
        *value = one != other;
        return true;
    default:
        return false;
    }
}

bool ws_expression(const unsigned char *bytes, size_t length, const ws_registers *frame,
                   bool has_start, uint64_t start, ws_peek *peek, void *data, uint64_t *value) {
    machine m = {.from = {bytes, 0, length, false}};
    if (has_start) {
        push(&m, start);
    }
    while (m.from.at < m.from.end && !m.from.bad) {
        unsigned code = (unsigned)take(&m.from, 1);
        uint64_t right;
        if (constant(&m, code)) {
            continue;
        }
        if (code >= 0x70 && code <= 0x8f) { /* breg0 to breg31 */
            push_register(&m, frame, code - 0x70);
        } else if (code == 0x92) { /* bregx */
            push_register(&m, frame, take_leb(&m.from, false));
        } else if (code == 0x06) { /* deref */
            m.from.bad = m.from.bad || !peek(data, pop(&m), &right);
            push(&m, m.from.bad ? 0 : right);
        } else if (code == 0x12) { /* dup */
            right = pop(&m);
            push(&m, right);
            push(&m, right);
        } else if (code == 0x23) { /* plus_uconst */
            right = take_leb(&m.from, false);
            push(&m, pop(&m) + right);
        } else {
            right = pop(&m);
            uint64_t left = pop(&m), result = 0;
            m.from.bad = m.from.bad || !binary(code, left, right, &result);
            push(&m, result);
        }
    }
    *value = pop(&m);
    return !m.from.bad;
}
