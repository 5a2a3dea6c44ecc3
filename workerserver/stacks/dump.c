/* Takes and renders snapshots without the GIL. */
#include "dump.h"

#include <pthread.h>
#include <stdatomic.h>

#include "check.h"
#include "selfread.h"
#include "unwind.h"

/* The thread that holds this mutex reads a snapshot, or prepares with the GIL held. It never waits
 * for the GIL. No thread waits for this mutex with the GIL held. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static atomic_ullong taken;

/* In a forked child the thread that held the mutex doesn't exist. */
static void in_child(void) {
    mutex = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
}

int ws_dump_init(void) {
    return pthread_atfork(NULL, NULL, in_child) == 0 ? 0 : -1;
}

int ws_dump_prepare(void) {
    if (pthread_mutex_trylock(&mutex) != 0)
        return -1;
    ws_selfread_prepare();
    pthread_mutex_unlock(&mutex);
    return 0;
}

int ws_dump_take(ws_snapshot *out, bool facts) {
    pthread_mutex_lock(&mutex);
    int status = ws_selfread_take(out, facts);
    pthread_mutex_unlock(&mutex);
    out->mode = WS_MODE_NOGIL;
    out->time = ws_now();
    ws_check_snapshot(out);
    assert((status == 0) == (out->thread_count > 0));
    if (status == 0)
        atomic_fetch_add_explicit(&taken, 1, memory_order_relaxed);
    return status;
}

int ws_dump_take_native(ws_snapshot *out, bool facts) {
    pthread_mutex_lock(&mutex);
    ws_native *native = ws_native_begin();
    int status = ws_selfread_take(out, facts);
    bool read = status == 0;
    if (read) {
        atomic_fetch_add_explicit(&taken, 1, memory_order_relaxed);
    } else {
        ws_selfread_free(out);
        status = ws_kernel_take(out);
    }
    if (native != NULL && status == 0) {
        ws_native_take(native, out, read ? ws_selfread_places() : NULL);
        out->native = native;
    } else {
        ws_native_free(native);
    }
    pthread_mutex_unlock(&mutex);
    out->time = ws_now();
    ws_check_snapshot(out);
    return status;
}

int ws_dump_visit(ws_snapshot *out, const ws_visitor *visitor) {
    pthread_mutex_lock(&mutex);
    int status = ws_selfread_visit(out, visitor);
    pthread_mutex_unlock(&mutex);
    return status;
}

static int render(const ws_snapshot *snapshot, int wanted, ws_buffer *outs) {
    size_t before[WS_FORMATS];
    int status = 0;
    for (int format = WS_TEXT; format < WS_FORMATS; format++)
        before[format] = outs[format].size;
    for (int format = WS_TEXT; format < WS_FORMATS && status == 0; format++) {
        if (wanted & 1 << format)
            status = ws_render(snapshot, (ws_format)format, &outs[format]);
    }
    for (int format = WS_TEXT; format < WS_FORMATS && status != 0; format++)
        outs[format].size = before[format];
    return status;
}

/* A snapshot of mode "nogil" or, if that fails, "kernel". give_back() in either case. */
static int take(ws_snapshot *snapshot, bool facts, bool native) {
    if (native)
        return ws_dump_take_native(snapshot, facts);
    int status = ws_dump_take(snapshot, facts);
    if (status != 0) {
        ws_selfread_free(snapshot);
        status = ws_kernel_take(snapshot);
    }
    return status;
}

static void give_back(ws_snapshot *snapshot) {
    ws_native_free(snapshot->native);
    if (snapshot->mode == WS_MODE_NOGIL)
        ws_selfread_free(snapshot);
    else
        ws_kernel_free(snapshot);
}

int ws_dump(int wanted, ws_buffer *outs, ws_buffer *headers) {
    ws_snapshot snapshot;
    assert(wanted >= 0 && wanted < 1 << WS_FORMATS);
    int status = take(
        &snapshot, wanted & (1 << WS_JSON | 1 << WS_NATIVE_JSON), wanted & WS_WITH_NATIVE);
    size_t before = headers->size;
    if (status == 0)
        status = ws_render_headers(&snapshot, headers);
    if (status == 0) {
        status = render(&snapshot, wanted, outs);
        if (status != 0)
            headers->size = before;
    }
    give_back(&snapshot);
    return status;
}

/* Half of the threads stay, those that were created first: the main thread is the last one. Of a
 * single thread half of the frames stay, the newest. Returns false if nothing is left to drop. */
static bool halve(ws_snapshot *snapshot) {
    size_t gone = snapshot->thread_count / 2, holds = 0;
    if (snapshot->thread_count == 1) {
        ws_thread *last = snapshot->threads;
        if (last->count < 2)
            return false;
        last->count /= 2;
        last->truncated = true;
        snapshot->hold_count = 0; /* their frames may be gone */
        if (snapshot->waits != NULL && snapshot->waits[0].frame >= (int)last->count)
            snapshot->waits = NULL;
        return true;
    }
    snapshot->threads += gone;
    snapshot->thread_count -= gone;
    snapshot->truncated = true;
    if (snapshot->waits != NULL)
        snapshot->waits += gone;
    for (size_t i = 0; i < snapshot->hold_count; i++) {
        if (snapshot->holds[i].thread >= gone) {
            snapshot->holds[holds] = snapshot->holds[i];
            snapshot->holds[holds++].thread -= gone;
        }
    }
    snapshot->hold_count = holds;
    return snapshot->thread_count > 0;
}

int ws_dump_within(size_t limit, ws_buffer *outs, ws_buffer *headers) {
    ws_snapshot snapshot;
    int status = take(&snapshot, true, false);
    if (status == 0)
        status = ws_render_headers(&snapshot, headers);
    if (status == 0)
        status = render(&snapshot, 1 << WS_DIGEST, outs); /* of all threads */
    while (status == 0) {
        outs[WS_JSON].size = 0;
        status = render(&snapshot, 1 << WS_JSON, outs);
        if (status != 0 || outs[WS_JSON].size <= limit)
            break;
        status = halve(&snapshot) ? 0 : -1;
    }
    give_back(&snapshot);
    return status;
}

unsigned long long ws_dumps_taken(void) {
    return atomic_load_explicit(&taken, memory_order_relaxed);
}
