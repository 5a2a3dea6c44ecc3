/* Breaks one promise of buffers, snapshots or reads, and goes on. argv[1] names the promise. Built
 * without NDEBUG, the program ends by an assertion. "nothing" breaks no promise: then the exit
 * status is 0. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "blake2b.h"
#include "check.h"
#include "dump.h"
#include "put.h"
#include "selfread/internal.h"
#include "unwind.h"

/* The walker's functions that dump.c and render.c call. */
const char *ws_selfread_problem(void) {
    return "not here";
}

int ws_selfread_prepare(void) {
    return -1;
}

int ws_selfread_take(ws_snapshot *out, bool facts) {
    (void)facts;
    memset(out, 0, sizeof *out);
    return -1;
}

int ws_selfread_visit(ws_snapshot *out, const ws_visitor *visitor) {
    (void)visitor;
    memset(out, 0, sizeof *out);
    return -1;
}

void ws_selfread_free(ws_snapshot *snapshot) {
    memset(snapshot, 0, sizeof *snapshot);
}

const ws_place *ws_selfread_places(void) {
    return NULL;
}

/* Native stacks, that nobody asks for here. */
ws_native *ws_native_begin(void) {
    return NULL;
}

void ws_native_take(ws_native *native, const ws_snapshot *taken, const ws_place *places) {
    (void)native;
    (void)taken;
    (void)places;
}

void ws_native_free(ws_native *native) {
    (void)native;
}

/* --- a good snapshot: two threads, of two frames and of one */

static struct {
    ws_thread threads[2];
    ws_frame frames[3];
    uint32_t text[4];
} arena;
static ws_thread *const threads = arena.threads;
static ws_frame *const frames = arena.frames;
static ws_snapshot snapshot;
static ws_buffer out;
static const char *wanted;

static bool breaks(const char *name) {
    return strcmp(wanted, name) == 0;
}

static void make(void) {
    ws_name name = {.data = arena.text, .length = 4, .kind = 4};
    for (size_t i = 0; i < 4; i++)
        arena.text[i] = 'a' + (uint32_t)i;
    for (size_t i = 0; i < 3; i++)
        frames[i] = (ws_frame){.file = name, .function = name, .qualname = name, .line = 1};
    threads[0] = (ws_thread){.ident = 1, .native_id = 1, .count = 2, .name = name};
    threads[1] = (ws_thread){.ident = 2, .native_id = 2, .count = 1, .start = 2, .daemon = -1};
    snapshot = (ws_snapshot){
        .threads = threads, .thread_count = 2, .frames = frames, .frame_count = 3,
        .mode = WS_MODE_NOGIL, .pid = 1, .holder = 1, .main_ident = 1, .arena = &arena,
        .arena_size = sizeof arena,
    };
}

static void break_snapshot(void) {
    if (breaks("threads"))
        snapshot.thread_count = WS_MAX_THREADS + 1;
    if (breaks("frames"))
        snapshot.frame_count = WS_MAX_FRAMES + 1;
    if (breaks("no array of threads"))
        snapshot.threads = NULL;
    if (breaks("no array of frames"))
        snapshot.frames = NULL;
    if (breaks("frames outside the arena"))
        snapshot.arena_size = sizeof arena.threads;
    if (breaks("mode"))
        snapshot.mode = (ws_mode)7;
    if (breaks("frames of the kernel"))
        snapshot.mode = WS_MODE_KERNEL;
    if (breaks("depth"))
        threads[0].count = WS_MAX_DEPTH + 1;
    if (breaks("too many frames of a thread"))
        threads[1].count = 2;
    if (breaks("overlapping threads"))
        threads[1].start = 1;
    if (breaks("threads in the wrong order")) {
        threads[0].start = 1;
        threads[1].start = 0;
    }
    if (breaks("a frame of no thread"))
        threads[1].count = 0;
    if (breaks("daemon"))
        threads[0].daemon = 2;
    if (breaks("native id"))
        threads[0].native_id = -1;
    if (breaks("unstable with the GIL")) {
        snapshot.mode = WS_MODE_GIL;
        threads[0].unstable = true;
    }
    if (breaks("line"))
        frames[2].line = -2;
    if (breaks("kind"))
        frames[1].function.kind = 3;
    if (breaks("a length without a name"))
        frames[1].qualname.kind = 0;
    if (breaks("a name outside the arena"))
        frames[1].file.data = arena.text + 2;
    if (breaks("a name without data"))
        threads[0].name.data = NULL;
    if (breaks("a name that is not aligned"))
        threads[0].name.data = (const char *)arena.text + 1;
    if (breaks("a long name"))
        threads[0].name.length = WS_MAX_NAME + 1;
}

static void break_buffer(void) {
    if (breaks("size"))
        out.size = out.capacity + 1;
    if (breaks("no data"))
        out.data = NULL;
    if (breaks("data without room")) {
        out.size = out.capacity = 0;
    }
    if (breaks("not ASCII")) {
        out.data[out.size - 1] = (char)0x80;
        ws_check_ascii(&out, 0);
    }
}

static void break_writing(void) {
    sink to = {&out, false};
    char digest[80];
    if (breaks("stack of no thread"))
        ws_render_stack(&snapshot, 2, &out);
    if (breaks("digits"))
        ws_put_hex(&to, 1, 17);
    if (breaks("character"))
        ws_char_at(&frames[0].file, 4);
    if (breaks("part of a name"))
        ws_put_json_part(&to, &frames[0].file, 5, 1);
    if (breaks("digest"))
        ws_blake2b("", 0, (unsigned char *)digest, 65);
    if (breaks("formats"))
        ws_dump(1 << WS_FORMATS, &out, &out);
    if (breaks("wait channel")) {
        ws_kernel kernel = {.state = 'S'};
        memset(kernel.wchan, 'x', sizeof kernel.wchan);
        ws_check_kernel(&kernel);
    }
}

static void break_reading(void) {
    ws_read reads[] = {{(uintptr_t)&snapshot, &out, 1, false}};
    ws_arena memory;
    if (breaks("a read of nothing"))
        reads[0].size = 0;
    if (breaks("a read to nowhere"))
        reads[0].into = NULL;
    if (breaks("a long read"))
        reads[0].size = WS_LINES_MAX + 1;
    if (breaks("a long read of one"))
        ws_read_one((uintptr_t)&snapshot, &out, (size_t)UINT32_MAX + 2);
    if (breaks("least"))
        ws_read_length(WS_PAGE, 9, 8);
    if (!breaks("nothing"))
        ws_read_many(reads, 1);
    if (!ws_arena_make(&memory))
        abort();
    memory.used = breaks("an arena used up") ? WS_ARENA + 16 : breaks("an odd arena") ? 8 : 0;
    ws_arena_take(&memory, 1);
}

int main(int count, char **words) {
    wanted = count > 1 ? words[1] : "nothing";
    make();
    break_snapshot();
    for (int format = WS_TEXT; format <= WS_DIGEST; format++) {
        if (ws_render(&snapshot, (ws_format)format, &out) != 0)
            return 1;
    }
    break_buffer();
    if (ws_render_headers(&snapshot, &out) != 0)
        return 1;
    break_writing();
    ws_buffer_free(&out);
    break_reading();
    puts("whole");
    return 0;
}
