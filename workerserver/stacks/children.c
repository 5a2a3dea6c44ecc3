/* Child processes and what becomes of them, told by /proc/PID/stat and io. */
#define _GNU_SOURCE
#include "children.h"

#ifdef __linux__

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

enum {
    FAMILY = 128, /* processes of this one's that are told of, their own children included */
    COMMAND = 15, /* bytes of a name */
    BEFORE_PIDS = 257, /* where in the folder /proc the processes begin (fs/proc/base.c) */
};

typedef struct {
    int pid;
    int parent; /* among the family; -1: this process itself */
    int child;  /* the child of this process to which it belongs, among the family */
    char state;
    unsigned char size;
    char name[COMMAND];
    uint64_t ended_ns; /* processor time of its children that have ended */
} process;

typedef struct {
    process members[FAMILY];
    int count;
    int seen; /* of WS_MAX_SEEN */
} family;

/* What getdents64(2) writes. */
typedef struct {
    uint64_t inode;
    int64_t offset;
    unsigned short size;
    unsigned char type;
    char name[];
} entry;

bool ws_has_children(void) {
    siginfo_t info;
    int before = errno;
    bool any = waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0;
    errno = before;
    return any;
}

static uint64_t take(const char **at) {
    uint64_t value = 0;
    while (**at == ' ')
        ++*at;
    for (; **at >= '0' && **at <= '9'; ++*at)
        value = 10 * value + (uint64_t)(**at - '0');
    return value;
}

/* Moves `*at` behind `count` fields. */
static void skip(const char **at, int count) {
    for (; count > 0; count--) {
        while (**at == ' ')
            ++*at;
        while (**at != ' ' && **at != 0)
            ++*at;
    }
}

/* Reads /proc/PID/stat: fills `out` without its place in the family; the parent's id, 0: gone. */
static int read_stat(int pid, process *out) {
    char text[1024], path[64];
    ws_path(path, sizeof path, "/proc/", (unsigned long)pid, "/stat");
    size_t size = ws_read_file(path, text, sizeof text);
    const char *start = memchr(text, '(', size);
    const char *end = memrchr(text, ')', size); /* the name may hold any character */
    if (start == NULL || end == NULL || end <= start || end[1] != ' ' || end[2] <= ' ')
        return 0;
    size_t length = (size_t)(end - start - 1);
    out->pid = pid;
    out->size = (unsigned char)(length < COMMAND ? length : COMMAND);
    memcpy(out->name, start + 1, out->size);
    out->state = end[2];
    const char *at = end + 3;
    int parent = (int)take(&at);
    skip(&at, 11); /* from the process group to stime */
    uint64_t ticks = take(&at);
    ticks += take(&at);
    long each = sysconf(_SC_CLK_TCK);
    out->ended_ns = each > 0 ? ticks * (1000000000u / (uint64_t)each) : 0;
    return parent;
}

/* The member with that id; -1: none. */
static int member(const family *all, int pid) {
    int i = all->count - 1;
    while (i >= 0 && all->members[i].pid != pid)
        i--;
    return i;
}

static void look_at(family *all, int self, int pid) {
    process found;
    if (pid == self || all->seen == WS_MAX_SEEN || all->count == FAMILY || member(all, pid) >= 0)
        return;
    all->seen++;
    int parent = read_stat(pid, &found);
    if (parent == self)
        found.parent = -1, found.child = all->count;
    else {
        int i = parent == 0 ? -1 : member(all, parent);
        if (i < 0)
            return;
        found.parent = i;
        found.child = all->members[i].child;
    }
    all->members[all->count++] = found;
}

/* Looks at the processes from the place `from` of the folder on. `upwards`: at those that have
 * begun after `self`, else at the others. */
static void search(family *all, int self, int folder, off_t from, bool upwards) {
    _Alignas(entry) char list[4096];
    if (lseek(folder, from, SEEK_SET) != from)
        return;
    while (all->seen < WS_MAX_SEEN) {
        long size = syscall(SYS_getdents64, folder, list, sizeof list);
        if (size <= 0)
            return;
        for (long at = 0; at < size; at += ((entry *)(list + at))->size) {
            const entry *next = (entry *)(list + at);
            assert(next->size > offsetof(entry, name) && next->size <= size - at);
            int pid = atoi(next->name);
            if (pid <= 0)
                continue;
            if (!upwards && pid >= self)
                return;
            if (!upwards || pid > self)
                look_at(all, self, pid);
        }
    }
}

/* First the children that threads wait for. A parent begins before its child, so ids grow from
 * parent to child; until the numbers are used up, and small ones are given again. */
static void take_family(family *all, const ws_snapshot *snapshot) {
    int self = snapshot->pid;
    all->count = all->seen = 0;
    for (size_t i = 0; snapshot->waits != NULL && i < snapshot->thread_count; i++) {
        if (snapshot->waits[i].kind == WS_WAIT_PROCESS && snapshot->waits[i].pid > 0)
            look_at(all, self, (int)snapshot->waits[i].pid);
    }
    int folder = open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0)
        return;
    search(all, self, folder, (off_t)self + BEFORE_PIDS, true);
    search(all, self, folder, 0, false);
    close(folder);
}

/* Processor time of a process, threads that have ended included. */
static uint64_t own_ns(int pid) {
    clockid_t clock;
    struct timespec spent;
    if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &spent) != 0)
        return 0;
    return (uint64_t)spent.tv_sec * 1000000000u + (uint64_t)spent.tv_nsec;
}

/* Adds what a process has read and written, its ended children's included. False: not told, and
 * the process has not ended meanwhile. */
static bool add_io(int pid, uint64_t *total) {
    char text[512], path[64];
    static const char *const NAMES[] = {"rchar:", "wchar:"};
    ws_path(path, sizeof path, "/proc/", (unsigned long)pid, "/io");
    if (ws_read_file(path, text, sizeof text) == 0)
        return access(path, F_OK) != 0;
    for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
        const char *at = strstr(text, NAMES[i]);
        if (at == NULL)
            return false;
        at += strlen(NAMES[i]);
        *total += take(&at);
    }
    return true;
}

static void put_number(sink *out, const char *key, uint64_t value) {
    ws_put(out, key);
    ws_put_decimal(out, value);
}

static void put_child(sink *out, const family *all, int child) {
    const process *first = &all->members[child];
    uint64_t spent = 0, io = 0, processes = 0;
    bool io_known = true;
    char states[9] = "";
    for (int i = 0; i < all->count; i++) {
        const process *each = &all->members[i];
        if (each->child != child)
            continue;
        processes++;
        spent += own_ns(each->pid) + each->ended_ns;
        io_known = io_known && add_io(each->pid, &io);
        size_t length = strlen(states);
        if (strchr(states, each->state) == NULL && length + 1 < sizeof states)
            states[length] = each->state, states[length + 1] = 0;
    }
    put_number(out, "{\"pid\":", (uint64_t)first->pid);
    ws_put(out, ",\"name\":");
    ws_put_json_bytes(out, first->name, first->size, false);
    ws_put(out, ",\"state\":");
    ws_put_json_text(out, (char[]){first->state, 0});
    put_number(out, ",\"processes\":", processes);
    ws_put(out, ",\"states\":");
    ws_put_json_text(out, states);
    ws_put(out, ",\"cpu_s\":");
    ws_put_json_micros(out, spent / 1000);
    if (io_known)
        put_number(out, ",\"io_bytes\":", io);
    ws_put(out, "}");
}

static bool is_awaited(const ws_snapshot *snapshot, int pid) {
    for (size_t i = 0; snapshot->waits != NULL && i < snapshot->thread_count; i++) {
        if (snapshot->waits[i].kind == WS_WAIT_PROCESS && snapshot->waits[i].pid == pid)
            return true;
    }
    return false;
}

void ws_put_children(sink *out, const ws_snapshot *snapshot) {
    family all;
    int told = 0;
    if (!ws_has_children())
        return;
    take_family(&all, snapshot);
    for (int round = 0; round < 2; round++) {
        for (int i = all.count - 1; i >= 0 && told < WS_MAX_CHILDREN; i--) {
            if (all.members[i].parent >= 0
                || is_awaited(snapshot, all.members[i].pid) != (round == 0))
                continue;
            ws_put(out, told++ > 0 ? "," : ",\"children\":[");
            put_child(out, &all, i);
        }
    }
    if (told > 0)
        ws_put(out, "]");
}

#else

bool ws_has_children(void) {
    return false;
}

void ws_put_children(sink *out, const ws_snapshot *snapshot) {
    (void)out, (void)snapshot;
}

#endif
