/* What a recording has counted: a tree of calls for each thread, in one bounded piece of memory. */
#ifndef WS_TREE_H
#define WS_TREE_H

#include "render.h"

/* Bounds of one recording. What has no room is counted where its caller stands. */
enum {
    WS_TREE_NODES = 1 << 15,
    WS_TREE_FUNCTIONS = 1 << 14,
    WS_TREE_STRINGS = 1 << 14,
    WS_TREE_THREADS = 1 << 12,
    WS_TREE_BYTES = 4 << 20, /* of names */
};

enum { WS_TREE_NONE = 0 }; /* no node, function or string: indices begin at 1 */

typedef struct {
    ws_name name; /* in the tree's own memory */
    uint32_t next;
} ws_tree_string;

typedef struct {
    uint32_t file, name, next; /* strings */
    int first_line;
} ws_tree_function;

typedef struct {
    uint32_t parent;   /* WS_TREE_NONE: the root of a thread */
    uint32_t function; /* of a root: the place of its thread */
    uint32_t next;
    uint32_t active, idle; /* samples that ended here */
} ws_tree_node;

/* One thread of the process, also after its end. */
typedef struct {
    unsigned long ident;
    long native_id; /* 0: not known yet */
    uint32_t name;
    uint32_t root;
    uint32_t next;
    uint32_t leaf; /* where its last sample ended; WS_TREE_NONE: it has to be read */
    uint32_t unstable; /* samples of which only the older frames are known */
    uint32_t unnamed; /* readings without a name so far */
    uint64_t clock; /* of its time on processors, at its last sample */
    uint64_t round; /* of its last sample */
    bool ready;     /* at its last sample it ran, or waited for a processor */
} ws_tree_thread;

enum { WS_TREE_BUCKETS = 1 << 12 };

typedef struct {
    ws_tree_node nodes[WS_TREE_NODES];
    ws_tree_function functions[WS_TREE_FUNCTIONS];
    ws_tree_string strings[WS_TREE_STRINGS];
    ws_tree_thread threads[WS_TREE_THREADS];
    uint32_t node_buckets[WS_TREE_BUCKETS], function_buckets[WS_TREE_BUCKETS];
    uint32_t string_buckets[WS_TREE_BUCKETS], thread_buckets[WS_TREE_BUCKETS];
    uint32_t node_count, function_count, string_count, thread_count; /* the first one is unused */
    uint32_t cut; /* samples for which a bound was in the way */
    size_t used;
    _Alignas(8) char bytes[WS_TREE_BYTES];
} ws_tree;

/* NULL: no memory. */
ws_tree *ws_tree_make(void);
void ws_tree_free(ws_tree *tree);

/* The thread, also a new one; NULL: no room for one more. native_id 0: not known. */
ws_tree_thread *ws_tree_thread_of(ws_tree *tree, unsigned long ident, long native_id);

/* The thread's name, as it is now. */
void ws_tree_name(ws_tree *tree, ws_tree_thread *thread, const ws_name *name);

/* The node of a stack, newest frame first. */
uint32_t ws_tree_node_of(
    ws_tree *tree, const ws_tree_thread *thread, const ws_frame *frames, size_t count);

#endif
