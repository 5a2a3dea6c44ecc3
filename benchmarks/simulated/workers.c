/* simulated_workers TABLE FOLDER, or TABLE 127.0.0.1: a job of thousands of workers in one process.
 * It has one epoll loop, and a listener for each worker (FOLDER/rank0.sock and so on, or a free
 * port). The answers are ready-made, so a measurement shows the cost of the client. When the
 * program serves, it prints {"ports": [PORT, ...]}; for Unix sockets, null in place of the list.
 *
 * It speaks the HTTP/1.1 that correct clients need: keep-alive, requests one after another or
 * pipelined, bodies with a Content-Length. It drops the bodies. Table.write in
 * benchmarks/simulated/workers.py makes TABLE: 64-bit numbers, then bytes. A text is its offset in
 * the file and its length. A question is "METHOD target", or the beginning of that and a "*". The
 * first question that fits counts.
 *
 *     workers, questions, answers
 *     questions x text
 *     answers x text                  whole responses
 *     workers x questions x number    of the answer
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* CONNECTIONS: descriptors beside the listeners'. */
enum { HEAD = 4096, EVENTS = 256, BACKLOG = 128, CONNECTIONS = 3072 };

struct text {
    uint64_t offset, size;
};

/* The table, where it is mapped. */
static const char *bytes;
static const struct text *questions, *answers;
static const uint64_t *answer_of;
static uint64_t workers, question_count;

/* A connection reads or writes: it looks at the next request when the answer has gone out. */
struct connection {
    int fd;
    uint64_t worker;
    uint64_t body;          /* bytes of the request's body that are still to come */
    const char *answer;     /* the rest of the answer, */
    uint64_t left;          /* of this many bytes */
    size_t filled;
    char head[HEAD];
};

static int poller;
/* Both by descriptor: connections, and the workers of listeners. */
static struct connection **connections;
static uint64_t *worker_of;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void map_table(const char *path) {
    int fd = open(path, O_RDONLY);
    struct stat about;
    if (fd < 0 || fstat(fd, &about) < 0)
        die(path);
    void *table = mmap(NULL, about.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (table == MAP_FAILED)
        die(path);
    close(fd);
    const uint64_t *numbers = table;
    bytes = table;
    workers = numbers[0];
    question_count = numbers[1];
    questions = (const struct text *)(numbers + 3);
    answers = questions + question_count;
    answer_of = (const uint64_t *)(answers + numbers[2]);
}

/* Makes a non-blocking listening socket. On TCP, *port* gets its port. */
static int listening(const char *where, uint64_t worker, int *port) {
    struct sockaddr_un path = {.sun_family = AF_UNIX};
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof address;
    int fd, one = 1;
    if (inet_pton(AF_INET, where, &address.sin_addr) == 1) {
        fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        /* Accepted sockets inherit this. */
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (bind(fd, (struct sockaddr *)&address, size) < 0
            || getsockname(fd, (struct sockaddr *)&address, &size) < 0)
            return -1;
        *port = ntohs(address.sin_port);
    } else {
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
        snprintf(path.sun_path, sizeof path.sun_path, "%s/rank%llu.sock", where,
                 (unsigned long long)worker);
        if (bind(fd, (struct sockaddr *)&path, sizeof path) < 0)
            return -1;
    }
    return listen(fd, BACKLOG) < 0 ? -1 : fd;
}

static void watch(int operation, int fd, uint32_t events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(poller, operation, fd, &event) < 0)
        die("epoll_ctl");
}

static void accept_one(int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    if (fd < 0)
        return;
    struct connection *peer = calloc(1, sizeof *peer);
    if (peer == NULL)
        die("calloc");
    peer->fd = fd;
    peer->worker = worker_of[listener];
    connections[fd] = peer;
    watch(EPOLL_CTL_ADD, fd, EPOLLIN);
}

static void hang_up(struct connection *peer) {
    connections[peer->fd] = NULL;
    close(peer->fd);
    free(peer);
}

/* Chooses the answer to a head of *size* bytes, and notes how much of a body follows it. */
static void understand(struct connection *peer, size_t size) {
    const char *line_end = memchr(peer->head, '\r', size);
    const char *version = line_end;
    while (version > peer->head && *version != ' ')
        version--;
    size_t length = version - peer->head;
    const uint64_t *row = answer_of + peer->worker * question_count;
    for (uint64_t i = 0; i < question_count; i++) {
        const char *question = bytes + questions[i].offset;
        uint64_t size = questions[i].size;
        int begins = question[size - 1] == '*';
        size -= begins;
        if ((begins ? size > length : size != length) || memcmp(question, peer->head, size) != 0)
            continue;
        peer->answer = bytes + answers[row[i]].offset;
        peer->left = answers[row[i]].size;
        break;
    }
    /* The head ends in "\r\n\r\n", so strcasestr() would run into what follows it without a NUL. */
    char *end = peer->head + size - 1, last = *end;
    *end = '\0';
    const char *field = strcasestr(peer->head, "\r\ncontent-length:");
    peer->body = field == NULL ? 0 : strtoull(field + 17, NULL, 10);
    *end = last;
}

/* 1: all of the answer is out. 0: the socket is full. -1: the peer has gone. */
static int send_on(struct connection *peer) {
    while (peer->left != 0) {
        ssize_t n = write(peer->fd, peer->answer, peer->left);
        if (n < 0)
            return errno == EAGAIN ? 0 : -1;
        peer->answer += n;
        peer->left -= n;
    }
    return 1;
}

/* Answers the requests that have come, as far as the socket takes the answers. -1: the connection
 * has ended. */
static int answer(struct connection *peer) {
    for (;;) {
        int sent = send_on(peer);
        if (sent <= 0)
            return sent;
        size_t skipped = peer->body < peer->filled ? peer->body : peer->filled;
        peer->body -= skipped;
        peer->filled -= skipped;
        memmove(peer->head, peer->head + skipped, peer->filled);
        const char *end = memmem(peer->head, peer->filled, "\r\n\r\n", 4);
        if (end == NULL)
            return peer->filled == HEAD ? -1 : 1;
        size_t size = end + 4 - peer->head;
        understand(peer, size);
        peer->filled -= size;
        memmove(peer->head, peer->head + size, peer->filled);
    }
}

static void serve(struct connection *peer, uint32_t events) {
    int full = peer->left != 0;
    if (!full || events & (EPOLLHUP | EPOLLERR)) {
        ssize_t n = read(peer->fd, peer->head + peer->filled, HEAD - peer->filled);
        if (n <= 0 && !(n < 0 && errno == EAGAIN)) {
            hang_up(peer);
            return;
        }
        peer->filled += n > 0 ? n : 0;
    }
    int open = answer(peer);
    if (open < 0)
        hang_up(peer);
    else if (full != (open == 0))
        watch(EPOLL_CTL_MOD, peer->fd, open == 0 ? EPOLLOUT : EPOLLIN);
}

/* Raises the limit of descriptors, and makes the tables that descriptors index. */
static void make_room(void) {
    struct rlimit most;
    getrlimit(RLIMIT_NOFILE, &most);
    rlim_t wanted = workers + CONNECTIONS;
    most.rlim_cur = wanted < most.rlim_max ? wanted : most.rlim_max;
    setrlimit(RLIMIT_NOFILE, &most);
    connections = calloc(most.rlim_cur, sizeof *connections);
    worker_of = calloc(most.rlim_cur, sizeof *worker_of);
    if (connections == NULL || worker_of == NULL)
        die("calloc");
}

static void listen_to_all(const char *where) {
    const char *between = "{\"ports\": [";
    int port = 0;
    for (uint64_t worker = 0; worker < workers; worker++) {
        int fd = listening(where, worker, &port);
        if (fd < 0)
            die(where);
        worker_of[fd] = worker;
        watch(EPOLL_CTL_ADD, fd, EPOLLIN);
        if (port != 0)
            printf("%s%d", between, port);
        between = ", ";
    }
    puts(port != 0 ? "]}" : "{\"ports\": null}");
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN);
    map_table(argv[1]);
    make_room();
    poller = epoll_create1(0);
    listen_to_all(argv[2]);
    for (;;) {
        struct epoll_event events[EVENTS];
        int n = epoll_wait(poller, events, EVENTS, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (connections[fd] == NULL)
                accept_one(fd);
            else
                serve(connections[fd], events[i].events);
        }
    }
}
