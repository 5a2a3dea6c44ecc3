/* The interpreter of .eh_frame's tables: a function's rows, and a step from a frame to its caller. */
#include "cfi.h"

#include <string.h>

#include "bytes.h"
#include "expression.h"

enum {
    DEPTH = 8, /* rows that a table may remember at one time */
    INDIRECT = 0x80,
};

/* ---- reading bytes ---- */

static void skip(cursor *from, uint64_t size) {
    if (from->bad || size > from->end - from->at) {
        from->bad = true;
    } else {
        from->at += size;
    }
}

/* Bytes of an encoded pointer; 0: of varying length, or unknown. */
static unsigned pointer_size(unsigned encoding) {
    switch (encoding & 0x0f) {
    case 0x00:
    case 0x04:
    case 0x0c:
        return 8;
    case 0x02:
    case 0x0a:
        return 2;
    case 0x03:
    case 0x0b:
        return 4;
    default:
        return 0;
    }
}

bool ws_cfi_pointer(const unsigned char *bytes, size_t size, size_t *next, unsigned encoding,
                    uint64_t address, uint64_t data, uint64_t *value) {
    cursor from = {bytes, *next, size, *next > size};
    unsigned width = pointer_size(encoding), relative = encoding & 0x70;
    if (width == 0 || encoding & INDIRECT) {
        return false;
    }
    uint64_t place = address + from.at;
    uint64_t got = take(&from, width);
    if (encoding & 0x08) {
        got = (uint64_t)sign_extended(got, width);
    }
    if (relative == 0x10) {
        got += place;
    } else if (relative == 0x30) {
        got += data;
    } else if (relative != 0) {
        return false;
    }
    *next = from.at;
    *value = got;
    return !from.bad;
}

/* ---- the part that functions share ---- */

typedef struct {
    uint64_t code_align;
    int64_t data_align;
    unsigned encoding; /* of the function's start */
    bool augmented, signal;
    cursor program;
} shared;

static bool read_shared(const ws_tables *tables, shared *out) {
    cursor from = {tables->bytes, tables->cie, tables->cie_end, false};
    memset(out, 0, sizeof *out);
    if (take(&from, 4) != 0) { /* else an FDE */
        return false;
    }
    uint64_t version = take(&from, 1);
    size_t letters = from.at;
    while (take(&from, 1) != 0) {
    }
    if (from.bad || (version != 1 && version != 3)) {
        return false;
    }
    out->code_align = take_leb(&from, false);
    out->data_align = (int64_t)take_leb(&from, true);
    uint64_t column = version == 1 ? take(&from, 1) : take_leb(&from, false);
    if (from.bad || column != WS_RETURN) {
        return false;
    }
    out->program = from;
    if (tables->bytes[letters] == 0) {
        return true;
    }
    if (tables->bytes[letters] != 'z') {
        return false;
    }
    out->augmented = true;
    uint64_t size = take_leb(&from, false);
    cursor data = from;
    skip(&from, size);
    out->program = from;
    data.end = from.at;
    for (const unsigned char *letter = tables->bytes + letters + 1; *letter != 0; letter++) {
        unsigned encoding;
        switch (*letter) {
        case 'R':
            out->encoding = (unsigned)take(&data, 1);
            break;
        case 'P': /* the personality: only passed over */
            encoding = (unsigned)take(&data, 1);
            if (pointer_size(encoding) == 0) {
                return false;
            }
            skip(&data, pointer_size(encoding));
            break;
        case 'L':
            take(&data, 1);
            break;
        case 'S':
            out->signal = true;
            break;
        case 'B': /* aarch64: which key signs; that it is signed, the program says */
            break;
        default:
            return false;
        }
    }
    return !from.bad && !data.bad;
}

/* ---- the program of rows ---- */

typedef struct {
    const ws_tables *tables;
    const shared *cie;
    uint64_t location; /* of the row that is made */
    ws_row row, first; /* first: what the shared part makes */
    ws_row remembered[DEPTH];
    int depth;
    bool reached; /* the next row begins behind the pc */
} machine;

static void set(machine *m, uint64_t number, ws_rule_kind kind, int64_t offset) {
    if (number < WS_REGISTERS) {
        m->row.rules[number] = (ws_rule){offset, 0, (uint8_t)kind};
    }
}

/* A register of which others don't know, such as a vector register, is passed over. */
static void restore(machine *m, uint64_t number) {
    if (number < WS_REGISTERS) {
        m->row.rules[number] = m->first.rules[number];
    }
}

/* An expression: its length, then its bytes. */
static ws_rule take_expression(cursor *from, ws_rule_kind kind) {
    uint64_t length = take_leb(from, false);
    ws_rule rule = {(int64_t)from->at, (uint32_t)length, (uint8_t)kind};
    if (length == 0 || length > UINT16_MAX) {
        from->bad = true;
    }
    skip(from, length);
    return rule;
}

static void advance(machine *m, uint64_t count, uint64_t pc) {
    uint64_t step = count * m->cie->code_align;
    if (m->location > pc || step > pc - m->location) {
        m->reached = true;
    } else {
        m->location += step;
    }
}

static int64_t scaled(const machine *m, uint64_t factor) {
    return (int64_t)(factor * (uint64_t)m->cie->data_align);
}

/* Instructions with the whole opcode in their first byte. False: unknown. */
static bool extended(machine *m, cursor *from, uint64_t code, uint64_t pc) {
    uint64_t number, other;
    switch (code) {
    case 0x00: /* nop */
        return true;
    case 0x02: /* advance_loc1, 2, 4 */
        advance(m, take(from, 1), pc);
        return true;
    case 0x03:
        advance(m, take(from, 2), pc);
        return true;
    case 0x04:
        advance(m, take(from, 4), pc);
        return true;
    case 0x05: /* offset_extended */
        number = take_leb(from, false);
        set(m, number, WS_RULE_OFFSET, scaled(m, take_leb(from, false)));
        return true;
    case 0x06:
        restore(m, take_leb(from, false));
        return true;
    case 0x07:
        set(m, take_leb(from, false), WS_RULE_UNDEFINED, 0);
        return true;
    case 0x08:
        set(m, take_leb(from, false), WS_RULE_SAME, 0);
        return true;
    case 0x09: /* register */
        number = take_leb(from, false);
        other = take_leb(from, false);
        set(m, number, other < WS_REGISTERS ? WS_RULE_REGISTER : WS_RULE_UNDEFINED, (int64_t)other);
        return true;
    case 0x0a: /* remember_state */
        if (m->depth == DEPTH) {
            return false;
        }
        m->remembered[m->depth++] = m->row;
        return true;
    case 0x0b: /* restore_state */
        if (m->depth == 0) {
            return false;
        }
        m->row = m->remembered[--m->depth];
        return true;
    case 0x0c: /* def_cfa */
        m->row.base = (uint32_t)take_leb(from, false);
        m->row.offset = (int64_t)take_leb(from, false);
        m->row.length = 0;
        return true;
    case 0x0d: /* def_cfa_register: of a CFA that is a register and an offset */
        m->row.base = (uint32_t)take_leb(from, false);
        return m->row.length == 0;
    case 0x0e: /* def_cfa_offset */
        m->row.offset = (int64_t)take_leb(from, false);
        return m->row.length == 0;
    case 0x0f: { /* def_cfa_expression */
        ws_rule rule = take_expression(from, WS_RULE_COMPUTED);
        m->row.offset = rule.offset;
        m->row.length = rule.length;
        return true;
    }
    case 0x10: /* expression */
    case 0x16: /* val_expression */
        number = take_leb(from, false);
        {
            ws_rule rule =
                take_expression(from, code == 0x10 ? WS_RULE_SAVED_AT : WS_RULE_COMPUTED);
            if (number < WS_REGISTERS) {
                m->row.rules[number] = rule;
            }
        }
        return true;
    case 0x11: /* offset_extended_sf */
        number = take_leb(from, false);
        set(m, number, WS_RULE_OFFSET, scaled(m, take_leb(from, true)));
        return true;
    case 0x12: /* def_cfa_sf */
        m->row.base = (uint32_t)take_leb(from, false);
        m->row.offset = scaled(m, take_leb(from, true));
        m->row.length = 0;
        return true;
    case 0x13: /* def_cfa_offset_sf */
        m->row.offset = scaled(m, take_leb(from, true));
        return m->row.length == 0;
    case 0x14: /* val_offset, val_offset_sf */
    case 0x15:
        number = take_leb(from, false);
        set(m, number, WS_RULE_VALUE, scaled(m, take_leb(from, code == 0x15)));
        return true;
#if defined(__aarch64__)
    case 0x2d: /* AARCH64_negate_ra_state */
        m->row.return_signed = !m->row.return_signed;
        return true;
#endif
    case 0x2e: /* GNU_args_size: for exceptions only */
        take_leb(from, false);
        return true;
    case 0x2f: /* GNU_negative_offset_extended */
        number = take_leb(from, false);
        set(m, number, WS_RULE_OFFSET, scaled(m, 0 - take_leb(from, false)));
        return true;
    default: /* set_loc too: no compiler writes it here */
        return false;
    }
}

static bool run(machine *m, cursor *from, uint64_t pc) {
    while (from->at < from->end && !m->reached && !from->bad) {
        uint64_t byte = take(from, 1), low = byte & 0x3f;
        switch (byte >> 6) {
        case 1: /* advance_loc */
            advance(m, low, pc);
            break;
        case 2: /* offset */
            set(m, low, WS_RULE_OFFSET, scaled(m, take_leb(from, false)));
            break;
        case 3:
            restore(m, low);
            break;
        default:
            if (!extended(m, from, byte, pc)) {
                return false;
            }
        }
    }
    return !from->bad;
}

/* Functions may change these without a word. */
static bool may_be_lost(int number) {
#if defined(__aarch64__)
    return number < 19; /* x0 to x18 */
#else
    return number != 3 && number != 6 && (number < 12 || number == WS_RETURN);
#endif
}

bool ws_cfi_row(const ws_tables *tables, uint64_t pc, ws_found_row *out) {
    shared cie;
    machine m;
    memset(out, 0, sizeof *out);
    if (tables->cie > tables->cie_end || tables->cie_end > tables->size
        || tables->fde > tables->fde_end || tables->fde_end > tables->size
        || !read_shared(tables, &cie)) {
        return false;
    }
    size_t next = tables->fde + 4; /* behind the CIE's place */
    if (!ws_cfi_pointer(tables->bytes, tables->fde_end, &next, cie.encoding, tables->address, 0,
                        &out->start)
        || !ws_cfi_pointer(tables->bytes, tables->fde_end, &next, cie.encoding & 0x0f, 0, 0,
                           &out->length)
        || pc < out->start || pc - out->start >= out->length) {
        return false;
    }
    cursor program = {tables->bytes, next, tables->fde_end, false};
    if (cie.augmented) {
        skip(&program, take_leb(&program, false));
    }
    memset(&m, 0, sizeof m);
    m.tables = tables;
    m.cie = &cie;
    m.location = out->start;
    m.row.base = WS_REGISTERS; /* none yet */
    for (int i = 0; i < WS_REGISTERS; i++) {
        m.row.rules[i].kind = may_be_lost(i) ? WS_RULE_NONE : WS_RULE_SAME;
    }
#if defined(__aarch64__)
    m.row.rules[WS_RETURN].kind = WS_RULE_SAME;
#endif
    /* The stack pointer of the caller is the CFA. */
    m.row.rules[WS_SP] = (ws_rule){0, 0, WS_RULE_VALUE};
    m.first = m.row;
    if (!run(&m, &cie.program, UINT64_MAX)) {
        return false;
    }
    m.first = m.row;
    m.location = out->start;
    if (m.depth != 0 || !run(&m, &program, pc)) {
        return false;
    }
    out->signal = cie.signal;
    out->row = m.row;
    return m.row.length != 0 || m.row.base < WS_REGISTERS;
}

/* ---- from a frame to its caller ---- */

static bool knows(const ws_registers *registers, uint64_t number) {
    return number < WS_REGISTERS && registers->known >> number & 1;
}

static bool apply(const ws_tables *tables, const ws_rule *rule, int number, uint64_t cfa,
                  const ws_registers *frame, ws_peek *peek, void *data, uint64_t *value) {
    switch (rule->kind) {
    case WS_RULE_SAME:
        *value = frame->value[number];
        return knows(frame, (uint64_t)number);
    case WS_RULE_OFFSET:
        return peek(data, cfa + (uint64_t)rule->offset, value);
    case WS_RULE_VALUE:
        *value = cfa + (uint64_t)rule->offset;
        return true;
    case WS_RULE_REGISTER:
        if (!knows(frame, (uint64_t)rule->offset)) {
            return false;
        }
        *value = frame->value[rule->offset];
        return true;
    case WS_RULE_SAVED_AT:
    case WS_RULE_COMPUTED:
        return ws_expression(tables->bytes + rule->offset, rule->length, frame, true, cfa, peek,
                             data, value)
               && (rule->kind == WS_RULE_COMPUTED || peek(data, *value, value));
    default:
        return false;
    }
}

bool ws_cfi_step(const ws_tables *tables, const ws_row *row, const ws_registers *frame,
                 ws_peek *peek, void *data, ws_registers *caller, bool *first) {
    uint64_t cfa;
    memset(caller, 0, sizeof *caller);
    if (row->length != 0) {
        if (!ws_expression(tables->bytes + row->offset, row->length, frame, false, 0, peek, data,
                           &cfa)) {
            return false;
        }
    } else {
        if (!knows(frame, row->base)) {
            return false;
        }
        cfa = frame->value[row->base] + (uint64_t)row->offset;
    }
    for (int i = 0; i < WS_REGISTERS; i++) {
        uint64_t value;
        if (apply(tables, &row->rules[i], i, cfa, frame, peek, data, &value)) {
            caller->value[i] = value;
            caller->known |= (uint32_t)1 << i;
        }
    }
#if defined(__aarch64__)
    if (row->return_signed) { /* the signature lies above the address */
        caller->value[WS_RETURN] &= ((uint64_t)1 << 48) - 1;
    }
#endif
    *first = row->rules[WS_RETURN].kind == WS_RULE_UNDEFINED;
    return true;
}
