/* Reads this process's Python threads and frames without the GIL, through the kernel.
 *
 * Every struct is copied by process_vm_readv on the own pid (or /proc/self/mem), so a pointer that
 * has gone bad is an error and not a fault. Nothing here takes a lock, raises a signal, allocates
 * from malloc (whose locks the stuck thread may hold) or calls into Python, except
 * ws_selfread_prepare(). */
#ifndef WS_SELFREAD_H
#define WS_SELFREAD_H

#include "snapshot.h"

/* With the GIL, before the first use, and again in a forked child: learns addresses, and checks
 * them by reading the calling thread's own stack. 0, or -1: ws_selfread_problem() says why. After a
 * shortage that may have passed, another call tries again. */
int ws_selfread_prepare(void);

/* Why stacks can't be read without the GIL here; NULL if they can. A static string. */
const char *ws_selfread_problem(void);

/* The stacks of all threads, with `facts` what they wait for too (facts.h). One caller at a time. 0,
 * or -1 if nothing could be read (`out` is then empty); ws_selfread_free() in either case. */
int ws_selfread_take(ws_snapshot *out, bool facts);

/* Who follows the reading of a snapshot, thread by thread; newest thread first. */
typedef struct {
    /* Whether the stack of this thread is wanted. native_id: 0 before CPython 3.11. */
    bool (*before)(void *data, unsigned long ident, long native_id);
    /* Its stack was just read. It has no name yet. */
    void (*after)(void *data, const ws_snapshot *snapshot, const ws_thread *thread);
    /* Whether names are wanted of the threads that were read. */
    bool (*names)(void *data);
    void *data;
} ws_visitor;

/* The stacks of the threads that the visitor wants, without facts. As ws_selfread_take(); -1 also if
 * no thread was wanted. `out` is all zero, or of an earlier visit, whose memory is then used again:
 * ws_selfread_free() after the last visit only. */
int ws_selfread_visit(ws_snapshot *out, const ws_visitor *visitor);
void ws_selfread_free(ws_snapshot *snapshot);

/* Where the frames of the last snapshot lie, in its order, until the next reading. NULL: not kept. */
const ws_place *ws_selfread_places(void);

typedef struct {
    bool known;               /* false: could not be read; the rest is then 0 */
    bool locked;              /* somebody holds the GIL at this moment */
    unsigned long holder;     /* ident of the thread that holds it, or 0 */
    unsigned long switches;   /* how often the GIL went to another thread than before, so far */
} ws_gil;

/* The main interpreter's GIL, now. */
void ws_selfread_gil(ws_gil *out);

#endif
