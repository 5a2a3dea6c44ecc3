/* Native frames of the threads that are blocked: from what the kernel tells of each (stack pointer
 * and instruction in /proc/self/task/ID/syscall) by the tables in .eh_frame.
 *
 * No ptrace, no signal, no call of the C library's or the linker's functions: these may wait for a
 * lock that the blocked thread holds. All memory is read through the kernel, so what has gone is an
 * error and not a fault. What is not known is not guessed: the stack is cut, and says why. */
#ifndef WS_UNWIND_H
#define WS_UNWIND_H

#include "snapshot.h"

enum {
    WS_NATIVE_DEPTH = 128,     /* frames of one thread */
    WS_NATIVE_FRAMES = 32768,  /* of all threads */
    WS_NATIVE_THREADS = 1024,  /* that are looked at */
    WS_NATIVE_MODULES = 2048,  /* mappings that hold code */
    WS_NATIVE_PATHS = 1 << 18, /* bytes of their names */
    WS_NATIVE_ID = 32,         /* bytes of a build id */
    WS_NATIVE_BUDGET_MS = 100,  /* of the processor, for one dump */
    WS_NATIVE_PATIENCE_MS = 400, /* of the clock, where the processor is busy with others */
};

/* Why a stack ends where it does. The order is that of the words in put_native.c. */
typedef enum {
    WS_NATIVE_WHOLE,
    WS_NATIVE_RUNNING,    /* it ran when it was looked at, or has run since */
    WS_NATIVE_HIDDEN,     /* the kernel doesn't tell where it is */
    WS_NATIVE_LATE,       /* no time left, or too many threads */
    WS_NATIVE_DEEP,       /* more frames than are kept */
    WS_NATIVE_NO_CODE,    /* an address in no mapping that holds code */
    WS_NATIVE_MADE,       /* code that no file holds, as a JIT compiler makes */
    WS_NATIVE_NO_TABLE,   /* the file has no table for this address */
    WS_NATIVE_NO_RULE,    /* the table has a rule that is not known here */
    WS_NATIVE_LOST,       /* the rule needs a register whose value is not known */
    WS_NATIVE_NO_CALL,    /* no call stands before the return address */
    WS_NATIVE_NO_STACK,   /* the stack can't be read there, or leads back */
    WS_NATIVE_CHANGED,    /* libraries were loaded or unloaded meanwhile */
    WS_NATIVE_ENDS,
} ws_native_end;

typedef struct {
    uintptr_t pc;
    uintptr_t frame; /* where the caller's part of the stack begins; 0: not known */
    int module;      /* among the modules; -1: none */
    bool signal;     /* a signal's frame: its caller was interrupted */
    bool evaluates;  /* the interpreter's loop: it stands for Python frames */
    size_t first, count; /* of these, among the thread's, if the stack is `matched` */
} ws_native_frame;

typedef struct {
    long native_id;
    size_t start, count; /* of its frames, newest first */
    uintptr_t stack;     /* its stack pointer */
    ws_native_end end;
    bool matched; /* Python's frames and these are of one moment, and belong together */
} ws_native_stack;

typedef struct {
    uintptr_t start, end; /* of the mapping */
    uintptr_t base;       /* where the file's first page is mapped; 0: it is not */
    uint32_t path;        /* its name's place among the names; 0: no file */
    /* --- known once a frame was found there */
    bool read, has_table;
    uint32_t number; /* of the file, among those that hold frames */
    uint8_t id_size;
    unsigned char id[WS_NATIVE_ID];
    uintptr_t bias;  /* what is added to the file's addresses */
    uintptr_t table; /* of functions, sorted */
    uint64_t table_count;
    uintptr_t header; /* .eh_frame_hdr */
} ws_module;

/* Where a thread was before the Python stacks were read. */
typedef struct {
    long native_id;
    uint64_t print; /* of its system call, its arguments, stack pointer and instruction */
    uint64_t runs;  /* how often the kernel has let it run; 0: not known */
} ws_native_seen;

typedef struct ws_native_work ws_native_work;

typedef struct ws_native {
    size_t module_count, path_size, frame_count, stack_count, seen_count;
    uint64_t print;      /* of the list of modules */
    /* Milliseconds of the clock, and of this thread's work: then the time is over. */
    int64_t until, work_until;
    bool cut;            /* modules or threads were left out */
    ws_snapshot threads; /* all that the kernel knows */
    ws_native_work *work; /* of the walk */
    /* Those of the snapshot's threads come first, in their order; then those that Python doesn't
     * know. */
    ws_native_stack stacks[WS_MAX_THREADS + WS_NATIVE_THREADS];
    ws_native_seen seen[WS_NATIVE_THREADS];
    ws_module modules[WS_NATIVE_MODULES];
    ws_native_frame frames[WS_NATIVE_FRAMES];
    char paths[WS_NATIVE_PATHS];
} ws_native;

/* With the readers' mutex held (dump.c): call the first before the Python stacks are read, and the
 * second after. NULL: no memory, no /proc, or a machine whose tables are not known. `places`: of
 * the snapshot's frames; NULL: not known. */
ws_native *ws_native_begin(void);
void ws_native_take(ws_native *native, const ws_snapshot *snapshot, const ws_place *places);
void ws_native_free(ws_native *native);

#endif
