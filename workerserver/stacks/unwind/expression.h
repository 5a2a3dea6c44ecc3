/* DWARF's expressions, as far as tables of frames have them. */
#ifndef WS_EXPRESSION_H
#define WS_EXPRESSION_H

#include "cfi.h"

#pragma GCC visibility push(hidden)

/* The value of an expression of `length` bytes. With `has_start` the stack begins with `start`.
 * False: an operation that is not known here, a register whose value is not known, or memory that
 * can't be read. Each operation uses up a byte and there are no jumps, so it ends. */
bool ws_expression(const unsigned char *bytes, size_t length, const ws_registers *frame,
                   bool has_start, uint64_t start, ws_peek *peek, void *data, uint64_t *value);

#pragma GCC visibility pop

#endif
