/* The stacks of many threads at a time, where these stand still.
 *
 * A thread other than the GIL's last holder stands still as long as the GIL goes to no other
 * thread. So the GIL is read first and last. If no thread has got it in between, nothing of these
 * threads has moved: neither their frames nor, because frames keep them alive, their code objects.
 * Then one reading is enough, and the order of its parts does not matter. So the walks go side by
 * side: one system call reads the next page of frames for each thread that needs one.
 *
 * A thread whose stack comes out in any other way is left to stack.c. */
#define _GNU_SOURCE
#include "internal.h"

#include <assert.h>
#include <string.h>

enum { RECENT = 64 }; /* code objects that are not asked for again */

typedef struct {
    uintptr_t next; /* frame */
    uint16_t page;  /* of the last one: index + 1 */
    size_t links, steps;
    bool waits, failed; /* waits: for a page */
} walker;

typedef struct {
    ws_arena *arena;
    uintptr_t recent[RECENT];
    size_t addresses; /* of code objects, in the work space */
    bool changed;     /* a code object that was known is another one by now */
} around;

/* ---- pages of frames ---- */

/* The bucket of a page: its own, or an empty one. */
static uint16_t *bucket_of(uintptr_t base) {
    ws_pages_t *pages = &ws_work->pages;
    size_t place = (size_t)((base / WS_PAGE) * UINT64_C(0x9E3779B97F4A7C15) >> 55);
    _Static_assert(WS_PAGE_BUCKETS == 512 && WS_PAGES < 512, "nine bits, and always an empty one");
    while (pages->buckets[place] != 0
           && pages->windows[pages->buckets[place] - 1].base != base) {
        place = (place + 1) % WS_PAGE_BUCKETS;
    }
    return &pages->buckets[place];
}

/* The bytes of a frame; NULL: not read, or not readable. */
static const char *find_frame(uintptr_t frame, uint16_t *page) {
    const ws_pages_t *pages = &ws_work->pages;
    uintptr_t base = frame - frame % WS_PAGE;
    if (*page == 0 || pages->windows[*page - 1].base != base) {
        *page = *bucket_of(base);
    }
    if (*page == 0) {
        return NULL;
    }
    const ws_window *window = &pages->windows[*page - 1];
    size_t start = frame - base, end = start + ws_layout.frame_size;
    return window->ok && end <= window->size ? window->data + start : NULL;
}

/* Has the page of a frame read next, up to the frame's end: callers lie below it, on a stack of
 * frames. False: that was tried, or there is no room. */
static bool want(uintptr_t frame) {
    ws_pages_t *pages = &ws_work->pages;
    uintptr_t base = frame - frame % WS_PAGE;
    size_t end = frame - base + ws_layout.frame_size;
    if (frame > UINTPTR_MAX - 2 * WS_PAGE) {
        return false;
    }
    uint16_t *bucket = bucket_of(base);
    bool added = *bucket == 0;
    if (added && pages->count == WS_PAGES) {
        pages->full = true;
        return false;
    }
    if (added) {
        *bucket = (uint16_t)++pages->count;
        pages->windows[*bucket - 1].base = base;
        pages->windows[*bucket - 1].size = ws_layout.state_chunk == WS_NONE ? WS_PAGE : 0;
        pages->windows[*bucket - 1].wanted = false;
    }
    ws_window *window = &pages->windows[*bucket - 1];
    if (!added && !window->wanted) {
        if (!window->ok) {
            return false;
        }
        window->size = WS_PAGE; /* neighbours are needed */
    }
    if (!window->wanted) {
        assert(pages->wanted_count <= WS_GROUP);
        pages->wanted[pages->wanted_count++] = *bucket;
    }
    window->wanted = true;
    window->ok = false;
    window->size = end > window->size ? (uint32_t)end : window->size;
    assert(window->size <= sizeof window->data);
    return true;
}

static void read_wanted(void) {
    ws_pages_t *pages = &ws_work->pages;
    ws_read *reads = ws_work->reads;
    for (size_t i = 0; i < pages->wanted_count; i++) {
        ws_window *window = &pages->windows[pages->wanted[i] - 1];
        reads[i] = (ws_read){window->base, window->data, window->size, false};
    }
    ws_read_many(reads, pages->wanted_count);
    for (size_t i = 0; i < pages->wanted_count; i++) {
        pages->windows[pages->wanted[i] - 1].ok = reads[i].ok;
        pages->windows[pages->wanted[i] - 1].wanted = false;
    }
    pages->wanted_count = 0;
}

/* ---- walks side by side ---- */

static void resolve(around *all) {
    all->changed = ws_codes_resolve(all->arena, ws_work->addresses, all->addresses, false)
                   || all->changed;
    all->addresses = 0;
}

static void remember(around *all, uintptr_t code) {
    uintptr_t *recent = &all->recent[code / 16 % RECENT];
    if (*recent == code) {
        return;
    }
    *recent = code;
    ws_work->addresses[all->addresses++] = code;
    if (all->addresses == WS_LINKS) {
        resolve(all);
    }
}

/* Goes on as far as frames have been read. */
static void advance(around *all, walker *one) {
    const ws_layout_t *at = &ws_layout;
    ws_link link;
    one->waits = false;
    while (one->next != 0 && one->links < at->links && one->steps < 2 * WS_LINKS) {
        const char *data =
            one->next % sizeof(void *) == 0 ? find_frame(one->next, &one->page) : NULL;
        if (data == NULL) {
            one->waits = one->next % sizeof(void *) == 0 && want(one->next);
            one->failed = !one->waits;
            return;
        }
        if (!ws_is_frame(data)) {
            one->failed = true;
            return;
        }
        if (ws_link_take(&link, one->next, data)) {
            remember(all, link.code);
            one->links++;
        }
        one->steps++;
        one->next = ws_pointer(data, at->frame_previous);
    }
}

static void walk_all(around *all, walker *walkers, size_t count) {
    ws_pages_t *pages = &ws_work->pages;
    memset(pages->buckets, 0, sizeof pages->buckets);
    pages->count = pages->wanted_count = 0;
    pages->full = false;
    do {
        read_wanted();
        for (size_t i = 0; i < count; i++) {
            if (!walkers[i].failed) {
                advance(all, &walkers[i]);
            }
        }
    } while (pages->wanted_count > 0 && !pages->full && !ws_time_over());
    resolve(all);
}

/* ---- where the walks begin ---- */

static ws_moment now(void) {
    bool known = ws_read_one(ws_layout.gil, ws_work->gil, ws_layout.gil_read);
    return ws_moment_of(ws_work->gil, known);
}

/* Reads the states of threads that were listed at another moment. How many of the first ones are
 * still what they were. */
static size_t look_again(ws_listed *listed, size_t count) {
    const ws_layout_t *at = &ws_layout;
    ws_read *reads = ws_work->reads;
    for (size_t start = 0; start < count; start += WS_TOGETHER) {
        size_t some = count - start < WS_TOGETHER ? count - start : WS_TOGETHER;
        for (size_t i = 0; i < some; i++) {
            reads[i] = (ws_read){listed[start + i].state, ws_work->states[i],
                                 (uint32_t)at->state_size, false};
        }
        ws_read_near(reads, some);
        for (size_t i = 0; i < some; i++) {
            const char *state = ws_work->states[i];
            unsigned long ident;
            memcpy(&ident, state + at->state_ident, sizeof ident);
            if (!reads[i].ok || ws_pointer(state, at->state_interpreter) != at->interpreter
                || ident != listed[start + i].ident) {
                return start + i;
            }
            listed[start + i].frame = ws_pointer(state, at->state_frame);
        }
    }
    return count;
}

static void begin_walks(const ws_listed *listed, walker *walkers, size_t count) {
    const ws_layout_t *at = &ws_layout;
    ws_read *reads = ws_work->reads;
    for (size_t i = 0; i < count; i++) {
        walkers[i] = (walker){.next = listed[i].frame};
        reads[i] = (ws_read){listed[i].frame + at->cframe_frame, &walkers[i].next,
                             sizeof walkers[i].next, false};
    }
    if (at->cframe_frame != WS_NONE) {
        ws_read_many(reads, count);
        for (size_t i = 0; i < count; i++) {
            walkers[i].failed = !reads[i].ok;
        }
    }
    for (size_t i = 0; i < count; i++) {
        ws_work->tops[i] = walkers[i].next;
    }
}

/* Where the frames of the thread that may run are likely to be: stack.c reads them at once. */
static void look_ahead(const ws_listed *listed, uintptr_t frame) {
    ws_ahead_t *ahead = &ws_work->ahead;
    uint16_t page = 0, last = 0;
    ahead->state = listed->state;
    ahead->cframe = listed->frame;
    ahead->count = 0;
    for (size_t steps = 0; frame % sizeof(void *) == 0 && steps < WS_LINKS; steps++) {
        const char *data = find_frame(frame, &page);
        if (data == NULL || ahead->count == WS_AHEAD) {
            break;
        }
        if (page != last) {
            ahead->pages[ahead->count++] = ws_work->pages.windows[page - 1].base;
            last = page;
        }
        frame = ws_pointer(data, ws_layout.frame_previous);
    }
}

/* ---- what others use ---- */

void ws_together_start(void) {
    ws_work->together = WS_GROUP;
    ws_work->ahead.state = 0;
}

size_t ws_together_read(ws_arena *arena, size_t first) {
    walker walkers[WS_GROUP + 1];
    around all = {.arena = arena};
    ws_listed *listed = &ws_work->listed[first];
    size_t left = ws_work->listed_count - first, ready = 0;
    size_t count = left < ws_work->together ? left : ws_work->together;
    ws_moment begin = ws_work->listed_at;
    bool as_listed = begin.known
                     && (!ws_work->moment.known || ws_same_moment(&ws_work->moment, &begin));
    if (!as_listed) {
        begin = now();
    }
    for (size_t i = 0; i < count; i++) {
        count = listed[i].state == begin.holder ? i : count; /* this one may run */
    }
    if (!begin.known || count == 0) {
        return 0;
    }
    if (!ws_same_moment(&ws_work->moment, &begin)) {
        ws_work->moment = begin;
        ws_codes_doubt();
    }
    size_t there = as_listed ? count : look_again(listed, count);
    bool runner = as_listed && count < left && listed[count].state == begin.holder;
    begin_walks(listed, walkers, there + runner);
    walk_all(&all, walkers, there + runner);
    while (ready < there && !walkers[ready].failed && !walkers[ready].waits) {
        ready++;
    }
    if (runner) {
        look_ahead(&listed[count], ws_work->tops[count]);
    }
    ws_moment end = now();
    if (!ws_same_moment(&begin, &end) || begin.holder != end.holder || all.changed) {
        ready = 0;
    }
    if (ready < count) { /* whatever it was, fewer threads need less time and room */
        ws_work->together /= 4;
    }
    return ready;
}

bool ws_together_take(size_t index, const ws_listed *listed, ws_snapshot *out, ws_thread *thread) {
    const ws_layout_t *at = &ws_layout;
    ws_chain *chain = &ws_work->chains[0];
    uintptr_t frame = ws_work->tops[index];
    uint16_t page = 0;
    chain->count = 0;
    chain->broken = false;
    chain->moment = ws_work->moment;
    for (size_t steps = 0; frame != 0 && chain->count < at->links && steps < 2 * WS_LINKS;
         steps++) {
        const char *data = find_frame(frame, &page);
        if (data == NULL) {
            return false;
        }
        chain->count += ws_link_take(&chain->links[chain->count], frame, data);
        frame = ws_pointer(data, at->frame_previous);
    }
    chain->more = frame != 0;
    if (!ws_chain_whole(chain)) {
        return false;
    }
    ws_stack_check(listed, chain);
    ws_thread_start(thread, listed, out);
    thread->unstable = false;
    ws_chain_append(chain, 0, out, thread);
    return true;
}
