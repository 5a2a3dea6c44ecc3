/* What the load generator asks of sockets, clocks and timers, where POSIX is not enough. */
#ifndef WORKERSERVER_LOADGEN_H
#define WORKERSERVER_LOADGEN_H

#include "dial.h"

#include <poll.h>
#include <sys/time.h>
#include <time.h>
#if defined(__linux__)
#include <sys/prctl.h>
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

/* A read that blocks ends after the patience. */
static inline int wl_socket(int family, int64_t patience_ns)
{
    struct timeval patience = {patience_ns / 1000000000, patience_ns % 1000000000 / 1000};
    int fd = dial_socket(family);
    if (fd >= 0 && patience_ns > 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    return fd;
}

static inline void wl_block(int fd)
{
    fcntl(fd, F_SETFL, 0);
}

#endif
