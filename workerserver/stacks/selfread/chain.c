/* One reading of a thread's chain of frames: from the bytes of a frame to a link, and from a chain
 * to the frames of a snapshot. */
#include "internal.h"

#include <assert.h>
#include <string.h>

ws_moment ws_moment_of(const char *gil, bool known) {
    ws_moment moment = {.known = known, .holder = ws_pointer(gil, ws_layout.gil_holder)};
    memcpy(&moment.switches, gil + ws_layout.gil_switches, sizeof moment.switches);
    return moment;
}

bool ws_same_moment(const ws_moment *one, const ws_moment *other) {
    return one->known && other->known && one->switches == other->switches;
}

bool ws_is_frame(const char *data) {
    const ws_layout_t *at = &ws_layout;
    return at->frame_type == 0 || ws_pointer(data, at->object_type) == at->frame_type;
}

bool ws_link_take(ws_link *link, uintptr_t frame, const char *data) {
    const ws_layout_t *at = &ws_layout;
    int owner = at->frame_owner == WS_NONE ? ws_pointer(data, at->frame_generator) != 0
                                           : (signed char)ws_byte(data, at->frame_owner);
    if (owner >= at->owner_not_python) {
        return false;
    }
    link->frame = frame;
    link->code = ws_pointer(data, at->frame_code) & at->frame_code_mask;
    link->generator = owner == at->owner_generator;
    if (at->frame_instruction != WS_NONE) {
        link->instruction = ws_pointer(data, at->frame_instruction);
        link->line = 0;
    } else {
        int64_t last = ws_int(data, at->frame_last);
        link->instruction = (uintptr_t)(last * 2);
        link->line = ws_int(data, at->frame_line);
    }
    return true;
}

/* In bytes from the start of the bytecode; 3.11, 3.12: -2 before the first instruction. */
static int64_t offset_in(const ws_link *link) {
    if (ws_layout.frame_instruction == WS_NONE) {
        return (int64_t)link->instruction;
    }
    return (int64_t)(link->instruction - (link->code + ws_layout.code_instructions));
}

/* Whether a frame executes its code object. It doesn't if another function took this memory between
 * the reading of the frame and the reading of the code object. */
static bool executes(const ws_link *link, const ws_code *code) {
    int64_t offset = offset_in(link);
    return code->good && offset >= -2 && offset < code->units * 2;
}

bool ws_chain_whole(const ws_chain *chain) {
    for (size_t i = 0; i < chain->count; i++) {
        const ws_code *code = ws_codes_find(chain->links[i].code);
        if (code == NULL || !executes(&chain->links[i], code)) {
            return false;
        }
    }
    return !chain->broken;
}

void ws_thread_start(ws_thread *thread, const ws_listed *listed, const ws_snapshot *out) {
    memset(thread, 0, sizeof *thread);
    thread->ident = listed->ident;
    thread->native_id = listed->native_id;
    thread->daemon = -1;
    thread->start = out->frame_count;
    thread->unstable = true;
}

void ws_chain_append(const ws_chain *chain, size_t from, ws_snapshot *out, ws_thread *thread) {
    const ws_layout_t *at = &ws_layout;
    thread->truncated = chain->more || chain->broken;
    for (size_t i = from; i < chain->count; i++) {
        const ws_link *link = &chain->links[i];
        ws_code *code = ws_codes_find(link->code);
        /* A code object that changed just now belongs to no known frame. */
        if (code == NULL || !executes(link, code)
            || (thread->unstable && code->changed == ws_work->mark)) {
            thread->truncated = true;
            continue;
        }
        int64_t offset = offset_in(link);
        /* Not yet at its first line, or made by the interpreter: Python hides these too. */
        if (at->frame_instruction != WS_NONE && !link->generator
            && offset < (int64_t)code->first_traceable * 2) {
            continue;
        }
        /* To look a line up in a long table takes time. */
        bool over = (i % 64 == 63 || code->table_size > 65536) && ws_time_over();
        if (over || thread->count == WS_MAX_DEPTH || out->frame_count == WS_MAX_FRAMES) {
            thread->truncated = true;
            break;
        }
        bool plain = code->exceptions != 0 && code->exceptions == at->no_exceptions;
        ws_work->places[out->frame_count] = (ws_place){link->frame, link->code, plain};
        ws_frame *frame = &out->frames[out->frame_count++];
        frame->file = code->names[0];
        frame->function = code->names[1];
        frame->qualname = code->names[2];
        frame->first_line = code->first_line;
        frame->line = link->line > 0 ? link->line : ws_line(code, offset);
        thread->count++;
    }
    assert(thread->start + thread->count == out->frame_count);
}

