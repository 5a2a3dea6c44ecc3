"""The operating system's calls, as the I/O thread and its bridge use them. Declarations only."""

from libc.stdint cimport uint32_t


cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char *text, void *address)


cdef extern from *:
    """
    #include <netinet/in.h>
    #include <string.h>
    #include <sys/socket.h>

    typedef union {
        struct sockaddr_storage storage;
        struct sockaddr_in four;
        struct sockaddr_in6 six;
    } ws_peer_name;

    /* The address in *name* as IPv6 has it, so that listeners of both kinds mean one peer. */
    static inline void ws_address(const ws_peer_name *name, unsigned char address[16])
    {
        memset(address, 0, 16);
        if (name->storage.ss_family == AF_INET) {
            address[10] = address[11] = 0xff;
            memcpy(address + 12, &name->four.sin_addr, 4);
        } else if (name->storage.ss_family == AF_INET6) {
            memcpy(address, &name->six.sin6_addr, 16);
        }
    }
    """
    ctypedef struct ws_peer_name:  # of a socket; as accept() fills it
        pass
    void ws_address(const ws_peer_name *name, unsigned char *address) noexcept nogil


cdef extern from "<netinet/in.h>" nogil:
    int IPPROTO_TCP


cdef extern from "<fcntl.h>" nogil:
    int O_CLOEXEC
    int O_NONBLOCK


cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int POLLIN
    int poll(pollfd *fds, unsigned long count, int timeout)


cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef unsigned long pthread_t
    int pthread_atfork(
        void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil,
        void (*child)() noexcept nogil,
    )
    int pthread_mutex_destroy(pthread_mutex_t *mutex)
    int pthread_mutex_init(pthread_mutex_t *mutex, void *attributes)
    int pthread_mutex_lock(pthread_mutex_t *mutex)
    int pthread_mutex_trylock(pthread_mutex_t *mutex)
    int pthread_mutex_unlock(pthread_mutex_t *mutex)
    int pthread_equal(pthread_t one, pthread_t other)
    pthread_t pthread_self()


cdef extern from "<sched.h>" nogil:
    int sched_yield()


cdef extern from "<strings.h>" nogil:
    int strncasecmp(const char *one, const char *other, size_t size)


cdef extern from "<sys/eventfd.h>" nogil:
    int EFD_CLOEXEC
    int EFD_NONBLOCK
    int eventfd(unsigned int value, int flags)


cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned short sa_family_t
    ctypedef unsigned int socklen_t
    struct sockaddr:
        pass
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    struct ucred:
        uint32_t uid
    int AF_INET
    int AF_INET6
    int AF_UNIX
    int MSG_DONTWAIT
    int MSG_NOSIGNAL
    int SHUT_WR
    int SOCK_CLOEXEC
    int SOCK_NONBLOCK
    int SOCK_STREAM
    int SOL_SOCKET
    int SO_PEERCRED
    int accept4(int fd, void *address, socklen_t *size, int flags)
    int connect(int fd, const sockaddr *address, socklen_t size)
    int getsockopt(int fd, int level, int name, void *value, socklen_t *size)
    ssize_t recv(int fd, void *data, size_t size, int flags)
    ssize_t send(int fd, const void *data, size_t size, int flags)
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    int setsockopt(int fd, int level, int name, const void *value, socklen_t size)
    int shutdown(int fd, int how)
    int socket(int domain, int kind, int protocol)


cdef extern from "<sys/stat.h>" nogil:
    ctypedef struct stat_t "struct stat":
        unsigned long st_dev
        unsigned long st_ino
    int fstat(int fd, stat_t *found)


cdef extern from "<sys/timerfd.h>" nogil:
    int TFD_CLOEXEC
    int TFD_NONBLOCK
    int TFD_TIMER_ABSTIME
    int timerfd_create(int clock, int flags)


cdef extern from "<sys/un.h>" nogil:
    struct sockaddr_un:
        sa_family_t sun_family
        char sun_path[108]


cdef extern from "<unistd.h>" nogil:
    int pipe2(int *ends, int flags)
