/* Faults of the system, for the server's own threads only. LD_PRELOAD loads this into a rank.
 *
 * The file that CHAOS_CONTROL names, with the process's id behind it, is mapped as a struct control.
 * Whoever maps it too decides which faults are armed, and reads how many were injected. A thread of
 * the server's is known by its name in the kernel: both begin with "workerserver-", and threads for
 * handlers inherit the name of the loop's thread. No other thread ever sees a fault. Whether a call
 * fails is decided by a random number that follows from the seed, the thread's role and the number
 * of the draw.
 *
 * libuv ends the process if its own epoll or its wake-up fails, so the loop's thread gets no fault
 * there but EINTR.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* The order is that of INJECTED in tests/support/chaos/faults.py. */
enum fault { NOFILE, NOMEM, INTR, SHORT, PIPE, PEEK, THREAD, SPACE, CLOCK, FAULTS };
enum role { OTHER, IO, LOOP };

struct control {
    _Atomic uint32_t armed;    /* a bit for each fault */
    _Atomic uint32_t of_1024;  /* how many of 1,024 calls fail */
    _Atomic uint64_t seed;
    _Atomic int64_t jump;      /* nanoseconds that CLOCK_REALTIME is ahead */
    _Atomic uint64_t injected[FAULTS];
};

static struct control *control;
static _Atomic uint64_t draws[3];
static __thread enum role known;

static void map(void)
{
    const char *name = getenv("CHAOS_CONTROL");
    char path[4096];
    void *place = MAP_FAILED;
    int fd;

    control = NULL;
    if (name == NULL || snprintf(path, sizeof(path), "%s.%d", name, getpid()) >= (int)sizeof(path))
        return;
    fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return;
    if (ftruncate(fd, sizeof(struct control)) == 0)
        place = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (place != MAP_FAILED)
        control = place;
}

__attribute__((constructor)) static void start(void)
{
    map();
}

static enum role role(void)
{
    char name[16] = "";

    if (known == OTHER && prctl(PR_GET_NAME, name) == 0) {
        if (strcmp(name, "workerserver-io") == 0)
            known = IO;
        else if (strcmp(name, "workerserver-lo") == 0)
            known = LOOP;
    }
    return known;
}

static uint64_t mixed(uint64_t x)  /* splitmix64 */
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* Whether this call of the calling thread is to fail by this fault. */
static bool now(enum fault fault)
{
    enum role who;
    uint64_t draw;

    if (control == NULL || !(atomic_load(&control->armed) >> fault & 1))
        return false;
    who = role();
    if (who == OTHER)
        return false;
    draw = atomic_fetch_add(&draws[who], 1);
    if (mixed(atomic_load(&control->seed) ^ mixed(draw << 2 | who)) % 1024 >=
        atomic_load(&control->of_1024))
        return false;
    atomic_fetch_add(&control->injected[fault], 1);
    return true;
}

static int refuse(int error)
{
    errno = error;
    return -1;
}

static bool is_kind(int fd, mode_t kind)
{
    struct stat status;
    int before = errno;
    bool is = fstat(fd, &status) == 0 && (status.st_mode & S_IFMT) == kind;

    errno = before;
    return is;
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (real == NULL) \
        real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* --- descriptors */

int accept4(int fd, __SOCKADDR_ARG address, socklen_t *restrict size, int flags)
{
    REAL(accept4);
    if (now(NOFILE))
        return refuse(mixed(atomic_load(&draws[IO])) & 1 ? EMFILE : ENFILE);
    if (now(INTR))
        return refuse(EINTR);
    return real(fd, address, size, flags);
}

int accept(int fd, __SOCKADDR_ARG address, socklen_t *restrict size)
{
    REAL(accept);
    if (now(NOFILE))
        return refuse(EMFILE);
    return real(fd, address, size);
}

int socket(int family, int type, int protocol)
{
    REAL(socket);
    if (now(NOFILE))
        return refuse(EMFILE);
    return real(family, type, protocol);
}

#define OPEN(name, head, ...) \
    int name head \
    { \
        mode_t mode = 0; \
        REAL(name); \
        if (flags & (O_CREAT | O_TMPFILE)) { \
            va_list more; \
            va_start(more, flags); \
            mode = va_arg(more, mode_t); \
            va_end(more); \
        } \
        if (now(NOFILE)) \
            return refuse(EMFILE); \
        if (flags & O_CREAT && now(SPACE)) \
            return refuse(ENOSPC); \
        return real(__VA_ARGS__, flags, mode); \
    }

OPEN(open, (const char *path, int flags, ...), path)
OPEN(open64, (const char *path, int flags, ...), path)
OPEN(openat, (int folder, const char *path, int flags, ...), folder, path)
OPEN(openat64, (int folder, const char *path, int flags, ...), folder, path)

/* --- bytes */

ssize_t recv(int fd, void *data, size_t size, int flags)
{
    REAL(recv);
    if (now(INTR))
        return refuse(EINTR);
    if (size > 1 && now(SHORT))
        size = 1 + size / 7;
    return real(fd, data, size, flags);
}

ssize_t read(int fd, void *data, size_t size)
{
    REAL(read);
    if (now(INTR))
        return refuse(EINTR);
    return real(fd, data, size);
}

ssize_t send(int fd, const void *data, size_t size, int flags)
{
    REAL(send);
    if (now(INTR))
        return refuse(EINTR);
    if (now(PIPE))
        return refuse(EPIPE);
    if (size > 1 && now(SHORT))
        size = 1 + size / 7;
    return real(fd, data, size, flags);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    struct msghdr fewer = *message;

    REAL(sendmsg);
    if (now(INTR))
        return refuse(EINTR);
    if (now(PIPE))
        return refuse(EPIPE);
    if (fewer.msg_iovlen > 1 && now(SHORT))
        fewer.msg_iovlen = 1;
    return real(fd, &fewer, flags);
}

ssize_t writev(int fd, const struct iovec *pieces, int count)
{
    REAL(writev);
    if (now(INTR))
        return refuse(EINTR);
    if (is_kind(fd, S_IFSOCK)) {
        if (now(PIPE))
            return refuse(EPIPE);
        if (count > 1 && now(SHORT))
            count = 1;
    }
    return real(fd, pieces, count);
}

ssize_t write(int fd, const void *data, size_t size)
{
    REAL(write);
    if (now(INTR))
        return refuse(EINTR);
    if (is_kind(fd, S_IFSOCK)) {
        if (now(PIPE))
            return refuse(EPIPE);
        if (size > 1 && now(SHORT))
            size = 1 + size / 7;
    } else if (is_kind(fd, S_IFREG) && now(SPACE)) {
        return refuse(ENOSPC);
    }
    return real(fd, data, size);
}

int ftruncate(int fd, off_t size)
{
    REAL(ftruncate);
    if (now(SPACE))
        return refuse(ENOSPC);
    return real(fd, size);
}

/* --- memory; the loop's thread runs Python, whose own failures are the interpreter's matter */

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *block, size_t size);

/* Sets errno if it says so. */
static bool no_memory(void)
{
    if (control == NULL || !(atomic_load(&control->armed) >> NOMEM & 1) || role() != IO ||
        !now(NOMEM))
        return false;
    errno = ENOMEM;
    return true;
}

void *malloc(size_t size)
{
    return no_memory() ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    return no_memory() ? NULL : __libc_calloc(count, size);
}

void *realloc(void *block, size_t size)
{
    return size != 0 && no_memory() ? NULL : __libc_realloc(block, size);
}

void *mmap(void *place, size_t size, int protection, int flags, int fd, off_t offset)
{
    if (no_memory())
        return MAP_FAILED;
    return (void *)syscall(SYS_mmap, place, size, protection, flags, fd, offset);
}

int epoll_ctl(int epoll, int what, int fd, struct epoll_event *event)
{
    REAL(epoll_ctl);
    if (what == EPOLL_CTL_ADD && no_memory())
        return -1;
    return real(epoll, what, fd, event);
}

/* --- waits, threads, other memory, time */

int epoll_wait(int epoll, struct epoll_event *events, int most, int timeout)
{
    REAL(epoll_wait);
    if (now(INTR))
        return refuse(EINTR);
    return real(epoll, events, most, timeout);
}

int epoll_pwait(int epoll, struct epoll_event *events, int most, int timeout, const sigset_t *mask)
{
    REAL(epoll_pwait);
    if (now(INTR))
        return refuse(EINTR);
    return real(epoll, events, most, timeout, mask);
}

ssize_t process_vm_readv(pid_t pid, const struct iovec *here, unsigned long count,
                         const struct iovec *there, unsigned long pieces, unsigned long flags)
{
    REAL(process_vm_readv);
    if (now(PEEK))
        return refuse(mixed(atomic_load(&draws[IO])) & 1 ? EPERM : EFAULT);
    return real(pid, here, count, there, pieces, flags);
}

int pthread_create(pthread_t *restrict thread, const pthread_attr_t *restrict attributes,
                   void *(*run)(void *), void *restrict argument)
{
    REAL(pthread_create);
    if (now(THREAD))
        return EAGAIN;
    return real(thread, attributes, run, argument);
}

static int64_t jump(void)
{
    if (control == NULL || !(atomic_load(&control->armed) >> CLOCK & 1))
        return 0;
    if (role() != OTHER)
        atomic_fetch_add(&control->injected[CLOCK], 1);
    return atomic_load(&control->jump);
}

/* As on a machine whose clock is set: for all threads, the trainer's too. */
int clock_gettime(clockid_t clock, struct timespec *time)
{
    REAL(clock_gettime);
    int result = real(clock, time);
    if (result == 0 && clock == CLOCK_REALTIME)
        time->tv_sec += jump() / 1000000000;
    return result;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone)
{
    REAL(gettimeofday);
    int result = real(time, zone);
    if (result == 0)
        time->tv_sec += jump() / 1000000000;
    return result;
}

time_t time(time_t *place)
{
    struct timespec now_is;

    clock_gettime(CLOCK_REALTIME, &now_is);
    if (place != NULL)
        *place = now_is.tv_sec;
    return now_is.tv_sec;
}
