/* What the load generator asks of sockets, clocks and timers, where POSIX is not enough. */
#ifndef WORKERSERVER_LOADGEN_H
#define WORKERSERVER_LOADGEN_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/prctl.h>
#endif
#if !defined(MSG_NOSIGNAL)
#define MSG_NOSIGNAL 0 /* Python ignores SIGPIPE */
#endif

static inline int64_t wl_clock(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Sleep until something is ready, at most *ns*. Where there is no ppoll(), the part of a
 * millisecond that poll() can't sleep is spent asking. */
static inline int wl_poll(struct pollfd *polled, int count, int64_t ns)
{
#if defined(__linux__)
    struct timespec wait = {ns / 1000000000, ns % 1000000000};
    return ppoll(polled, (nfds_t)count, &wait, NULL);
#else
    return poll(polled, (nfds_t)count, (int)(ns / 1000000));
#endif
}

/* The kernel lets this thread's timers be late by so much, to save power; -1: not known. */
static inline long wl_slack(void)
{
#if defined(__linux__)
    return prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);
#else
    return -1;
#endif
}

static inline void wl_set_slack(long ns)
{
#if defined(__linux__)
    if (ns > 0)
        prctl(PR_SET_TIMERSLACK, (unsigned long)ns, 0, 0, 0);
#else
    (void)ns;
#endif
}

static inline int wl_socket(int family, int64_t patience_ns)
{
    struct timeval patience = {patience_ns / 1000000000, patience_ns % 1000000000 / 1000};
    int one = 1;
#if defined(SOCK_NONBLOCK)
    int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
#else
    int fd = socket(family, SOCK_STREAM, 0);
    if (fd >= 0) {
        fcntl(fd, F_SETFD, FD_CLOEXEC);
        fcntl(fd, F_SETFL, O_NONBLOCK);
    }
#endif
    if (fd >= 0 && family != AF_UNIX)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (fd >= 0 && patience_ns > 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    return fd;
}

static inline void wl_block(int fd)
{
    fcntl(fd, F_SETFL, 0);
}

static inline int wl_socket_error(int fd)
{
    int error = 0;
    socklen_t size = sizeof error;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0 ? errno : error;
}

typedef struct {
    int family;
    socklen_t size;
    struct sockaddr_storage storage;
} wl_address;

static inline int wl_unix(wl_address *to, const char *path, size_t size)
{
    struct sockaddr_un *un = (struct sockaddr_un *)&to->storage;
    if (size == 0 || size >= sizeof un->sun_path)
        return 0;
    un->sun_family = AF_UNIX;
    memcpy(un->sun_path, path, size);
    to->family = AF_UNIX;
    /* An abstract name (a zero byte first) is as long as the address says. */
    to->size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + size + (path[0] != 0));
    return 1;
}

static inline int wl_inet(wl_address *to, int family, const char *host, int port, unsigned scope)
{
    to->family = family;
    if (family == AF_INET) {
        struct sockaddr_in *in = (struct sockaddr_in *)&to->storage;
        in->sin_family = AF_INET;
        in->sin_port = htons((uint16_t)port);
        to->size = sizeof *in;
        return inet_pton(AF_INET, host, &in->sin_addr) == 1;
    }
    if (family == AF_INET6) {
        struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&to->storage;
        in6->sin6_family = AF_INET6;
        in6->sin6_port = htons((uint16_t)port);
        in6->sin6_scope_id = scope;
        to->size = sizeof *in6;
        return inet_pton(AF_INET6, host, &in6->sin6_addr) == 1;
    }
    return 0;
}

#endif
