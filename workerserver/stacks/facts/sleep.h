/* What the kernel says of a thread of this process that may sleep. */
#ifndef WS_SLEEP_H
#define WS_SLEEP_H

#include <stdbool.h>
#include <stdint.h>

#pragma GCC visibility push(hidden)

typedef struct {
    bool known;
    char state;     /* the kernel's letter */
    uint64_t count; /* of context switches so far, wanted and unwanted ones */
} ws_switches;

void ws_kernel_switches(long native_id, ws_switches *out);

/* Whether the thread has not been scheduled in between. */
static inline bool ws_stood(const ws_switches *before, const ws_switches *after) {
    return before->known && after->known && before->count == after->count;
}

static inline bool ws_sleeps(const ws_switches *at) {
    return at->state == 'S' || at->state == 'D';
}

/* The address of the futex that a thread sleeps in; 0: it doesn't, or the kernel doesn't tell. */
uintptr_t ws_kernel_futex(long native_id);

#pragma GCC visibility pop

#endif
