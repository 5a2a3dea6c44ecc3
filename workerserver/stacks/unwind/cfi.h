/* The rules by which one frame leads to its caller: an interpreter of .eh_frame's tables (DWARF 5,
 * section 6.4; Linux Standard Base, chapter "Exception Frames").
 *
 * Works on copies of the tables, with strict bounds. Whatever the bytes are, it ends: each step
 * uses up a byte. What it doesn't know, it refuses: then there is no row, and no frame. */
#ifndef WS_CFI_H
#define WS_CFI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(hidden)

/* The registers that a caller may need, by DWARF's numbers. */
#if defined(__aarch64__)
enum { WS_REGISTERS = 32, WS_SP = 31, WS_RETURN = 30 };
#else
enum { WS_REGISTERS = 17, WS_SP = 7, WS_RETURN = 16 };
#endif

/* What a thread's registers hold; `known` has a bit for each register. */
typedef struct {
    uint64_t value[WS_REGISTERS];
    uint32_t known;
} ws_registers;

typedef enum {
    WS_RULE_SAME,
    WS_RULE_NONE,       /* nobody says; such registers may have changed */
    WS_RULE_UNDEFINED,  /* said to have no value: of the return address, a thread's first function */
    WS_RULE_OFFSET,     /* saved at CFA + offset */
    WS_RULE_VALUE,      /* is CFA + offset */
    WS_RULE_REGISTER,   /* is in the register `offset` */
    WS_RULE_SAVED_AT,   /* saved where the expression says */
    WS_RULE_COMPUTED,   /* is what the expression says */
} ws_rule_kind;

/* An expression lies in the tables that the row was made of: `offset` bytes from their start. */
typedef struct {
    int64_t offset;
    uint32_t length; /* of the expression */
    uint8_t kind;
} ws_rule;

/* The canonical frame address: a register and an offset, or an expression if `length` isn't 0. */
typedef struct {
    int64_t offset;
    uint32_t length;
    uint32_t base;
    ws_rule rules[WS_REGISTERS];
    bool return_signed; /* aarch64: the return address carries a signature */
} ws_row;

/* One function's tables: the entry of the function (FDE) and what it shares with others (CIE). */
typedef struct {
    const unsigned char *bytes; /* both, copied */
    size_t size;
    uintptr_t address; /* of `bytes`, in the process */
    size_t cie, cie_end, fde, fde_end; /* from behind the length fields on; offsets in `bytes` */
} ws_tables;

typedef struct {
    uint64_t start, length; /* of the function */
    bool signal;            /* its caller was interrupted: it may be at any instruction */
    ws_row row;
} ws_found_row;

/* The row for `pc`. False: there is none, or the tables have what is not known here. */
bool ws_cfi_row(const ws_tables *tables, uint64_t pc, ws_found_row *out);

/* Reads 8 bytes of the process at `address`. */
typedef bool ws_peek(void *data, uint64_t address, uint64_t *value);

/* The caller's registers, from those of a frame. WS_SP is then the CFA. A register whose value is
 * not known has no bit in `known`: WS_RETURN has none at a thread's first function (`*first`).
 * False: the CFA is not known. */
bool ws_cfi_step(const ws_tables *tables, const ws_row *row, const ws_registers *frame,
                 ws_peek *peek, void *data, ws_registers *caller, bool *first);

/* A pointer as .eh_frame encodes it, relative to `at`, the address of its bytes, or to `data`. Moves
 * `*next` behind it. False: cut short, or an encoding that doesn't occur in tables. */
bool ws_cfi_pointer(const unsigned char *bytes, size_t size, size_t *next, unsigned encoding,
                    uint64_t address, uint64_t data, uint64_t *value);

#pragma GCC visibility pop

#endif
