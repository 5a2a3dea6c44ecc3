/* A register that the kernel doesn't tell, found from code that is known: x86-64's frame pointer.
 *
 * The kernel tells a blocked thread's stack pointer and instruction. A function that counts from its
 * frame pointer (rbp) needs more, if no function called from there has saved it. By its table such a
 * function has pushed rbp and, one after the other, other registers. Then it makes room with one
 * "sub rsp". So the distance from rsp to rbp is known, unless rsp is moved otherwise: a function that
 * has an instruction for this is not looked at further. What comes out counts only if the return
 * address found there follows a call of this very function.
 *
 * libffi's call of a function (ctypes, cffi) is written by hand: what it does first is known to the
 * byte. All that lies between rsp and the place of its return address are arguments. */
#include "parts.h"

#include <string.h>

#if defined(__x86_64__)

enum {
    RBP = 6,
    CODE = 16 << 10, /* bytes of a function that are looked at */
    PIECE = 1024,
    OVERLAP = 8,
    ARGUMENTS = 64, /* words that libffi's call may pass on the stack */
};

static const unsigned char BRANCH[] = {0xf3, 0x0f, 0x1e, 0xfa}; /* endbr64 */
static const unsigned char LESS_128[] = {0x48, 0x83, 0xc4, 0x80}; /* add rsp, -128 */
static const unsigned char FFI[] = {
    0x4c, 0x8b, 0x14, 0x24, /* mov r10, [rsp] */
    0x48, 0x8d, 0x04, 0x37, /* lea rax, [rdi + rsi] */
    0x48, 0x89, 0x10,       /* mov [rax], rdx */
    0x48, 0x89, 0x48, 0x08, /* mov [rax + 8], rcx */
    0x48, 0x89, 0x68, 0x10, /* mov [rax + 16], rbp */
    0x4c, 0x89, 0x50, 0x18, /* mov [rax + 24], r10 */
    0x48, 0x89, 0xc5,       /* mov rbp, rax */
};

static bool begins(uint64_t start, const unsigned char *code, size_t size) {
    unsigned char found[sizeof BRANCH + sizeof FFI];
    if (!ws_native_read(start, found, sizeof BRANCH + size)) {
        return false;
    }
    size_t skip = memcmp(found, BRANCH, sizeof BRANCH) == 0 ? sizeof BRANCH : 0;
    return memcmp(found + skip, code, size) == 0;
}

/* ---- what a call calls ---- */

static bool slot_holds(uint64_t slot, uint64_t start) {
    uint64_t value;
    return ws_native_read(slot, &value, sizeof value) && value == start;
}

static uint64_t relative(uint64_t next, const unsigned char *offset) {
    int32_t value;
    memcpy(&value, offset, sizeof value);
    return next + (uint64_t)(int64_t)value;
}

/* Whether the linker's stub at `stub` jumps to `start`: "jmp [slot]", with what may stand before. */
static bool stub_leads(uint64_t stub, uint64_t start) {
    unsigned char code[12];
    size_t at = 0;
    if (!ws_native_read(stub, code, sizeof code)) {
        return false;
    }
    at += memcmp(code, BRANCH, sizeof BRANCH) == 0 ? sizeof BRANCH : 0;
    at += code[at] == 0xf2;
    return code[at] == 0xff && code[at + 1] == 0x25
           && slot_holds(relative(stub + at + 6, code + at + 2), start);
}

/* Whether the call that returns to `pc` is one of the function at `start`. */
static bool calls(uint64_t pc, uint64_t start) {
    unsigned char before[6];
    if (!ws_native_read(pc - 6, before, sizeof before)) {
        return false;
    }
    if (before[1] == 0xe8) {
        uint64_t target = relative(pc, before + 2);
        if (target == start || stub_leads(target, start)) {
            return true;
        }
    }
    return before[0] == 0xff && before[1] == 0x15 && slot_holds(relative(pc, before + 2), start);
}

static bool returns_behind_call(uint64_t frame_address, uint64_t start) {
    uint64_t pc;
    return ws_native_peek(NULL, frame_address - 8, &pc) && calls(pc, start);
}

/* ---- how far rbp is from rsp ---- */

/* Registers that were pushed behind rbp, by their rules; -1: not one after the other. */
static int pushed(const ws_row *row) {
    static const int SAVED[] = {3, 12, 13, 14, 15};
    unsigned places = 0;
    int count = 0;
    for (size_t i = 0; i < sizeof SAVED / sizeof SAVED[0]; i++) {
        const ws_rule *rule = &row->rules[SAVED[i]];
        if (rule->kind == WS_RULE_OFFSET) {
            if (rule->offset % 8 != 0 || rule->offset > -24 || rule->offset < -56) {
                return -1;
            }
            places |= 1U << (-rule->offset / 8 - 3);
            count++;
        } else if (rule->kind != WS_RULE_SAME) {
            return -1;
        }
    }
    return places == (1U << count) - 1 ? count : -1;
}

/* Whether these bytes may move rsp by an amount that they don't tell. Other instructions may have
 * such bytes inside: then nothing is lost but this frame. At a function's end rsp is set by rbp, and
 * all room is given back. */
static bool moves_stack(const unsigned char *code) {
    bool wide = code[0] == 0x48 || code[0] == 0x4c;
    if (wide && (code[1] == 0x29 || code[1] == 0x89)) { /* sub rsp, reg; mov rsp, reg */
        return (code[2] & 0xc7) == 0xc4 && !(code[0] == 0x48 && code[1] == 0x89 && code[2] == 0xec);
    }
    if (code[0] == 0x48 && (code[1] == 0x83 || code[1] == 0x81)) {
        return code[2] == 0xe4; /* and rsp, number */
    }
    if (wide && (code[1] == 0x8d || code[1] == 0x8b || code[1] == 0x2b || code[1] == 0x87)) {
        bool by_rbp = code[1] == 0x8d && (code[2] == 0x65 || code[2] == 0xa5);
        return (code[2] & 0x38) == 0x20 && !by_rbp; /* lea, mov, sub, xchg with rsp */
    }
    return false;
}

/* The room that a function makes on the stack, from its code before `pc`. */
static bool room(uint64_t start, uint64_t pc, uint64_t *size) {
    unsigned char code[PIECE + OVERLAP];
    int found = 0;
    *size = 0;
    if (pc - start > CODE) {
        return false;
    }
    for (uint64_t at = start; at < pc; at += PIECE) {
        size_t count = pc - at < PIECE ? (size_t)(pc - at) : PIECE;
        memset(code, 0, sizeof code);
        if (!ws_native_read(at, code, count)
            || (pc - at > PIECE && !ws_native_read(at + PIECE, code + PIECE, OVERLAP))) {
            return false;
        }
        for (size_t i = 0; i < count; i++) {
            if (moves_stack(code + i)) {
                return false;
            }
            if (memcmp(code + i, LESS_128, sizeof LESS_128) == 0) {
                *size = 128;
                found++;
            }
            if (code[i] != 0x48 || code[i + 2] != 0xec) {
                continue;
            }
            if (code[i + 1] == 0x83 && code[i + 3] < 0x80) {
                *size = code[i + 3];
                found++;
            } else if (code[i + 1] == 0x81) {
                uint32_t wide;
                memcpy(&wide, code + i + 3, sizeof wide);
                *size = wide;
                found++;
            }
        }
    }
    return found <= 1 && *size % 8 == 0;
}

bool ws_recover(const ws_found_row *found, uint64_t pc, ws_registers *frame) {
    const ws_row *row = &found->row;
    uint64_t stack = frame->value[WS_SP], size;
    if (row->length != 0 || row->base != RBP || found->signal) {
        return false;
    }
    const ws_rule *saved = &row->rules[RBP];
    if (row->offset == 16 && saved->kind == WS_RULE_OFFSET && saved->offset == -16) {
        int count = pushed(row);
        if (count < 0 || !room(found->start, pc, &size)) {
            return false;
        }
        uint64_t base = stack + size + 8 * (uint64_t)count;
        if (!returns_behind_call(base + 16, found->start)) {
            return false;
        }
        frame->value[RBP] = base;
    } else if (row->offset == 32 && begins(found->start, FFI, sizeof FFI)) {
        uint64_t base = stack;
        while (!returns_behind_call(base + 32, found->start)) {
            base += 8;
            if (base > stack + 8 * ARGUMENTS) {
                return false;
            }
        }
        frame->value[RBP] = base;
    } else {
        return false;
    }
    frame->known |= 1U << RBP;
    return true;
}

#else /* aarch64's functions count from the stack pointer */

bool ws_recover(const ws_found_row *found, uint64_t pc, ws_registers *frame) {
    (void)found;
    (void)pc;
    (void)frame;
    return false;
}

#endif
