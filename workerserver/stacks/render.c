/* Renders snapshots with system calls and the stack only: no malloc, no lock, no Python. So it
 * works in any thread at any time, for any number of callers at once. */
#include "render.h"

#include <string.h>
#include <time.h>

#include "blake2b.h"
#include "check.h"
#include "children.h"
#include "put.h"
#include "put_facts.h"
#include "put_native.h"
#include "selfread.h"
#include "waits.h"

/* Characters of a name in the "top" of a digest. */
enum { TOP_NAME = 60 };

/* The names of this package's own threads begin so. They are no part of what the process does. */
static const char OWN_THREADS[] = "workerserver";

static const char UNREADABLE[] = "they could not be read at this moment";

/* ---- threads ---- */

static bool is_current(const ws_snapshot *snapshot, const ws_thread *thread) {
    return snapshot->holder != 0 && thread->ident == snapshot->holder;
}

static bool is_main(const ws_snapshot *snapshot, const ws_thread *thread) {
    if (snapshot->mode == WS_MODE_KERNEL)
        return thread->native_id == snapshot->pid;
    return snapshot->main_ident != 0 && thread->ident == snapshot->main_ident;
}

static bool is_ours(const ws_thread *thread) {
    size_t length = sizeof OWN_THREADS - 1;
    if (thread->name.kind == 0 || thread->name.length < length)
        return false;
    for (size_t i = 0; i < length; i++) {
        if (ws_char_at(&thread->name, i) != (unsigned char)OWN_THREADS[i])
            return false;
    }
    return true;
}

static const ws_frame *frame_of(const ws_snapshot *snapshot, const ws_thread *thread, size_t i) {
    assert(i < thread->count && thread->start + i < snapshot->frame_count);
    return &snapshot->frames[thread->start + i];
}

static const char *mode_name(ws_mode mode) {
    return mode == WS_MODE_GIL ? "gil" : mode == WS_MODE_NOGIL ? "nogil" : "kernel";
}

/* The name of the thread that holds the GIL: printable ASCII ("?" for anything else) and a NUL, at
 * most `size` bytes. Empty if nobody holds the GIL or the name is unknown. */
static void holder_name(const ws_snapshot *snapshot, char *to, size_t size) {
    size_t length = 0;
    for (size_t i = 0; i < snapshot->thread_count; i++) {
        const ws_name *name = &snapshot->threads[i].name;
        if (!is_current(snapshot, &snapshot->threads[i]) || name->kind == 0)
            continue;
        for (; length < name->length && length + 1 < size; length++) {
            uint32_t c = ws_char_at(name, length);
            to[length] = c >= 32 && c <= 126 ? (char)c : '?';
        }
        break;
    }
    if (size > 0)
        to[length] = 0;
}

/* ---- text ---- */

static void put_frame(sink *out, const ws_frame *frame) {
    ws_put(out, "  File ");
    if (frame->file.kind != 0)
        ws_put(out, "\"");
    ws_put_escaped(out, &frame->file);
    ws_put(out, frame->file.kind != 0 ? "\", line " : ", line ");
    if (frame->line >= 0)
        ws_put_decimal(out, (uint64_t)frame->line);
    else
        ws_put(out, "???");
    ws_put(out, " in ");
    ws_put_escaped(out, &frame->function);
    ws_put(out, "\n");
}

static void put_stack(sink *out, const ws_snapshot *snapshot, const ws_thread *thread) {
    for (size_t i = 0; i < thread->count; i++)
        put_frame(out, frame_of(snapshot, thread, i));
    if (thread->truncated)
        ws_put(out, "  ...\n");
}

/* "[name] state S wchan X", as far as they are known. */
static void put_kernel_line(sink *out, const ws_thread *thread) {
    ws_kernel kernel;
    ws_kernel_state(thread->native_id, &kernel);
    ws_put(out, "[");
    ws_put_escaped(out, &thread->name);
    ws_put(out, "]");
    if (kernel.state != 0) {
        ws_put(out, " state ");
        ws_put_bytes(out, &kernel.state, 1);
    }
    if (kernel.wchan[0] != 0) {
        ws_name wchan = {.data = kernel.wchan, .length = strlen(kernel.wchan), .kind = 1};
        ws_put(out, " wchan ");
        ws_put_escaped(out, &wchan);
    }
}

static void put_kernel_text(sink *out, const ws_snapshot *snapshot) {
    const char *problem = ws_selfread_problem();
    ws_put(out, "No Python stacks: ");
    ws_put(out, problem == NULL ? UNREADABLE : problem);
    ws_put(out, ". What the kernel says of each thread:\n\n");
    for (size_t i = 0; i < snapshot->thread_count; i++) {
        ws_put(out, "Thread ");
        ws_put_ident(out, (unsigned long)snapshot->threads[i].native_id);
        ws_put(out, " ");
        put_kernel_line(out, &snapshot->threads[i]);
        ws_put(out, "\n");
    }
}

static void put_text(sink *out, const ws_snapshot *snapshot, bool native) {
    if (snapshot->mode == WS_MODE_KERNEL)
        put_kernel_text(out, snapshot);
    else {
        for (size_t i = 0; i < snapshot->thread_count; i++) {
            const ws_thread *thread = &snapshot->threads[i];
            ws_put(out, i > 0 ? "\n" : "");
            ws_put(out, is_current(snapshot, thread) ? "Current thread " : "Thread ");
            ws_put_ident(out, thread->ident);
            ws_put(out, " (most recent call first):\n");
            if (native) {
                ws_put_native_text(out, snapshot, i, put_frame);
                ws_put(out, thread->truncated ? "  ...\n" : "");
            } else
                put_stack(out, snapshot, thread);
            if (thread->unstable)
                ws_put(out, "  (unstable: changed each time it was read)\n");
        }
    }
    if (native)
        ws_put_native_others_text(out, snapshot);
    if (snapshot->truncated)
        ws_put(out, "\n...\n");
}

/* ---- JSON ---- */

double ws_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)(now.tv_sec * (int64_t)1000000 + now.tv_nsec / 1000) / 1e6;
}

static void put_json_number(sink *out, uint64_t value) {
    if (value == 0)
        ws_put(out, "null");
    else
        ws_put_decimal(out, value);
}

static void put_json_frame(sink *out, const ws_frame *frame) {
    ws_put(out, "{\"file\":");
    ws_put_json_name(out, &frame->file);
    ws_put(out, ",\"line\":");
    if (frame->line >= 0)
        ws_put_decimal(out, (uint64_t)frame->line);
    else
        ws_put(out, "null");
    ws_put(out, ",\"function\":");
    ws_put_json_name(out, &frame->function);
    ws_put(out, ",\"qualname\":");
    if (frame->qualname.kind != 0)
        ws_put_json_name(out, &frame->qualname);
    else
        ws_put(out, "null");
    ws_put(out, "}");
}

/* What frames tell comes first: the kernel knows less of it. Most threads are idle in a futex of
 * which nothing more is known: their counts of switches would cost more than they tell. The main
 * thread's tells a loop, which wants the GIL or runs in one look and sleeps in another, from a wait
 * that lasts. */
static void put_json_waits(
    sink *out, const ws_snapshot *snapshot, size_t index, char state, ws_waits_budget *left) {
    const ws_thread *thread = &snapshot->threads[index];
    if (ws_put_wait(out, snapshot, index) || ws_put_waits(out, thread, state, left)
        || is_main(snapshot, thread))
        ws_put_switches(out, thread->native_id);
    ws_put_holds(out, snapshot, index);
}

static void put_json_thread(
    sink *out, const ws_snapshot *snapshot, size_t index, bool native, ws_waits_budget *left) {
    const ws_thread *thread = &snapshot->threads[index];
    ws_kernel kernel;
    ws_kernel_state(thread->native_id, &kernel);
    ws_put(out, "{\"ident\":");
    put_json_number(out, thread->ident);
    ws_put(out, ",\"native_id\":");
    put_json_number(out, (uint64_t)thread->native_id);
    ws_put(out, ",\"name\":");
    if (thread->name.kind != 0)
        ws_put_json_name(out, &thread->name);
    else
        ws_put(out, "null");
    ws_put(out, ",\"daemon\":");
    if (thread->daemon >= 0)
        ws_put_json_bool(out, thread->daemon > 0);
    else
        ws_put(out, "null");
    ws_put(out, ",\"current\":");
    ws_put_json_bool(out, is_current(snapshot, thread));
    ws_put(out, ",\"state\":");
    if (kernel.state != 0)
        ws_put_json_text(out, (char[]){kernel.state, 0});
    else
        ws_put(out, "null");
    ws_put(out, ",\"wchan\":");
    if (kernel.wchan[0] != 0)
        ws_put_json_text(out, kernel.wchan);
    else
        ws_put(out, "null");
    ws_put(out, ",\"truncated\":");
    ws_put_json_bool(out, thread->truncated);
    ws_put(out, ",\"unstable\":");
    ws_put_json_bool(out, thread->unstable);
    ws_put(out, ",\"frames\":[");
    for (size_t i = 0; i < thread->count; i++) {
        ws_put(out, i > 0 ? "," : "");
        put_json_frame(out, frame_of(snapshot, thread, i));
    }
    ws_put(out, "]");
    if (!is_ours(thread))
        put_json_waits(out, snapshot, index, kernel.state, left);
    if (native)
        ws_put_native_json(out, snapshot, index);
    ws_put(out, "}");
}

static void put_json(sink *out, const ws_snapshot *snapshot, bool native) {
    ws_waits_budget left = WS_WAITS_BUDGET;
    ws_put(out, "{\"version\":1,\"pid\":");
    ws_put_decimal(out, (uint64_t)snapshot->pid);
    ws_put(out, ",\"mode\":");
    ws_put_json_text(out, mode_name(snapshot->mode));
    ws_put(out, ",\"time\":");
    ws_put_json_micros(out, snapshot->time > 0 ? (uint64_t)(snapshot->time * 1e6 + 0.5) : 0);
    ws_put(out, ",\"gil_holder\":");
    put_json_number(out, snapshot->holder);
    ws_put(out, ",\"truncated\":");
    ws_put_json_bool(out, snapshot->truncated);
    ws_put(out, ",\"threads\":[");
    for (size_t i = 0; i < snapshot->thread_count; i++) {
        ws_put(out, i > 0 ? "," : "");
        put_json_thread(out, snapshot, i, native, &left);
    }
    ws_put(out, "]");
    uint64_t namespace = ws_pid_namespace();
    if (namespace != 0) {
        ws_put(out, ",\"pid_namespace\":");
        ws_put_decimal(out, namespace);
    }
    ws_put_children(out, snapshot);
    if (native)
        ws_put_native_files_json(out, snapshot);
    ws_put(out, "}");
}

/* ---- digest ---- */

/* BLAKE2b of 8 bytes; hex of it sorts as the number does. */
static uint64_t hash(const ws_buffer *text) {
    unsigned char digest[8];
    uint64_t value = 0;
    ws_blake2b(text->data, text->size, digest, sizeof digest);
    for (size_t i = 0; i < sizeof digest; i++)
        value = value << 8 | digest[i];
    return value;
}

/* Hash of a thread's lines; `scratch` is used for them. */
static uint64_t hash_stack(sink *scratch, const ws_snapshot *snapshot, const ws_thread *thread) {
    scratch->buffer->size = 0;
    if (snapshot->mode == WS_MODE_KERNEL)
        put_kernel_line(scratch, thread);
    else
        put_stack(scratch, snapshot, thread);
    return hash(scratch->buffer);
}

/* Into a sorted array of distinct numbers. */
static void add_to_set(sink *set, uint64_t value) {
    if (!ws_reserve(set, sizeof value))
        return;
    uint64_t *values = (uint64_t *)set->buffer->data;
    size_t count = set->buffer->size / sizeof value;
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (values[middle] < value)
            low = middle + 1;
        else
            high = middle;
    }
    if (low < count && values[low] == value)
        return;
    memmove(values + low + 1, values + low, (count - low) * sizeof value);
    values[low] = value;
    set->buffer->size += sizeof value;
    assert(low == 0 || values[low - 1] < value);
    assert(low == count || value < values[low + 1]);
}

/* The newest frame as "file:line function", the file without its folder; in quotes, or null. */
static void put_top(sink *out, const ws_snapshot *snapshot, const ws_thread *thread) {
    static const ws_name UNKNOWN = {.data = "???", .length = 3, .kind = 1};
    if (thread->count == 0) {
        ws_put(out, "null");
        return;
    }
    const ws_frame *frame = frame_of(snapshot, thread, 0);
    const ws_name *file = frame->file.kind != 0 ? &frame->file : &UNKNOWN;
    const ws_name *function = frame->function.kind != 0 ? &frame->function : &UNKNOWN;
    size_t start = file->length < WS_MAX_NAME ? file->length : WS_MAX_NAME;
    while (start > 0 && ws_char_at(file, start - 1) != '/')
        start--;
    ws_put(out, "\"");
    ws_put_json_part(out, file, start, TOP_NAME);
    ws_put(out, ":");
    if (frame->line >= 0)
        ws_put_decimal(out, (uint64_t)frame->line);
    else
        ws_put(out, "???");
    ws_put(out, " ");
    ws_put_json_part(out, function, 0, TOP_NAME);
    ws_put(out, "\"");
}

/* A summary; render.h says what counts. In mode "nogil" no Python thread took the snapshot, so the
 * GIL's holder is a thread like any other. */
static void put_digest(sink *out, const ws_snapshot *snapshot) {
    ws_buffer lines = {0}, values = {0};
    sink scratch = {&lines, false}, others = {&values, false};
    const ws_thread *main = NULL;
    uint64_t main_hash = 0, counted = 0;
    for (size_t i = 0; i < snapshot->thread_count; i++) {
        const ws_thread *thread = &snapshot->threads[i];
        bool took = snapshot->mode == WS_MODE_GIL && is_current(snapshot, thread);
        if (is_main(snapshot, thread)) {
            main = thread;
            main_hash = hash_stack(&scratch, snapshot, thread);
        } else if (took || is_ours(thread)) {
            continue;
        } else {
            add_to_set(&others, hash_stack(&scratch, snapshot, thread));
        }
        counted++;
    }
    lines.size = 0;
    if (main != NULL)
        ws_put_hex(&scratch, main_hash, 16);
    else
        ws_put(&scratch, "-");
    for (size_t i = 0; i < values.size / sizeof(uint64_t); i++) {
        ws_put(&scratch, "\n");
        ws_put_hex(&scratch, ((const uint64_t *)values.data)[i], 16);
    }
    ws_put(out, "{\"version\":1,\"digest\":\"");
    ws_put_hex(out, hash(&lines), 16);
    if (main != NULL) {
        ws_put(out, "\",\"main\":\"");
        ws_put_hex(out, main_hash, 16);
        ws_put(out, "\",\"top\":");
        put_top(out, snapshot, main);
    } else {
        ws_put(out, "\",\"main\":null,\"top\":null");
    }
    ws_put(out, ",\"threads\":");
    ws_put_decimal(out, counted);
    ws_put(out, "}");
    out->failed = out->failed || scratch.failed || others.failed;
    ws_buffer_free(&lines);
    ws_buffer_free(&values);
}

/* ---- the entries ---- */

static int finish(sink *out, size_t size_before) {
    if (out->failed)
        out->buffer->size = size_before;
    ws_check_buffer(out->buffer);
    ws_check_ascii(out->buffer, size_before);
    return out->failed ? -1 : 0;
}

int ws_render(const ws_snapshot *snapshot, ws_format format, ws_buffer *buffer) {
    sink out = {buffer, false};
    size_t before = buffer->size;
    ws_check_snapshot(snapshot);
    if (format == WS_JSON || format == WS_NATIVE_JSON)
        put_json(&out, snapshot, format == WS_NATIVE_JSON);
    else if (format == WS_DIGEST)
        put_digest(&out, snapshot);
    else
        put_text(&out, snapshot, format == WS_NATIVE_TEXT);
    return finish(&out, before);
}

int ws_render_stack(const ws_snapshot *snapshot, size_t index, ws_buffer *buffer) {
    sink out = {buffer, false};
    size_t before = buffer->size;
    ws_check_snapshot(snapshot);
    assert(index < snapshot->thread_count);
    put_stack(&out, snapshot, &snapshot->threads[index]);
    return finish(&out, before);
}

int ws_render_headers(const ws_snapshot *snapshot, ws_buffer *buffer) {
    sink out = {buffer, false};
    size_t before = buffer->size;
    uint64_t unstable = 0;
    char name[64];
    ws_check_snapshot(snapshot);
    for (size_t i = 0; i < snapshot->thread_count; i++)
        unstable += snapshot->threads[i].unstable;
    ws_put(&out, "X-Traceback-Mode: ");
    ws_put(&out, mode_name(snapshot->mode));
    ws_put(&out, "\r\n");
    /* In mode "gil" the holder is only the thread that took the snapshot. */
    if (snapshot->mode == WS_MODE_NOGIL && snapshot->holder != 0) {
        holder_name(snapshot, name, sizeof name);
        ws_put(&out, "X-GIL-Holder: ");
        ws_put_ident(&out, snapshot->holder);
        if (name[0] != 0) {
            ws_put(&out, " (");
            ws_put(&out, name);
            ws_put(&out, ")");
        }
        ws_put(&out, "\r\n");
    }
    if (unstable > 0) {
        ws_put(&out, "X-Traceback-Unstable: ");
        ws_put_decimal(&out, unstable);
        ws_put(&out, "\r\n");
    }
    return finish(&out, before);
}
