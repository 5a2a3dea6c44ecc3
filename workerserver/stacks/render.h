/* Renders snapshots, without Python: the text of faulthandler, JSON, and digests. */
#ifndef WS_RENDER_H
#define WS_RENDER_H

#include "snapshot.h"

/* Grows by mmap, never by malloc: a stuck thread may hold malloc's locks. All zero: empty. */
typedef struct {
    char *data;
    size_t size;
    size_t capacity;
} ws_buffer;

/* WS_TEXT has the form of faulthandler.dump_traceback(all_threads=True), with the bounds of
 * snapshot.h: every other character of a name is \xNN, \uNNNN or \UNNNNNNNN, names end after 500
 * characters with "...", an unknown line is "???". Thread names are left out, as before CPython
 * 3.14. "Current thread" is the GIL's holder. A thread that is `unstable` has a last line that says
 * so. Mode "kernel": a line that says why, and one line for each thread, the main thread's first.
 *
 * WS_JSON: `version` 1, `pid`, `mode` ("gil", "nogil", "kernel"), `time` (seconds since the epoch),
 * `gil_holder` (ident or null), `truncated` (threads were left out) and `threads`, most recently
 * created first: `ident` (null in mode "kernel"), `native_id`, `name` and `daemon` (null for a
 * thread that threading doesn't know), `current` (it holds the GIL), `state` (the kernel's letter)
 * and `wchan` (where it waits in the kernel), both read now and null where unreadable, `truncated`
 * (frames were left out), `unstable` and `frames`, newest first: `file`, `line` (null: unknown),
 * `function`, `qualname` (null before CPython 3.11). Names end after 1024 characters with "...".
 * Where it is known what a thread waits for, `waits_for` and `switches` follow (waits.h), and
 * `switches` alone for other threads that sleep in the kernel, but for most futexes; not for
 * this package's own threads. After the threads comes `pid_namespace`, if it can be read: processes
 * of one host mean the same by a process id only where these numbers are equal. A process that has
 * started others tells of them in `children` (children.h).
 *
 * WS_DIGEST, 100 to 200 bytes of JSON, equal where processes do the same, and in mode "gil" as in
 * mode "nogil": `version` 1; `main`, the hash of the main thread's stack (null if it has none);
 * `top`, its newest frame as "file:line function", without the folder; `digest`, a hash over `main`
 * and the set of the other threads' hashes; `threads`, how many threads went in. A hash is BLAKE2b,
 * 8 bytes in hex, of a stack's lines in the text. So files, lines and functions count; idents,
 * names, order, and how many threads share a stack don't (thread pools start their workers by
 * chance). Left out are threads whose name begins with "workerserver", and in mode "gil" the thread
 * that took the snapshot, unless it is the main thread.
 *
 * WS_NATIVE_TEXT and WS_NATIVE_JSON are the first two with native frames: put_native.h. */
typedef enum { WS_TEXT, WS_JSON, WS_DIGEST, WS_NATIVE_TEXT, WS_NATIVE_JSON } ws_format;

enum { WS_FORMATS = WS_NATIVE_JSON + 1, WS_WITH_NATIVE = 1 << WS_NATIVE_TEXT | 1 << WS_NATIVE_JSON };

/* Each appends to `out`, ASCII only, and returns 0, or -1 without memory, `out` then as it was. */
int ws_render(const ws_snapshot *snapshot, ws_format format, ws_buffer *out);

/* The frames of one thread, index < thread_count, as they stand in the text. */
int ws_render_stack(const ws_snapshot *snapshot, size_t index, ws_buffer *out);

/* What a reply says of its snapshot, as header lines, each with its CR LF: X-Traceback-Mode, and
 * where they apply X-GIL-Holder and X-Traceback-Unstable. */
int ws_render_headers(const ws_snapshot *snapshot, ws_buffer *out);

void ws_buffer_free(ws_buffer *buffer);

/* Seconds since the epoch, in whole microseconds: what JSON shows. */
double ws_now(void);

/* ---- from /proc (kernel.c) */

typedef struct {
    char state;     /* the kernel's letter; 0: unreadable */
    char wchan[64]; /* where it waits in the kernel; empty: nowhere, or unreadable */
} ws_kernel;

/* `start`, the number and `end` as one path, which fits into `size` bytes with 24 to spare. */
void ws_path(char *to, size_t size, const char *start, unsigned long id, const char *end);

/* Reads at most size - 1 bytes of a file of /proc at once and adds a NUL; returns how many. */
size_t ws_read_file(const char *path, char *to, size_t size);

/* The same of /proc/self/task/ID and `name`, "/stat". */
size_t ws_read_task(long id, const char *name, char *to, size_t size);

/* The value of a hexadecimal digit as the kernel writes it; -1: it is none. */
static inline int ws_hex_digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The number of this process's namespace of process ids, unique on a host; 0: not known. */
uint64_t ws_pid_namespace(void);

/* A thread of this process, now; waits for nothing but the kernel. */
void ws_kernel_state(long native_id, ws_kernel *out);

/* Its letter alone; 0: unreadable. */
char ws_kernel_letter(long native_id);

/* A snapshot of mode "kernel": thread ids and names from /proc/self/task, no frames. 0, or -1 if
 * there is no /proc or no memory (`out` is then empty). No malloc, no lock; any thread, any number
 * of callers. ws_kernel_free() in either case. */
int ws_kernel_take(ws_snapshot *out);
void ws_kernel_free(ws_snapshot *snapshot);

#endif
