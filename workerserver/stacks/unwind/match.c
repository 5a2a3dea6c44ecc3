/* Which Python frames a frame of the interpreter's loop stands for.
 *
 * A call of the loop begins with a frame that was entered from C, and runs all Python functions
 * called from there without C in between. CPython 3.10 calls the loop for each function. 3.11 marks
 * the frames entered from C. Later versions put a frame of their own, which lies on the native
 * stack, before each of these: so the native frame that holds it is known for sure. */
#include "parts.h"

#include "cpython.h"
#include "internal.h"

#if WS_CPYTHON

enum { LINKS = 64 }; /* frames without a place that are passed over */

uintptr_t ws_native_loop(void) {
    return (uintptr_t)&_PyEval_EvalFrameDefault;
}

typedef enum { GOES_ON, ENTERED, UNKNOWN } entry;

/* Whether the frame at `place` was entered from C. `*mark`: where the interpreter's own frame
 * before it lies, on the native stack; 0: this version has none. `next`: the place of the caller;
 * NULL: there is none. */
static entry entered(const ws_native_stack *stack, uintptr_t end, const ws_place *place,
                     const ws_place *next, uintptr_t *mark) {
    const ws_layout_t *at = &ws_layout;
    uintptr_t frame = place->frame, previous;
    unsigned char byte;
    *mark = 0;
    if (at->frame_owner == WS_NONE) {
        return ENTERED;
    }
    if (at->frame_entry != WS_NONE) {
        if (!ws_native_read(frame + at->frame_entry, &byte, 1)) {
            return UNKNOWN;
        }
        return byte != 0 ? ENTERED : GOES_ON;
    }
    for (int i = 0; i < LINKS; i++) {
        if (!ws_native_read(frame + at->frame_previous, &previous, sizeof previous)
            || previous == 0) {
            return UNKNOWN;
        }
        if (next != NULL && previous == next->frame) {
            return GOES_ON;
        }
        if (!ws_native_read(previous + at->frame_owner, &byte, 1)) {
            return UNKNOWN;
        }
        /* The interpreter has frames of its own elsewhere too: they call __init__(). */
        if ((signed char)byte >= at->owner_not_python && previous >= stack->stack
            && previous < end) {
            *mark = previous;
            return ENTERED;
        }
        frame = previous;
    }
    return UNKNOWN;
}

/* Whether a frame lies on the native stack, between `low` and the end of its caller's part. */
static bool holds(uintptr_t low, const ws_native_frame *frame, uintptr_t mark) {
    return frame->frame != 0 && mark >= low && mark < frame->frame;
}

void ws_native_match(ws_native *native, ws_native_stack *stack, const ws_snapshot *snapshot,
                     const ws_thread *thread, const ws_place *places) {
    uintptr_t low = stack->stack, end = 0, mark;
    for (size_t i = 0; i < stack->count && native->frames[stack->start + i].frame > end; i++) {
        end = native->frames[stack->start + i].frame;
    }
    size_t at = 0;
    bool good = places != NULL && snapshot->mode == WS_MODE_NOGIL && !thread->unstable;
    for (size_t i = 0; good && i < stack->count; i++) {
        ws_native_frame *frame = &native->frames[stack->start + i];
        if (frame->evaluates) {
            frame->first = at;
            for (entry state = GOES_ON; good && state != ENTERED; at++) {
                if (at == thread->count) {
                    good = false;
                    break;
                }
                const ws_place *place = &places[thread->start + at];
                state = entered(stack, end, place, at + 1 < thread->count ? place + 1 : NULL, &mark);
                good = state != UNKNOWN
                       && (state == GOES_ON || mark == 0 || holds(low, frame, mark));
            }
            frame->count = at - frame->first;
        }
        low = frame->frame;
    }
    stack->matched =
        good && (stack->end != WS_NATIVE_WHOLE || thread->truncated || at == thread->count);
}

#else

uintptr_t ws_native_loop(void) {
    return 0;
}

void ws_native_match(ws_native *native, ws_native_stack *stack, const ws_snapshot *snapshot,
                     const ws_thread *thread, const ws_place *places) {
    (void)native;
    (void)stack;
    (void)snapshot;
    (void)thread;
    (void)places;
}

#endif
