/* Walks up the native stacks of threads that stand still. */
#define _GNU_SOURCE
#include "parts.h"

#include "internal.h"
#include "render.h"

#include <assert.h>
#include <string.h>
#include <time.h>

#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    TRIES = 3,      /* of a thread that moves */
    ROWS = 1024,    /* kept at one time; a power of two */
    WORD = 8,
};

typedef struct {
    uintptr_t pc;
    bool exact, good;
    bool called; /* a call ends there */
    ws_found_row found;
} known_row;

/* Rows for all the stacks that pass there, and room for the tables of one. */
struct ws_native_work {
    known_row rows[ROWS];
    ws_table_copy copy;
};

/* Where a thread is. */
typedef struct {
    bool blocked, told; /* told: the kernel says where it is, or that it runs */
    uintptr_t stack, pc;
    uint64_t print, runs;
} stand;

static int64_t milliseconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

bool ws_native_over(const ws_native *native) {
    return milliseconds(CLOCK_MONOTONIC) > native->until
           || milliseconds(CLOCK_THREAD_CPUTIME_ID) > native->work_until;
}

bool ws_native_read(uintptr_t address, void *into, size_t size) {
    return ws_read_one(address, into, size);
}

bool ws_native_peek(void *data, uint64_t address, uint64_t *value) {
    (void)data;
    return address % WORD == 0 && ws_read_one(address, value, sizeof *value);
}

/* ---- where a thread is ---- */

/* The hexadecimal number behind the last blank of `text`, which is cut there. */
static bool take_last(char *text, uintptr_t *value) {
    char *blank = strrchr(text, ' ');
    *value = 0;
    if (blank == NULL || blank[1] != '0' || blank[2] != 'x' || blank[3] == 0) {
        return false;
    }
    for (const char *c = blank + 3; *c != 0 && *c != '\n'; c++) {
        int digit = ws_hex_digit(*c);
        if (digit < 0) {
            return false;
        }
        *value = *value << 4 | (uintptr_t)digit;
    }
    *blank = 0;
    return true;
}

/* The third number of /proc/self/task/ID/schedstat. */
static uint64_t runs_of(long id) {
    char text[96];
    uint64_t count = 0;
    if (ws_read_task(id, "/schedstat", text, sizeof text) == 0) {
        return 0;
    }
    const char *blank = strrchr(text, ' ');
    for (const char *c = blank == NULL ? "" : blank + 1; *c >= '0' && *c <= '9'; c++) {
        count = 10 * count + (uint64_t)(*c - '0');
    }
    return count;
}

/* A line "7 0x1 0x2 0x3 0x4 0x5 0x6 0xSP 0xPC", "-1 0xSP 0xPC" outside of any call, or "running". */
static stand look(long id) {
    stand out = {0};
    char text[256];
    if (id == syscall(SYS_gettid)) { /* of itself the kernel tells it too, but it runs */
        out.told = true;
        return out;
    }
    if (id <= 0 || ws_read_task(id, "/syscall", text, sizeof text) == 0) {
        return out;
    }
    out.told = true;
    out.print = WS_PRINT_START;
    ws_print_add(&out.print, text, strlen(text));
    out.blocked = take_last(text, &out.pc) && take_last(text, &out.stack);
    out.runs = out.blocked ? runs_of(id) : 0;
    return out;
}

/* Whether a thread has not run between two looks, as far as the kernel tells. */
static bool stood(const stand *one, uint64_t print, uint64_t runs) {
    return one->blocked && one->print == print && one->runs == runs;
}

/* ---- up the stack ---- */

#if defined(__x86_64__)
/* Bytes of a call by register or memory whose second byte is `mode`, without prefixes. */
static int call_size(unsigned char mode, unsigned char scale) {
    int sized = (mode & 7) == 4 ? 3 : 2; /* with a scale */
    switch (mode >> 6) {
    case 0:
        return (mode & 7) == 5 || (sized == 3 && (scale & 7) == 5) ? sized + 4 : sized;
    case 1:
        return sized + 1;
    case 2:
        return sized + 4;
    default:
        return 2;
    }
}

/* Whether an instruction that calls ends at `pc`. */
static bool follows_call(uintptr_t pc) {
    unsigned char before[8] = {0};
    if (!ws_native_read(pc - 7, before, 7)) { /* the mapping may begin less than that before */
        size_t left = pc % WS_PAGE;
        if (left == 0 || left >= 7 || !ws_native_read(pc - left, before + 7 - left, left)) {
            return false;
        }
    }
    if (before[2] == 0xe8) {
        return true;
    }
    for (int size = 2; size <= 7; size++) {
        const unsigned char *at = before + 7 - size;
        if (at[0] == 0xff && (at[1] >> 3 & 7) == 2 && call_size(at[1], at[2]) == size) {
            return true;
        }
    }
    return false;
}
#else
static bool follows_call(uintptr_t pc) {
    uint32_t before;
    if (pc % 4 != 0 || !ws_native_read(pc - 4, &before, sizeof before)) {
        return false;
    }
    return (before & 0xfc000000) == 0x94000000      /* bl */
           || (before & 0xfffffc1f) == 0xd63f0000   /* blr */
           || (before & 0xfefff800) == 0xd63f0800;  /* blraa and its kin */
}
#endif

/* The row for a frame, kept until another takes its place. `exact`: the thread is at `pc`; else a
 * call ends there, which may be the function's last instruction. */
static const known_row *find_row(ws_native *native, uintptr_t pc, bool exact) {
    ws_native_work *work = native->work;
    known_row *row = &work->rows[(pc ^ pc >> 12) % ROWS];
    if (row->pc == pc && row->exact == exact) {
        return row;
    }
    uintptr_t within = exact ? pc : pc - 1;
    memset(row, 0, sizeof *row);
    row->pc = pc;
    row->exact = exact;
    row->called = !exact && follows_call(pc);
    row->good = ws_tables_find(&native->modules[ws_module_of(native, pc)], within, &work->copy)
                && ws_cfi_row(&work->copy.tables, within, &row->found);
    return row;
}

static bool has_expression(const ws_row *row) {
    bool found = row->length != 0;
    for (int i = 0; i < WS_REGISTERS; i++) {
        found = found || row->rules[i].length != 0;
    }
    return found;
}

/* Whether an address that was read from the stack is where a function goes on: behind a call, or
 * where a signal's handler returns to, which nobody calls. */
static bool goes_on(ws_native *native, uintptr_t pc, bool *exact) {
    if (*exact || find_row(native, pc, false)->called) {
        return true;
    }
    const known_row *row = find_row(native, pc, true);
    *exact = true;
    return row->good && row->found.signal;
}

/* From a frame to its caller. WS_NATIVE_ENDS: there is one, in `frame`. */
static ws_native_end step(ws_native *native, ws_registers *frame, bool *exact,
                          ws_native_frame *at) {
    ws_native_work *work = native->work;
    ws_registers caller;
    bool first;
    const ws_module *module = &native->modules[at->module];
    if (module->base == 0) {
        return WS_NATIVE_MADE;
    }
    const known_row *row = find_row(native, at->pc, *exact);
    if (!row->good) {
        return module->has_table ? WS_NATIVE_NO_RULE : WS_NATIVE_NO_TABLE;
    }
    if (has_expression(&row->found.row)
        && !ws_tables_find(module, *exact ? at->pc : at->pc - 1, &work->copy)) {
        return WS_NATIVE_NO_RULE;
    }
    at->signal = row->found.signal;
    at->evaluates = row->found.start == ws_native_loop();
    const ws_row *rules = &row->found.row;
    const ws_tables *tables = &work->copy.tables;
    if (!ws_cfi_step(tables, rules, frame, ws_native_peek, NULL, &caller, &first)
        && !(ws_recover(&row->found, at->pc, frame)
             && ws_cfi_step(tables, rules, frame, ws_native_peek, NULL, &caller, &first))) {
        return WS_NATIVE_LOST;
    }
    uintptr_t stack = caller.value[WS_SP];
    if (!(caller.known >> WS_SP & 1) || stack % WORD != 0
        || (!at->signal && stack <= frame->value[WS_SP])) {
        return WS_NATIVE_NO_STACK;
    }
    at->frame = stack;
    if (first) {
        return WS_NATIVE_WHOLE;
    }
    if (!(caller.known >> WS_RETURN & 1)) {
        return row->found.row.rules[WS_RETURN].kind == WS_RULE_OFFSET ? WS_NATIVE_NO_STACK
                                                                      : WS_NATIVE_LOST;
    }
    *exact = at->signal;
    *frame = caller;
    return WS_NATIVE_ENDS;
}

static ws_native_end climb(ws_native *native, const stand *from, ws_native_stack *stack) {
    ws_registers frame = {0};
    uintptr_t pc = from->pc;
    bool exact = true;
    frame.value[WS_SP] = from->stack;
    frame.known = (uint32_t)1 << WS_SP;
    stack->stack = from->stack;
    for (;;) {
        int module = ws_module_of(native, pc);
        if (module < 0) {
            return WS_NATIVE_NO_CODE;
        }
        if (!native->modules[module].read) {
            ws_module_read(&native->modules[module]);
        }
        if (!goes_on(native, pc, &exact)) {
            return WS_NATIVE_NO_CALL;
        }
        if (stack->count == WS_NATIVE_DEPTH || native->frame_count == WS_NATIVE_FRAMES) {
            return WS_NATIVE_DEEP;
        }
        if (ws_native_over(native)) {
            return WS_NATIVE_LATE;
        }
        ws_native_frame *at = &native->frames[native->frame_count++];
        *at = (ws_native_frame){.pc = pc, .module = module};
        stack->count++;
        ws_native_end end = step(native, &frame, &exact, at);
        if (end != WS_NATIVE_ENDS) {
            return end;
        }
        pc = frame.value[WS_RETURN];
        if (pc == 0) {
            return WS_NATIVE_WHOLE; /* where a stack was made by hand */
        }
    }
}

/* ---- all threads ---- */

static void walk(ws_native *native, ws_native_stack *stack, long id, stand *at) {
    stack->native_id = id;
    stack->start = native->frame_count;
    stack->end = WS_NATIVE_RUNNING;
    for (int i = 0; i < TRIES; i++) {
        if (ws_native_over(native)) {
            stack->end = WS_NATIVE_LATE;
            return;
        }
        *at = look(id);
        if (!at->blocked) {
            stack->end = at->told ? WS_NATIVE_RUNNING : WS_NATIVE_HIDDEN;
            return;
        }
        ws_native_end end = climb(native, at, stack);
        stand after = look(id);
        if (stood(&after, at->print, at->runs)) {
            stack->end = end;
            return;
        }
        native->frame_count = stack->start;
        stack->count = 0;
    }
}

static const ws_native_seen *seen(const ws_native *native, long id) {
    for (size_t i = 0; i < native->seen_count; i++) {
        if (native->seen[i].native_id == id) {
            return &native->seen[i];
        }
    }
    return NULL;
}

static bool in_snapshot(const ws_snapshot *snapshot, long id) {
    for (size_t i = 0; i < snapshot->thread_count; i++) {
        if (snapshot->threads[i].native_id == id) {
            return true;
        }
    }
    return false;
}

static void walk_all(ws_native *native, const ws_snapshot *snapshot, const ws_place *places) {
    stand at;
    native->frame_count = 0;
    memset(native->work->rows, 0, sizeof native->work->rows);
    memset(native->stacks, 0, snapshot->thread_count * sizeof native->stacks[0]);
    /* The main thread is the last one: what there is no time for is the newest. */
    for (size_t i = snapshot->thread_count; i-- > 0;) {
        const ws_thread *thread = &snapshot->threads[i];
        ws_native_stack *stack = &native->stacks[i];
        walk(native, stack, thread->native_id, &at);
        const ws_native_seen *before = seen(native, thread->native_id);
        if (before != NULL && stack->count > 0 && stood(&at, before->print, before->runs)) {
            ws_native_match(native, stack, snapshot, thread, places);
        }
    }
    native->stack_count = snapshot->thread_count;
    for (size_t i = 0; i < native->seen_count; i++) {
        long id = native->seen[i].native_id;
        if (!in_snapshot(snapshot, id)) {
            ws_native_stack *stack = &native->stacks[native->stack_count++];
            memset(stack, 0, sizeof *stack);
            walk(native, stack, id, &at);
        }
    }
}

ws_native *ws_native_begin(void) {
    size_t size = sizeof(ws_native) + sizeof(ws_native_work);
    ws_native *native = mmap(NULL, size, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (native == MAP_FAILED) {
        return NULL;
    }
    native->work = (ws_native_work *)(native + 1);
    ws_read_start();
    if (ws_kernel_take(&native->threads) != 0) {
        ws_native_free(native);
        return NULL;
    }
    for (size_t i = 0; i < native->threads.thread_count; i++) {
        if (i == WS_NATIVE_THREADS) {
            native->cut = true;
            break;
        }
        long id = native->threads.threads[i].native_id;
        stand at = look(id);
        native->seen[native->seen_count++] = (ws_native_seen){id, at.print, at.runs};
    }
    return native;
}

/* Numbers the files in which frames were found; one may be mapped in several pieces. */
static void number_files(ws_native *native) {
    uint32_t number = 0;
    for (size_t i = 0; i < native->module_count; i++) {
        ws_module *module = &native->modules[i];
        if (!module->read || module->base == 0) {
            continue;
        }
        size_t same = 0;
        while (same < i
               && !(native->modules[same].read && native->modules[same].base == module->base)) {
            same++;
        }
        module->number = same < i ? native->modules[same].number : number++;
    }
}

void ws_native_take(ws_native *native, const ws_snapshot *snapshot, const ws_place *places) {
    assert(snapshot->thread_count <= WS_MAX_THREADS);
    native->until = milliseconds(CLOCK_MONOTONIC) + WS_NATIVE_PATIENCE_MS;
    native->work_until = milliseconds(CLOCK_THREAD_CPUTIME_ID) + WS_NATIVE_BUDGET_MS;
    for (int i = 0; i < 2; i++) {
        bool listed = ws_modules_list(native);
        walk_all(native, snapshot, places);
        if (listed && ws_modules_same(native)) {
            number_files(native);
            return;
        }
    }
    /* What lay where these stacks led is not known. */
    for (size_t i = 0; i < native->stack_count; i++) {
        native->stacks[i].count = 0;
        native->stacks[i].matched = false;
        native->stacks[i].end = WS_NATIVE_CHANGED;
    }
}

void ws_native_free(ws_native *native) {
    if (native != NULL) {
        ws_kernel_free(&native->threads);
        munmap(native, sizeof(ws_native) + sizeof(ws_native_work));
    }
}

#else /* tables of another machine, or no /proc */

ws_native *ws_native_begin(void) {
    return NULL;
}

void ws_native_take(ws_native *native, const ws_snapshot *snapshot, const ws_place *places) {
    (void)native;
    (void)snapshot;
    (void)places;
}

void ws_native_free(ws_native *native) {
    (void)native;
}

#endif
