/* Teaches the reader of waits what library functions and locks look like. All with the GIL. */
#ifndef WS_LEARN_H
#define WS_LEARN_H

#include <Python.h>

#include "facts.h"

#pragma GCC visibility push(hidden)

/* Interned names and constants. False, with an exception: no memory. */
bool ws_learn_keys(void);
/* Numbers of instructions; 0: this CPython has none. */
void ws_learn_instructions(int before_with, int with_except_start, int load_special);
/* Types, and offsets in locks: of a byte whose bit 0 says locked, of the owner's ident. */
void ws_learn_locks(PyObject *lock, PyObject *rlock, PyObject *condition, size_t lock_locked,
                    size_t rlock_owner);
/* Dicts by process group: its name; its members as a dict. A dict by name, of descriptions: its keys
 * are the very strings of `names`. The object that has the default group. */
void ws_learn_groups(PyObject *names, PyObject *ranks, PyObject *words, PyObject *world);
/* A function: its code, a ws_wait_kind, a static string, an interned string or NULL, and for each
 * role the place among its locals or -1. False: known already, or the table is full. */
bool ws_learn_function(PyObject *code, int kind, const char *op, PyObject *attribute,
                       const int *places);
/* From now on these facts are read, or not. */
void ws_learn_proven(bool locals, bool withs);

/* Where a frame object's frame lies. After ws_selfread_prepare() only. */
ws_place ws_place_of(PyFrameObject *frame, PyCodeObject *code);

/* What the reader finds of the Python function that calls, to compare with what is there: the
 * managers of its with blocks, innermost first, and the one in whose __enter__ it is. */
size_t ws_probe_withs(uintptr_t *managers, size_t most, uintptr_t *entering);
uintptr_t ws_probe_local(int place);
bool ws_probe_int(uintptr_t object, long long *value);
bool ws_probe_text(uintptr_t object, char *to, size_t size);
uintptr_t ws_probe_lock(uintptr_t object);
uintptr_t ws_probe_attribute(uintptr_t object, PyObject *name);

#pragma GCC visibility pop

#endif
