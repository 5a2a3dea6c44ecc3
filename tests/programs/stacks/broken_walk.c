/* Reads a hand-made interpreter of two threads with the walker's own files. argv[1] names a promise
 * that the walker relies on, and the program breaks this promise. Built without NDEBUG, it ends by
 * an assertion. "nothing" breaks no promise: then it prints how many threads and frames it found,
 * and its exit status is 0. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "selfread/internal.h"

typedef struct {
    const void *unused, *type;
    int64_t units;
    const void *file, *name, *qualname, *lines;
    int first_line, first_traceable;
    uint16_t instructions[8];
} code;

typedef struct frame {
    const struct frame *previous;
    const code *code;
    const void *instruction;
    char owner;
} frame;

typedef struct {
    const void *previous, *size, *top, *unused;
    frame frames[4]; /* the oldest one first */
} chunk;

typedef struct state {
    const struct state *next, *previous;
    const void *interpreter;
    unsigned long ident, native_id;
    const frame *frame;
    const chunk *chunk;
} state;

/* All readable memory. The walker reads frames by the page, so a page follows them. */
static _Alignas(WS_PAGE) struct {
    struct {
        const state *threads;
    } interpreter;
    struct {
        const state *holder;
        int locked;
        unsigned long switches;
    } gil;
    state states[2];
    chunk chunks[2];
    code codes[3];
    char rest[2 * WS_PAGE];
} made;

static const char *wanted;
static int readings; /* readings of the state of the thread that stands still, by itself */
static bool armed;   /* one of them breaks the promise */

static bool breaks(const char *name) {
    return strcmp(wanted, name) == 0;
}

static void make(void) {
    made.interpreter.threads = &made.states[0];
    made.gil.holder = &made.states[0];
    made.gil.locked = 1;
    made.gil.switches = 7;
    for (size_t i = 0; i < 3; i++)
        made.codes[i] = (code){.type = &made, .units = 8, .first_line = 5};
    for (size_t i = 0; i < 2; i++) {
        chunk *own = &made.chunks[i];
        for (size_t j = 0; j < 3; j++) {
            own->frames[j].previous = j > 0 ? &own->frames[j - 1] : NULL;
            own->frames[j].code = &made.codes[j];
            own->frames[j].instruction = &made.codes[j].instructions[2];
        }
        made.states[i] = (state){
            .next = i == 0 ? &made.states[1] : NULL, .previous = i == 1 ? &made.states[0] : NULL,
            .interpreter = &made.interpreter, .ident = 11 + i, .native_id = 21 + i,
            .frame = &own->frames[2], .chunk = own,
        };
    }
}

/* --- in the place of layout.c, names.c and facts.c */

const char *ws_layout_learn(void) {
    ws_layout = (ws_layout_t){
        .interpreter = (uintptr_t)&made.interpreter, .gil = (uintptr_t)&made.gil,
        .code_type = (uintptr_t)&made, .main_ident = 11,
        .state_next = offsetof(state, next), .state_prev = offsetof(state, previous),
        .state_interpreter = offsetof(state, interpreter), .state_ident = offsetof(state, ident),
        .state_native = offsetof(state, native_id), .state_frame = offsetof(state, frame),
        .state_chunk = offsetof(state, chunk), .state_size = sizeof(state),
        .cframe_frame = WS_NONE, .chunk_first = offsetof(chunk, frames),
        .frame_previous = offsetof(frame, previous), .frame_code = offsetof(frame, code),
        .frame_instruction = offsetof(frame, instruction), .frame_owner = offsetof(frame, owner),
        .frame_last = WS_NONE, .frame_line = WS_NONE, .frame_size = sizeof(frame),
        .frame_code_mask = UINTPTR_MAX, .owner_generator = 1, .owner_not_python = 3,
        .code_file = offsetof(code, file), .code_name = offsetof(code, name),
        .code_qualname = offsetof(code, qualname), .code_exceptions = WS_NONE, .code_lines = offsetof(code, lines),
        .code_first_line = offsetof(code, first_line), .code_units = offsetof(code, units),
        .code_first_traceable = offsetof(code, first_traceable),
        .code_instructions = offsetof(code, instructions), .code_read = sizeof(code),
        .object_type = offsetof(code, type), .gil_holder = 0, .gil_locked = 8, .gil_switches = 16,
        .gil_read = 24, .links = WS_LINKS,
    };
    return NULL;
}

const char *ws_layout_check(const ws_snapshot *snapshot) {
    (void)snapshot;
    return NULL;
}

void ws_names_take(ws_arena *arena, ws_snapshot *out) {
    (void)arena;
    (void)out;
}

void ws_waits_take(ws_arena *arena, ws_snapshot *out, const ws_place *places) {
    (void)arena;
    (void)out;
    (void)places;
}

/* --- in the place of memory.c, with the planted changes between two readings */

/* Before a reading: of the state of the thread that stands still, by itself. */
static void change(uintptr_t address, size_t size) {
    ws_snapshot other;
    /* The first reading is the list of threads. Then comes what debug builds read once more, after a
     * walk beside others, or after two walks that agree. */
    int when = breaks("a stack that was read by itself moves") ? 4 : 2;
    if (address != (uintptr_t)&made.states[1] || size != sizeof(state) || !armed
        || ++readings != when)
        return;
    if (breaks("a stack that stood still moves") || breaks("a stack that was read by itself moves"))
        made.chunks[1].frames[1].code = &made.codes[2];
    if (breaks("a thread that stood still runs")) {
        made.chunks[1].frames[1].code = &made.codes[2];
        made.gil.switches++;
        made.gil.holder = &made.states[1];
    }
    if (breaks("a second reader"))
        ws_selfread_take(&other, false);
}

/* After a reading of frames of several threads: the other thread gets the GIL and returns. */
static void go_on(const void *into) {
    const char *pages = (const char *)&ws_work->pages, *place = into;
    if (!armed || !breaks("a thread gets the GIL meanwhile") || place < pages
        || place >= pages + sizeof ws_work->pages)
        return;
    made.states[1].frame = &made.chunks[1].frames[0];
    made.gil.switches++;
    made.gil.holder = &made.states[1];
    armed = false;
}

void ws_read_many(ws_read *reads, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uintptr_t start = (uintptr_t)&made, at = reads[i].address;
        uintptr_t here = (uintptr_t)&start;
        bool own = at >= start && at - start + reads[i].size <= sizeof made;
        bool local = at > here && at - here < 65536; /* the reader's trial of itself */
        change(at, reads[i].size);
        reads[i].ok = own || local;
        if (reads[i].ok)
            memcpy(reads[i].into, (const void *)at, reads[i].size);
        go_on(reads[i].into);
    }
}

bool ws_read_one(uintptr_t address, void *into, size_t size) {
    ws_read read = {address, into, (uint32_t)size, false};
    ws_read_many(&read, 1);
    return read.ok;
}

uint32_t ws_read_length(uintptr_t address, size_t least, size_t most) {
    (void)address;
    (void)least;
    return (uint32_t)most;
}

void ws_read_start(void) {
}

void ws_time_start(void) {
}

bool ws_time_over(void) {
    return false;
}

bool ws_arena_make(ws_arena *arena) {
    arena->used = 0;
    arena->base = aligned_alloc(WS_PAGE, WS_ARENA);
    return arena->base != NULL;
}

void *ws_arena_take(ws_arena *arena, size_t size) {
    void *taken = arena->base + arena->used;
    arena->used += (size + 15) & ~(size_t)15;
    return taken;
}

/* --- the walk */

static bool each(void *data, unsigned long ident, long native_id) {
    (void)data;
    (void)ident;
    (void)native_id;
    return true;
}

static void seen(void *data, const ws_snapshot *snapshot, const ws_thread *thread) {
    (void)data;
    (void)snapshot;
    (void)thread;
}

static bool none(void *data) {
    (void)data;
    return false;
}

static int take(ws_snapshot *out) {
    static const ws_visitor visitor = {each, seen, none, NULL};
    if (!breaks("a stack that was read by itself moves"))
        return ws_selfread_take(out, true);
    memset(out, 0, sizeof *out);
    return ws_selfread_visit(out, &visitor); /* one thread after the other */
}

static void break_layout(void) {
    if (breaks("a long frame"))
        ws_layout.frame_size = WS_FRAME_MAX + 1;
    if (breaks("a long chain"))
        ws_layout.links = WS_LINKS + 1;
}

static void break_cache(void) {
    uintptr_t known = (uintptr_t)&made.codes[0];
    ws_code *found = ws_codes_find(known);
    if (breaks("a code object that is not there"))
        ws_work->code_count = 0;
    if (breaks("a circle of code objects"))
        found->next = (uint32_t)(found - ws_work->codes) + 1;
    if (breaks("a line of no code object")) {
        found->good = false;
        ws_line(found, 2);
    }
    if (breaks("a line behind the end"))
        ws_line(found, found->units * 2);
    ws_codes_find(known);
}

int main(int count, char **words) {
    ws_snapshot snapshot;
    wanted = count > 1 ? words[1] : "nothing";
    make();
    if (ws_selfread_prepare() != 0) {
        fprintf(stderr, "%s\n", ws_selfread_problem());
        return 1;
    }
    break_layout();
    armed = true;
    if (take(&snapshot) != 0)
        return 1;
    break_cache();
    printf("%zu threads, %zu frames, line %d\n", snapshot.thread_count, snapshot.frame_count,
           snapshot.frames[0].line);
    return 0;
}
