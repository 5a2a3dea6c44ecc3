/* epoll_server PATH, or 127.0.0.1 for a free port: the physical limit. One epoll loop answers
 * every read with the same "pong". It has no parser, no limits, and nothing else of a server. When
 * it serves, it prints {"port": PORT}; on a Unix socket, null in place of the port. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static const char REPLY[] =
    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\npong";

/* Makes a listening socket. *port* gets its port, or -1 for a path. */
static int listening(const char *where, int *port) {
    struct sockaddr_un path = {.sun_family = AF_UNIX};
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof address;
    int listener;
    *port = -1;
    if (inet_pton(AF_INET, where, &address.sin_addr) == 1) {
        listener = socket(AF_INET, SOCK_STREAM, 0);
        if (bind(listener, (struct sockaddr *)&address, size) < 0
            || getsockname(listener, (struct sockaddr *)&address, &size) < 0)
            return -1;
        *port = ntohs(address.sin_port);
    } else {
        listener = socket(AF_UNIX, SOCK_STREAM, 0);
        strncpy(path.sun_path, where, sizeof path.sun_path - 1);
        if (bind(listener, (struct sockaddr *)&path, sizeof path) < 0)
            return -1;
    }
    return listen(listener, 1024) < 0 ? -1 : listener;
}

int main(int argc, char **argv) {
    int port, one = 1;
    if (argc != 2)
        return 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int listener = listening(argv[1], &port), poller = epoll_create1(0);
    if (listener < 0) {
        perror(argv[1]);
        return 1;
    }
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[64];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    printf(port < 0 ? "{\"port\": null}\n" : "{\"port\": %d}\n", port);
    fflush(stdout);
    for (;;) {
        int n = epoll_wait(poller, events, 64, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            char data[4096];
            if (fd == listener) {
                event.data.fd = accept(listener, NULL, NULL);
                if (port >= 0)
                    setsockopt(event.data.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                epoll_ctl(poller, EPOLL_CTL_ADD, event.data.fd, &event);
            } else if (read(fd, data, sizeof data) <= 0) {
                close(fd);
            } else if (write(fd, REPLY, sizeof REPLY - 1) < 0) {
                close(fd);
            }
        }
    }
}
