/* Where this CPython keeps threads, frames and code objects, taken over from cpython.h.
 *
 * This is the only file that includes CPython's internal headers. Whether the offsets are true is
 * for ws_layout_check() to find out. */
#define Py_BUILD_CORE 1
#include "cpython.h"

#include "internal.h"

#if WS_CPYTHON

#include "internal/pycore_interp.h"
#include "internal/pycore_runtime.h"
#include CPY_FRAME_HEADER
#include CPY_OBJECT_HEADER
#include CPY_DICT_HEADER

#include <string.h>

/* Makes a read of `size` bytes long enough for a field of `width` bytes. */
static void cover(size_t *size, size_t offset, size_t width) {
    if (offset != WS_NONE && offset + width > *size) {
        *size = offset + width;
    }
}

static void state_offsets(ws_layout_t *at) {
    const size_t word = sizeof(void *);
    at->thread_head = CPY_THREAD_HEAD;
    at->state_next = CPY_STATE_NEXT;
    at->state_prev = CPY_STATE_PREV;
    at->state_interpreter = CPY_STATE_INTERPRETER;
    at->state_ident = CPY_STATE_IDENT;
    at->state_native = CPY_STATE_NATIVE;
    at->state_frame = CPY_STATE_FRAME;
    at->state_chunk = CPY_STATE_CHUNK;
    at->cframe_frame = CPY_CFRAME_FRAME;
    cover(&at->state_size, at->state_next, word);
    cover(&at->state_size, at->state_prev, word);
    cover(&at->state_size, at->state_interpreter, word);
    cover(&at->state_size, at->state_ident, sizeof(unsigned long));
    cover(&at->state_size, at->state_native, sizeof(unsigned long));
    cover(&at->state_size, at->state_frame, word);
    cover(&at->state_size, at->state_chunk, word);
    /* A thread's first frame is the first thing on its stack of frames, behind one unused word
     * (push_chunk() in CPython's pystate.c), unless a generator owns the frame. */
    at->chunk_previous = CPY_CHUNK_PREVIOUS;
    at->chunk_first = CPY_CHUNK_FIRST;
    at->main_ident = _PyRuntime.main_thread;
    at->main_state = 0; /* ws_layout_check() finds it */
    at->links = CPY_LINKS;
}

static void gil_offsets(ws_layout_t *at) {
    at->gil = CPY_GIL(at->interpreter);
    at->gil_holder = CPY_GIL_HOLDER;
    at->gil_locked = CPY_GIL_LOCKED;
    at->gil_switches = CPY_GIL_SWITCHES;
    at->gil_size = CPY_GIL_SIZE;
    cover(&at->gil_read, at->gil_holder, sizeof(void *));
    cover(&at->gil_read, at->gil_locked, sizeof(int));
    cover(&at->gil_read, at->gil_switches, sizeof(unsigned long));
}

static void frame_offsets(ws_layout_t *at) {
    const size_t word = sizeof(void *);
    at->frame_type = CPY_FRAME_TYPE;
    at->frame_previous = CPY_FRAME_PREVIOUS;
    at->frame_code = CPY_FRAME_CODE;
    at->frame_code_mask = CPY_FRAME_CODE_MASK;
    at->frame_instruction = CPY_FRAME_INSTRUCTION;
    at->frame_last = CPY_FRAME_LAST;
    at->frame_line = CPY_FRAME_LINE;
    at->frame_generator = CPY_FRAME_GENERATOR;
    at->frame_owner = CPY_FRAME_OWNER;
    at->frame_entry = CPY_FRAME_ENTRY;
    at->owner_generator = CPY_OWNER_GENERATOR;
    at->owner_not_python = CPY_OWNER_NOT_PYTHON;
    cover(&at->frame_size, at->frame_previous, word);
    cover(&at->frame_size, at->frame_code, word);
    cover(&at->frame_size, at->frame_instruction, word);
    cover(&at->frame_size, at->frame_last, sizeof(int));
    cover(&at->frame_size, at->frame_line, sizeof(int));
    cover(&at->frame_size, at->frame_generator, word);
    cover(&at->frame_size, at->frame_owner, 1);
}

static void code_offsets(ws_layout_t *at) {
    const size_t word = sizeof(void *);
    at->code_file = CPY_CODE_FILE;
    at->code_name = CPY_CODE_NAME;
    at->code_qualname = CPY_CODE_QUALNAME;
    at->code_lines = CPY_CODE_LINES;
    at->code_first_line = CPY_CODE_FIRST_LINE;
    at->code_units = CPY_CODE_UNITS;
    at->code_first_traceable = CPY_CODE_FIRST_TRACEABLE;
    at->code_instructions = CPY_CODE_INSTRUCTIONS;
    cover(&at->code_read, at->code_file, word);
    cover(&at->code_read, at->code_name, word);
    cover(&at->code_read, at->code_qualname, word);
    cover(&at->code_read, at->code_lines, word);
    cover(&at->code_read, at->code_first_line, sizeof(int));
    at->code_exceptions = CPY_CODE_EXCEPTIONS;
    cover(&at->code_read, at->code_exceptions, word);
    cover(&at->code_read, at->code_units, sizeof(Py_ssize_t));
    cover(&at->code_read, at->code_first_traceable, sizeof(int));
}

/* What waits are read from: the locals and the value stack of a frame. */
static void value_offsets(ws_layout_t *at) {
    const size_t word = sizeof(void *);
    at->object_frame = CPY_OBJECT_FRAME;
    at->frame_locals = CPY_FRAME_LOCALS;
    at->frame_values = CPY_FRAME_VALUES;
    at->frame_blocks = CPY_FRAME_BLOCKS;
    at->frame_block_count = CPY_FRAME_BLOCK_COUNT;
    at->code_locals = CPY_CODE_LOCALS;
    at->code_bytes = CPY_CODE_BYTES;
    at->code_names = offsetof(PyCodeObject, co_names);
    cover(&at->frame_look, at->frame_code, word);
    cover(&at->frame_look, at->frame_instruction, word);
    cover(&at->frame_look, at->frame_last, sizeof(int));
    cover(&at->frame_look, at->frame_values, word);
    cover(&at->frame_look, at->frame_blocks, WS_BLOCKS * 3 * sizeof(int));
    cover(&at->frame_look, at->frame_block_count, sizeof(int));
    cover(&at->code_look, at->object_type, word);
    cover(&at->code_look, at->code_locals, sizeof(int));
    cover(&at->code_look, at->code_exceptions, word);
    cover(&at->code_look, at->code_bytes, word);
    cover(&at->code_look, at->code_names, word);
}

static void dict_offsets(ws_layout_t *at) {
    at->keys_size = CPY_KEYS_SIZE;
    at->keys_count = CPY_KEYS_COUNT;
    at->keys_index_bytes = CPY_KEYS_INDEX_BYTES;
    at->keys_kind = CPY_KEYS_KIND;
    at->keys_read = CPY_KEYS_INDICES; /* all but the indices and what follows them */
}

bool ws_offsets(ws_layout_t *at) {
    if (!CPY_SOURCE_IS_GOOD()) {
        return false;
    }
    state_offsets(at);
    gil_offsets(at);
    frame_offsets(at);
    code_offsets(at);
    value_offsets(at);
    dict_offsets(at);
    return true;
}

#endif
