/* The processes that this one has started, and whether they work, as JSON. */
#ifndef WS_CHILDREN_H
#define WS_CHILDREN_H

#include "put.h"

/* Whether this process has a child, dead ones that nobody has waited for included: one system call
 * that changes nothing. */
bool ws_has_children(void);

/* Writes `,"children":[{...}]` for the children of this process, if it has any: first those that
 * its threads wait for, then the newest, WS_MAX_CHILDREN at most. Each with
 *
 * pid, name    as the kernel has them; the name is the command's, cut after 15 bytes
 * state        the kernel's letter
 * processes    how many it is, with its own children and theirs, in whatever session
 * states       the letters of all of these, each once
 * cpu_s        processor time of all of these, and of those of them that have ended
 * io_bytes     what all of these have read and written, files, pipes and terminals; left out where
 *              the kernel doesn't tell it of each of them
 *
 * The processes are found in /proc, those that are waited for and then those that began after this
 * one first, of WS_MAX_SEEN at most.
 * System calls and the stack only; any thread, any number of callers. */
void ws_put_children(sink *out, const ws_snapshot *snapshot);

enum { WS_MAX_CHILDREN = 16, WS_MAX_SEEN = 1024 };

#endif
