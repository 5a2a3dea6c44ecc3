/* The black box: a file of fixed size that is mapped into the process. docs/blackbox.md has the
 * format. What is written here stays when the process is killed.
 *
 * No Python, no malloc and no descriptor that stays open. A forked child has no mapping. */
#ifndef WS_BOX_H
#define WS_BOX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { WS_BOX_VERSION = 3, WS_BOX_HEADER = 4096 };

/* A lane is a ring of slots of one kind. Record n of a lane lies in slot n % slots. */
typedef enum {
    WS_BOX_IDENTITY,
    WS_BOX_STATE,
    WS_BOX_STEPS,
    WS_BOX_STACKS,
    WS_BOX_END,
    WS_BOX_LAST,
    WS_BOX_KEEPER, /* never written by the process itself */
    WS_BOX_RECORDER,
    WS_BOX_COUNTERS,
    WS_BOX_LANES,
} ws_lane;

/* Maps `size` bytes of the file `fd`, which is empty and allocated, and writes its header. The
 * caller closes the descriptor. 0, or an errno: ENOTSUP if the file is on no tmpfs, EINVAL if the
 * size is too small, EBUSY if this process has a box already. */
int ws_box_open(int fd, size_t size);

/* Whether this process has a box. */
bool ws_box_there(void);

/* One writer at a time. False after so many milliseconds: a thread was stopped while it wrote. The
 * holder gets none of the signals of signals.c that are sent: its handler would wait for the writer,
 * which waits for the holder. */
bool ws_box_lock(int milliseconds);
void ws_box_unlock(void);

/* Bytes of the lane's longest record; 0: there is no box. */
size_t ws_box_room(ws_lane lane);

/* With the lock: where the lane's next record goes, and its room. NULL: there is no box. The oldest
 * record of the lane is gone from here on. */
char *ws_box_begin(ws_lane lane, size_t *capacity);

/* The record of `length` bytes is whole. */
void ws_box_commit(ws_lane lane, size_t length);

/* ---- figures.c: small files of /proc and of the cgroup */

/* A file to read with each state. Names and paths are copied. False: no room. */
bool ws_box_watch(const char *name, const char *path);
void ws_box_watch_none(void);

/* Writes {"name":"content",...} and returns its length, 0 if it does not fit. Printable ASCII stays;
 * of other characters only the end of a line is kept. */
size_t ws_box_put_files(char *out, size_t capacity);

/* ---- signals.c: why the process ends */

/* What a handler has seen. */
typedef struct {
    int signal, code, pid, uid, tid;
    uint64_t address; /* of a fault */
    int64_t wall_ns;
} ws_ending;

/* Installs the handlers, each where the present disposition is not SIG_IGN. `wake` is the end
 * of a pipe that gets a byte when a signal has come; it stays the caller's. The calling thread gets an
 * alternate stack if it is the main thread and has none. 0, or an errno. */
int ws_ends_install(int wake);

/* The thread that writes what ws_ends_take() gives. It never waits for itself. */
void ws_ends_writer(int tid);

/* Gives the previous dispositions back, where ours still stand. */
void ws_ends_restore(void);

/* What has come, for the writer: false if nothing has. ws_ends_written() ends the wait of the
 * thread that got the signal. */
bool ws_ends_take(ws_ending *out);
void ws_ends_written(void);

/* Writes the names of the signals whose handler the program has replaced since: "SIGTERM". As a
 * JSON array; returns its length. */
size_t ws_ends_put_replaced(char *out, size_t capacity);

#endif
