/* epoll_server PATH: the physical limit. One epoll loop that answers every read with the same
 * "pong", whatever was read: no parser, no limits, nothing that a server has to have. */
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

int main(int argc, char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int listener = socket(AF_UNIX, SOCK_STREAM, 0), poller = epoll_create1(0);
    if (argc != 2)
        return 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    strncpy(address.sun_path, argv[1], sizeof address.sun_path - 1);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 64) < 0)
        return 1;
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[16];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    puts("ready");
    fflush(stdout);
    for (;;) {
        int n = epoll_wait(poller, events, 16, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            char data[4096];
            if (fd == listener) {
                event.data.fd = accept(listener, NULL, NULL);
                epoll_ctl(poller, EPOLL_CTL_ADD, event.data.fd, &event);
            } else if (read(fd, data, sizeof data) <= 0) {
                close(fd);
            } else if (write(fd, REPLY, sizeof REPLY - 1) < 0) {
                return 1;
            }
        }
    }
}
