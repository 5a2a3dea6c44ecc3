/* System calls of sleeping threads, told by /proc/self/task/ID/syscall. */
#define _GNU_SOURCE
#include "waits.h"

#ifdef __linux__

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "sleep.h"

enum {
    ARGUMENTS = 4,
    MAX_PATH = WS_MAX_BYTES,  /* bytes of a name that are read */
    MAX_LOCKS = 256 * 1024,   /* bytes of /proc/locks that are read */
    MAX_CHILDREN = 1 << 22,   /* process ids are smaller */
    FUTEX_WAIT_PRIVATE = 128, /* of <linux/futex.h>, with no flag for the clock */
    LOCKED_WITH_WAITERS = 2,  /* glibc's lowlevellock.h */
    OFD_SETLKW = 38,
};

typedef struct {
    long number;
    unsigned long arguments[ARGUMENTS];
} call;

static atomic_int store_port; /* 0: not known */

void ws_waits_store(int port) {
    atomic_store_explicit(&store_port, port > 0 && port < 65536 ? port : 0, memory_order_relaxed);
}

/* ---- reading ---- */

/* A hexadecimal number after blanks and "0x"; moves `*at` behind it. False: there is none. */
static bool take_hex(const char **at, unsigned long *value) {
    const char *c = *at;
    while (*c == ' ')
        c++;
    if (c[0] != '0' || c[1] != 'x')
        return false;
    const char *start = c += 2;
    *value = 0;
    for (;; c++) {
        int digit = ws_hex_digit(*c);
        if (digit < 0)
            break;
        *value = *value << 4 | (unsigned long)digit;
    }
    *at = c;
    return c > start && c - start <= 2 * (int)sizeof(long);
}

static bool take_decimal(const char **at, unsigned long *value) {
    const char *c = *at;
    while (*c == ' ' || *c == '\t')
        c++;
    const char *start = c;
    *value = 0;
    for (; *c >= '0' && *c <= '9'; c++) {
        if (*value > (ULONG_MAX - 9) / 10)
            return false;
        *value = 10 * *value + (unsigned long)(*c - '0');
    }
    *at = c;
    return c > start;
}

/* The system call that a thread sleeps in. False: none, or the kernel doesn't tell. */
static bool read_call(long native_id, call *out) {
    char text[256];
    unsigned long number;
    const char *at = text;
    ws_read_task(native_id, "/syscall", text, sizeof text);
    if (!take_decimal(&at, &number) || number > 4096)
        return false; /* "running", or "-1" outside of any call */
    out->number = (long)number;
    for (int i = 0; i < ARGUMENTS; i++) {
        if (!take_hex(&at, &out->arguments[i]))
            return false;
    }
    return true;
}

/* This process's memory, which may change or go meanwhile. No fallback: where the kernel forbids
 * it, the fact is left out. */
static bool read_memory(unsigned long address, void *into, size_t size) {
    struct iovec local = {into, size}, remote = {(void *)address, size};
    int before = errno;
    bool ok = process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == (ssize_t)size;
    errno = before;
    return ok;
}

/* ---- descriptors ---- */

/* `,"descriptor":5,"path":"/data/x"`; for what has no path, "target". */
static void put_descriptor(sink *out, int fd) {
    char target[MAX_PATH];
    char path[96];
    ws_put(out, ",\"descriptor\":");
    ws_put_decimal(out, (uint64_t)fd);
    ws_path(path, sizeof path, "/proc/self/fd/", (unsigned long)fd, "");
    ssize_t size = readlink(path, target, sizeof target);
    if (size <= 0)
        return;
    ws_put(out, target[0] == '/' ? ",\"path\":" : ",\"target\":");
    ws_put_json_bytes(out, target, (size_t)size, size == sizeof target);
}

static void put_kind(sink *out, const char *kind, const char *name) {
    ws_put(out, ",\"waits_for\":{\"kind\":");
    ws_put_json_text(out, kind);
    ws_put(out, ",\"source\":\"kernel\",\"syscall\":");
    ws_put_json_text(out, name);
}

/* The descriptor is a connection to the job's store. */
static bool is_store(int fd) {
    struct sockaddr_storage address;
    socklen_t size = sizeof address;
    int port = atomic_load_explicit(&store_port, memory_order_relaxed), before = errno, told = 0;
    if (port == 0)
        return false;
    if (getpeername(fd, (struct sockaddr *)&address, &size) == 0) {
        if (address.ss_family == AF_INET)
            told = ntohs(((struct sockaddr_in *)&address)->sin_port);
        else if (address.ss_family == AF_INET6)
            told = ntohs(((struct sockaddr_in6 *)&address)->sin6_port);
    }
    errno = before;
    return told == port;
}

/* A wait in the system call `name` for a descriptor. */
static void put_wait_for(sink *out, int fd, const char *name) {
    put_kind(out, is_store(fd) ? "store" : "descriptor", name);
    put_descriptor(out, fd);
}

static void put_number(sink *out, const char *key, uint64_t value) {
    ws_put(out, key);
    ws_put_decimal(out, value);
}

/* ---- who has a file lock ---- */

typedef struct {
    const char *class; /* of locks, as /proc/locks has it; "OFDLCK" has no owner */
    unsigned long inode;
    unsigned long own;                  /* this process's id */
    unsigned long holder, holder_entry; /* of the last lock that is held */
    bool holder_known;
    unsigned long found; /* who holds what this process waits for */
    bool ambiguous;
} lock_search;

/* "1: FLOCK  ADVISORY  WRITE 9154 fe:00:2361048 0 EOF"; a lock that is waited for has "->" before
 * its class and the number of the lock that is in its way. */
static void search_line(lock_search *search, const char *line) {
    unsigned long entry, pid, inode;
    if (!take_decimal(&line, &entry) || *line++ != ':')
        return;
    bool waits = false;
    for (; *line == ' ' || *line == '-' || *line == '>'; line++)
        waits = waits || *line == '>';
    size_t length = strlen(search->class);
    bool same = strncmp(line, search->class, length) == 0 && line[length] == ' ';
    for (int word = 0; word < 3; word++) {
        while (*line != ' ' && *line != 0)
            line++;
        while (*line == ' ')
            line++;
    }
    if (*line == '-') { /* "-1": an open file's own lock, which no process has */
        if (!waits) {
            search->holder_known = false;
            search->holder_entry = entry;
        }
        return;
    }
    if (!take_decimal(&line, &pid))
        return;
    if (!waits) {
        search->holder = pid;
        search->holder_entry = entry;
        search->holder_known = pid > 0 && same;
        return;
    }
    for (int colon = 0; colon < 2 && *line != 0; line++)
        colon += *line == ':';
    if (!take_decimal(&line, &inode) || !same || pid != search->own || inode != search->inode)
        return;
    if (!search->holder_known || search->holder_entry != entry)
        search->ambiguous = true;
    else if (search->found != 0 && search->found != search->holder)
        search->ambiguous = true;
    else
        search->found = search->holder;
}

/* The process that holds the lock for which this process waits; 0: not known. */
static unsigned long lock_holder(int fd, const char *class) {
    char text[8192];
    size_t kept = 0, total = 0;
    struct stat file;
    if (fstat(fd, &file) != 0)
        return 0;
    lock_search search = {
        .class = class, .inode = (unsigned long)file.st_ino, .own = (unsigned long)getpid()};
    int locks = open("/proc/locks", O_RDONLY | O_CLOEXEC);
    if (locks < 0)
        return 0;
    while (total < MAX_LOCKS) {
        ssize_t size = read(locks, text + kept, sizeof text - 1 - kept);
        if (size <= 0)
            break;
        total += (size_t)size;
        size_t end = kept + (size_t)size;
        text[end] = 0;
        char *line = text, *next;
        while ((next = memchr(line, '\n', (size_t)(text + end - line))) != NULL) {
            *next = 0;
            search_line(&search, line);
            line = next + 1;
        }
        kept = (size_t)(text + end - line);
        if (kept == sizeof text - 1)
            kept = 0; /* no line is so long */
        memmove(text, line, kept);
    }
    close(locks);
    return search.ambiguous ? 0 : search.found;
}

static void put_file_lock(
    sink *out, int fd, const char *name, const char *class, ws_waits_budget *left) {
    unsigned long pid = 0;
    put_kind(out, "file_lock", name);
    put_descriptor(out, fd);
    if (class != NULL && left->lock_tables > 0) {
        left->lock_tables--;
        pid = lock_holder(fd, class);
    }
    if (pid != 0)
        put_number(out, ",\"pid\":", pid);
}

/* ---- a mutex ---- */

/* glibc's pthread_mutex_t, as far as its owner. */
typedef struct {
    int lock;
    unsigned count;
    int owner;
    unsigned users;
    int kind;
} mutex;

/* Only the lock of a mutex, or of a C library's own structure, is waited for with the value 2 and
 * without a clock. Of a mutex, the owner is a thread of this process, and not the one that waits. */
static bool put_mutex(sink *out, const ws_thread *thread, const call *made) {
#ifdef __GLIBC__
    enum { ELISION = 0x300, MOST_KIND = 3 };
    mutex found;
    char path[96];
    if ((made->arguments[1] & 0xffffffff) != FUTEX_WAIT_PRIVATE
        || (made->arguments[2] & 0xffffffff) != LOCKED_WITH_WAITERS || made->arguments[3] != 0)
        return false;
    if (made->arguments[0] % sizeof(long) != 0
        || !read_memory(made->arguments[0], &found, sizeof found))
        return false;
    if (found.lock != LOCKED_WITH_WAITERS || found.users == 0 || found.owner <= 0
        || (found.kind & ~ELISION) < 0 || (found.kind & ~ELISION) > MOST_KIND
        || found.owner == thread->native_id)
        return false;
    ws_path(path, sizeof path, "/proc/self/task/", (unsigned long)found.owner, "/comm");
    if (access(path, F_OK) != 0)
        return false;
    put_kind(out, "mutex", "futex");
    ws_put(out, ",\"object\":\"");
    ws_put_ident(out, made->arguments[0]);
    put_number(out, "\",\"holder\":", (uint64_t)found.owner);
    return true;
#else
    (void)out, (void)thread, (void)made;
    return false;
#endif
}

/* ---- the system calls ---- */

typedef struct {
    long number;
    const char *name;
} named_call;

/* Calls whose first argument is the descriptor that they wait for. */
static const named_call ON_DESCRIPTOR[] = {
    {SYS_read, "read"},         {SYS_pread64, "pread64"},     {SYS_readv, "readv"},
    {SYS_write, "write"},       {SYS_pwrite64, "pwrite64"},   {SYS_writev, "writev"},
    {SYS_recvfrom, "recvfrom"}, {SYS_recvmsg, "recvmsg"},     {SYS_sendto, "sendto"},
    {SYS_sendmsg, "sendmsg"},   {SYS_accept, "accept"},       {SYS_accept4, "accept4"},
    {SYS_connect, "connect"},   {SYS_fsync, "fsync"},         {SYS_fdatasync, "fdatasync"},
#ifdef SYS_epoll_wait
    {SYS_epoll_wait, "epoll_wait"},
#endif
    {SYS_epoll_pwait, "epoll_pwait"},
};

static bool put_on_descriptor(sink *out, const call *made) {
    for (size_t i = 0; i < sizeof ON_DESCRIPTOR / sizeof *ON_DESCRIPTOR; i++) {
        if (made->number == ON_DESCRIPTOR[i].number) {
            put_wait_for(out, (int)made->arguments[0], ON_DESCRIPTOR[i].name);
            return true;
        }
    }
    return false;
}

static bool put_poll(sink *out, const call *made) {
    struct pollfd first;
    bool is_poll = made->number == SYS_ppoll;
#ifdef SYS_poll
    is_poll = is_poll || made->number == SYS_poll;
#endif
    if (!is_poll || made->arguments[1] != 1
        || !read_memory(made->arguments[0], &first, sizeof first) || first.fd < 0)
        return false;
    put_wait_for(out, first.fd, "poll");
    return true;
}

/* open() waits for the other side of a FIFO, or for a file system. */
static bool put_open(sink *out, const call *made) {
    char path[MAX_PATH];
    unsigned long address = made->arguments[1];
    if (made->number != SYS_openat || address == 0)
        return false;
    const char *end = NULL;
    size_t size = 0;
    while (end == NULL && size < sizeof path) { /* the page behind the text's last may not be there */
        size_t more = 4096 - (address + size) % 4096;
        more = more < sizeof path - size ? more : sizeof path - size;
        if (!read_memory(address + size, path + size, more))
            break;
        end = memchr(path + size, 0, more);
        size += more;
    }
    if (size == 0)
        return false;
    put_kind(out, "descriptor", "openat");
    ws_put(out, ",\"path\":");
    ws_put_json_bytes(out, path, end != NULL ? (size_t)(end - path) : size, end == NULL);
    return true;
}

static bool put_process(sink *out, const call *made) {
    long pid = 0;
    if (made->number == SYS_wait4)
        pid = (int)made->arguments[0];
    else if (made->number == SYS_waitid && made->arguments[0] == P_PID)
        pid = (int)made->arguments[1];
    else if (made->number != SYS_waitid)
        return false;
    put_kind(out, "process", made->number == SYS_wait4 ? "wait4" : "waitid");
    if (pid > 0 && pid < MAX_CHILDREN)
        put_number(out, ",\"pid\":", (uint64_t)pid);
    return true;
}

static bool put_wait(sink *out, const ws_thread *thread, const call *made, ws_waits_budget *left) {
    switch (made->number) {
    case SYS_futex:
        return put_mutex(out, thread, made);
    case SYS_flock:
        put_file_lock(out, (int)made->arguments[0], "flock", "FLOCK", left);
        return true;
    case SYS_fcntl:
        if (made->arguments[1] != F_SETLKW && made->arguments[1] != OFD_SETLKW)
            return false;
        put_file_lock(
            out, (int)made->arguments[0], "fcntl",
            made->arguments[1] == F_SETLKW ? "POSIX" : NULL, left);
        return true;
    default:
        return put_process(out, made) || put_on_descriptor(out, made) || put_poll(out, made)
               || put_open(out, made);
    }
}

bool ws_put_waits(sink *out, const ws_thread *thread, char state, ws_waits_budget *left) {
    call made;
    if ((state != 'S' && state != 'D') || thread->native_id <= 0 || left->threads <= 0)
        return false;
    left->threads--;
    if (!read_call(thread->native_id, &made))
        return false;
    if (put_wait(out, thread, &made, left))
        ws_put(out, "}");
    else if (made.number == SYS_futex)
        return false;
    return true;
}

void ws_put_switches(sink *out, long native_id) {
    ws_switches found;
    ws_kernel_switches(native_id, &found);
    if (found.known)
        put_number(out, ",\"switches\":", found.count);
}

#else

void ws_waits_store(int port) {
    (void)port;
}

bool ws_put_waits(sink *out, const ws_thread *thread, char state, ws_waits_budget *left) {
    (void)out, (void)thread, (void)state, (void)left;
    return false;
}

void ws_put_switches(sink *out, long native_id) {
    (void)out, (void)native_id;
}

#endif
