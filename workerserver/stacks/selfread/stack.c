/* One thread's stack: its chain of frames is read until two readings agree.
 *
 * Two readings that agree can still be of two moments. Between them functions may have returned and
 * been deleted, and new ones may have taken their places in memory. For a thread that did not hold
 * the GIL in between this is impossible: the thread stood still, and its frames keep their code
 * objects alive. The GIL's last holder may run. What is read of this thread in one system call is
 * nearly of one moment, and all its code objects are read again. */
#define _GNU_SOURCE
#include "internal.h"

#include <assert.h>
#include <string.h>

enum {
    WALKS = 12, /* readings of one chain */
    MORE_WALKS = 6,
    STREAK = 8, /* readings that agree, until even a strange chain is believed */
};

typedef enum { WALKED, ENDED, UNREADABLE } walked;

/* The window that holds a frame; NULL: not readable. */
static const char *find_frame(uintptr_t frame, size_t *recent, bool *prompt) {
    size_t size = ws_layout.frame_size;
    ws_window *window;
    for (size_t i = 0; i < ws_work->window_count; i++) {
        size_t place = (*recent + i) % ws_work->window_count;
        window = &ws_work->windows[place];
        if (window->ok && frame >= window->base && frame - window->base <= window->size
            && window->size - (frame - window->base) >= size) {
            *recent = place;
            assert(window->size <= sizeof window->data);
            return window->data + (frame - window->base);
        }
    }
    *prompt = false;
    /* Its whole page, and its own tail on the next one: neighbours are likely to be needed. */
    uintptr_t base = frame - frame % WS_PAGE;
    if (frame > UINTPTR_MAX - 2 * WS_PAGE) {
        return NULL;
    }
    *recent = ws_work->window_count < WS_WINDOWS ? ws_work->window_count++
                                                 : (*recent + 1) % WS_WINDOWS;
    window = &ws_work->windows[*recent];
    window->base = base;
    window->size = frame + size - base > WS_PAGE ? (uint32_t)(frame + size - base) : WS_PAGE;
    assert(size <= WS_FRAME_MAX && window->size <= sizeof window->data);
    window->ok = ws_read_one(base, window->data, window->size);
    return window->ok ? window->data + (frame - base) : NULL;
}

/* The GIL, the thread state, the C frame and all windows of the last walk, in one system call, and
 * then once more what leads to the newest frame. */
static walked read_again(const ws_listed *listed, uintptr_t *cframe, uintptr_t *top,
                         ws_moment *moment, bool *prompt) {
    const ws_layout_t *at = &ws_layout;
    ws_read *reads = ws_work->reads;
    size_t count = 0, first_window;
    uintptr_t guess = *cframe, current_after = 0, top_after = 0;
    reads[count++] =
        (ws_read){listed->state, ws_work->state, (uint32_t)at->state_size, false};
    reads[count++] = (ws_read){at->gil, ws_work->gil, (uint32_t)at->gil_read, false};
    if (at->cframe_frame != WS_NONE && guess != 0) {
        reads[count++] = (ws_read){guess + at->cframe_frame, top, sizeof *top, false};
    }
    first_window = count;
    for (size_t i = 0; i < ws_work->window_count; i++) {
        ws_window *window = &ws_work->windows[i];
        reads[count++] = (ws_read){window->base, window->data, window->size, false};
    }
    reads[count++] = (ws_read){listed->state + at->state_frame, &current_after,
                               sizeof current_after, false};
    if (first_window > 2) {
        reads[count++] =
            (ws_read){guess + at->cframe_frame, &top_after, sizeof top_after, false};
    }
    assert(count <= sizeof ws_work->reads / sizeof ws_work->reads[0]);
    ws_read_many(reads, count);
    for (size_t i = 0; i < ws_work->window_count; i++) {
        ws_work->windows[i].ok = reads[first_window + i].ok;
    }
    *moment = ws_moment_of(ws_work->gil, reads[1].ok);
    const char *state = ws_work->state;
    unsigned long ident;
    memcpy(&ident, state + at->state_ident, sizeof ident);
    if (!reads[0].ok) {
        return UNREADABLE; /* the kernel refuses just now: this says nothing of the thread */
    }
    if (ws_pointer(state, at->state_interpreter) != at->interpreter || ident != listed->ident) {
        return ENDED;
    }
    uintptr_t current = ws_pointer(state, at->state_frame);
    *prompt = current_after == current;
    if (at->cframe_frame == WS_NONE) {
        *top = current;
    } else if (current != guess || first_window == 2 || !reads[2].ok) {
        *cframe = current;
        if (current == 0 || !ws_read_one(current + at->cframe_frame, top, sizeof *top)) {
            *top = 0;
        }
        *prompt = false;
    } else {
        *prompt = *prompt && *top == top_after;
    }
    return WALKED;
}

/* Reads the chain once, from the newest frame on. The caller keeps `cframe` from walk to walk. */
static walked walk(const ws_listed *listed, uintptr_t *cframe, ws_chain *chain) {
    const ws_layout_t *at = &ws_layout;
    uintptr_t frame;
    size_t recent = 0;
    chain->count = 0;
    chain->more = false;
    chain->broken = false;
    walked state = read_again(listed, cframe, &frame, &chain->moment, &chain->prompt);
    if (state != WALKED) {
        return state;
    }
    chain->idle = frame == 0;
    assert(at->links <= WS_LINKS);
    /* Frames of C, that are skipped, count too: no cycle is endless. */
    for (size_t steps = 0; frame != 0; steps++) {
        const char *data;
        if (chain->count == at->links || steps == 2 * WS_LINKS) {
            chain->more = true;
            break;
        }
        data = frame % sizeof(void *) == 0 ? find_frame(frame, &recent, &chain->prompt) : NULL;
        if (data == NULL || !ws_is_frame(data)) {
            chain->broken = true;
            break;
        }
        chain->count += ws_link_take(&chain->links[chain->count], frame, data);
        frame = ws_pointer(data, at->frame_previous);
    }
    return WALKED;
}

/* The chunk below another one of a thread's stack of frames; frames may lie on the same page. */
static bool chunk_below(uintptr_t chunk, uintptr_t *below) {
    uintptr_t at = chunk + ws_layout.chunk_previous;
    for (size_t i = 0; i < ws_work->window_count; i++) {
        const ws_window *window = &ws_work->windows[i];
        if (window->ok && at >= window->base && at - window->base <= window->size - sizeof *below) {
            *below = ws_pointer(window->data, at - window->base);
            return true;
        }
    }
    return ws_read_one(at, below, sizeof *below);
}

/* Where the thread's first frame is; 0: not known. Read once: the first chunk stays, and the chunks
 * above it come and go while the thread runs. */
static uintptr_t first_frame(void) {
    uintptr_t chunk = ws_pointer(ws_work->state, ws_layout.state_chunk), previous;
    for (int i = 0; i < WS_CHUNKS && ws_work->first_frame == 0; i++) {
        if (chunk == 0 || !chunk_below(chunk, &previous)) {
            break;
        }
        if (previous == 0) {
            ws_work->first_frame = chunk + ws_layout.chunk_first;
        }
        chunk = previous;
    }
    return ws_work->first_frame;
}

/* Whether a chain ends where its thread began. While a thread runs, a link may lead nowhere when it
 * is read: the link of a frame that is being made, or of a frame on the C stack. The memory of the
 * latter is used again as often as a short function is called in a loop. */
static bool anchored(const ws_chain *chain) {
    if (chain->count == 0) {
        return chain->idle;
    }
    const ws_link *oldest = &chain->links[chain->count - 1];
    if (ws_layout.state_chunk == WS_NONE) {
        return !oldest->generator;
    }
    return oldest->frame == first_frame();
}

static bool same(const ws_chain *one, const ws_chain *other) {
    if (one->count != other->count || one->more != other->more || one->broken != other->broken) {
        return false;
    }
    for (size_t i = 0; i < one->count; i++) {
        if (one->links[i].frame != other->links[i].frame
            || one->links[i].code != other->links[i].code) {
            return false;
        }
    }
    return true;
}

static bool all_known(const ws_chain *chain) {
    for (size_t i = 0; i < chain->count; i++) {
        if (ws_codes_find(chain->links[i].code) == NULL) {
            return false;
        }
    }
    return true;
}

static bool resolve(ws_arena *arena, const ws_chain *chain, bool again) {
    size_t count = 0;
    for (size_t i = 0; i < chain->count; i++) {
        if (count == 0 || ws_work->addresses[count - 1] != chain->links[i].code) {
            ws_work->addresses[count++] = chain->links[i].code;
        }
    }
    return ws_codes_resolve(arena, ws_work->addresses, count, again);
}

static void keep_longest(const ws_chain *chain) {
    ws_chain *longest = &ws_work->longest;
    if (!chain->broken && !chain->more && chain->count > longest->count && anchored(chain)) {
        memcpy(longest->links, chain->links, chain->count * sizeof chain->links[0]);
        longest->count = chain->count;
    }
}

#ifndef NDEBUG
#ifndef WS_CHANGED_READS
#define WS_CHANGED_READS 0
#endif
/* What ws_chain_append() may rely on, once two readings have agreed on `chain`. */
static void check_settled(const ws_listed *listed, uintptr_t cframe, const ws_chain *chain,
                          bool still) {
    ws_gil after;
    assert(ws_chain_whole(chain));
    assert(still || chain->more || anchored(chain));
    /* A thread that stood still has the same stack in one more reading, as long as no other thread
     * has got the GIL by the end of it. A fuzzer changes what each reading gets. */
    if (!WS_CHANGED_READS && still && walk(listed, &cframe, &ws_work->checked) == WALKED) {
        ws_gil_read(&after);
        assert(!after.known || after.switches != chain->moment.switches
               || same(chain, &ws_work->checked));
    }
}

void ws_stack_check(const ws_listed *listed, const ws_chain *chain) {
    ws_work->window_count = 0;
    check_settled(listed, 0, chain, true);
}
#else
#define check_settled(listed, cframe, chain, still) ((void)0)
#endif

/* Reads a chain until two readings agree. `*last` is then the second of them, and its code objects
 * are resolved. If no two readings agree, thread->unstable stays true. */
static walked settle(ws_arena *arena, const ws_listed *listed, ws_snapshot *out,
                     ws_thread *thread, uintptr_t *cframe, ws_chain **last) {
    bool looked = false; /* at the code objects of `*last`, after it was read */
    int streak = 0;
    for (int i = 0; i < WALKS && thread->unstable; i++) {
        ws_chain *chain = &ws_work->chains[*last == &ws_work->chains[0]];
        if (ws_time_over()) {
            out->truncated = true;
            break;
        }
        walked state = walk(listed, cframe, chain);
        if (state == ENDED) {
            return ENDED;
        }
        if (state == UNREADABLE) {
            continue;
        }
        if (!ws_same_moment(&ws_work->moment, &chain->moment)) {
            ws_work->moment = chain->moment;
            ws_codes_doubt();
        }
        if (*last != NULL && same(*last, chain)) {
            bool still = chain->moment.holder != listed->state
                         && ws_same_moment(&(*last)->moment, &chain->moment);
            streak++;
            /* A thread that lost its core doesn't move either, wherever that was. */
            bool believed = (chain->prompt || streak >= STREAK)
                            && (chain->more || chain->broken || anchored(chain));
            if (still || believed) {
                thread->unstable = ((!still || !looked) && resolve(arena, chain, true))
                                   || !ws_chain_whole(chain);
                looked = true;
                if (!thread->unstable) {
                    check_settled(listed, *cframe, chain, still);
                }
            }
        } else if (*last == NULL || !all_known(chain)) {
            resolve(arena, chain, false);
            looked = true;
            streak = 0;
        } else {
            looked = false;
            streak = 0;
        }
        if (*last != NULL && thread->unstable) {
            keep_longest(chain);
        }
        *last = chain;
    }
    return WALKED;
}

/* How many of the oldest frames a whole chain shares with another one. */
static size_t shared(const ws_chain *one, const ws_chain *other) {
    size_t count = 0;
    if (other->broken || other->more || !anchored(other)) {
        return 0; /* the oldest one is not known */
    }
    while (count < one->count && count < other->count) {
        const ws_link *left = &one->links[one->count - 1 - count];
        const ws_link *right = &other->links[other->count - 1 - count];
        if (left->frame != right->frame || left->code != right->code) {
            break;
        }
        count++;
    }
    return count;
}

/* Appends what is sure of a stack that never held still: the older frames, those that two readings
 * have in common. The function of a newer frame may have returned long ago. */
static walked append_shared(ws_arena *arena, const ws_listed *listed, ws_snapshot *out,
                            ws_thread *thread, uintptr_t *cframe) {
    ws_chain *longest = &ws_work->longest;
    size_t best = 0;
    /* Twice, and between two readings of the chain: see ws_codes_resolve(). */
    resolve(arena, longest, true);
    resolve(arena, longest, true);
    for (int i = 0; i < MORE_WALKS && best < longest->count && !(i > 0 && ws_time_over()); i++) {
        ws_chain *now = &ws_work->chains[0];
        walked state = walk(listed, cframe, now);
        if (state == ENDED) {
            return ENDED;
        }
        if (state == UNREADABLE) {
            continue;
        }
        size_t count = shared(longest, now);
        best = count > best ? count : best;
    }
    assert(best <= longest->count);
    ws_chain_append(longest, longest->count - best, out, thread);
    thread->truncated = thread->truncated || best == 0;
    ws_codes_doubt();
    return WALKED;
}

/* The windows that the first walk begins with; the C frame. */
static uintptr_t begin_with(const ws_listed *listed) {
    const ws_ahead_t *ahead = &ws_work->ahead;
    ws_work->window_count = 0;
    if (ahead->state != listed->state) {
        return 0;
    }
    for (size_t i = 0; i < ahead->count; i++) {
        ws_window *window = &ws_work->windows[ws_work->window_count++];
        window->base = ahead->pages[i];
        window->size = WS_PAGE;
    }
    return ahead->cframe;
}

bool ws_stack_take(ws_arena *arena, const ws_listed *listed, ws_snapshot *out,
                   ws_thread *thread) {
    uintptr_t cframe = begin_with(listed);
    ws_chain *last = NULL;
    ws_work->longest.count = 0;
    ws_work->first_frame = 0;
    ws_thread_start(thread, listed, out);
    if (settle(arena, listed, out, thread, &cframe, &last) == ENDED) {
        return false;
    }
    if (last == NULL) { /* read not once */
        thread->truncated = true;
        thread->unstable = false;
        return true;
    }
    if (thread->unstable) {
        return append_shared(arena, listed, out, thread, &cframe) == WALKED;
    }
    ws_chain_append(last, 0, out, thread);
    return true;
}
