/* Names of threads: threading._active and the attributes of its Thread objects, without the GIL.
 *
 * A Thread's attributes lie in a dict, or in an array of values whose keys its type has. CPY_VALUES
 * says where this CPython keeps them. */
#include "cpython.h"

#include "internal.h"

#include <assert.h>
#include <string.h>

enum {
    ENTRIES = 16384, /* of threading._active */
    KEYS = 256,      /* attributes of a Thread */
    TYPES = 16,      /* Thread and its subclasses, at one time */
    WANTED = 3,      /* attributes */
};

/* Keys of a dict, or of all instances of a type. */
typedef struct {
    uintptr_t entries;
    size_t count, entry_size, key_at, value_at;
} keys;

typedef struct {
    uintptr_t address;
    unsigned long flags;
    Py_ssize_t dict_offset, basic_size;
    bool good;
    int slots[WANTED]; /* of the wanted attributes in the type's shared keys; -1: none */
} type_info;

/* Where the wanted values of one thread are, and what was read there. */
typedef struct {
    ws_thread *thread;
    uintptr_t slots[WANTED];
    uintptr_t values[WANTED];
} attributes;

static bool read_keys(uintptr_t address, keys *out) {
    const ws_layout_t *at = &ws_layout;
    char head[64];
    Py_ssize_t count;
    assert(at->keys_read <= sizeof head);
    if (!ws_read_one(address, head, at->keys_read)) {
        return false;
    }
    memcpy(&count, head + at->keys_count, sizeof count);
    size_t indices;
    bool hashed = true;
    if (at->keys_index_bytes != WS_NONE) {
        unsigned shift = ws_byte(head, at->keys_index_bytes);
        if (shift > 40) {
            return false;
        }
        indices = (size_t)1 << shift;
        hashed = ws_byte(head, at->keys_kind) == 0;
    } else {
        Py_ssize_t size;
        memcpy(&size, head + at->keys_size, sizeof size);
        if (size < 0 || size > INT32_MAX) {
            return false;
        }
        indices = (size_t)size * (size <= 0xff ? 1 : size <= 0xffff ? 2 : 4);
    }
    if (count < 0 || count > ENTRIES) {
        return false;
    }
    out->count = (size_t)count;
    out->entries = address + at->keys_read + indices;
    out->key_at = hashed ? sizeof(Py_hash_t) : 0;
    out->value_at = out->key_at + sizeof(void *);
    out->entry_size = out->value_at + sizeof(void *);
    return true;
}

/* The places of the wanted keys among `from`'s entries; -1: not there. */
static bool find_keys(const keys *from, int slots[WANTED]) {
    const uintptr_t wanted[] = {ws_layout.key_name, ws_layout.key_daemon, ws_layout.key_native};
    char entries[KEYS * 24];
    for (size_t j = 0; j < WANTED; j++) {
        slots[j] = -1;
    }
    assert(from->count > KEYS || from->count * from->entry_size <= sizeof entries);
    if (from->count > KEYS || from->count == 0
        || !ws_read_one(from->entries, entries, from->count * from->entry_size)) {
        return false;
    }
    for (size_t i = 0; i < from->count; i++) {
        uintptr_t key = ws_pointer(entries, i * from->entry_size + from->key_at);
        for (size_t j = 0; j < WANTED; j++) {
            slots[j] = key == wanted[j] ? (int)i : slots[j];
        }
    }
    return true;
}

static type_info *find_type(type_info *types, size_t *count, uintptr_t address) {
    for (size_t i = 0; i < *count; i++) {
        if (types[i].address == address) {
            return &types[i];
        }
    }
    if (*count == TYPES) {
        return NULL;
    }
    PyHeapTypeObject copy;
    keys shared;
    type_info *type = &types[(*count)++];
    memset(type, 0, sizeof *type);
    type->address = address;
    if (!ws_read_one(address, &copy, sizeof copy)
        || ws_pointer(&copy, ws_layout.object_type) != ws_layout.type_type) {
        return type;
    }
    type->flags = copy.ht_type.tp_flags;
    type->dict_offset = copy.ht_type.tp_dictoffset;
    type->basic_size = copy.ht_type.tp_basicsize;
    type->good = type->flags & Py_TPFLAGS_HEAPTYPE;
    for (size_t j = 0; j < WANTED; j++) {
        type->slots[j] = -1;
    }
    if (type->good && copy.ht_cached_keys != NULL
        && read_keys((uintptr_t)copy.ht_cached_keys, &shared)) {
        find_keys(&shared, type->slots);
    }
    return type;
}

/* Slots in an array of values that starts at `values`. */
static void in_array(attributes *found, uintptr_t values, const int slots[WANTED]) {
    for (size_t j = 0; j < WANTED; j++) {
        found->slots[j] = slots[j] < 0 ? 0 : values + (size_t)slots[j] * sizeof(void *);
    }
}

static void in_dict(attributes *found, uintptr_t address) {
    PyDictObject dict;
    keys own;
    int slots[WANTED];
    if (!ws_read_one(address, &dict, sizeof dict)
        || ws_pointer(&dict, ws_layout.object_type) != ws_layout.dict_type
        || !read_keys((uintptr_t)dict.ma_keys, &own) || !find_keys(&own, slots)) {
        return;
    }
    if (dict.ma_values != NULL) {
        in_array(found, (uintptr_t)dict.ma_values + CPY_VALUES_HEAD, slots);
        return;
    }
    for (size_t j = 0; j < WANTED; j++) {
        if (slots[j] >= 0) {
            found->slots[j] = own.entries + (size_t)slots[j] * own.entry_size + own.value_at;
        }
    }
}

/* The array behind the object itself, unless it is no longer valid. */
static void in_object(attributes *found, uintptr_t object, const type_info *type) {
    unsigned char head[4]; /* capacity, size, embedded, valid */
    uintptr_t values = object + (size_t)type->basic_size;
    if (!(type->flags & CPY_TYPE_INLINE_VALUES) || type->basic_size < (Py_ssize_t)sizeof(void *)
        || type->basic_size >= WS_PAGE || !ws_read_one(values, head, sizeof head)
        || head[3] != 1) {
        return;
    }
    in_array(found, values + CPY_VALUES_HEAD, type->slots);
    for (size_t j = 0; j < WANTED; j++) { /* the array may be shorter than the keys */
        found->slots[j] = type->slots[j] < head[0] ? found->slots[j] : 0;
    }
}

/* Attributes of an object whose dict the interpreter manages: `before` holds the four words before
 * the object, of which the last two are for the garbage collector. */
static void in_managed(attributes *found, uintptr_t object, const char *before,
                       const type_info *type) {
    uintptr_t first = ws_pointer(before, 0), second = ws_pointer(before, sizeof(void *));
    uintptr_t array = 0, dict = second;
    if (CPY_VALUES == CPY_VALUES_TWO_WORDS) {
        array = first;
    } else if (CPY_VALUES == CPY_VALUES_TAGGED && second & 1) {
        array = second + 1;
    }
    if (array != 0) {
        in_array(found, array, type->slots);
    } else if (dict != 0) {
        in_dict(found, dict);
    } else if (CPY_VALUES == CPY_VALUES_IN_OBJECT) {
        in_object(found, object, type);
    }
}

static void locate(attributes *found, uintptr_t object, const char *before,
                   const type_info *type) {
    uintptr_t dict;
    if (type->flags & CPY_TYPE_MANAGED_DICT) {
        in_managed(found, object, before, type);
    } else if (type->dict_offset > 0 && type->dict_offset < WS_PAGE
               && ws_read_one(object + (size_t)type->dict_offset, &dict, sizeof dict)
               && dict != 0) {
        in_dict(found, dict);
    }
}

/* An int of one digit, as native ids are. 0: something else. */
static long small_int(uintptr_t address) {
    PyLongObject number;
    if (!ws_read_one(address, &number, sizeof number)
        || ws_pointer(&number, ws_layout.object_type) != ws_layout.long_type
        || !CPY_INT_IS_DIGIT(&number)) {
        return 0;
    }
    return (long)CPY_INT_DIGIT(&number);
}

static void read_values(attributes *found, size_t count) {
    ws_read *reads = ws_work->reads;
    uintptr_t *into[WS_GROUP * WANTED];
    size_t reading = 0;
    assert(count <= WS_GROUP);
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; j < WANTED; j++) {
            found[i].values[j] = 0;
            if (found[i].slots[j] != 0) {
                into[reading] = &found[i].values[j];
                reads[reading++] = (ws_read){found[i].slots[j], &found[i].values[j],
                                             sizeof(uintptr_t), false};
            }
        }
    }
    ws_read_many(reads, reading);
    for (size_t i = 0; i < reading; i++) {
        *into[i] = reads[i].ok ? *into[i] : 0;
    }
}

/* Names of up to WS_GROUP threads whose objects are at `objects`. */
static void name_group(ws_arena *arena, ws_thread **threads, const uintptr_t *objects,
                       size_t count, type_info *types, size_t *type_count) {
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
    ws_read_many(reads, count);
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
        type_info *type =
            find_type(types, type_count, ws_pointer(head, 4 * word + ws_layout.object_type));
        if (type != NULL && type->good) {
            locate(&found[i], objects[i], head, type);
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
    ws_read_many(reads, count);
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
            thread->native_id = small_int(again[i].values[2]);
        }
    }
}

void ws_names_take(ws_arena *arena, ws_snapshot *out) {
    PyDictObject dict;
    keys active;
    type_info types[TYPES];
    size_t type_count = 0, pending = 0, used = arena->used;
    ws_thread *threads[WS_GROUP];
    uintptr_t objects[WS_GROUP];
    if (ws_layout.active_threads == 0
        || !ws_read_one(ws_layout.active_threads, &dict, sizeof dict)
        || ws_pointer(&dict, ws_layout.object_type) != ws_layout.dict_type
        || dict.ma_values != NULL || !read_keys((uintptr_t)dict.ma_keys, &active)
        || active.key_at == 0 || active.count == 0) {
        return;
    }
    size_t size = active.count * active.entry_size;
    char *entries = ws_arena_take(arena, size);
    if (entries == NULL || !ws_read_one(active.entries, entries, size)) {
        arena->used = used;
        return;
    }
    for (size_t i = 0; i < out->thread_count && !(i % 64 == 63 && ws_time_over()); i++) {
        for (size_t j = 0; j < active.count; j++) {
            const char *entry = entries + j * active.entry_size;
            /* An ident is far below the modulus of hashes, so it is its own hash. */
            if (ws_pointer(entry, 0) == out->threads[i].ident
                && ws_pointer(entry, active.value_at) != 0) {
                threads[pending] = &out->threads[i];
                objects[pending++] = ws_pointer(entry, active.value_at);
                break;
            }
        }
        if (pending == WS_GROUP) {
            name_group(arena, threads, objects, pending, types, &type_count);
            pending = 0;
        }
    }
    name_group(arena, threads, objects, pending, types, &type_count);
}
