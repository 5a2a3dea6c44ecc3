/* roundtrip PATH HANDLER COUNT PAUSE_US: p50 and p99 of COUNT requests over a Unix socket, in
 * microseconds, one at a time on keep-alive connections. torch's server closes a connection after
 * 30 requests, so every server gets a new one after 25; connecting is not timed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { PER_CONNECTION = 25, REPLY_SIZE = 1 << 22 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int open_connection(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        perror(path);
        exit(1);
    }
    return fd;
}

/* Reads one whole reply with a Content-Length; its status must be 200. */
static void read_reply(int fd, char *reply) {
    size_t got = 0, whole = 0;
    while (whole == 0 || got < whole) {
        ssize_t n = read(fd, reply + got, REPLY_SIZE - 1 - got);
        if (n <= 0) {
            fputs("connection ended in a reply\n", stderr);
            exit(1);
        }
        got += (size_t)n;
        reply[got] = 0;
        char *end = strstr(reply, "\r\n\r\n"), *length = strstr(reply, "Content-Length: ");
        if (end != NULL && length != NULL && whole == 0)
            whole = (size_t)(end - reply) + 4 + (size_t)atol(length + 16);
    }
    if (strncmp(reply, "HTTP/1.1 200", 12) != 0) {
        fprintf(stderr, "%.200s\n", reply);
        exit(1);
    }
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fputs("usage: roundtrip PATH HANDLER COUNT PAUSE_US\n", stderr);
        return 2;
    }
    int count = atoi(argv[3]), pause = atoi(argv[4]), fd = -1;
    double *times = malloc((size_t)count * sizeof *times);
    char *reply = malloc(REPLY_SIZE), request[512];
    int size = snprintf(request, sizeof request,
                        "POST /handler/%s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", argv[2]);
    if (count < 1 || times == NULL || reply == NULL || size >= (int)sizeof request)
        return 2;
    for (int i = 0; i < count; i++) {
        if (i % PER_CONNECTION == 0) {
            if (fd >= 0)
                close(fd);
            fd = open_connection(argv[1]);
        }
        if (pause > 0)
            usleep((useconds_t)pause);
        double begin = now();
        if (write(fd, request, (size_t)size) != size)
            return 1;
        read_reply(fd, reply);
        times[i] = now() - begin;
    }
    qsort(times, (size_t)count, sizeof *times, ascending);
    printf("%.2f %.2f\n", times[count / 2], times[count - 1 - count / 100]);
    return 0;
}
