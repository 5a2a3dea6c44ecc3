/* Reading this process's memory through the kernel, a bounded arena, a bounded time. */
#define _GNU_SOURCE
#include "internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 256 }; /* the kernel takes 1,024 */

static _Atomic bool use_file; /* process_vm_readv is forbidden here: /proc/thread-self/mem */
static _Atomic int process;
static int64_t started, worked; /* milliseconds of the clock, and of this thread's work */

static int64_t milliseconds(clockid_t clock) {
    struct timespec now;
    if (clock_gettime(clock, &now) != 0) {
        return INT64_MAX;
    }
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

void ws_read_start(void) {
    process = (int)getpid();
}

void ws_time_start(void) {
    started = milliseconds(CLOCK_MONOTONIC);
    worked = milliseconds(CLOCK_THREAD_CPUTIME_ID);
}

bool ws_time_over(void) {
    int64_t passed = milliseconds(CLOCK_MONOTONIC) - started;
    return passed > WS_PATIENCE_MS
           || (passed > WS_BUDGET_MS
               && milliseconds(CLOCK_THREAD_CPUTIME_ID) - worked > WS_BUDGET_MS);
}

/* /proc/self/mem is the main thread's, and gone once that thread has ended. Each thread has its own
 * under /proc/thread-self. The file is open for one round of reading only: other code could close
 * a descriptor that stays open, or a child could inherit it. */
static int open_file(void) {
    int file = open("/proc/thread-self/mem", O_RDONLY | O_CLOEXEC);
    return file >= 0 ? file : open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
}

static bool read_file(int file, uintptr_t address, char *into, size_t size) {
    if (file < 0 || address > INTPTR_MAX) {
        return false;
    }
    while (size > 0) {
        ssize_t got = pread(file, into, size, (off_t)address);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            return false;
        }
        into += got;
        address += (size_t)got;
        size -= (size_t)got;
    }
    return true;
}

static bool sensible(uintptr_t address, size_t size) {
    return address >= WS_PAGE && address <= UINTPTR_MAX - size;
}

#if defined(__linux__)

/* One system call: how many of the first reads were done; at least one was tried. */
static size_t read_some(ws_read *reads, size_t count) {
    struct iovec local[BATCH], remote[BATCH];
    size_t total = 0;
    assert(count > 0 && count <= BATCH);
    for (size_t i = 0; i < count; i++) {
        local[i] = (struct iovec){reads[i].into, reads[i].size};
        remote[i] = (struct iovec){(void *)reads[i].address, reads[i].size};
        total += reads[i].size;
    }
    ssize_t got = process_vm_readv(process, local, count, remote, count, 0);
    if (got < 0 && (errno == ENOSYS || errno == EPERM || errno == EACCES)) {
        use_file = true;
        return 0;
    }
    size_t left = got < 0 ? 0 : (size_t)got;
    if (left == total) {
        for (size_t i = 0; i < count; i++) {
            reads[i].ok = true;
        }
        return count;
    }
    size_t done = 0;
    while (done < count && left >= reads[done].size) { /* the one after these failed */
        left -= reads[done].size;
        reads[done++].ok = true;
    }
    return done < count ? done + 1 : done;
}

#else

/* Never gets here: ws_layout_learn() refuses. */
static size_t read_some(ws_read *reads, size_t count) {
    (void)reads;
    return count;
}

#endif

void ws_read_many(ws_read *reads, size_t count) {
    size_t at = 0;
    int file = -1;
    for (size_t i = 0; i < count; i++) {
        assert(reads[i].into != NULL && reads[i].size > 0 && reads[i].size <= WS_LINES_MAX);
    }
    while (at < count) {
        reads[at].ok = false;
        if (!sensible(reads[at].address, reads[at].size)) {
            at++;
            continue;
        }
        if (use_file) {
            file = file < 0 ? open_file() : file;
            reads[at].ok = read_file(file, reads[at].address, reads[at].into, reads[at].size);
            at++;
            continue;
        }
        size_t end = at + 1;
        while (end < count && end - at < BATCH
               && sensible(reads[end].address, reads[end].size)) {
            reads[end++].ok = false;
        }
        at += read_some(reads + at, end - at);
    }
    if (file >= 0) {
        close(file);
    }
}

bool ws_read_one(uintptr_t address, void *into, size_t size) {
    assert(size <= WS_LINES_MAX);
    ws_read read = {address, into, (uint32_t)size, false};
    ws_read_many(&read, 1);
    return read.ok;
}

uint32_t ws_read_length(uintptr_t address, size_t least, size_t wanted) {
    size_t page = WS_PAGE - address % WS_PAGE;
    size_t size = wanted < page ? wanted : page;
    assert(least <= wanted);
    return (uint32_t)(size < least ? least : size);
}

bool ws_arena_make(ws_arena *arena) {
    void *base = mmap(NULL, WS_ARENA, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    arena->base = base == MAP_FAILED ? NULL : base;
    arena->used = 0;
    arena->dirty = 0;
    return arena->base != NULL;
}

void *ws_arena_take(ws_arena *arena, size_t size) {
    size_t rounded = (size + 15) & ~(size_t)15;
    assert(arena->used <= WS_ARENA && arena->used % 16 == 0);
    if (rounded < size || rounded > WS_ARENA - arena->used) {
        return NULL;
    }
    size_t start = arena->used;
    arena->used += rounded;
    if (start < arena->dirty) {
        memset(arena->base + start, 0,
               arena->used < arena->dirty ? rounded : arena->dirty - start);
    }
    arena->dirty = arena->used > arena->dirty ? arena->used : arena->dirty;
    return arena->base + start;
}
