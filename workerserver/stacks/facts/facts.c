/* What each thread waits for, and who holds the lock.
 *
 * A frame inside `with lock:` is a candidate only. It holds the lock if no newer frame of its
 * thread is a known release of it, if the lock's own state is locked (and an RLock's owner agrees),
 * and if no other thread is a candidate.
 *
 * Without the GIL everything is read twice, and only what is the same both times is kept. A holder
 * is kept only if the waiting thread and the holding thread did not run or sleep anew meanwhile:
 * their counts of context switches, read before the first reading and after the second one, are
 * equal, and the waiting thread sleeps. All first readings come before the second ones. */
#define _GNU_SOURCE
#include "facts.h"
#include "known.h"

#include <assert.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sleep.h"

enum {
    DEPTH = 200,   /* newest frames of a thread that are looked at */
    SPOTS = 16384, /* frames of a snapshot */
    WITHS = 512,
    RELEASES = 256,
    LOCKS = 256,
};

/* What is known of one lock. */
typedef struct {
    uintptr_t address;
    ws_wait_kind kind;
    bool locked;
    unsigned long owner; /* RLock: ident, 0: nobody */
    size_t candidates;   /* threads */
    uint32_t thread;     /* the last candidate, and its oldest frame */
    int frame;
    int64_t holder; /* index of the thread that is proven to hold it, -1: none */
} lock;

/* A Condition.wait that has given its lock back. */
typedef struct {
    uint32_t thread, index;
    uintptr_t lock; /* 0: not readable, so any */
} release;

/* One reading of all threads. */
typedef struct {
    ws_wait *waits;
    unsigned long *owners; /* of import locks, by the thread that waits */
    bool *inside; /* threads that are candidates for any lock */
    ws_with *withs; /* of locks */
    size_t with_count;
    lock *locks;
    size_t lock_count;
    const ws_function **functions; /* by spot; NULL: not a known one */
    ws_locals *locals;             /* of these */
} reading;

typedef struct {
    ws_arena *arena;
    const ws_snapshot *snapshot;
    ws_spot *spots;
    size_t spot_count;
} look;

/* ---- known functions ---- */

static bool is_lock(ws_wait_kind kind) {
    return kind == WS_WAIT_LOCK || kind == WS_WAIT_RLOCK;
}

/* Takes over what an older function of the same call says: the outermost one says it best, but for
 * a lock inside it, an operation inside a larger one, or a process whose id only the inner knows. */
static bool outer_says_more(const ws_wait *inner, const ws_wait *outer) {
    if (inner->kind == WS_WAIT_NONE) {
        return true;
    }
    if (is_lock(inner->kind) || inner->kind == WS_WAIT_OPERATION
        || inner->kind == WS_WAIT_IMPORT_LOCK) {
        return false;
    }
    return outer->kind != WS_WAIT_STORE;
}

/* Reads the locals of all known functions. False: no memory. */
static bool read_functions(const look *at, reading *out) {
    out->functions = ws_arena_take(at->arena, (at->spot_count + 1) * sizeof *out->functions);
    out->locals = ws_arena_take(at->arena, (at->spot_count + 1) * sizeof *out->locals);
    if (out->functions == NULL || out->locals == NULL) {
        return false;
    }
    for (size_t i = 0; i < at->spot_count; i++) {
        out->functions[i] = ws_function_find(at->spots[i].code);
    }
    ws_locals_read(at->spots, out->functions, at->spot_count, out->locals);
    return true;
}

/* The newest frames of a thread that are known functions, up to the first that is not. */
static void take_known(const look *at, size_t start, size_t count, reading *out) {
    const ws_spot *spots = at->spots + start;
    ws_wait *wait = &out->waits[spots->thread];
    for (size_t i = 0; i < count; i++) {
        const ws_function *function = out->functions[start + i];
        ws_wait found;
        unsigned long owner;
        if (function == NULL || spots[i].index != i) {
            return;
        }
        if (function->kind == WS_WAIT_NONE
            || !ws_locals_take(at->arena, function, &spots[i], &out->locals[start + i], &found,
                               &owner)
            || !outer_says_more(wait, &found)) {
            continue;
        }
        if (found.kind == WS_WAIT_RENDEZVOUS && found.keys[0].kind == 0) {
            memcpy(found.keys, wait->keys, sizeof found.keys);
        }
        *wait = found;
        out->owners[spots->thread] = owner;
    }
}

/* ---- locks ---- */

static lock *lock_at(reading *out, uintptr_t address, ws_wait_kind kind) {
    for (size_t i = 0; i < out->lock_count; i++) {
        if (out->locks[i].address == address) {
            return &out->locks[i];
        }
    }
    if (out->lock_count == LOCKS) {
        return NULL;
    }
    lock *found = &out->locks[out->lock_count++];
    memset(found, 0, sizeof *found);
    found->address = address;
    found->kind = kind;
    found->holder = -1;
    return found;
}

/* Whether frame `i` is in a Condition.wait; `*self` is the Condition, 0: not readable. */
static bool in_condition(const reading *from, size_t i, uintptr_t *self) {
    const ws_function *function = from->functions[i];
    if (function == NULL || function->kind != WS_WAIT_CONDITION) {
        return false;
    }
    *self = from->locals[i].good ? from->locals[i].values[WS_ROLE_SELF] : 0;
    return true;
}

/* Finds out about the locks of all with blocks and Conditions together. */
static void learn_locks(const look *at, const reading *from, ws_locks *known) {
    uintptr_t objects[2 * WS_LOCKS_TOGETHER], self;
    size_t count = 0;
    for (size_t i = 0; i < from->with_count && count < WS_LOCKS_TOGETHER; i++) {
        objects[count++] = from->withs[i].manager;
    }
    for (size_t i = 0; i < at->spot_count && count < 2 * WS_LOCKS_TOGETHER; i++) {
        if (in_condition(from, i, &self) && self != 0) {
            objects[count++] = self;
        }
    }
    ws_locks_learn(known, objects, count);
}

static size_t take_releases(const look *at, const reading *from, ws_locks *known, release *out) {
    size_t count = 0;
    uintptr_t self;
    for (size_t i = 0; i < at->spot_count && count < RELEASES; i++) {
        if (in_condition(from, i, &self)) {
            ws_wait_kind kind;
            uintptr_t address = self == 0 ? 0 : ws_lock_of(known, self, &kind);
            out[count++] = (release){at->spots[i].thread, at->spots[i].index, address};
        }
    }
    return count;
}

static bool released(const release *releases, size_t count, const ws_with *with,
                     uintptr_t address) {
    for (size_t i = 0; i < count; i++) {
        if (releases[i].thread == with->thread && releases[i].index < with->index
            && (releases[i].lock == address || releases[i].lock == 0)) {
            return true;
        }
    }
    return false;
}

static void add_candidate(reading *out, const ws_with *with, uintptr_t address,
                          ws_wait_kind kind) {
    lock *of = lock_at(out, address, kind);
    if (of == NULL) {
        return;
    }
    if (of->candidates == 0 || of->thread != with->thread) {
        of->candidates++;
    }
    out->inside[with->thread] = true;
    of->thread = with->thread;
    of->frame = (int)with->index;
}

/* Forgets with blocks of anything but locks and Conditions; the types are read together. */
static size_t keep_locks(ws_arena *arena, ws_with *withs, size_t count) {
    uintptr_t *types = ws_arena_take(arena, count * sizeof *types);
    ws_read *reads = ws_arena_take(arena, count * sizeof *reads);
    size_t kept = 0;
    if (types == NULL || reads == NULL) {
        return 0;
    }
    for (size_t i = 0; i < count; i++) {
        reads[i] = (ws_read){withs[i].manager + ws_layout.object_type, &types[i], sizeof types[i],
                             false};
    }
    ws_read_many(reads, count);
    for (size_t i = 0; i < count; i++) {
        if (reads[i].ok && types[i] != 0
            && (types[i] == ws_known.condition_type || ws_lock_kind(types[i]) != WS_WAIT_NONE)) {
            withs[kept++] = withs[i];
        }
    }
    return kept;
}

static void take_withs(const look *at, reading *out) {
    ws_with *withs = out->withs;
    release *releases = ws_arena_take(at->arena, RELEASES * sizeof *releases);
    ws_locks known = {.count = 0};
    out->with_count = 0;
    if (releases == NULL || !atomic_load(&ws_known.withs)) {
        return;
    }
    size_t count = ws_withs_take(at->arena, at->spots, at->spot_count, withs, WITHS);
    count = out->with_count = keep_locks(at->arena, withs, count);
    size_t release_count = 0;
    if (count > 0) {
        learn_locks(at, out, &known);
        release_count = take_releases(at, out, &known, releases);
    }
    for (size_t i = 0; i < count; i++) {
        ws_wait_kind kind = WS_WAIT_NONE;
        uintptr_t address = ws_lock_of(&known, withs[i].manager, &kind);
        if (address == 0) {
            continue;
        }
        if (withs[i].entering) {
            out->waits[withs[i].thread] = (ws_wait){
                .kind = kind, .source = WS_FROM_WITH, .frame = (int)withs[i].index,
                .object = address,
            };
        } else if (release_count == RELEASES
                   || released(releases, release_count, &withs[i], address)
                   || ws_names_mention(withs[i].names, ws_known.key_release)) {
            continue;
        } else {
            add_candidate(out, &withs[i], address, kind);
        }
    }
}

static void read_state(lock *of) {
    unsigned char byte = 0;
    unsigned long owner = 0;
    if (of->kind == WS_WAIT_RLOCK && ws_known.rlock_owner != 0
        && ws_read_one(of->address + ws_known.rlock_owner, &owner, sizeof owner)) {
        of->owner = owner;
        of->locked = owner != 0;
    }
    if (of->kind == WS_WAIT_LOCK && ws_known.lock_locked != 0
        && ws_read_one(of->address + ws_known.lock_locked, &byte, sizeof byte)) {
        of->locked = byte & 1;
    }
}

static void find_holder(const look *at, lock *of) {
    if (!of->locked || of->candidates > 1) {
        return;
    }
    int64_t owner = ws_thread_of(at->snapshot, of->owner);
    if (of->kind == WS_WAIT_RLOCK) {
        /* An RLock knows its owner. The frame only tells where it was taken. */
        if (of->candidates == 0 || owner == (int64_t)of->thread) {
            of->holder = owner;
            of->frame = of->candidates == 0 ? -1 : of->frame;
        }
    } else if (of->candidates == 1) {
        of->holder = of->thread;
    }
}

static void read_once(const look *at, reading *out) {
    const ws_spot *spots = at->spots;
    memset(out->waits, 0, at->snapshot->thread_count * sizeof *out->waits);
    memset(out->owners, 0, at->snapshot->thread_count * sizeof *out->owners);
    memset(out->inside, 0, at->snapshot->thread_count * sizeof *out->inside);
    out->lock_count = 0;
    out->with_count = 0;
    if (!read_functions(at, out)) {
        return;
    }
    for (size_t i = 0; i < at->spot_count;) {
        size_t count = 1;
        while (i + count < at->spot_count && spots[i + count].thread == spots[i].thread) {
            count++;
        }
        take_known(at, i, count, out);
        i += count;
    }
    take_withs(at, out);
    for (size_t i = 0; i < at->snapshot->thread_count; i++) {
        if (is_lock(out->waits[i].kind)) {
            lock_at(out, out->waits[i].object, out->waits[i].kind);
        }
    }
    for (size_t i = 0; i < out->lock_count; i++) {
        read_state(&out->locks[i]);
        find_holder(at, &out->locks[i]);
    }
}

static bool reading_make(ws_arena *arena, size_t threads, reading *out) {
    memset(out, 0, sizeof *out);
    out->waits = ws_arena_take(arena, (threads + 1) * sizeof *out->waits);
    out->owners = ws_arena_take(arena, (threads + 1) * sizeof *out->owners);
    out->inside = ws_arena_take(arena, threads + 1);
    out->locks = ws_arena_take(arena, LOCKS * sizeof *out->locks);
    out->withs = ws_arena_take(arena, WITHS * sizeof *out->withs);
    return out->withs != NULL && out->inside != NULL && out->waits != NULL && out->owners != NULL && out->locks != NULL;
}

/* ---- what a snapshot gets ---- */

static bool look_make(ws_arena *arena, const ws_snapshot *snapshot, const ws_place *places,
                      look *out) {
    size_t most = snapshot->frame_count < SPOTS ? snapshot->frame_count : SPOTS;
    *out = (look){arena, snapshot, ws_arena_take(arena, (most + 1) * sizeof(ws_spot)), 0};
    for (size_t i = 0; i < snapshot->thread_count && out->spots != NULL; i++) {
        const ws_thread *thread = &snapshot->threads[i];
        size_t count = thread->unstable ? 0 : thread->count < DEPTH ? thread->count : DEPTH;
        for (size_t j = 0; j < count && out->spot_count < most; j++) {
            const ws_place *place = &places[thread->start + j];
            if (place->plain && ws_function_find(place->code) == NULL) {
                continue;
            }
            out->spots[out->spot_count++] =
                (ws_spot){place->frame, place->code, (uint32_t)i, (uint32_t)j};
        }
    }
    return out->spots != NULL;
}

/* Gives the snapshot's waits their holders, and the snapshot its holds. */
static void finish(ws_arena *arena, ws_snapshot *out, reading *from) {
    ws_hold *holds = ws_arena_take(arena, WS_MAX_HOLDS * sizeof *holds);
    out->waits = from->waits;
    for (size_t i = 0; i < out->thread_count; i++) {
        ws_wait *wait = &out->waits[i];
        int64_t holder = ws_thread_of(out, from->owners[i]);
        if (is_lock(wait->kind)) {
            lock *of = lock_at(from, wait->object, wait->kind);
            holder = of == NULL ? -1 : of->holder;
        }
        wait->holder = holder < 0 ? 0 : out->threads[holder].native_id;
    }
    for (size_t i = 0; i < out->thread_count && holds != NULL; i++) {
        for (size_t j = 0; j < from->lock_count && out->hold_count < WS_MAX_HOLDS; j++) {
            const lock *of = &from->locks[j];
            if (of->holder == (int64_t)i) {
                holds[out->hold_count++] = (ws_hold){of->kind, i, of->frame, of->address};
            }
        }
    }
    out->holds = holds;
}

void ws_waits_with_gil(ws_snapshot *snapshot, const ws_place *places) {
    ws_arena arena;
    look at;
    reading found;
    if (ws_selfread_problem() != NULL || !atomic_load(&ws_known.locals)
        || !ws_arena_make(&arena)) {
        return;
    }
    snapshot->waits_arena = arena.base;
    snapshot->waits_size = WS_ARENA;
    if (look_make(&arena, snapshot, places, &at)
        && reading_make(&arena, snapshot->thread_count, &found)) {
        read_once(&at, &found);
        finish(&arena, snapshot, &found);
    }
}

void ws_waits_free(ws_snapshot *snapshot) {
    if (snapshot->waits_arena != NULL) {
        munmap(snapshot->waits_arena, snapshot->waits_size);
    }
    snapshot->waits_arena = NULL;
}

/* ---- without the GIL: twice ---- */

static bool same_text(const ws_name *one, const ws_name *other) {
    return one->kind == other->kind && one->length == other->length && one->cut == other->cut
           && (one->kind == 0 || memcmp(one->data, other->data, one->length * one->kind) == 0);
}

static bool same_wait(const ws_wait *one, const ws_wait *other) {
    bool same = one->kind == other->kind && one->source == other->source
                && one->frame == other->frame && one->object == other->object
                && one->native_id == other->native_id && one->pid == other->pid
                && one->has_peer == other->has_peer && one->peer == other->peer
                && one->has_tag == other->has_tag && one->tag == other->tag
                && one->op == other->op && same_text(&one->thread_name, &other->thread_name)
                && same_text(&one->group, &other->group)
                && same_text(&one->description, &other->description)
                && same_text(&one->ranks, &other->ranks);
    for (size_t i = 0; i < WS_WAIT_KEYS; i++) {
        same = same && same_text(&one->keys[i], &other->keys[i]);
    }
    return same;
}

/* Which threads anything was found of: those that wait, are inside a with block, or own a lock.
 * Returns how many locks have a holder. */
static size_t keep_found(const look *at, const reading *found, bool *keep) {
    size_t holders = 0;
    for (size_t i = 0; i < at->snapshot->thread_count; i++) {
        keep[i] = found->waits[i].kind != WS_WAIT_NONE || found->inside[i];
    }
    for (size_t i = 0; i < at->snapshot->thread_count; i++) {
        int64_t owner = ws_thread_of(at->snapshot, found->owners[i]);
        if (owner >= 0) {
            keep[owner] = true;
            holders++;
        }
    }
    for (size_t i = 0; i < found->lock_count; i++) {
        if (found->locks[i].holder >= 0) {
            keep[found->locks[i].holder] = true;
            holders++;
        }
    }
    return holders;
}

/* Keeps only the frames that told anything: known functions, and those inside with blocks. */
static void drop_spots(look *at, const reading *found, const bool *keep) {
    size_t kept = 0, with = 0;
    for (size_t i = 0; i < at->spot_count; i++) {
        const ws_spot *spot = &at->spots[i];
        while (with < found->with_count
               && (found->withs[with].thread < spot->thread
                   || (found->withs[with].thread == spot->thread
                       && found->withs[with].index < spot->index))) {
            with++;
        }
        bool inside = with < found->with_count && found->withs[with].thread == spot->thread
                      && found->withs[with].index == spot->index;
        if (keep[spot->thread] && (inside || ws_function_find(spot->code) != NULL)) {
            at->spots[kept++] = *spot;
        }
    }
    at->spot_count = kept;
}

static void read_switches(const ws_snapshot *snapshot, const bool *keep, ws_switches *out) {
    for (size_t i = 0; i < snapshot->thread_count; i++) {
        if (keep[i]) {
            ws_kernel_switches(snapshot->threads[i].native_id, &out[i]);
        }
    }
}

/* Drops the holders of `second` that the first reading, or a context switch, puts in doubt. */
static void confirm(const look *at, reading *first, reading *second, const ws_switches *before,
                    const ws_switches *after) {
    const ws_snapshot *snapshot = at->snapshot;
    for (size_t i = 0; i < second->lock_count; i++) {
        lock *of = &second->locks[i];
        const lock *old = lock_at(first, of->address, of->kind);
        if (old == NULL || old->holder != of->holder || old->frame != of->frame
            || (of->holder >= 0 && !ws_stood(&before[of->holder], &after[of->holder]))) {
            of->holder = -1;
        }
    }
    for (size_t i = 0; i < snapshot->thread_count; i++) {
        int64_t owner = ws_thread_of(snapshot, second->owners[i]);
        bool still = ws_stood(&before[i], &after[i]) && ws_sleeps(&after[i]);
        if (!same_wait(&first->waits[i], &second->waits[i])) {
            memset(&second->waits[i], 0, sizeof second->waits[i]);
        }
        if (first->owners[i] != second->owners[i] || !still
            || (owner >= 0 && !ws_stood(&before[owner], &after[owner]))) {
            second->owners[i] = 0;
        }
    }
}

/* A thread that does not sleep through both readings is not proven to wait for the lock. */
static void drop_restless(ws_snapshot *out, const ws_switches *before,
                          const ws_switches *after) {
    for (size_t i = 0; i < out->thread_count; i++) {
        if (out->waits[i].holder != 0 && !(ws_stood(&before[i], &after[i]) && ws_sleeps(&after[i]))) {
            out->waits[i].holder = 0;
        }
    }
}

void ws_waits_take(ws_arena *arena, ws_snapshot *out, const ws_place *places) {
    look at;
    reading first, second;
    size_t threads = out->thread_count;
    if (!atomic_load(&ws_known.locals)) {
        return;
    }
    ws_switches *before = ws_arena_take(arena, (threads + 1) * sizeof *before);
    ws_switches *after = ws_arena_take(arena, (threads + 1) * sizeof *after);
    bool *keep = ws_arena_take(arena, threads + 1);
    if (before == NULL || after == NULL || keep == NULL
        || !look_make(arena, out, places, &at) || !reading_make(arena, threads, &first)
        || !reading_make(arena, threads, &second)) {
        return;
    }
    memset(before, 0, threads * sizeof *before);
    memset(after, 0, threads * sizeof *after);
    read_once(&at, &first);
    bool held = keep_found(&at, &first, keep) > 0;
    drop_spots(&at, &first, keep);
    if (held) {
        read_switches(out, keep, before);
        read_once(&at, &first);
    }
    read_once(&at, &second);
    if (held) {
        read_switches(out, keep, after);
    }
    confirm(&at, &first, &second, before, after);
    finish(arena, out, &second);
    drop_restless(out, before, after);
    ws_gil_waits_take(out);
}
