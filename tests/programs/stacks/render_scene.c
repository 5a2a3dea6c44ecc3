/* Renders a hand-made snapshot that no real process gives: unstable and cut-off stacks, unreadable
 * names, impossible characters, no memory. Prints each rendering between lines of "==== NAME". If
 * another check fails, it prints a line on stderr, and the exit status is 1. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "render.h"
#include "selfread.h"

/* The renderer calls this only to learn a reason. */
const char *ws_selfread_problem(void) {
    return NULL;
}

static const uint32_t IMPOSSIBLE[] = {'a', 0x10ffff, 0x110000, 0xffffffff, '"'};
static const uint16_t WIDE[] = {'x', 0xd83d, 0xde00, 0x2028};

#define LATIN(text) {.data = text, .length = sizeof text - 1, .kind = 1}

static ws_frame frames[] = {
    {.file = LATIN("/a/b.py"), .function = LATIN("f"), .qualname = LATIN("C.f"), .line = 1},
    {.file = LATIN("/a/b.py"), .function = {.data = WIDE, .length = 4, .kind = 2}, .line = -1},
    {.file = {.data = IMPOSSIBLE, .length = 5, .kind = 4}, .function = {0}, .line = 2147483647},
    {.file = {0}, .function = {.data = "cut", .length = 3, .kind = 1, .cut = true}, .line = 0},
    {.file = LATIN("/a/b.py"), .function = LATIN("f"), .qualname = LATIN("C.f"), .line = 1},
};

static ws_thread threads[] = {
    {.ident = 0xabc, .native_id = 0, .name = LATIN("trainer \xe9\n)"), .start = 0, .count = 2,
     .daemon = 0, .unstable = true},
    {.ident = 0xdef, .native_id = 2147483647, .name = {0}, .start = 2, .count = 2, .daemon = -1,
     .truncated = true},
    {.ident = 0x123, .name = LATIN("workerserver-io"), .start = 4, .count = 1, .daemon = 1},
    {.ident = 0x456, .name = {0}, .start = 5, .daemon = 1},
};

static ws_snapshot snapshot = {
    .threads = threads, .thread_count = 4, .frames = frames, .frame_count = 5,
    .mode = WS_MODE_NOGIL, .pid = 7, .time = 1700000000.25, .holder = 0xabc, .main_ident = 0xdef,
    .truncated = true,
};

static void show(const char *name, int status, ws_buffer *out) {
    printf("==== %s\n", name);
    if (status != 0) {
        fprintf(stderr, "%s failed\n", name);
        exit(1);
    }
    fwrite(out->data, 1, out->size, stdout);
    ws_buffer_free(out);
}

static void must(int held, const char *what) {
    if (!held) {
        fprintf(stderr, "not so: %s\n", what);
        exit(1);
    }
}

int main(void) {
    ws_buffer out = {0};
    show("text", ws_render(&snapshot, WS_TEXT, &out), &out);
    show("json", ws_render(&snapshot, WS_JSON, &out), &out);
    show("digest", ws_render(&snapshot, WS_DIGEST, &out), &out);
    show("headers", ws_render_headers(&snapshot, &out), &out);

    snapshot.holder = 0xdef;
    show("headers of a nameless holder", ws_render_headers(&snapshot, &out), &out);
    snapshot.holder = 0;
    threads[0].unstable = false;
    show("headers of nobody", ws_render_headers(&snapshot, &out), &out);

    ws_snapshot kernel;
    must(ws_kernel_take(&kernel) == 0, "/proc can be read");
    show("kernel", ws_render(&kernel, WS_TEXT, &out), &out);
    ws_kernel_free(&kernel);

    /* Without memory the renderer writes nothing, and loses nothing. */
    static ws_frame many[WS_MAX_FRAMES];
    enum { DEPTH = 512, THREADS = WS_MAX_FRAMES / DEPTH };
    static ws_thread deep[THREADS];
    ws_snapshot large = {.threads = deep, .thread_count = THREADS, .frames = many,
                         .frame_count = WS_MAX_FRAMES, .main_ident = 1};
    for (size_t i = 0; i < WS_MAX_FRAMES; i++)
        many[i] = frames[0];
    for (size_t i = 0; i < THREADS; i++)
        deep[i] = (ws_thread){.ident = i + 1, .start = i * DEPTH, .count = DEPTH};
    must(ws_render(&snapshot, WS_DIGEST, &out) == 0, "room for a digest");
    size_t before = out.size;
    char first = out.data[0];
    struct rlimit limit;
    getrlimit(RLIMIT_AS, &limit);
    limit.rlim_cur = 1 << 20;
    must(setrlimit(RLIMIT_AS, &limit) == 0, "memory can be limited");
    for (int format = WS_TEXT; format <= WS_DIGEST; format++) {
        must(ws_render(&large, (ws_format)format, &out) == -1, "out of memory is said");
        must(out.size == before && out.data[0] == first, "the buffer is as it was");
    }
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_AS, &limit);
    must(ws_render(&large, WS_TEXT, &out) == 0, "with memory it works");
    must(out.size > WS_MAX_FRAMES * 30, "all frames are there");
    ws_buffer_free(&out);
    return 0;
}
