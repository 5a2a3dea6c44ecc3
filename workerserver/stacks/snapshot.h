/* The one data model of a stack snapshot: threads -> frames -> names, in plain C.
 *
 * A snapshot is filled with the GIL (snapshot.pyx) or without it (selfread/) and rendered by
 * render.c, which needs neither Python nor the GIL. */
#ifndef WS_SNAPSHOT_H
#define WS_SNAPSHOT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A Python string as CPython stores it (PEP 393): `length` code points of `kind` bytes each (1, 2
 * or 4). kind 0: not a string, or not readable. The data is borrowed: from a str that is kept
 * alive, or from the snapshot's own arena. `cut`: the string is longer than what is here. */
typedef struct {
    const void *data;
    size_t length;
    uint8_t kind;
    bool cut;
} ws_name;

typedef struct {
    ws_name file;
    ws_name function;
    ws_name qualname; /* kind 0 before CPython 3.11 */
    int line;         /* -1: unknown */
    int first_line;   /* of the function; mode "nogil" only */
} ws_frame;

typedef struct {
    unsigned long ident; /* 0: not known to Python (mode "kernel") */
    long native_id;      /* 0: unknown */
    ws_name name;        /* kind 0: not known to threading */
    size_t start;        /* of its frames, newest first, among all frames */
    size_t count;
    signed char daemon; /* -1: unknown */
    bool truncated;     /* frames were left out, or could not be read */
    bool unstable;      /* changed each time it was read; the newest frames may be missing */
} ws_thread;

/* Where a frame of a snapshot, and its code object, lie. */
typedef struct {
    uintptr_t frame, code;
    bool plain; /* its code catches no exceptions, so it has no with block */
} ws_place;

/* What a thread waits for. The order is that of the words in render_waits.c. */
typedef enum {
    WS_WAIT_NONE,
    WS_WAIT_LOCK,
    WS_WAIT_RLOCK,
    WS_WAIT_CONDITION,
    WS_WAIT_EVENT,
    WS_WAIT_SEMAPHORE,
    WS_WAIT_BARRIER,
    WS_WAIT_THREAD,
    WS_WAIT_PROCESS,
    WS_WAIT_QUEUE,
    WS_WAIT_FUTURE,
    WS_WAIT_GIL,
    WS_WAIT_IMPORT_LOCK,
    WS_WAIT_STORE,
    WS_WAIT_OPERATION,
    WS_WAIT_RENDEZVOUS,
    WS_WAIT_KINDS,
} ws_wait_kind;

/* Where that is known from. */
typedef enum { WS_FROM_LOCALS, WS_FROM_WITH, WS_FROM_INTERPRETER } ws_wait_source;

enum { WS_WAIT_KEYS = 2 };

/* Of one thread. What is not known is 0, a frame -1. */
typedef struct {
    ws_wait_kind kind;
    ws_wait_source source;
    int frame; /* the frame that tells it, among the thread's frames */
    bool has_peer, has_tag;
    uintptr_t object;
    long holder;    /* native id of the thread that holds the lock */
    long native_id; /* of the thread that is joined */
    long pid;
    long long peer, tag; /* peer: a global rank */
    const char *op;      /* a static string */
    ws_name thread_name;
    /* Of a process group; ranks: all its members, as "0,1,2". */
    ws_name group, description, ranks;
    ws_name keys[WS_WAIT_KEYS];
} ws_wait;

/* A lock that a thread is proven to hold. */
typedef struct {
    ws_wait_kind kind; /* WS_WAIT_LOCK, WS_WAIT_RLOCK */
    size_t thread;     /* among the snapshot's threads; holds are in this order */
    int frame;         /* that is inside the with block, -1: known from the lock's own owner */
    uintptr_t object;
} ws_hold;

typedef enum { WS_MODE_GIL, WS_MODE_NOGIL, WS_MODE_KERNEL } ws_mode;

typedef struct {
    ws_thread *threads; /* most recently created first */
    size_t thread_count;
    ws_frame *frames;
    size_t frame_count;
    ws_mode mode;
    int pid;
    double time;              /* seconds since the epoch */
    unsigned long holder;     /* ident of the GIL's holder; 0: nobody, or unknown */
    unsigned long main_ident; /* ident of the main thread; 0: unknown */
    bool truncated;           /* threads were left out */
    ws_wait *waits;           /* one for each thread; NULL: nobody looked */
    ws_hold *holds;
    size_t hold_count;
    struct ws_native *native; /* unwind.h; NULL: nobody asked for native frames, or none can be had */
    /* --- the maker's own */
    void *arena; /* what the names of a self-read snapshot lie in */
    size_t arena_size;
    size_t arena_dirty; /* below this it may not be zero */
    bool arena_small;   /* little of it was written */
    void *waits_arena; /* mode "gil": what waits and holds lie in */
    size_t waits_size;
} ws_snapshot;

/* Bounds of every snapshot, whatever its mode. */
enum { WS_MAX_DEPTH = 1000, WS_MAX_THREADS = 4096, WS_MAX_FRAMES = 65536, WS_MAX_NAME = 1024 };
enum { WS_MAX_HOLDS = 256 };

#endif
