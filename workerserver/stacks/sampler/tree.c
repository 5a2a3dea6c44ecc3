/* A tree of counts: hashed strings, functions, nodes and threads in memory that never moves. */
#define _GNU_SOURCE
#include "tree.h"

#include <assert.h>
#include <string.h>
#include <sys/mman.h>

static uint32_t bucket(uint64_t value) {
    return (uint32_t)(value * UINT64_C(0x9E3779B97F4A7C15) >> 52) % WS_TREE_BUCKETS;
}

static uint32_t bucket_of_two(uint32_t one, uint32_t other) {
    return bucket((uint64_t)one << 32 | other);
}

ws_tree *ws_tree_make(void) {
    /* Pages that nothing was written to take no memory. */
    void *got = mmap(NULL, sizeof(ws_tree), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (got == MAP_FAILED)
        return NULL;
    ws_tree *tree = got;
    tree->node_count = tree->function_count = tree->string_count = tree->thread_count = 1;
    return tree;
}

void ws_tree_free(ws_tree *tree) {
    if (tree != NULL)
        munmap(tree, sizeof *tree);
}

/* WS_TREE_NONE: no such name, or no room. */
static uint32_t string_of(ws_tree *tree, const ws_name *name) {
    size_t size = name->length * name->kind;
    const unsigned char *data = name->data;
    uint64_t hash = UINT64_C(14695981039346656037) ^ name->kind;
    if (name->kind == 0)
        return WS_TREE_NONE;
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ data[i]) * UINT64_C(1099511628211);
    uint32_t *first = &tree->string_buckets[bucket(hash)];
    for (uint32_t i = *first; i != 0; i = tree->strings[i].next) {
        const ws_name *known = &tree->strings[i].name;
        if (known->kind == name->kind && known->length == name->length && known->cut == name->cut
            && memcmp(known->data, data, size) == 0)
            return i;
    }
    size_t rounded = (size + 7) & ~(size_t)7;
    if (tree->string_count == WS_TREE_STRINGS || rounded > WS_TREE_BYTES - tree->used)
        return WS_TREE_NONE;
    uint32_t index = tree->string_count++;
    ws_tree_string *string = &tree->strings[index];
    string->name = *name;
    string->name.data = tree->bytes + tree->used;
    memcpy(tree->bytes + tree->used, data, size);
    tree->used += rounded;
    string->next = *first;
    *first = index;
    return index;
}

static uint32_t function_of(ws_tree *tree, const ws_frame *frame) {
    uint32_t file = string_of(tree, &frame->file);
    const ws_name *name = frame->qualname.kind != 0 ? &frame->qualname : &frame->function;
    uint32_t named = string_of(tree, name);
    uint32_t *first = &tree->function_buckets[bucket_of_two(file, named)];
    for (uint32_t i = *first; i != 0; i = tree->functions[i].next) {
        const ws_tree_function *known = &tree->functions[i];
        if (known->file == file && known->name == named && known->first_line == frame->first_line)
            return i;
    }
    if (tree->function_count == WS_TREE_FUNCTIONS)
        return WS_TREE_NONE;
    uint32_t index = tree->function_count++;
    tree->functions[index] = (ws_tree_function){file, named, *first, frame->first_line};
    *first = index;
    return index;
}

static uint32_t child_of(ws_tree *tree, uint32_t parent, uint32_t function) {
    uint32_t *first = &tree->node_buckets[bucket_of_two(parent, function)];
    for (uint32_t i = parent == WS_TREE_NONE ? 0 : *first; i != 0; i = tree->nodes[i].next) {
        if (tree->nodes[i].parent == parent && tree->nodes[i].function == function)
            return i;
    }
    if (tree->node_count == WS_TREE_NODES)
        return WS_TREE_NONE;
    uint32_t index = tree->node_count++;
    tree->nodes[index] = (ws_tree_node){parent, function, *first, 0, 0};
    *first = index;
    return index;
}

ws_tree_thread *ws_tree_thread_of(ws_tree *tree, unsigned long ident, long native_id) {
    uint32_t *first = &tree->thread_buckets[bucket(ident >> 4)];
    for (uint32_t i = *first; i != 0; i = tree->threads[i].next) {
        ws_tree_thread *known = &tree->threads[i];
        /* An ident is used again, after its thread's end. */
        if (known->ident == ident && (native_id == 0 || known->native_id == native_id))
            return known;
    }
    if (tree->thread_count == WS_TREE_THREADS)
        return NULL;
    uint32_t index = tree->thread_count;
    uint32_t root = child_of(tree, WS_TREE_NONE, index);
    if (root == WS_TREE_NONE)
        return NULL;
    tree->thread_count++;
    ws_tree_thread *thread = &tree->threads[index];
    *thread = (ws_tree_thread){
        .ident = ident, .native_id = native_id, .root = root, .next = *first};
    *first = index;
    return thread;
}

void ws_tree_name(ws_tree *tree, ws_tree_thread *thread, const ws_name *name) {
    if (name->kind == 0)
        thread->unnamed++;
    else
        thread->name = string_of(tree, name);
}

uint32_t ws_tree_node_of(
    ws_tree *tree, const ws_tree_thread *thread, const ws_frame *frames, size_t count) {
    uint32_t node = thread->root;
    for (size_t i = count; i-- > 0;) {
        uint32_t function = function_of(tree, &frames[i]);
        uint32_t child = function == WS_TREE_NONE ? WS_TREE_NONE : child_of(tree, node, function);
        if (child == WS_TREE_NONE) {
            tree->cut++;
            break;
        }
        node = child;
    }
    assert(node > 0 && node < tree->node_count);
    return node;
}
