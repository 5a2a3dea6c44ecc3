/* Attributes of instances, and entries of dicts, without the GIL.
 *
 * Attributes lie in a dict, or in an array of values whose keys the type has. CPY_VALUES says where
 * this CPython keeps them. */
#include "cpython.h"

#include "internal.h"

#include <assert.h>
#include <string.h>

enum {
    ENTRIES = 16384, /* of a dict */
    KEYS = 256,      /* attributes of an instance */
    KEYS_HEAD = 768, /* bytes that are read of keys: most have all their entries there */
};

/* Keys, and what was read of them. */
typedef struct {
    ws_keys keys;
    uintptr_t address;
    size_t got;
    char data[KEYS_HEAD];
} keys_copy;

static bool read_keys(uintptr_t address, keys_copy *copy) {
    const ws_layout_t *at = &ws_layout;
    const char *head = copy->data;
    ws_keys *out = &copy->keys;
    Py_ssize_t count;
    assert(at->keys_read <= sizeof copy->data);
    copy->address = address;
    copy->got = ws_read_length(address, at->keys_read, sizeof copy->data);
    if (!ws_read_one(address, copy->data, copy->got)) {
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

/* Copies or reads all entries of keys, at most `most`. */
static bool read_entries(const keys_copy *from, size_t most, char *into) {
    size_t start = from->keys.entries - from->address;
    size_t size = from->keys.count * from->keys.entry_size;
    if (from->keys.count > most || from->keys.count == 0) {
        return false;
    }
    if (start <= from->got && size <= from->got - start) {
        memcpy(into, from->data + start, size);
        return true;
    }
    return ws_read_one(from->keys.entries, into, size);
}

/* The places of the wanted keys among `from`'s entries; -1: not there. */
static bool find_keys(const keys_copy *from, const ws_wanted *wanted, int slots[WS_WANTED]) {
    const ws_keys *keys = &from->keys;
    char entries[KEYS * 24];
    for (size_t j = 0; j < WS_WANTED; j++) {
        slots[j] = -1;
    }
    assert(keys->count > KEYS || keys->count * keys->entry_size <= sizeof entries);
    if (!read_entries(from, KEYS, entries)) {
        return false;
    }
    for (size_t i = 0; i < keys->count; i++) {
        uintptr_t key = ws_pointer(entries, i * keys->entry_size + keys->key_at);
        for (size_t j = 0; j < wanted->count; j++) {
            slots[j] = key == wanted->keys[j] ? (int)i : slots[j];
        }
    }
    return true;
}

const ws_type *ws_type_find(ws_types *types, uintptr_t address) {
    for (size_t i = 0; i < types->count; i++) {
        if (types->types[i].address == address) {
            return &types->types[i];
        }
    }
    if (types->count == WS_TYPES) {
        return NULL;
    }
    PyHeapTypeObject copy;
    keys_copy shared;
    ws_type *type = &types->types[types->count++];
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
    for (size_t j = 0; j < WS_WANTED; j++) {
        type->slots[j] = -1;
    }
    if (type->good && copy.ht_cached_keys != NULL
        && read_keys((uintptr_t)copy.ht_cached_keys, &shared)) {
        find_keys(&shared, &types->wanted, type->slots);
    }
    return type;
}

/* Slots in an array of values that starts at `values`. */
static void in_array(uintptr_t found[WS_WANTED], uintptr_t values, const int slots[WS_WANTED]) {
    for (size_t j = 0; j < WS_WANTED; j++) {
        found[j] = slots[j] < 0 ? 0 : values + (size_t)slots[j] * sizeof(void *);
    }
}

static void in_dict(uintptr_t found[WS_WANTED], const ws_wanted *wanted, uintptr_t address) {
    PyDictObject dict;
    keys_copy own;
    int slots[WS_WANTED];
    if (!ws_read_one(address, &dict, sizeof dict)
        || ws_pointer(&dict, ws_layout.object_type) != ws_layout.dict_type
        || !read_keys((uintptr_t)dict.ma_keys, &own) || !find_keys(&own, wanted, slots)) {
        return;
    }
    if (dict.ma_values != NULL) {
        in_array(found, (uintptr_t)dict.ma_values + CPY_VALUES_HEAD, slots);
        return;
    }
    for (size_t j = 0; j < WS_WANTED; j++) {
        if (slots[j] >= 0) {
            found[j] = own.keys.entries + (size_t)slots[j] * own.keys.entry_size
                       + own.keys.value_at;
        }
    }
}

/* The array behind the object itself, unless it is no longer valid. */
static void in_object(uintptr_t found[WS_WANTED], uintptr_t object, const ws_type *type) {
    unsigned char head[4]; /* capacity, size, embedded, valid */
    uintptr_t values = object + (size_t)type->basic_size;
    if (!(type->flags & CPY_TYPE_INLINE_VALUES) || type->basic_size < (Py_ssize_t)sizeof(void *)
        || type->basic_size >= WS_PAGE || !ws_read_one(values, head, sizeof head)
        || head[3] != 1) {
        return;
    }
    in_array(found, values + CPY_VALUES_HEAD, type->slots);
    for (size_t j = 0; j < WS_WANTED; j++) { /* the array may be shorter than the keys */
        found[j] = type->slots[j] < head[0] ? found[j] : 0;
    }
}

/* Attributes of an object whose dict the interpreter manages: `before` holds the four words before
 * the object, of which the last two are for the garbage collector. */
static void in_managed(uintptr_t found[WS_WANTED], uintptr_t object, const char *before,
                       const ws_type *type, const ws_wanted *wanted) {
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
        in_dict(found, wanted, dict);
    } else if (CPY_VALUES == CPY_VALUES_IN_OBJECT) {
        in_object(found, object, type);
    }
}

void ws_attributes_locate(uintptr_t found[WS_WANTED], uintptr_t object, const char *before,
                          const ws_type *type, const ws_wanted *wanted) {
    uintptr_t dict;
    memset(found, 0, WS_WANTED * sizeof found[0]);
    if (!type->good) {
        return;
    }
    if (type->flags & CPY_TYPE_MANAGED_DICT) {
        in_managed(found, object, before, type, wanted);
    } else if (type->dict_offset > 0 && type->dict_offset < WS_PAGE
               && ws_read_one(object + (size_t)type->dict_offset, &dict, sizeof dict)
               && dict != 0) {
        in_dict(found, wanted, dict);
    }
}

bool ws_attributes_read(ws_types *types, uintptr_t object, uintptr_t values[WS_WANTED]) {
    const size_t word = sizeof(void *);
    const ws_wanted *wanted = &types->wanted;
    char head[4 * sizeof(void *) + sizeof(PyObject)];
    uintptr_t slots[WS_WANTED];
    ws_read reads[WS_WANTED];
    size_t count = 0;
    memset(values, 0, WS_WANTED * sizeof values[0]);
    if (object < sizeof head || !ws_read_one(object - 4 * word, head, sizeof head)) {
        return false;
    }
    const ws_type *type = ws_type_find(types, ws_pointer(head, 4 * word + ws_layout.object_type));
    if (type == NULL) {
        return false;
    }
    ws_attributes_locate(slots, object, head, type, wanted);
    for (size_t j = 0; j < wanted->count; j++) {
        if (slots[j] != 0) {
            reads[count++] = (ws_read){slots[j], &values[j], sizeof values[j], false};
        }
    }
    ws_read_many(reads, count);
    for (size_t i = 0; i < count; i++) {
        *(uintptr_t *)reads[i].into = reads[i].ok ? *(uintptr_t *)reads[i].into : 0;
    }
    return count > 0;
}

bool ws_dict_read(ws_arena *arena, uintptr_t address, size_t most, ws_entries *out) {
    PyDictObject dict;
    keys_copy own;
    memset(out, 0, sizeof *out);
    if (address == 0 || !ws_read_one(address, &dict, sizeof dict)
        || ws_pointer(&dict, ws_layout.object_type) != ws_layout.dict_type
        || dict.ma_values != NULL || !read_keys((uintptr_t)dict.ma_keys, &own)
        || own.keys.count == 0 || own.keys.count > most) {
        return false;
    }
    size_t used = arena->used;
    char *data = ws_arena_take(arena, own.keys.count * own.keys.entry_size);
    if (data == NULL || !read_entries(&own, most, data)) {
        arena->used = used;
        return false;
    }
    *out = (ws_entries){.data = data, .keys = own.keys};
    return true;
}
