/* Shared by the files of unwind/. */
#ifndef WS_UNWIND_PARTS_H
#define WS_UNWIND_PARTS_H

#include "cfi.h"
#include "unwind.h"

#pragma GCC visibility push(hidden)

/* Copies memory of this process. */
bool ws_native_read(uintptr_t address, void *into, size_t size);
ws_peek ws_native_peek;

bool ws_native_over(const ws_native *native);

/* Prints of bytes, by FNV-1a. */
#define WS_PRINT_START UINT64_C(0xcbf29ce484222325)
static inline void ws_print_add(uint64_t *print, const void *data, size_t size) {
    for (size_t i = 0; i < size; i++) {
        *print = (*print ^ ((const unsigned char *)data)[i]) * UINT64_C(0x100000001b3);
    }
}

/* --- which file's code is mapped where: modules.c */

/* The mappings that hold code. False: /proc doesn't tell. */
bool ws_modules_list(ws_native *native);
/* Whether the list is the same now. */
bool ws_modules_same(const ws_native *native);
/* -1: none. */
int ws_module_of(const ws_native *native, uintptr_t pc);

/* --- a function's tables: tables.c */

enum { WS_TABLES_MAX = 16 << 10 };

typedef struct {
    ws_tables tables;
    unsigned char bytes[2 * WS_TABLES_MAX];
} ws_table_copy;

/* Reads what the module's file says of itself, once. */
void ws_module_read(ws_module *module);
/* The tables of the function at `pc`, copied. False: there are none. */
bool ws_tables_find(const ws_module *module, uintptr_t pc, ws_table_copy *out);

/* --- a register that the kernel doesn't tell: recover.c */

/* Finds the register that the row for `pc` counts from. False: it is not sure. */
bool ws_recover(const ws_found_row *found, uint64_t pc, ws_registers *frame);

/* --- which frames of Python a native stack holds: match.c */

void ws_native_match(ws_native *native, ws_native_stack *stack, const ws_snapshot *snapshot,
                     const ws_thread *thread, const ws_place *places);
/* Where the interpreter's loop begins. */
uintptr_t ws_native_loop(void);

#pragma GCC visibility pop

#endif
