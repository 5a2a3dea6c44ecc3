/* Names of threads: threading._active and the attributes of its Thread objects, without the GIL. */
#include "cpython.h"

#include "internal.h"

#include <assert.h>
#include <string.h>

enum { ENTRIES = 16384 }; /* of threading._active */

/* Where the wanted values of one thread are, and what was read there. */
typedef struct {
    ws_thread *thread;
    uintptr_t slots[WS_WANTED];
    uintptr_t values[WS_WANTED];
} attributes;

/* As native ids are. 0: something else. */
static long positive_int(uintptr_t address) {
    int64_t value;
    return ws_int_read(address, &value) && value > 0 && value <= INT32_MAX ? (long)value : 0;
}

static void read_values(attributes *found, size_t count) {
    ws_read *reads = ws_work->reads;
    uintptr_t *into[WS_GROUP * WS_WANTED];
    size_t reading = 0;
    assert(count <= WS_GROUP);
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; j < WS_WANTED; j++) {
            found[i].values[j] = 0;
            if (found[i].slots[j] != 0) {
                into[reading] = &found[i].values[j];
                reads[reading++] = (ws_read){found[i].slots[j], &found[i].values[j],
                                             sizeof(uintptr_t), false};
            }
        }
    }
    ws_read_near(reads, reading);
    for (size_t i = 0; i < reading; i++) {
        *into[i] = reads[i].ok ? *into[i] : 0;
    }
}

/* Names of up to WS_GROUP threads whose objects are at `objects`. */
static void name_group(ws_arena *arena, ws_thread **threads, const uintptr_t *objects,
                       size_t count, ws_types *types) {
    const size_t word = sizeof(void *);
    ws_read *reads = ws_work->reads;
    attributes found[WS_GROUP], again[WS_GROUP];
    ws_name names[WS_GROUP];
    assert(count <= WS_GROUP);
    /* Objects of a type that is tracked by the garbage collector have words before them. */
    for (size_t i = 0; i < count; i++) {
        reads[i] = (ws_read){objects[i] - 4 * word, ws_work->text_heads[i],
                             (uint32_t)(4 * word + sizeof(PyObject)), false};
    }
    ws_read_near(reads, count);
    bool readable[WS_GROUP];
    for (size_t i = 0; i < count; i++) {
        readable[i] = reads[i].ok; /* what follows uses `reads` */
    }
    for (size_t i = 0; i < count; i++) {
        const char *head = ws_work->text_heads[i];
        memset(&found[i], 0, sizeof found[i]);
        found[i].thread = threads[i];
        if (!readable[i]) {
            continue;
        }
        const ws_type *type =
            ws_type_find(types, ws_pointer(head, 4 * word + ws_layout.object_type));
        if (type != NULL) {
            ws_attributes_locate(found[i].slots, objects[i], head, type, &types->wanted);
        }
        if (ws_layout.state_native != WS_NONE) {
            found[i].slots[2] = 0;
        }
    }
    read_values(found, count);
    for (size_t i = 0; i < count; i++) {
        size_t size = ws_read_length(found[i].values[0], ws_string_header_size(), WS_TEXT_HEAD);
        reads[i] = (ws_read){found[i].values[0], ws_work->text_heads[i], (uint32_t)size, false};
    }
    ws_read_near(reads, count);
    for (size_t i = 0; i < count; i++) {
        memset(&names[i], 0, sizeof names[i]);
        readable[i] = reads[i].ok;
    }
    for (size_t i = 0; i < count; i++) {
        if (readable[i]) {
            ws_string_finish(arena, found[i].values[0], ws_work->text_heads[i],
                             ws_read_length(found[i].values[0], ws_string_header_size(),
                                            WS_TEXT_HEAD),
                             &names[i]);
        }
    }
    /* A name that is still in its place was a name when it was read. */
    memcpy(again, found, count * sizeof found[0]);
    read_values(again, count);
    for (size_t i = 0; i < count; i++) {
        ws_thread *thread = found[i].thread;
        if (found[i].values[0] != 0 && again[i].values[0] == found[i].values[0]) {
            thread->name = names[i];
        }
        uintptr_t daemon = again[i].values[1];
        thread->daemon = daemon == ws_layout.true_object    ? 1
                         : daemon == ws_layout.false_object ? 0
                                                            : -1;
        if (found[i].slots[2] != 0) {
            thread->native_id = positive_int(again[i].values[2]);
        }
    }
}

void ws_names_take(ws_arena *arena, ws_snapshot *out) {
    const ws_layout_t *at = &ws_layout;
    ws_types types = {
        .wanted = {{at->key_name, at->key_daemon, at->key_native}, 3},
    };
    ws_entries active;
    size_t pending = 0;
    ws_thread *threads[WS_GROUP];
    uintptr_t objects[WS_GROUP];
    if (!ws_dict_read(arena, at->active_threads, ENTRIES, &active) || active.keys.key_at == 0) {
        return;
    }
    for (size_t i = 0; i < out->thread_count && !(i % 64 == 63 && ws_time_over()); i++) {
        for (size_t j = 0; j < active.keys.count; j++) {
            const char *entry = active.data + j * active.keys.entry_size;
            /* An ident is far below the modulus of hashes, so it is its own hash. */
            if (ws_pointer(entry, 0) == out->threads[i].ident
                && ws_pointer(entry, active.keys.value_at) != 0) {
                threads[pending] = &out->threads[i];
                objects[pending++] = ws_pointer(entry, active.keys.value_at);
                break;
            }
        }
        if (pending == WS_GROUP) {
            name_group(arena, threads, objects, pending, &types);
            pending = 0;
        }
    }
    name_group(arena, threads, objects, pending, &types);
}
