/* Takes and renders snapshots without the GIL, in any thread: one self-read at a time. */
#ifndef WS_DUMP_H
#define WS_DUMP_H

#include "render.h"
#include "selfread.h"

/* Call once, before any other: a mutex that a forked child can use. 0, or -1 without memory. */
int ws_dump_init(void);

/* With the GIL, once in each process: ws_selfread_prepare(). 0, or -1 while a snapshot is being
 * read: release the GIL for a moment and call again. Until it was called, dumps are of mode
 * "kernel". ws_selfread_problem() then says whether stacks can be read. */
int ws_dump_prepare(void);

/* A snapshot of mode "nogil", with `facts` what threads wait for too; waits for other readers, never for the GIL. 0, or -1;
 * ws_selfread_free() in either case. */
int ws_dump_take(ws_snapshot *out, bool facts);

/* The same with native stacks, which ws_native_free() takes back. Where no Python stacks can be read, a
 * snapshot of mode "kernel". */
int ws_dump_take_native(ws_snapshot *out, bool facts);

/* Has a visitor follow one reading (selfread.h). Its functions run with the readers' mutex held: they
 * take no lock. `out` is all zero, or what the last visit has left. ws_selfread_free() it after the
 * last one. */
int ws_dump_visit(ws_snapshot *out, const ws_visitor *visitor);

/* One snapshot, of mode "nogil" or, if that fails, "kernel", in several formats: `wanted` has the
 * bit 1 << format for each, `outs` is indexed by format, and `headers` gets the lines of
 * ws_render_headers(). 0, or -1: no memory, or no stacks and no /proc; all buffers are then as
 * they were. */
int ws_dump(int wanted, ws_buffer *outs, ws_buffer *headers);

/* The same in WS_JSON and WS_DIGEST, where the JSON has at most `limit` bytes: if it is longer, the
 * threads that were created last are left out, and at last the main thread's oldest frames. `outs`
 * as above, empty before. */
int ws_dump_within(size_t limit, ws_buffer *outs, ws_buffer *headers);

/* Snapshots of mode "nogil" so far. */
unsigned long long ws_dumps_taken(void);

#endif
