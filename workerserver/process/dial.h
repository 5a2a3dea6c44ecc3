/* The client's end of a socket: addresses, and a socket that does not block. For the load generator
 * and for the engine that asks many workers. */
#ifndef WORKERSERVER_DIAL_H
#define WORKERSERVER_DIAL_H

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#if !defined(MSG_NOSIGNAL)
#define MSG_NOSIGNAL 0 /* Python ignores SIGPIPE */
#endif

typedef struct {
    int family;
    socklen_t size;
    struct sockaddr_storage storage;
} dial_address;

static inline int dial_socket(int family)
{
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
    return fd;
}

/* Why connect() failed after all; 0: it did not. */
static inline int dial_error(int fd)
{
    int error = 0;
    socklen_t size = sizeof error;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0 ? errno : error;
}

static inline int dial_unix(dial_address *to, const char *path, size_t size)
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

static inline int dial_inet(dial_address *to, int family, const char *host, int port, unsigned scope)
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
