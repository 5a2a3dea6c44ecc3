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
    /* --- the maker's own */
    void *arena; /* what the names of a self-read snapshot lie in */
    size_t arena_size;
} ws_snapshot;

/* Bounds of every snapshot, whatever its mode. */
enum { WS_MAX_DEPTH = 1000, WS_MAX_THREADS = 4096, WS_MAX_FRAMES = 65536, WS_MAX_NAME = 1024 };

#endif
