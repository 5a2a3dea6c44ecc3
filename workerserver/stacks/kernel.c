/* What the kernel says of this process's threads: the last resort of a snapshot, and part of JSON.
 *
 * System calls and the stack only: opendir() and stdio allocate. */
#define _GNU_SOURCE
#include "check.h"
#include "render.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

void ws_path(char *to, size_t size, const char *start, unsigned long id, const char *end) {
    char digits[24];
    char *at = to + strlen(start);
    int count = 0;
    assert(strlen(start) + sizeof digits + strlen(end) < size);
    memcpy(to, start, strlen(start));
    do {
        digits[count++] = (char)('0' + id % 10);
        id /= 10;
    } while (id > 0);
    while (count > 0)
        *at++ = digits[--count];
    memcpy(at, end, strlen(end) + 1);
}

size_t ws_read_file(const char *path, char *to, size_t size) {
    ssize_t n = -1;
    assert(size > 1);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        n = read(fd, to, size - 1);
        close(fd);
    }
    to[n > 0 ? n : 0] = 0;
    return n > 0 ? (size_t)n : 0;
}

size_t ws_read_task(long id, const char *name, char *to, size_t size) {
    char path[64];
    assert(id > 0);
    ws_path(path, sizeof path, "/proc/self/task/", (unsigned long)id, name);
    return ws_read_file(path, to, size);
}

#ifdef __linux__

#include <sys/mman.h>
#include <sys/syscall.h>

enum { COMM = 16 }; /* TASK_COMM_LEN */

typedef struct {
    ws_thread threads[WS_MAX_THREADS];
    char names[WS_MAX_THREADS][COMM];
} arena;

/* What getdents64(2) writes. */
typedef struct {
    uint64_t inode;
    int64_t offset;
    unsigned short size;
    unsigned char type;
    char name[];
} entry;

char ws_kernel_letter(long native_id) {
    char stat[1024];
    if (native_id <= 0)
        return 0;
    size_t size = ws_read_task(native_id, "/stat", stat, sizeof stat);
    /* The second field is the command in parentheses and may itself hold any character. */
    const char *end = memrchr(stat, ')', size);
    return end != NULL && end[1] == ' ' && end[2] > ' ' && end[2] < 127 ? end[2] : 0;
}

void ws_kernel_state(long native_id, ws_kernel *out) {
    memset(out, 0, sizeof *out);
    if (native_id <= 0)
        return;
    out->state = ws_kernel_letter(native_id);
    ws_read_task(native_id, "/wchan", out->wchan, sizeof out->wchan);
    if (strcmp(out->wchan, "0") == 0)
        out->wchan[0] = 0;
    ws_check_kernel(out);
}

uint64_t ws_pid_namespace(void) {
    char target[64]; /* "pid:[4026531836]" */
    uint64_t number = 0;
    ssize_t size = readlink("/proc/self/ns/pid", target, sizeof target);
    for (ssize_t i = 0; i < size; i++) {
        if (target[i] >= '0' && target[i] <= '9')
            number = 10 * number + (uint64_t)(target[i] - '0');
    }
    return number;
}

static void add(ws_snapshot *out, const char *name) {
    arena *lies = out->arena;
    ws_thread *thread = &lies->threads[out->thread_count];
    char *comm = lies->names[out->thread_count];
    long id = 0;
    for (; *name >= '0' && *name <= '9'; name++)
        id = 10 * id + (*name - '0');
    if (id == 0)
        return; /* "." and ".." */
    if (out->thread_count == WS_MAX_THREADS) {
        out->truncated = true;
        return;
    }
    size_t size = ws_read_task(id, "/comm", comm, COMM);
    if (size > 0 && comm[size - 1] == '\n')
        size--;
    thread->native_id = id;
    thread->daemon = -1;
    thread->name = (ws_name){.data = comm, .length = size, .kind = size > 0};
    out->thread_count++;
}

int ws_kernel_take(ws_snapshot *out) {
    _Alignas(entry) char list[4096];
    memset(out, 0, sizeof *out);
    out->mode = WS_MODE_KERNEL;
    out->pid = (int)getpid();
    out->time = ws_now();
    int fd = open("/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    void *got = mmap(
        NULL, sizeof(arena), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (got == MAP_FAILED) {
        close(fd);
        return -1;
    }
    out->arena = got;
    out->arena_size = sizeof(arena);
    out->threads = ((arena *)got)->threads;
    for (;;) {
        long size = syscall(SYS_getdents64, fd, list, sizeof list);
        if (size <= 0) {
            out->truncated = out->truncated || size < 0;
            break;
        }
        for (long at = 0; at < size; at += ((entry *)(list + at))->size) {
            const entry *next = (entry *)(list + at);
            assert(next->size > offsetof(entry, name) && next->size <= size - at);
            add(out, next->name);
        }
    }
    close(fd);
    ws_check_snapshot(out);
    return out->thread_count > 0 ? 0 : -1;
}

void ws_kernel_free(ws_snapshot *snapshot) {
    if (snapshot->arena != NULL)
        munmap(snapshot->arena, snapshot->arena_size);
    memset(snapshot, 0, sizeof *snapshot);
}

#else /* no /proc/self/task */

char ws_kernel_letter(long native_id) {
    (void)native_id;
    return 0;
}

void ws_kernel_state(long native_id, ws_kernel *out) {
    (void)native_id;
    memset(out, 0, sizeof *out);
}

uint64_t ws_pid_namespace(void) {
    return 0;
}

int ws_kernel_take(ws_snapshot *out) {
    memset(out, 0, sizeof *out);
    return -1;
}

void ws_kernel_free(ws_snapshot *snapshot) {
    memset(snapshot, 0, sizeof *snapshot);
}

#endif
