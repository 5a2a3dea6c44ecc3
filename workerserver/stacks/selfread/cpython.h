/* What differs between the versions of CPython: one block for each version.
 *
 * No other file of stacks/ asks for the version. A new version of CPython:
 *
 *   1. Copy the newest block, and give the old one its upper bound. Raise WS_CPYTHON_END.
 *   2. Compile. Each name that a block must define is used in offsets.c, code.c, lines.c, names.c
 *      or layout.c, so the compiler finds what is missing or has moved.
 *   3. Run the tests marked `cpython` on it: tools/run_cpythons.py. ws_layout_check() compares what
 *      the walker finds with what Python's API says, and names the part that differs.
 *
 * Only offsets.c includes CPython's internal headers, so only there the names of section 3 can be
 * used. The others need Python.h alone. */
#ifndef WS_CPYTHON_H
#define WS_CPYTHON_H

#include <Python.h>

/* ==== 1. The words of the blocks ==== */

#define WS_CPYTHON_BEGIN 0x030A0000
#define WS_CPYTHON_END 0x03100000 /* the first version that nobody has tried */

/* Whether the stacks of this Python can be read. */
#if defined(__linux__) && PY_VERSION_HEX >= WS_CPYTHON_BEGIN && PY_VERSION_HEX < WS_CPYTHON_END \
    && !defined(Py_GIL_DISABLED) && !defined(PYPY_VERSION) && UINTPTR_MAX == UINT64_MAX
#define WS_CPYTHON 1
#else
#define WS_CPYTHON 0
#endif

/* CPY_LINES: the form of a code object's line table. */
enum {
    CPY_LINES_PAIRS,     /* Objects/lnotab_notes.txt */
    CPY_LINES_LOCATIONS, /* Objects/locations.md, later InternalDocs/code_objects.md */
};

/* CPY_VALUES: where an instance's attributes lie, until somebody asks for its __dict__. */
enum {
    CPY_VALUES_DICT,       /* always in a dict, at the type's tp_dictoffset */
    CPY_VALUES_TWO_WORDS,  /* before the object: a word for the array, then one for the dict */
    CPY_VALUES_TAGGED,     /* before the object: one word; bit 0 set: the array, less 1 */
    CPY_VALUES_IN_OBJECT,  /* the array follows the object; a word before it is for the dict */
};

/* CPY_WITH: where a frame inside a with block keeps the context manager. */
enum {
    CPY_WITH_BLOCKS, /* its __exit__, below the level of a block on the frame's stack of blocks */
    CPY_WITH_BOUND,  /* its __exit__, below the depth in the exception table */
    CPY_WITH_PAIR,   /* below that depth __exit__ and what it is bound to, or nothing */
};

/* CPY_SOURCE: what gives most offsets. */
#define CPY_HEADERS 0 /* CPython's headers, so the patch release that this is compiled for */
#define CPY_TABLE 1   /* the running process itself, which has a table of them */

/* ==== 2. One block for each version ==== */

#if PY_VERSION_HEX < 0x030B0000
/* -------- CPython 3.10: frames are objects, one of them for each call ------------------------- */

#define CPY_RUNNING PY_VERSION_HEX /* the process doesn't say */
#define CPY_FRAME_HEADER <frameobject.h>
#define CPY_OBJECT_HEADER <frameobject.h>
#define CPY_DICT_HEADER <Python.h> /* in no header, see CPY_KEYS_* */
#define CPY_SOURCE CPY_HEADERS

#define CPY_THREAD_HEAD offsetof(PyInterpreterState, tstate_head)
#define CPY_STATE_NATIVE WS_NONE
#define CPY_STATE_FRAME offsetof(PyThreadState, frame)
#define CPY_STATE_CHUNK WS_NONE /* frames come from the heap */
#define CPY_CHUNK_PREVIOUS WS_NONE
#define CPY_CHUNK_FIRST WS_NONE
#define CPY_CFRAME_FRAME WS_NONE
#define CPY_GIL(interpreter) ((uintptr_t)&_PyRuntime.ceval.gil)

#define CPY_FRAME_TYPE ((uintptr_t)&PyFrame_Type)
#define CPY_FRAME_PREVIOUS offsetof(PyFrameObject, f_back)
#define CPY_FRAME_CODE offsetof(PyFrameObject, f_code)
#define CPY_FRAME_CODE_MASK UINTPTR_MAX
#define CPY_FRAME_INSTRUCTION WS_NONE
#define CPY_FRAME_LAST offsetof(PyFrameObject, f_lasti)
#define CPY_FRAME_LINE offsetof(PyFrameObject, f_lineno)
#define CPY_FRAME_GENERATOR offsetof(PyFrameObject, f_gen)
#define CPY_FRAME_OWNER WS_NONE
#define CPY_FRAME_ENTRY WS_NONE
#define CPY_OWNER_GENERATOR 1 /* the walker's own: 1 if CPY_FRAME_GENERATOR is set, else 0 */
#define CPY_OWNER_NOT_PYTHON 2
#define CPY_LINKS WS_MAX_DEPTH

#define CPY_CODE_QUALNAME WS_NONE
#define CPY_CODE_UNITS WS_NONE /* in the bytecode's own object */
#define CPY_CODE_FIRST_TRACEABLE WS_NONE
#define CPY_CODE_INSTRUCTIONS 0 /* frames hold an offset already */
#define CPY_QUALNAME(code) ((void)(code), (PyObject *)NULL)
#define CPY_LINES CPY_LINES_PAIRS

#define CPY_OBJECT_FRAME WS_NONE /* the object is the frame */
#define CPY_FRAME_LOCALS offsetof(PyFrameObject, f_localsplus)
#define CPY_FRAME_VALUES offsetof(PyFrameObject, f_valuestack)
#define CPY_FRAME_BLOCKS offsetof(PyFrameObject, f_blockstack)
#define CPY_FRAME_BLOCK_COUNT offsetof(PyFrameObject, f_iblock)
#define CPY_CODE_LOCALS WS_NONE
#define CPY_CODE_EXCEPTIONS WS_NONE
#define CPY_CODE_BYTES offsetof(PyCodeObject, co_code)
#define CPY_WITH CPY_WITH_BLOCKS
#define CPY_ENTER_UNITS 1 /* of the instruction that calls __enter__ */

#define CPY_STR_IS_READY(string) (((const PyASCIIObject *)(string))->state.ready)
#define CPY_INT_DIGITS(number) ((number)->ob_digit)
#define CPY_INT_SIZE(number) Py_ABS(((const PyVarObject *)(number))->ob_size)
#define CPY_INT_NEGATIVE(number) (((const PyVarObject *)(number))->ob_size < 0)

#define CPY_VALUES CPY_VALUES_DICT
#define CPY_VALUES_HEAD 0
#define CPY_TYPE_MANAGED_DICT 0UL
#define CPY_TYPE_INLINE_VALUES 0UL
/* dictobject.c: references, size, lookup function, usable, entries, indices. */
#define CPY_KEYS_SIZE sizeof(Py_ssize_t)
#define CPY_KEYS_COUNT (4 * sizeof(Py_ssize_t))
#define CPY_KEYS_INDEX_BYTES WS_NONE
#define CPY_KEYS_KIND WS_NONE
#define CPY_KEYS_INDICES (5 * sizeof(Py_ssize_t))

#elif PY_VERSION_HEX < 0x030C0000
/* -------- CPython 3.11: frames lie on a stack of their own, reached by way of a _PyCFrame ----- */

#define CPY_RUNNING Py_Version
#define CPY_FRAME_HEADER "internal/pycore_frame.h"
#define CPY_OBJECT_HEADER "internal/pycore_frame.h"
#define CPY_DICT_HEADER "internal/pycore_dict.h"
#define CPY_SOURCE CPY_HEADERS

#define CPY_THREAD_HEAD offsetof(PyInterpreterState, threads.head)
#define CPY_STATE_NATIVE offsetof(PyThreadState, native_thread_id)
#define CPY_STATE_FRAME offsetof(PyThreadState, cframe)
#define CPY_STATE_CHUNK offsetof(PyThreadState, datastack_chunk)
#define CPY_CHUNK_PREVIOUS offsetof(_PyStackChunk, previous)
#define CPY_CHUNK_FIRST (offsetof(_PyStackChunk, data) + sizeof(PyObject *))
#define CPY_CFRAME_FRAME offsetof(_PyCFrame, current_frame)
#define CPY_GIL(interpreter) ((uintptr_t)&_PyRuntime.ceval.gil)

#define CPY_FRAME_TYPE 0
#define CPY_FRAME_PREVIOUS offsetof(_PyInterpreterFrame, previous)
#define CPY_FRAME_CODE offsetof(_PyInterpreterFrame, f_code)
#define CPY_FRAME_CODE_MASK UINTPTR_MAX
#define CPY_FRAME_INSTRUCTION offsetof(_PyInterpreterFrame, prev_instr)
#define CPY_FRAME_LAST WS_NONE
#define CPY_FRAME_LINE WS_NONE
#define CPY_FRAME_GENERATOR WS_NONE
#define CPY_FRAME_OWNER offsetof(_PyInterpreterFrame, owner)
#define CPY_FRAME_ENTRY offsetof(_PyInterpreterFrame, is_entry)
#define CPY_OWNER_GENERATOR FRAME_OWNED_BY_GENERATOR
#define CPY_OWNER_NOT_PYTHON (FRAME_OWNED_BY_FRAME_OBJECT + 1)
#define CPY_LINKS WS_MAX_DEPTH

#define CPY_CODE_QUALNAME offsetof(PyCodeObject, co_qualname)
#define CPY_CODE_UNITS offsetof(PyVarObject, ob_size)
#define CPY_CODE_FIRST_TRACEABLE offsetof(PyCodeObject, _co_firsttraceable)
#define CPY_CODE_INSTRUCTIONS offsetof(PyCodeObject, co_code_adaptive)
#define CPY_QUALNAME(code) ((code)->co_qualname)
#define CPY_LINES CPY_LINES_LOCATIONS

#define CPY_OBJECT_FRAME offsetof(PyFrameObject, f_frame)
#define CPY_FRAME_LOCALS offsetof(_PyInterpreterFrame, localsplus)
#define CPY_FRAME_VALUES WS_NONE /* behind the locals */
#define CPY_FRAME_BLOCKS WS_NONE
#define CPY_FRAME_BLOCK_COUNT WS_NONE
#define CPY_CODE_LOCALS offsetof(PyCodeObject, co_nlocalsplus)
#define CPY_CODE_EXCEPTIONS offsetof(PyCodeObject, co_exceptiontable)
#define CPY_CODE_BYTES WS_NONE
#define CPY_WITH CPY_WITH_BOUND
#define CPY_ENTER_UNITS 1

#define CPY_STR_IS_READY(string) (((const PyASCIIObject *)(string))->state.ready)
#define CPY_INT_DIGITS(number) ((number)->ob_digit)
#define CPY_INT_SIZE(number) Py_ABS(((const PyVarObject *)(number))->ob_size)
#define CPY_INT_NEGATIVE(number) (((const PyVarObject *)(number))->ob_size < 0)

#define CPY_VALUES CPY_VALUES_TWO_WORDS
#define CPY_VALUES_HEAD 0
#define CPY_TYPE_MANAGED_DICT Py_TPFLAGS_MANAGED_DICT
#define CPY_TYPE_INLINE_VALUES 0UL
#define CPY_KEYS_SIZE WS_NONE
#define CPY_KEYS_COUNT offsetof(struct _dictkeysobject, dk_nentries)
#define CPY_KEYS_INDEX_BYTES offsetof(struct _dictkeysobject, dk_log2_index_bytes)
#define CPY_KEYS_KIND offsetof(struct _dictkeysobject, dk_kind)
#define CPY_KEYS_INDICES offsetof(struct _dictkeysobject, dk_indices)

#elif PY_VERSION_HEX < 0x030D0000
/* -------- CPython 3.12: each interpreter has a GIL, strings are always ready, new ints -------- */

#define CPY_RUNNING Py_Version
#define CPY_FRAME_HEADER "internal/pycore_frame.h"
#define CPY_OBJECT_HEADER "internal/pycore_frame.h"
#define CPY_DICT_HEADER "internal/pycore_dict.h"
#define CPY_SOURCE CPY_HEADERS

#define CPY_THREAD_HEAD offsetof(PyInterpreterState, threads.head)
#define CPY_STATE_NATIVE offsetof(PyThreadState, native_thread_id)
#define CPY_STATE_FRAME offsetof(PyThreadState, cframe)
#define CPY_STATE_CHUNK offsetof(PyThreadState, datastack_chunk)
#define CPY_CHUNK_PREVIOUS offsetof(_PyStackChunk, previous)
#define CPY_CHUNK_FIRST (offsetof(_PyStackChunk, data) + sizeof(PyObject *))
#define CPY_CFRAME_FRAME offsetof(_PyCFrame, current_frame)
#define CPY_GIL(interpreter) ((uintptr_t)((PyInterpreterState *)(interpreter))->ceval.gil)

#define CPY_FRAME_TYPE 0
#define CPY_FRAME_PREVIOUS offsetof(_PyInterpreterFrame, previous)
#define CPY_FRAME_CODE offsetof(_PyInterpreterFrame, f_code)
#define CPY_FRAME_CODE_MASK UINTPTR_MAX
#define CPY_FRAME_INSTRUCTION offsetof(_PyInterpreterFrame, prev_instr)
#define CPY_FRAME_LAST WS_NONE
#define CPY_FRAME_LINE WS_NONE
#define CPY_FRAME_GENERATOR WS_NONE
#define CPY_FRAME_OWNER offsetof(_PyInterpreterFrame, owner)
#define CPY_FRAME_ENTRY WS_NONE
#define CPY_OWNER_GENERATOR FRAME_OWNED_BY_GENERATOR
#define CPY_OWNER_NOT_PYTHON (FRAME_OWNED_BY_FRAME_OBJECT + 1)
#define CPY_LINKS WS_MAX_DEPTH

#define CPY_CODE_QUALNAME offsetof(PyCodeObject, co_qualname)
#define CPY_CODE_UNITS offsetof(PyVarObject, ob_size)
#define CPY_CODE_FIRST_TRACEABLE offsetof(PyCodeObject, _co_firsttraceable)
#define CPY_CODE_INSTRUCTIONS offsetof(PyCodeObject, co_code_adaptive)
#define CPY_QUALNAME(code) ((code)->co_qualname)
#define CPY_LINES CPY_LINES_LOCATIONS

#define CPY_OBJECT_FRAME offsetof(PyFrameObject, f_frame)
#define CPY_FRAME_LOCALS offsetof(_PyInterpreterFrame, localsplus)
#define CPY_FRAME_VALUES WS_NONE /* behind the locals */
#define CPY_FRAME_BLOCKS WS_NONE
#define CPY_FRAME_BLOCK_COUNT WS_NONE
#define CPY_CODE_LOCALS offsetof(PyCodeObject, co_nlocalsplus)
#define CPY_CODE_EXCEPTIONS offsetof(PyCodeObject, co_exceptiontable)
#define CPY_CODE_BYTES WS_NONE
#define CPY_WITH CPY_WITH_BOUND
#define CPY_ENTER_UNITS 1

#define CPY_STR_IS_READY(string) true
#define CPY_INT_DIGITS(number) ((number)->long_value.ob_digit)
#define CPY_INT_SIZE(number) ((Py_ssize_t)((number)->long_value.lv_tag >> 3))
#define CPY_INT_NEGATIVE(number) (((number)->long_value.lv_tag & 3) == 2)

#define CPY_VALUES CPY_VALUES_TAGGED
#define CPY_VALUES_HEAD 0
#define CPY_TYPE_MANAGED_DICT Py_TPFLAGS_MANAGED_DICT
#define CPY_TYPE_INLINE_VALUES 0UL
#define CPY_KEYS_SIZE WS_NONE
#define CPY_KEYS_COUNT offsetof(struct _dictkeysobject, dk_nentries)
#define CPY_KEYS_INDEX_BYTES offsetof(struct _dictkeysobject, dk_log2_index_bytes)
#define CPY_KEYS_KIND offsetof(struct _dictkeysobject, dk_kind)
#define CPY_KEYS_INDICES offsetof(struct _dictkeysobject, dk_indices)

#elif PY_VERSION_HEX < 0x030E0000
/* -------- CPython 3.13: a table of offsets, no _PyCFrame, values inside the object ------------ */

#define CPY_RUNNING Py_Version
#define CPY_FRAME_HEADER "internal/pycore_frame.h"
#define CPY_OBJECT_HEADER "internal/pycore_frame.h"
#define CPY_DICT_HEADER "internal/pycore_dict.h"
#define CPY_SOURCE CPY_TABLE

#define CPY_STATE_CHUNK offsetof(PyThreadState, datastack_chunk)
#define CPY_CHUNK_PREVIOUS offsetof(_PyStackChunk, previous)
#define CPY_CHUNK_FIRST (offsetof(_PyStackChunk, data) + sizeof(PyObject *))

#define CPY_FRAME_CODE_MASK UINTPTR_MAX
#define CPY_OWNER_GENERATOR FRAME_OWNED_BY_GENERATOR
#define CPY_OWNER_NOT_PYTHON (FRAME_OWNED_BY_FRAME_OBJECT + 1)
#define CPY_LINKS WS_LINKS /* half of them may be the interpreter's own */

#define CPY_CODE_UNITS offsetof(PyVarObject, ob_size)
#define CPY_CODE_FIRST_TRACEABLE offsetof(PyCodeObject, _co_firsttraceable)
#define CPY_QUALNAME(code) ((code)->co_qualname)
#define CPY_LINES CPY_LINES_LOCATIONS

#define CPY_OBJECT_FRAME offsetof(PyFrameObject, f_frame)
#define CPY_FRAME_LOCALS offsetof(_PyInterpreterFrame, localsplus)
#define CPY_FRAME_VALUES WS_NONE /* behind the locals */
#define CPY_FRAME_BLOCKS WS_NONE
#define CPY_FRAME_BLOCK_COUNT WS_NONE
#define CPY_CODE_LOCALS offsetof(PyCodeObject, co_nlocalsplus)
#define CPY_CODE_EXCEPTIONS offsetof(PyCodeObject, co_exceptiontable)
#define CPY_CODE_BYTES WS_NONE
#define CPY_WITH CPY_WITH_BOUND
#define CPY_ENTER_UNITS 1

#define CPY_STR_IS_READY(string) true
#define CPY_INT_DIGITS(number) ((number)->long_value.ob_digit)
#define CPY_INT_SIZE(number) ((Py_ssize_t)((number)->long_value.lv_tag >> 3))
#define CPY_INT_NEGATIVE(number) (((number)->long_value.lv_tag & 3) == 2)

#define CPY_VALUES CPY_VALUES_IN_OBJECT
#define CPY_VALUES_HEAD sizeof(void *) /* capacity, size, embedded, valid: a byte each; padding */
#define CPY_TYPE_MANAGED_DICT Py_TPFLAGS_MANAGED_DICT
#define CPY_TYPE_INLINE_VALUES Py_TPFLAGS_INLINE_VALUES
#define CPY_KEYS_SIZE WS_NONE
#define CPY_KEYS_COUNT offsetof(struct _dictkeysobject, dk_nentries)
#define CPY_KEYS_INDEX_BYTES offsetof(struct _dictkeysobject, dk_log2_index_bytes)
#define CPY_KEYS_KIND offsetof(struct _dictkeysobject, dk_kind)
#define CPY_KEYS_INDICES offsetof(struct _dictkeysobject, dk_indices)

#elif PY_VERSION_HEX < 0x030F0000
/* -------- CPython 3.14: a frame's code object is a tagged reference --------------------------- */

#define CPY_RUNNING Py_Version
#define CPY_FRAME_HEADER "internal/pycore_interpframe_structs.h"
#define CPY_OBJECT_HEADER "internal/pycore_frame.h"
#define CPY_DICT_HEADER "internal/pycore_dict.h"
#define CPY_SOURCE CPY_TABLE

#define CPY_STATE_CHUNK offsetof(PyThreadState, datastack_chunk)
#define CPY_CHUNK_PREVIOUS offsetof(_PyStackChunk, previous)
#define CPY_CHUNK_FIRST (offsetof(_PyStackChunk, data) + sizeof(PyObject *))

#define CPY_FRAME_CODE_MASK (~(uintptr_t)3) /* without the tags of a _PyStackRef */
#define CPY_OWNER_GENERATOR FRAME_OWNED_BY_GENERATOR
#define CPY_OWNER_NOT_PYTHON (FRAME_OWNED_BY_FRAME_OBJECT + 1)
#define CPY_LINKS WS_LINKS /* half of them may be the interpreter's own */

#define CPY_CODE_UNITS offsetof(PyVarObject, ob_size)
#define CPY_CODE_FIRST_TRACEABLE offsetof(PyCodeObject, _co_firsttraceable)
#define CPY_QUALNAME(code) ((code)->co_qualname)
#define CPY_LINES CPY_LINES_LOCATIONS

#define CPY_OBJECT_FRAME offsetof(PyFrameObject, f_frame)
#define CPY_FRAME_LOCALS offsetof(_PyInterpreterFrame, localsplus)
#define CPY_FRAME_VALUES WS_NONE /* behind the locals */
#define CPY_FRAME_BLOCKS WS_NONE
#define CPY_FRAME_BLOCK_COUNT WS_NONE
#define CPY_CODE_LOCALS offsetof(PyCodeObject, co_nlocalsplus)
#define CPY_CODE_EXCEPTIONS offsetof(PyCodeObject, co_exceptiontable)
#define CPY_CODE_BYTES WS_NONE
#define CPY_WITH CPY_WITH_PAIR
#define CPY_ENTER_UNITS 4 /* CALL and its caches */

#define CPY_STR_IS_READY(string) true
#define CPY_INT_DIGITS(number) ((number)->long_value.ob_digit)
#define CPY_INT_SIZE(number) ((Py_ssize_t)((number)->long_value.lv_tag >> 3))
#define CPY_INT_NEGATIVE(number) (((number)->long_value.lv_tag & 3) == 2)

#define CPY_VALUES CPY_VALUES_IN_OBJECT
#define CPY_VALUES_HEAD sizeof(void *) /* capacity, size, embedded, valid: a byte each; padding */
#define CPY_TYPE_MANAGED_DICT Py_TPFLAGS_MANAGED_DICT
#define CPY_TYPE_INLINE_VALUES Py_TPFLAGS_INLINE_VALUES
#define CPY_KEYS_SIZE WS_NONE
#define CPY_KEYS_COUNT offsetof(struct _dictkeysobject, dk_nentries)
#define CPY_KEYS_INDEX_BYTES offsetof(struct _dictkeysobject, dk_log2_index_bytes)
#define CPY_KEYS_KIND offsetof(struct _dictkeysobject, dk_kind)
#define CPY_KEYS_INDICES offsetof(struct _dictkeysobject, dk_indices)

#else
/* -------- CPython 3.15: as 3.14 --------------------------------------------------------------- */

#define CPY_RUNNING Py_Version
#define CPY_FRAME_HEADER "internal/pycore_interpframe_structs.h"
#define CPY_OBJECT_HEADER "internal/pycore_frame.h"
#define CPY_DICT_HEADER "internal/pycore_dict.h"
#define CPY_SOURCE CPY_TABLE

#define CPY_STATE_CHUNK offsetof(PyThreadState, datastack_chunk)
#define CPY_CHUNK_PREVIOUS offsetof(_PyStackChunk, previous)
#define CPY_CHUNK_FIRST (offsetof(_PyStackChunk, data) + sizeof(PyObject *))

#define CPY_FRAME_CODE_MASK (~(uintptr_t)3) /* without the tags of a _PyStackRef */
#define CPY_OWNER_GENERATOR FRAME_OWNED_BY_GENERATOR
#define CPY_OWNER_NOT_PYTHON (FRAME_OWNED_BY_FRAME_OBJECT + 1)
#define CPY_LINKS WS_LINKS /* half of them may be the interpreter's own */

#define CPY_CODE_UNITS offsetof(PyVarObject, ob_size)
#define CPY_CODE_FIRST_TRACEABLE offsetof(PyCodeObject, _co_firsttraceable)
#define CPY_QUALNAME(code) ((code)->co_qualname)
#define CPY_LINES CPY_LINES_LOCATIONS

#define CPY_OBJECT_FRAME offsetof(PyFrameObject, f_frame)
#define CPY_FRAME_LOCALS offsetof(_PyInterpreterFrame, localsplus)
#define CPY_FRAME_VALUES WS_NONE /* behind the locals */
#define CPY_FRAME_BLOCKS WS_NONE
#define CPY_FRAME_BLOCK_COUNT WS_NONE
#define CPY_CODE_LOCALS offsetof(PyCodeObject, co_nlocalsplus)
#define CPY_CODE_EXCEPTIONS offsetof(PyCodeObject, co_exceptiontable)
#define CPY_CODE_BYTES WS_NONE
#define CPY_WITH CPY_WITH_PAIR
#define CPY_ENTER_UNITS 4 /* CALL and its caches */

#define CPY_STR_IS_READY(string) true
#define CPY_INT_DIGITS(number) ((number)->long_value.ob_digit)
#define CPY_INT_SIZE(number) ((Py_ssize_t)((number)->long_value.lv_tag >> 3))
#define CPY_INT_NEGATIVE(number) (((number)->long_value.lv_tag & 3) == 2)

#define CPY_VALUES CPY_VALUES_IN_OBJECT
#define CPY_VALUES_HEAD sizeof(void *) /* capacity, size, embedded, valid: a byte each; padding */
#define CPY_TYPE_MANAGED_DICT Py_TPFLAGS_MANAGED_DICT
#define CPY_TYPE_INLINE_VALUES Py_TPFLAGS_INLINE_VALUES
#define CPY_KEYS_SIZE WS_NONE
#define CPY_KEYS_COUNT offsetof(struct _dictkeysobject, dk_nentries)
#define CPY_KEYS_INDEX_BYTES offsetof(struct _dictkeysobject, dk_log2_index_bytes)
#define CPY_KEYS_KIND offsetof(struct _dictkeysobject, dk_kind)
#define CPY_KEYS_INDICES offsetof(struct _dictkeysobject, dk_indices)

#endif

/* ==== 3. The offsets that have the same name in all versions with the same source ==== */

#if CPY_SOURCE == CPY_TABLE

#define CPY_OFFSETS(part, field) (_PyRuntime.debug_offsets.part.field)
/* Whether the table is one, and of this version. */
#define CPY_SOURCE_IS_GOOD() \
    (memcmp(_PyRuntime.debug_offsets.cookie, _Py_Debug_Cookie, \
            sizeof _PyRuntime.debug_offsets.cookie) == 0 \
     && _PyRuntime.debug_offsets.version >> 16 == PY_VERSION_HEX >> 16 \
     && !_PyRuntime.debug_offsets.free_threaded)

#define CPY_THREAD_HEAD CPY_OFFSETS(interpreter_state, threads_head)
#define CPY_STATE_NEXT CPY_OFFSETS(thread_state, next)
#define CPY_STATE_PREV CPY_OFFSETS(thread_state, prev)
#define CPY_STATE_INTERPRETER CPY_OFFSETS(thread_state, interp)
#define CPY_STATE_IDENT CPY_OFFSETS(thread_state, thread_id)
#define CPY_STATE_NATIVE CPY_OFFSETS(thread_state, native_thread_id)
#define CPY_STATE_FRAME CPY_OFFSETS(thread_state, current_frame)
#define CPY_CFRAME_FRAME WS_NONE

#define CPY_GIL(interpreter) \
    ws_pointer((const void *)(interpreter), CPY_OFFSETS(interpreter_state, ceval_gil))
#define CPY_GIL_HOLDER \
    (CPY_OFFSETS(interpreter_state, gil_runtime_state_holder) \
     - CPY_OFFSETS(interpreter_state, gil_runtime_state))
#define CPY_GIL_LOCKED \
    (CPY_OFFSETS(interpreter_state, gil_runtime_state_locked) \
     - CPY_OFFSETS(interpreter_state, gil_runtime_state))

#define CPY_FRAME_TYPE 0
#define CPY_FRAME_PREVIOUS CPY_OFFSETS(interpreter_frame, previous)
#define CPY_FRAME_CODE CPY_OFFSETS(interpreter_frame, executable)
#define CPY_FRAME_INSTRUCTION CPY_OFFSETS(interpreter_frame, instr_ptr)
#define CPY_FRAME_LAST WS_NONE
#define CPY_FRAME_LINE WS_NONE
#define CPY_FRAME_GENERATOR WS_NONE
#define CPY_FRAME_OWNER CPY_OFFSETS(interpreter_frame, owner)
#define CPY_FRAME_ENTRY WS_NONE

#define CPY_CODE_FILE CPY_OFFSETS(code_object, filename)
#define CPY_CODE_NAME CPY_OFFSETS(code_object, name)
#define CPY_CODE_QUALNAME CPY_OFFSETS(code_object, qualname)
#define CPY_CODE_LINES CPY_OFFSETS(code_object, linetable)
#define CPY_CODE_FIRST_LINE CPY_OFFSETS(code_object, firstlineno)
#define CPY_CODE_INSTRUCTIONS CPY_OFFSETS(code_object, co_code_adaptive)

#else /* CPY_HEADERS */

#define CPY_SOURCE_IS_GOOD() true

#define CPY_STATE_NEXT offsetof(PyThreadState, next)
#define CPY_STATE_PREV offsetof(PyThreadState, prev)
#define CPY_STATE_INTERPRETER offsetof(PyThreadState, interp)
#define CPY_STATE_IDENT offsetof(PyThreadState, thread_id)

#define CPY_GIL_HOLDER offsetof(struct _gil_runtime_state, last_holder)
#define CPY_GIL_LOCKED offsetof(struct _gil_runtime_state, locked)

#define CPY_CODE_FILE offsetof(PyCodeObject, co_filename)
#define CPY_CODE_NAME offsetof(PyCodeObject, co_name)
#define CPY_CODE_LINES offsetof(PyCodeObject, co_linetable)
#define CPY_CODE_FIRST_LINE offsetof(PyCodeObject, co_firstlineno)

#endif

/* In no table, and the same in all versions. */
#define CPY_GIL_SIZE sizeof(struct _gil_runtime_state)
#define CPY_GIL_SWITCHES offsetof(struct _gil_runtime_state, switch_number)

#endif
