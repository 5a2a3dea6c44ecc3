/* A snapshot without the GIL: the list of threads, the GIL's holder, and all together. */
#define _GNU_SOURCE
#include "internal.h"

#include "check.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { TRIES = 8 }; /* readings of the list of threads */

static const char UNPREPARED[] = "not prepared in this process";
const char WS_NO_MEMORY[] = "no memory for reading stacks just now";

ws_layout_t ws_layout;
ws_work_t *ws_work;

static const char *_Atomic trouble = UNPREPARED; /* NULL: ready in the process `ready` */
static _Atomic int ready;
static bool kept; /* what the last reading has left in `ws_work` */
static _Atomic bool passing; /* the trouble may be over by now: prepare again */

#ifndef NDEBUG
/* The process in which a thread reads just now, 0: none. A forked child inherits its parent's. */
static _Atomic int reader;

static void begin_reading(void) {
    int before = atomic_exchange(&reader, (int)getpid());
    assert(before != (int)getpid()); /* one caller at a time */
}

static void end_reading(void) {
    int before = atomic_exchange(&reader, 0);
    assert(before == (int)getpid());
}
#else
#define begin_reading() ((void)0)
#define end_reading() ((void)0)
#endif

/* Reads the state of a thread, and with it those that came after it in the last listing: as a rule
 * they still do. So a system call serves many threads. What a state says is checked as if it had
 * been read by itself. How many there are in `reads`; `*guess` is where to look for `state`. */
static size_t read_states(uintptr_t state, size_t *guess) {
    ws_read *reads = ws_work->reads;
    uint32_t size = (uint32_t)ws_layout.state_size;
    size_t count = 0, place = *guess;
    /* Threads may have ended. A new one is in front of all others, and no guess. */
    for (size_t i = 0; i < WS_TOGETHER && place < ws_work->guess_count; i++, place++) {
        if (ws_work->guesses[place] == state) {
            *guess = place;
            break;
        }
    }
    bool known = *guess < ws_work->guess_count && ws_work->guesses[*guess] == state;
    do {
        reads[count] = (ws_read){state, ws_work->states[count], size, false};
        count++;
        *guess += known;
        state = known && *guess < ws_work->guess_count ? ws_work->guesses[*guess] : 0;
    } while (state != 0 && count < WS_TOGETHER);
    ws_read_near(reads, count);
    return count;
}

static void keep_guesses(void) {
    for (size_t i = 0; i < ws_work->listed_count; i++) {
        ws_work->guesses[i] = ws_work->listed[i].state;
    }
    ws_work->guess_count = ws_work->listed_count;
}

/* The list of threads, newest first; if it changes during each reading, what could be read.
 *
 * A thread that is about to start is the head of the list for a moment in which it leads to no
 * other. So a list without the main thread, which is the oldest one, is not the whole list. */
static void list_threads(ws_snapshot *out) {
    const ws_layout_t *at = &ws_layout;
    const struct timespec moment = {0, 100000};
    ws_work->listed_count = 0;
    for (int i = 0; i < TRIES && !ws_time_over(); i++) {
        uintptr_t next, previous = 0;
        size_t count = 0, guess = 0, there = 0, place = 0;
        bool whole = at->main_state == 0;
        /* The GIL first: what follows is of this moment if the GIL is still the same later. */
        ws_read heads[] = {
            {at->gil, ws_work->gil, (uint32_t)at->gil_read, false},
            {at->interpreter + at->thread_head, &next, sizeof next, false},
        };
        ws_read_many(heads, 2);
        if (!heads[1].ok) {
            break;
        }
        ws_work->listed_at = ws_moment_of(ws_work->gil, heads[0].ok);
        while (next != 0 && count < WS_MAX_THREADS) {
            while (place < there && ws_work->reads[place].address != next) {
                place++; /* it has ended since the last listing */
            }
            if (place == there) {
                there = read_states(next, &guess);
                place = 0;
            }
            const char *state = ws_work->states[place];
            if (!ws_work->reads[place].ok
                || ws_pointer(state, at->state_interpreter) != at->interpreter
                || ws_pointer(state, at->state_prev) != previous) {
                break;
            }
            place++;
            ws_listed *listed = &ws_work->listed[count++];
            listed->state = next;
            memcpy(&listed->ident, state + at->state_ident, sizeof listed->ident);
            listed->frame = ws_pointer(state, at->state_frame);
            listed->native_id = 0;
            if (at->state_native != WS_NONE) {
                unsigned long native;
                memcpy(&native, state + at->state_native, sizeof native);
                listed->native_id = native <= INT32_MAX ? (long)native : 0;
            }
            previous = next;
            whole = whole || next == at->main_state;
            next = ws_pointer(state, at->state_next);
        }
        ws_work->listed_count = count;
        if ((next == 0 && whole) || count == WS_MAX_THREADS) {
            out->truncated = next != 0;
            keep_guesses();
            return;
        }
        if (next == 0) {
            nanosleep(&moment, NULL); /* that thread's starter may wait for this processor */
        }
    }
    out->truncated = true;
}

/* All of `out` is of one moment: what can move is read twice. */
void ws_gil_read(ws_gil *out) {
    const ws_layout_t *at = &ws_layout;
    char gil[WS_GIL_MAX], again[WS_GIL_MAX];
    memset(out, 0, sizeof *out);
    if (!ws_read_one(at->gil, gil, at->gil_read)) {
        return;
    }
    for (int i = 0; i < TRIES; i++) {
        char state[WS_STATE_MAX];
        uintptr_t holder = ws_pointer(gil, at->gil_holder);
        unsigned long switches, ident;
        ws_read reads[] = {{holder, state, (uint32_t)at->state_size, false},
                           {at->gil, again, (uint32_t)at->gil_read, false}};
        memcpy(&switches, gil + at->gil_switches, sizeof switches);
        out->known = true;
        out->switches = switches;
        out->locked = ws_int(gil, at->gil_locked) > 0;
        out->holder = 0;
        if (!out->locked) {
            return;
        }
        ws_read_many(reads, 2);
        if (!reads[1].ok) {
            return;
        }
        if (reads[0].ok && ws_pointer(state, at->state_interpreter) == at->interpreter) {
            memcpy(&ident, state + at->state_ident, sizeof ident);
            out->holder = ident;
        }
        if (ws_pointer(again, at->gil_holder) == holder
            && ws_int(again, at->gil_locked) == ws_int(gil, at->gil_locked)) {
            return;
        }
        memcpy(gil, again, sizeof gil);
    }
    out->holder = 0;
}

/* Before CPython 3.12 a thread that is about to start still has the ident of the one that starts
 * it; after that, none. */
static bool starting(const ws_thread *thread) {
    if (thread->count > 0 || thread->truncated) {
        return false;
    }
    size_t same = 0;
    for (size_t i = 0; i < ws_work->listed_count; i++) {
        same += ws_work->listed[i].ident == thread->ident;
    }
    return thread->ident == 0 || same > 1;
}

static void take(
    ws_arena *arena, ws_snapshot *out, bool facts, const ws_visitor *visitor) {
    list_threads(out);
    if (!ws_work->listed_at.known || ws_int(ws_work->gil, ws_layout.gil_locked) > 0) {
        ws_gil gil;
        ws_gil_read(&gil);
        out->holder = gil.holder;
    }
    ws_codes_clear();
    ws_together_start();
    for (size_t i = 0, first = 0, ready = 0; i < ws_work->listed_count; i++) {
        ws_thread *thread = &out->threads[out->thread_count];
        if (out->frame_count == WS_MAX_FRAMES || ws_time_over()) {
            out->truncated = true;
            break;
        }
        const ws_listed *listed = &ws_work->listed[i];
        if (visitor != NULL && !visitor->before(visitor->data, listed->ident, listed->native_id)) {
            continue;
        }
        size_t frames = out->frame_count;
        assert(i < WS_MAX_THREADS && out->thread_count <= i);
        if (visitor == NULL && i >= first + ready) { /* a visitor wants one after the other */
            first = i;
            ready = ws_together_read(arena, first);
        }
        bool taken = i < first + ready && ws_together_take(i - first, listed, out, thread);
        if (!taken) {
            ready = 0;
            taken = ws_stack_take(arena, listed, out, thread);
        }
        if (!taken || starting(thread)) {
            out->frame_count = frames;
            continue;
        }
        out->main_ident = thread->ident == ws_layout.main_ident ? thread->ident : out->main_ident;
        out->thread_count++;
        if (visitor != NULL) {
            visitor->after(visitor->data, out, thread);
        }
    }
    if (visitor == NULL || visitor->names(visitor->data)) {
        ws_names_take(arena, out);
    }
    if (facts) {
        ws_waits_take(arena, out, ws_work->places);
    }
}

/* The memory of the last small snapshot, for the next one: to map it, to touch it and to unmap it
 * takes as long as many reads. Its first word says what ws_arena calls `dirty`. */
static void *_Atomic spare;

static void drop_spare(void) {
    void *old = atomic_exchange(&spare, NULL);
    if (old != NULL) {
        munmap(old, WS_ARENA);
    }
}

static bool find_memory(ws_arena *arena) {
    void *base = atomic_exchange(&spare, NULL);
    if (base == NULL) {
        return ws_arena_make(arena);
    }
    *arena = (ws_arena){.base = base};
    memcpy(&arena->dirty, base, sizeof arena->dirty);
    return true;
}

/* 0, -1: no thread was found, -2: no memory. A visitor's `out` may bring the memory of its last
 * snapshot. */
static int take_snapshot(ws_snapshot *out, bool facts, const ws_visitor *visitor) {
    ws_arena arena = {.base = NULL};
    struct timespec now;
    if (visitor != NULL) {
        arena = (ws_arena){out->arena, 0, out->arena_dirty};
    }
    memset(out, 0, sizeof *out);
    out->mode = WS_MODE_NOGIL;
    out->pid = (int)getpid();
    if (clock_gettime(CLOCK_REALTIME, &now) == 0) {
        out->time = (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
    }
    if (arena.base == NULL && !find_memory(&arena)) {
        return -2;
    }
    size_t dirty = arena.dirty;
    arena.dirty = 0; /* of the next two, each field is written anew */
    out->arena = arena.base;
    out->arena_size = WS_ARENA;
    out->threads = ws_arena_take(&arena, sizeof(ws_thread) * WS_MAX_THREADS);
    out->frames = ws_arena_take(&arena, sizeof(ws_frame) * WS_MAX_FRAMES);
    size_t names = arena.used;
    arena.dirty = dirty > names ? dirty : names;
    ws_time_start();
    take(&arena, out, facts, visitor);
    out->arena_dirty = arena.dirty;
    out->arena_small = arena.dirty - names + out->thread_count * sizeof(ws_thread)
                           + out->frame_count * sizeof(ws_frame)
                       <= WS_SMALL;
    ws_check_snapshot(out);
    if (out->thread_count == 0) {
        if (visitor == NULL) {
            ws_selfread_free(out);
        }
        return -1;
    }
    return 0;
}

int ws_selfread_prepare(void) {
    const char *found = NULL;
    ws_snapshot snapshot;
    bool may_pass = false;
    if (atomic_load(&ready) == (int)getpid() && !atomic_load(&passing)) {
        return atomic_load(&trouble) == NULL ? 0 : -1;
    }
    begin_reading();
    ws_read_start();
    if (ws_work == NULL) {
        void *work = mmap(NULL, sizeof *ws_work, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        ws_work = work == MAP_FAILED ? NULL : work;
    }
    if (ws_work == NULL) {
        found = WS_NO_MEMORY;
    }
    if (found == NULL) {
        found = ws_layout_learn();
    }
    if (found == NULL) {
        found = "the kernel lets nobody read its own memory here";
        char probe[sizeof found];
        if (ws_read_one((uintptr_t)&found, probe, sizeof probe)) {
            found = NULL;
        } else {
            may_pass = true; /* prctl(PR_SET_DUMPABLE) forbids it, and allows it again */
        }
    }
    if (found == NULL) {
        int taken = take_snapshot(&snapshot, false, NULL);
        bool late = ws_time_over(); /* so what is missing says nothing of the layout */
        found = taken == 0 ? ws_layout_check(&snapshot)
                           : "this CPython's memory layout differs (no threads)";
        if (taken == -2) {
            found = WS_NO_MEMORY;
        } else if (found != NULL && late) {
            found = "the machine is too busy to read stacks just now";
            may_pass = true;
        }
        ws_selfread_free(&snapshot);
        /* Perhaps nobody ever asks for a snapshot. */
        drop_spare();
        madvise(ws_work, sizeof *ws_work, MADV_DONTNEED);
    }
    atomic_store(&passing, may_pass || found == WS_NO_MEMORY);
    atomic_store(&trouble, found);
    atomic_store(&ready, (int)getpid());
    end_reading();
    return found == NULL ? 0 : -1;
}

const char *ws_selfread_problem(void) {
    return atomic_load(&ready) == (int)getpid() ? atomic_load(&trouble) : UNPREPARED;
}

static int take_ready(ws_snapshot *out, bool facts, const ws_visitor *visitor) {
    int saved = errno, result = -1;
    if (ws_selfread_problem() != NULL) {
        if (visitor != NULL) {
            ws_selfread_free(out);
        }
        memset(out, 0, sizeof *out);
        out->mode = WS_MODE_NOGIL;
    } else {
        begin_reading();
        result = take_snapshot(out, facts, visitor) == 0 ? 0 : -1;
        /* What a huge process left here is not kept. */
        kept = ws_work->code_count <= 4096 && ws_work->string_count <= 4096
               && out->frame_count <= 16384;
        if (!kept) {
            madvise(ws_work, sizeof *ws_work, MADV_DONTNEED);
        }
        end_reading();
    }
    errno = saved;
    return result;
}

int ws_selfread_take(ws_snapshot *out, bool facts) {
    return take_ready(out, facts, NULL);
}

int ws_selfread_visit(ws_snapshot *out, const ws_visitor *visitor) {
    return take_ready(out, false, visitor);
}

const ws_place *ws_selfread_places(void) {
    return kept ? ws_work->places : NULL;
}

void ws_selfread_free(ws_snapshot *snapshot) {
    int saved = errno;
    void *base = snapshot->arena;
    if (base != NULL && snapshot->arena_small) {
        memcpy(base, &snapshot->arena_dirty, sizeof snapshot->arena_dirty);
        base = atomic_exchange(&spare, base);
    }
    if (base != NULL) {
        munmap(base, WS_ARENA);
    }
    memset(snapshot, 0, sizeof *snapshot);
    errno = saved;
}

void ws_selfread_gil(ws_gil *out) {
    int saved = errno;
    memset(out, 0, sizeof *out);
    if (ws_selfread_problem() == NULL) {
        ws_gil_read(out);
    }
    errno = saved;
}
