/* What a thread waits for in the kernel, as JSON: the facts that no Python frame tells. */
#ifndef WS_WAITS_H
#define WS_WAITS_H

#include "put.h"

/* What one rendering may still ask the kernel. */
typedef struct {
    int threads;     /* whose system call is read */
    int lock_tables; /* readings of /proc/locks, which keeps other processes' locks waiting */
} ws_waits_budget;

#define WS_WAITS_BUDGET ((ws_waits_budget){.threads = 512, .lock_tables = 8})

/* Writes `,"waits_for":{...}` for a thread of this process that sleeps in a system call of which it
 * is known what ends it, else nothing:
 *
 * file_lock   flock, fcntl with F_SETLKW: `path`, and in `pid` who holds the lock, if the kernel
 *             knows exactly one
 * descriptor  read, write and their kin, accept, connect, epoll_wait, poll of one: `path` or
 *             `target` (pipe:[1], socket:[2]) of the descriptor; open of a path, as of a FIFO
 * store       the same on a connection to the port of ws_waits_store()
 * process     wait4, waitid for one child: its `pid`, where one is named
 * mutex       a futex that is a locked pthread mutex beyond doubt: `object`, its address, and the
 *             native id of the thread that holds it
 *
 * Returns whether the thread sleeps, but for a futex that nothing more is known of: then the count
 * of its context switches tells something.
 *
 * System calls and the stack only: no malloc, no lock, no Python; any thread, any number of
 * callers. Other threads run on meanwhile, so a fact may be of a wait that has just ended. */
bool ws_put_waits(sink *out, const ws_thread *thread, char state, ws_waits_budget *left);

/* Writes `,"switches":N`, if the kernel tells: how often it has stopped running the thread so far.
 * As long as the number stays, the thread has not run. */
void ws_put_switches(sink *out, long native_id);

/* The port of the job's store; 0: not known. */
void ws_waits_store(int port);

#endif
