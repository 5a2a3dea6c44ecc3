/* Where this CPython keeps threads, frames and code objects: the only file that includes CPython's
 * internal headers.
 *
 * 3.10 to 3.12: as the headers say, so of the patch release that this is compiled for. From 3.13
 * on: from the table of offsets that the running process has (_Py_DebugOffsets); only what that
 * lacks from headers. Whether it is true is for ws_layout_check() to find out. */
#define Py_BUILD_CORE 1
#include <Python.h>

#include "internal.h"

#if WS_CPYTHON

#if PY_VERSION_HEX < 0x030B0000
#include <frameobject.h>
#endif
#include "internal/pycore_interp.h"
#include "internal/pycore_runtime.h"
#if PY_VERSION_HEX >= 0x030E0000
#include "internal/pycore_interpframe_structs.h"
#elif PY_VERSION_HEX >= 0x030B0000
#include "internal/pycore_frame.h"
#endif
#if PY_VERSION_HEX >= 0x030B0000
#include "internal/pycore_dict.h"
#endif

#include <string.h>

#define STATE(field) offsetof(PyThreadState, field)
#define CODE(field) offsetof(PyCodeObject, field)

static size_t larger(size_t one, size_t other) {
    return one > other ? one : other;
}

static void dict_offsets(ws_layout_t *at) {
#if PY_VERSION_HEX >= 0x030B0000
    at->keys_count = offsetof(struct _dictkeysobject, dk_nentries);
    at->keys_index_bytes = offsetof(struct _dictkeysobject, dk_log2_index_bytes);
    at->keys_kind = offsetof(struct _dictkeysobject, dk_kind);
    at->keys_size = WS_NONE;
    at->keys_read = offsetof(struct _dictkeysobject, dk_indices);
#else
    /* Not in any header: references, size, lookup function, usable, entries. */
    at->keys_size = sizeof(Py_ssize_t);
    at->keys_count = 4 * sizeof(Py_ssize_t);
    at->keys_index_bytes = at->keys_kind = WS_NONE;
    at->keys_read = 5 * sizeof(Py_ssize_t);
#endif
}

/* In no table of offsets. A thread's first frame is the first thing on its stack of frames, behind
 * one unused word (push_chunk() in CPython's pystate.c), unless a generator owns it. */
static size_t stack_offsets(ws_layout_t *at) {
#if PY_VERSION_HEX >= 0x030B0000
    at->state_chunk = STATE(datastack_chunk);
    at->chunk_previous = offsetof(_PyStackChunk, previous);
    at->chunk_first = offsetof(_PyStackChunk, data) + sizeof(PyObject *);
    return at->state_chunk + sizeof(void *);
#else
    at->state_chunk = at->chunk_previous = at->chunk_first = WS_NONE;
    return 0;
#endif
}

static void gil_offsets(ws_layout_t *at) {
    at->gil_holder = offsetof(struct _gil_runtime_state, last_holder);
    at->gil_locked = offsetof(struct _gil_runtime_state, locked);
    at->gil_switches = offsetof(struct _gil_runtime_state, switch_number);
    at->gil_read = at->gil_switches + sizeof(unsigned long);
}

static void code_offsets(ws_layout_t *at) {
    at->code_file = CODE(co_filename);
    at->code_name = CODE(co_name);
    at->code_lines = CODE(co_linetable);
    at->code_first_line = CODE(co_firstlineno);
#if PY_VERSION_HEX >= 0x030B0000
    at->code_qualname = CODE(co_qualname);
    at->code_units = offsetof(PyVarObject, ob_size);
    at->code_first_traceable = CODE(_co_firsttraceable);
    at->code_instructions = CODE(co_code_adaptive);
    at->code_read = at->code_instructions;
#else
    at->code_qualname = at->code_units = at->code_first_traceable = WS_NONE;
    at->code_instructions = 0;
    at->code_read = at->code_lines + sizeof(PyObject *);
#endif
}

#if PY_VERSION_HEX < 0x030D0000

static void frame_offsets(ws_layout_t *at) {
    at->frame_code_mask = UINTPTR_MAX;
#if PY_VERSION_HEX < 0x030B0000
    at->frame_type = (uintptr_t)&PyFrame_Type;
    at->frame_previous = offsetof(PyFrameObject, f_back);
    at->frame_code = offsetof(PyFrameObject, f_code);
    at->frame_last = offsetof(PyFrameObject, f_lasti);
    at->frame_line = offsetof(PyFrameObject, f_lineno);
    at->frame_generator = offsetof(PyFrameObject, f_gen);
    at->frame_instruction = at->frame_owner = WS_NONE;
    at->frame_size = at->frame_line + sizeof(int);
    at->owner_generator = 1; /* as if */
    at->owner_not_python = 2;
#else
    at->frame_previous = offsetof(_PyInterpreterFrame, previous);
    at->frame_code = offsetof(_PyInterpreterFrame, f_code);
    at->frame_instruction = offsetof(_PyInterpreterFrame, prev_instr);
    at->frame_owner = offsetof(_PyInterpreterFrame, owner);
    at->frame_last = at->frame_line = WS_NONE;
    at->frame_size = offsetof(_PyInterpreterFrame, localsplus);
    at->owner_generator = FRAME_OWNED_BY_GENERATOR;
    at->owner_not_python = FRAME_OWNED_BY_FRAME_OBJECT + 1;
#endif
}

bool ws_offsets(ws_layout_t *at) {
    at->state_next = STATE(next);
    at->state_prev = STATE(prev);
    at->state_interpreter = STATE(interp);
    at->state_ident = STATE(thread_id);
#if PY_VERSION_HEX < 0x030B0000
    at->thread_head = offsetof(PyInterpreterState, tstate_head);
    at->state_native = WS_NONE;
    at->state_frame = STATE(frame);
    at->cframe_frame = WS_NONE;
    at->state_size = STATE(thread_id) + sizeof(unsigned long);
#else
    at->thread_head = offsetof(PyInterpreterState, threads.head);
    at->state_native = STATE(native_thread_id);
    at->state_frame = STATE(cframe);
    at->cframe_frame = offsetof(_PyCFrame, current_frame);
    at->state_size = STATE(native_thread_id) + sizeof(unsigned long);
#endif
    at->state_size = larger(at->state_size, stack_offsets(at));
#if PY_VERSION_HEX >= 0x030C0000
    at->gil = (uintptr_t)((PyInterpreterState *)at->interpreter)->ceval.gil;
#else
    at->gil = (uintptr_t)&_PyRuntime.ceval.gil;
#endif
    at->main_ident = _PyRuntime.main_thread;
    at->links = WS_MAX_DEPTH;
    frame_offsets(at);
    code_offsets(at);
    dict_offsets(at);
    gil_offsets(at);
    return true;
}

#else /* 3.13 and later */

bool ws_offsets(ws_layout_t *at) {
    const _Py_DebugOffsets *table = &_PyRuntime.debug_offsets;
    if (memcmp(table->cookie, _Py_Debug_Cookie, sizeof table->cookie) != 0
        || table->version >> 16 != PY_VERSION_HEX >> 16 || table->free_threaded) {
        return false;
    }
    const size_t word = sizeof(void *);
    at->thread_head = table->interpreter_state.threads_head;
    at->state_next = table->thread_state.next;
    at->state_prev = table->thread_state.prev;
    at->state_interpreter = table->thread_state.interp;
    at->state_ident = table->thread_state.thread_id;
    at->state_native = table->thread_state.native_thread_id;
    at->state_frame = table->thread_state.current_frame;
    at->cframe_frame = WS_NONE;
    at->state_size = larger(larger(larger(at->state_next, at->state_prev),
                                   larger(at->state_interpreter, at->state_ident)),
                            larger(at->state_native, at->state_frame)) + word;
    at->state_size = larger(at->state_size, stack_offsets(at));

    at->frame_previous = table->interpreter_frame.previous;
    at->frame_code = table->interpreter_frame.executable;
    at->frame_instruction = table->interpreter_frame.instr_ptr;
    at->frame_owner = table->interpreter_frame.owner;
    at->frame_last = at->frame_line = WS_NONE;
    at->frame_size = larger(larger(at->frame_previous, at->frame_code),
                            larger(at->frame_instruction, at->frame_owner)) + word;
    at->owner_generator = FRAME_OWNED_BY_GENERATOR;
    at->owner_not_python = FRAME_OWNED_BY_FRAME_OBJECT + 1;
#if PY_VERSION_HEX >= 0x030E0000
    at->frame_code_mask = ~(uintptr_t)3; /* tags of a _PyStackRef */
#else
    at->frame_code_mask = UINTPTR_MAX;
#endif

    dict_offsets(at);
    gil_offsets(at);
    code_offsets(at);
    at->code_file = table->code_object.filename;
    at->code_name = table->code_object.name;
    at->code_qualname = table->code_object.qualname;
    at->code_lines = table->code_object.linetable;
    at->code_first_line = table->code_object.firstlineno;
    at->code_instructions = table->code_object.co_code_adaptive;
    at->code_read = at->code_instructions;

    size_t gil = table->interpreter_state.gil_runtime_state;
    at->gil_holder = table->interpreter_state.gil_runtime_state_holder - gil;
    at->gil_locked = table->interpreter_state.gil_runtime_state_locked - gil;
    at->gil_read = larger(larger(at->gil_holder, at->gil_locked), at->gil_switches) + word;
    memcpy(&at->gil, (const char *)at->interpreter + table->interpreter_state.ceval_gil, word);
    at->main_ident = _PyRuntime.main_thread;
    at->links = WS_LINKS; /* half of them may be the interpreter's own */
    return true;
}

#endif
#endif
