/* The promises of snapshot.h and render.h as assertions; nothing in a release build. */
#include "check.h"

#ifndef NDEBUG

#include <stdint.h>
#include <string.h>

void ws_check_buffer(const ws_buffer *buffer) {
    assert(buffer->size <= buffer->capacity);
    assert((buffer->data != NULL) == (buffer->capacity > 0));
}

void ws_check_ascii(const ws_buffer *buffer, size_t from) {
    assert(from <= buffer->size);
    for (size_t i = from; i < buffer->size; i++)
        assert((unsigned char)buffer->data[i] < 128);
}

/* Whether `size` bytes at `at` lie in the snapshot's arena. One without an arena borrows. */
static bool in_arena(const ws_snapshot *snapshot, const void *at, size_t size) {
    uintptr_t start = (uintptr_t)snapshot->arena, place = (uintptr_t)at;
    return snapshot->arena == NULL
           || (place >= start && place - start <= snapshot->arena_size
               && size <= snapshot->arena_size - (place - start));
}

static void check_name(const ws_snapshot *snapshot, const ws_name *name) {
    assert(name->kind == 0 || name->kind == 1 || name->kind == 2 || name->kind == 4);
    if (name->kind == 0) {
        assert(name->length == 0 && !name->cut);
        return;
    }
    assert(name->data != NULL && (uintptr_t)name->data % name->kind == 0);
    assert(name->length <= SIZE_MAX / name->kind);
    if (snapshot->arena != NULL)
        assert(name->length <= WS_MAX_NAME);
    assert(in_arena(snapshot, name->data, name->length * name->kind));
}

static void check_thread(const ws_snapshot *snapshot, const ws_thread *thread) {
    assert(thread->count <= WS_MAX_DEPTH);
    assert(thread->daemon >= -1 && thread->daemon <= 1);
    assert(thread->native_id >= 0 && thread->native_id <= INT32_MAX);
    check_name(snapshot, &thread->name);
    if (snapshot->mode == WS_MODE_KERNEL)
        assert(thread->ident == 0 && thread->native_id > 0 && !thread->unstable);
    if (snapshot->mode == WS_MODE_GIL)
        assert(!thread->unstable);
}

static void check_frame(const ws_snapshot *snapshot, const ws_frame *frame) {
    check_name(snapshot, &frame->file);
    check_name(snapshot, &frame->function);
    check_name(snapshot, &frame->qualname);
    if (snapshot->mode == WS_MODE_NOGIL)
        assert(frame->line >= -1);
}

void ws_check_snapshot(const ws_snapshot *snapshot) {
    assert(snapshot->mode == WS_MODE_GIL || snapshot->mode == WS_MODE_NOGIL
           || snapshot->mode == WS_MODE_KERNEL);
    assert(snapshot->thread_count <= WS_MAX_THREADS);
    assert(snapshot->frame_count <= WS_MAX_FRAMES);
    assert(snapshot->thread_count == 0 || snapshot->threads != NULL);
    assert(snapshot->frame_count == 0 || snapshot->frames != NULL);
    if (snapshot->thread_count > 0)
        assert(in_arena(
            snapshot, snapshot->threads, snapshot->thread_count * sizeof(ws_thread)));
    if (snapshot->frame_count > 0)
        assert(in_arena(snapshot, snapshot->frames, snapshot->frame_count * sizeof(ws_frame)));
    if (snapshot->mode == WS_MODE_KERNEL)
        assert(snapshot->frame_count == 0 && snapshot->holder == 0 && snapshot->main_ident == 0);
    /* The threads' frames lie one thread after the other, without gaps. */
    size_t end = 0;
    for (size_t i = 0; i < snapshot->thread_count; i++) {
        const ws_thread *thread = &snapshot->threads[i];
        check_thread(snapshot, thread);
        if (snapshot->mode != WS_MODE_KERNEL)
            assert(thread->start == end);
        assert(thread->count <= snapshot->frame_count - end);
        end += thread->count;
    }
    assert(end == snapshot->frame_count);
    for (size_t i = 0; i < snapshot->frame_count; i++)
        check_frame(snapshot, &snapshot->frames[i]);
}

void ws_check_kernel(const ws_kernel *kernel) {
    assert(kernel->state == 0 || (kernel->state > ' ' && kernel->state < 127));
    assert(memchr(kernel->wchan, 0, sizeof kernel->wchan) != NULL);
}

#endif
