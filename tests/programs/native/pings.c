/* pings ADDRESS COUNT CONNECTIONS PAUSE_US: COUNT pings over CONNECTIONS keep-alive connections to
 * a socket's path or to 127.0.0.1:PORT, one at a time on each. Every reply is read whole and
 * compared. Prints one line of JSON: the number of right replies, and times in microseconds. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTIONS = 64, PATIENCE_MS = 20000 };

static const char REQUEST[] =
    "POST /handler/ping HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
static const char REPLY[] =
    "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 4\r\n\r\npong";

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static int connected(const char *to) {
    int fd, one = 1;
    if (to[0] == '/') {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        strncpy(address.sun_path, to, sizeof address.sun_path - 1);
        fd = socket(AF_UNIX, SOCK_STREAM, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
            return -1;
    } else {
        const char *port = strchr(to, ':');
        struct sockaddr_in address = {.sin_family = AF_INET};
        address.sin_port = htons((unsigned short)atoi(port != NULL ? port + 1 : to));
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
            return -1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    }
    return fd;
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fputs("usage: pings ADDRESS COUNT CONNECTIONS PAUSE_US\n", stderr);
        return 2;
    }
    long count = atol(argv[2]), sent = 0, right = 0, wrong = 0;
    int number = atoi(argv[3]), pause = atoi(argv[4]);
    struct pollfd polled[CONNECTIONS];
    double begun[CONNECTIONS], start;
    size_t got[CONNECTIONS];
    char replies[CONNECTIONS][sizeof REPLY + 512];
    if (count < 1 || number < 1 || number > CONNECTIONS || number > count)
        return 2;
    float *times = malloc((size_t)count * sizeof *times);
    if (times == NULL)
        return 1;
    for (int i = 0; i < number; i++) {
        polled[i].fd = connected(argv[1]);
        polled[i].events = POLLIN;
        if (polled[i].fd < 0) {
            perror(argv[1]);
            return 1;
        }
    }
    start = now();
    for (int i = 0; i < number; i++, sent++) {
        got[i] = 0;
        begun[i] = now();
        if (write(polled[i].fd, REQUEST, sizeof REQUEST - 1) != sizeof REQUEST - 1)
            return 1;
    }
    while (right + wrong < sent) {
        /* With one connection, wait in read() as the simplest client does. */
        if (number > 1 && poll(polled, (nfds_t)number, PATIENCE_MS) <= 0)
            break;
        for (int i = 0; i < number; i++) {
            if (polled[i].fd < 0 || (number > 1 && polled[i].revents == 0))
                continue;
            ssize_t n = read(polled[i].fd, replies[i] + got[i], sizeof replies[i] - got[i]);
            if (n <= 0) {
                wrong++;
                close(polled[i].fd);
                polled[i].fd = -1;
                continue;
            }
            got[i] += (size_t)n;
            if (got[i] < sizeof REPLY - 1)
                continue;
            if (got[i] == sizeof REPLY - 1 && memcmp(replies[i], REPLY, got[i]) == 0) {
                times[right++] = (float)(now() - begun[i]);
            } else {
                wrong++;
                fprintf(stderr, "%.*s\n", (int)got[i], replies[i]);
                close(polled[i].fd);
                polled[i].fd = -1;
                continue;
            }
            if (sent == count)
                continue;
            if (pause > 0)
                usleep((useconds_t)pause);
            got[i] = 0;
            begun[i] = now();
            sent++;
            if (write(polled[i].fd, REQUEST, sizeof REQUEST - 1) != sizeof REQUEST - 1)
                wrong++;
        }
    }
    double seconds = (now() - start) * 1e-6;
    qsort(times, (size_t)right, sizeof *times, ascending);
    printf("{\"sent\": %ld, \"right\": %ld, \"wrong\": %ld, \"seconds\": %.2f", sent, right, wrong,
           seconds);
    if (right > 0)
        printf(", \"p50\": %.1f, \"p99\": %.1f, \"p999\": %.1f, \"max\": %.1f", times[right / 2],
               times[right - 1 - right / 100], times[right - 1 - right / 1000], times[right - 1]);
    puts("}");
    return right == count ? 0 : 1;
}
