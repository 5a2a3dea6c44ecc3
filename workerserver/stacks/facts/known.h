/* Shared by the files of facts/: with blocks, and what is known of library functions and locks. */
#ifndef WS_KNOWN_H
#define WS_KNOWN_H

#include "internal.h"

#pragma GCC visibility push(hidden)

/* --- with blocks: withs.c. Any thread too. */

/* A Python frame to look at. */
typedef struct {
    uintptr_t frame, code;
    uint32_t thread, index; /* among the snapshot's threads, and among the thread's frames */
} ws_spot;

typedef struct {
    uint32_t thread, index;
    uintptr_t manager;
    uintptr_t names; /* the tuple of names that the frame's code uses */
    bool entering;   /* inside __enter__, not yet inside the block */
} ws_with;

/* The with blocks that frames are inside, in the order of the frames. At most `most`. */
size_t ws_withs_take(ws_arena *arena, const ws_spot *spots, size_t count, ws_with *out,
                     size_t most);
/* Whether code uses a name; true too where that can't be read. */
bool ws_names_mention(uintptr_t names, uintptr_t name);

/* --- what is known of library functions and locks: known.c */

/* What a local variable of a known function means. */
enum {
    WS_ROLE_SELF,       /* the object itself */
    WS_ROLE_PEER,       /* a global rank */
    WS_ROLE_GROUP_PEER, /* a rank in the group */
    WS_ROLE_GROUP,      /* a process group, None: the default one */
    WS_ROLE_TAG,
    WS_ROLE_KEY, /* a key of a store */
    WS_ROLE_OTHER_KEY,
    WS_ROLES,
};

typedef struct {
    _Atomic uintptr_t code; /* written last; 0: none */
    uint8_t kind;           /* ws_wait_kind; WS_WAIT_NONE: it only calls another known function */
    const char *op;
    uintptr_t attribute; /* of self: the lock, the process id */
    int16_t locals[WS_ROLES]; /* places among the frame's locals, -1: none */
} ws_function;

enum { WS_FUNCTIONS = 512 }; /* places; at most half of them are used */

/* Learnt with the GIL. What it points at is kept for ever, so no other object takes an address. */
typedef struct {
    _Atomic bool locals, withs; /* proven; all else was written before */
    unsigned char before_with, with_except_start, load_special; /* numbers of instructions */
    uintptr_t none_object;
    uintptr_t lock_type, rlock_type, condition_type;
    size_t lock_locked, rlock_owner; /* offsets: a byte with bit 0, an ident; 0: not known */
    uintptr_t key_lock, key_owner, key_name, key_native, key_module, key_release, key_default;
    /* Dicts by process group, one by the name of a group, and an object; 0: no torch yet. */
    _Atomic uintptr_t group_names, group_ranks, group_words, world;
    size_t count;
    ws_function functions[WS_FUNCTIONS];
} ws_known_t;

extern ws_known_t ws_known;

/* NULL: not known. */
const ws_function *ws_function_find(uintptr_t code);
/* With the GIL: a place for a function, whose `code` the caller writes last. NULL: it is known, or
 * there is no place. */
ws_function *ws_function_add(uintptr_t code);

/* --- what a known function waits for: locals.c */

/* The named locals of a frame, in one reading. */
typedef struct {
    bool good; /* the frame still executes its code object */
    uintptr_t values[WS_ROLES];
} ws_locals;

/* Reads those of all frames of known functions together: functions[i] is the one of spots[i], or
 * NULL. */
void ws_locals_read(const ws_spot *spots, const ws_function *const *functions, size_t count,
                    ws_locals *out);
/* Reads what a known function waits for. False: not readable. Of an import lock `*owner` gets the
 * ident of the thread that holds it. */
bool ws_locals_take(ws_arena *arena, const ws_function *function, const ws_spot *spot,
                    const ws_locals *locals, ws_wait *out, unsigned long *owner);
/* WS_WAIT_LOCK, WS_WAIT_RLOCK, or WS_WAIT_NONE for another type. */
ws_wait_kind ws_lock_kind(uintptr_t type);

enum { WS_LOCKS_TOGETHER = 32 };

/* What was found of some objects in one reading; all zero: of none. */
typedef struct {
    ws_types types;
    size_t count;
    struct {
        uintptr_t object, lock;
        ws_wait_kind kind;
    } locks[WS_LOCKS_TOGETHER];
} ws_locks;

/* Finds out about many objects together, so that ws_lock_of() need not. */
void ws_locks_learn(ws_locks *known, const uintptr_t *objects, size_t count);
/* The lock that a Condition, a lock or an RLock stands for; 0: none. */
uintptr_t ws_lock_of(ws_locks *known, uintptr_t object, ws_wait_kind *kind);

/* --- who waits for the GIL: gil.c */

/* Threads that sleep in the futex of the GIL. Each is looked at twice, with the same holder of the
 * GIL before and after, and no context switch in between. */
void ws_gil_waits_take(ws_snapshot *out);

/* The index of the thread with that ident; -1: none. */
static inline int64_t ws_thread_of(const ws_snapshot *snapshot, unsigned long ident) {
    for (size_t i = 0; i < snapshot->thread_count && ident != 0; i++) {
        if (snapshot->threads[i].ident == ident) {
            return (int64_t)i;
        }
    }
    return -1;
}

#pragma GCC visibility pop

#endif
