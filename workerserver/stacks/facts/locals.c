/* What a frame of a known function waits for: its named locals, and what they lead to.
 *
 * Only functions of the table in known.py get here, and only the locals named there are read. */
#include "cpython.h"

#include "known.h"

#include <stdatomic.h>
#include <string.h>

enum {
    GROUPS = 4096,   /* process groups */
    MEMBERS = 1024,  /* of a group whose members are read */
    RANK_TEXT = 12,  /* bytes of one, with its comma */
    BEFORE = 4 * sizeof(void *), /* bytes before an object that lead to its attributes */
    HEAD = BEFORE + sizeof(PyObject),
    TOGETHER = 24,   /* frames whose locals are read together */
};

ws_wait_kind ws_lock_kind(uintptr_t type) {
    return type == 0                     ? WS_WAIT_NONE
           : type == ws_known.lock_type  ? WS_WAIT_LOCK
           : type == ws_known.rlock_type ? WS_WAIT_RLOCK
                                         : WS_WAIT_NONE;
}

static bool lock_known(const ws_locks *known, uintptr_t object, size_t *at) {
    for (*at = 0; *at < known->count; (*at)++) {
        if (known->locks[*at].object == object) {
            return true;
        }
    }
    return false;
}

static void add_lock(ws_locks *known, uintptr_t object, uintptr_t lock, uintptr_t type) {
    ws_wait_kind kind = ws_lock_kind(type);
    if (known->count < WS_LOCKS_TOGETHER) {
        known->locks[known->count].object = object;
        known->locks[known->count].lock = kind == WS_WAIT_NONE ? 0 : lock;
        known->locks[known->count++].kind = kind;
    }
}

uintptr_t ws_lock_of(ws_locks *known, uintptr_t object, ws_wait_kind *kind) {
    uintptr_t values[WS_WANTED], found = object;
    size_t at;
    if (lock_known(known, object, &at)) {
        *kind = known->locks[at].kind;
        return known->locks[at].lock;
    }
    uintptr_t type = ws_type_read(object);
    known->types.wanted = (ws_wanted){{ws_known.key_lock}, 1};
    if (type != 0 && type == ws_known.condition_type) {
        found = ws_attributes_read(&known->types, object, values) ? values[0] : 0;
        type = ws_type_read(found);
    }
    add_lock(known, object, found, type);
    *kind = ws_lock_kind(type);
    return *kind == WS_WAIT_NONE ? 0 : found;
}

/* The locks of Conditions whose memory is read: their places, their addresses, their types. */
static void learn_conditions(ws_locks *known, const uintptr_t *objects, char (*heads)[HEAD],
                             size_t count) {
    uintptr_t slots[WS_LOCKS_TOGETHER][WS_WANTED], locks[WS_LOCKS_TOGETHER] = {0};
    uintptr_t types[WS_LOCKS_TOGETHER] = {0};
    ws_read reads[WS_LOCKS_TOGETHER];
    size_t of[WS_LOCKS_TOGETHER], reading = 0, typed = 0;
    const ws_type *type = ws_type_find(&known->types, ws_known.condition_type);
    for (size_t i = 0; i < count && type != NULL; i++) {
        ws_attributes_locate(slots[i], objects[i], heads[i], type, &known->types.wanted);
        if (slots[i][0] != 0) {
            of[reading] = i;
            reads[reading++] = (ws_read){slots[i][0], &locks[i], sizeof locks[i], false};
        }
    }
    ws_read_many(reads, reading);
    for (size_t i = 0; i < reading; i++) {
        size_t which = of[i];
        locks[which] = reads[i].ok ? locks[which] : 0;
        if (locks[which] != 0 && locks[which] % sizeof(void *) == 0) {
            of[typed] = which;
            reads[typed++] = (ws_read){locks[which] + ws_layout.object_type, &types[which],
                                       sizeof types[which], false};
        }
    }
    ws_read_many(reads, typed);
    for (size_t i = 0; i < typed; i++) {
        if (reads[i].ok) {
            add_lock(known, objects[of[i]], locks[of[i]], types[of[i]]);
        }
    }
}

void ws_locks_learn(ws_locks *known, const uintptr_t *objects, size_t count) {
    uintptr_t wanted[WS_LOCKS_TOGETHER], types[WS_LOCKS_TOGETHER] = {0};
    char heads[WS_LOCKS_TOGETHER][HEAD];
    ws_read reads[2 * WS_LOCKS_TOGETHER];
    size_t reading = 0, conditions = 0, at;
    known->types.wanted = (ws_wanted){{ws_known.key_lock}, 1};
    for (size_t i = 0; i < count && known->count + reading < WS_LOCKS_TOGETHER; i++) {
        bool twice = objects[i] < BEFORE || objects[i] % sizeof(void *) != 0
                     || lock_known(known, objects[i], &at);
        for (size_t j = 0; j < reading; j++) {
            twice = twice || wanted[j] == objects[i];
        }
        if (!twice) {
            wanted[reading++] = objects[i];
        }
    }
    /* What lies before an object that is no Condition may not be there: it is read by itself. */
    for (size_t i = 0; i < reading; i++) {
        reads[i] = (ws_read){wanted[i] + ws_layout.object_type, &types[i], sizeof types[i], false};
    }
    ws_read_many(reads, reading);
    size_t seen = reading;
    reading = 0;
    for (size_t i = 0; i < seen; i++) {
        if (!reads[i].ok || types[i] == 0) {
            continue;
        }
        if (types[i] == ws_known.condition_type) {
            wanted[conditions++] = wanted[i];
        } else {
            add_lock(known, wanted[i], wanted[i], types[i]);
        }
    }
    for (size_t i = 0; i < conditions; i++) {
        reads[i] = (ws_read){wanted[i] - BEFORE, heads[i], HEAD, false};
    }
    ws_read_many(reads, conditions);
    for (size_t i = 0; i < conditions; i++) {
        if (reads[i].ok) {
            wanted[reading] = wanted[i];
            memmove(heads[reading++], heads[i], HEAD);
        }
    }
    learn_conditions(known, wanted, heads, reading);
}

/* ---- process groups ---- */

/* Many ints of one digit; false: one of them is something else. */
static bool read_digits(ws_arena *arena, const uintptr_t *objects, size_t count, int *out) {
    PyLongObject *copies = ws_arena_take(arena, count * sizeof *copies);
    ws_read *reads = ws_arena_take(arena, count * sizeof *reads);
    if (copies == NULL || reads == NULL) {
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        reads[i] = (ws_read){objects[i], &copies[i], sizeof copies[i], false};
    }
    ws_read_many(reads, count);
    for (size_t i = 0; i < count; i++) {
        Py_ssize_t size = CPY_INT_SIZE(&copies[i]);
        if (!reads[i].ok || ws_pointer(&copies[i], ws_layout.object_type) != ws_layout.long_type
            || size < 0 || size > 1 || CPY_INT_NEGATIVE(&copies[i])) {
            return false;
        }
        out[i] = size == 0 ? 0 : (int)CPY_INT_DIGITS(&copies[i])[0];
    }
    return true;
}

static size_t put_number(char *to, int value) {
    char digits[16];
    size_t count = 0, size = 0;
    do {
        digits[count++] = (char)('0' + value % 10);
        value /= 10;
    } while (value > 0);
    while (count > 0) {
        to[size++] = digits[--count];
    }
    return size;
}

/* All members, as numbers with commas between them. */
static void put_ranks(ws_arena *arena, const int *ranks, size_t count, ws_name *out) {
    char *text = ws_arena_take(arena, count * RANK_TEXT);
    size_t size = 0;
    for (size_t i = 0; i < count && text != NULL; i++) {
        if (size > 0) {
            text[size++] = ',';
        }
        size += put_number(text + size, ranks[i]);
    }
    *out = (ws_name){.data = text, .length = size, .kind = size > 0};
}

/* The value of an object in a dict whose keys are compared by address; 0: none. */
static uintptr_t find_in(ws_arena *arena, uintptr_t dict, uintptr_t key) {
    ws_entries entries;
    size_t used = arena->used;
    uintptr_t value = 0;
    if (ws_dict_read(arena, dict, GROUPS, &entries)) {
        for (size_t i = 0; i < entries.keys.count && value == 0; i++) {
            const char *entry = entries.data + i * entries.keys.entry_size;
            if (ws_pointer(entry, entries.keys.key_at) == key) {
                value = ws_pointer(entry, entries.keys.value_at);
            }
        }
    }
    arena->used = used;
    return value;
}

/* The members, and with `group_peer` the global rank of that member. */
static void take_members(ws_arena *arena, uintptr_t dict, int64_t group_peer, ws_wait *out) {
    ws_entries entries;
    if (!ws_dict_read(arena, dict, MEMBERS, &entries)) {
        return;
    }
    size_t count = 0, most = entries.keys.count;
    uintptr_t *objects = ws_arena_take(arena, 2 * most * sizeof *objects);
    int *ranks = ws_arena_take(arena, 2 * most * sizeof *ranks);
    if (objects == NULL || ranks == NULL) {
        return;
    }
    for (size_t i = 0; i < most; i++) {
        const char *entry = entries.data + i * entries.keys.entry_size;
        uintptr_t member = ws_pointer(entry, entries.keys.value_at);
        if (member != 0) {
            objects[count] = ws_pointer(entry, entries.keys.key_at);
            objects[most + count++] = member;
        }
    }
    memmove(objects + count, objects + most, count * sizeof *objects);
    if (count == 0 || !read_digits(arena, objects, 2 * count, ranks)) {
        return;
    }
    put_ranks(arena, ranks, count, &out->ranks);
    for (size_t i = 0; i < count && group_peer >= 0 && !out->has_peer; i++) {
        out->has_peer = ranks[count + i] == group_peer;
        out->peer = ranks[i];
    }
}

static void take_group(ws_arena *arena, uintptr_t group, int64_t group_peer, ws_wait *out) {
    ws_types types = {.wanted = {{ws_known.key_default}, 1}};
    uintptr_t values[WS_WANTED];
    if (group == 0 || group == ws_known.none_object) {
        uintptr_t world = atomic_load(&ws_known.world);
        if (world == 0 || !ws_attributes_read(&types, world, values)) {
            return;
        }
        group = values[0];
    }
    uintptr_t name = find_in(arena, atomic_load(&ws_known.group_names), group);
    if (name != 0 && ws_text_read(arena, name, &out->group)) {
        ws_text_read(arena, find_in(arena, atomic_load(&ws_known.group_words), name),
                     &out->description);
        take_members(arena, find_in(arena, atomic_load(&ws_known.group_ranks), group), group_peer,
                     out);
    }
}

/* ---- by kind ---- */

static bool take_operation(ws_arena *arena, const ws_function *function,
                           const uintptr_t locals[WS_ROLES], ws_wait *out) {
    int64_t value, group_peer = -1;
    if (ws_int_read(locals[WS_ROLE_PEER], &value)) {
        out->has_peer = true;
        out->peer = value;
    } else if (ws_int_read(locals[WS_ROLE_GROUP_PEER], &value)) {
        group_peer = value;
    }
    if (ws_int_read(locals[WS_ROLE_TAG], &value)) {
        out->has_tag = true;
        out->tag = value;
    }
    if (function->locals[WS_ROLE_GROUP] >= 0) {
        take_group(arena, locals[WS_ROLE_GROUP], group_peer, out);
    }
    return true;
}

static void take_keys(ws_arena *arena, const uintptr_t locals[WS_ROLES], ws_wait *out) {
    size_t count = 0;
    for (int role = WS_ROLE_KEY; role <= WS_ROLE_OTHER_KEY; role++) {
        count += ws_text_read(arena, locals[role], &out->keys[count]);
    }
}

static bool take_thread(ws_arena *arena, uintptr_t thread, ws_wait *out) {
    ws_types types = {.wanted = {{ws_known.key_name, ws_known.key_native}, 2}};
    uintptr_t values[WS_WANTED];
    int64_t native = 0;
    if (!ws_attributes_read(&types, thread, values)) {
        return false;
    }
    ws_text_read(arena, values[0], &out->thread_name);
    if (ws_int_read(values[1], &native) && native > 0 && native <= INT32_MAX) {
        out->native_id = (long)native;
    }
    return true;
}

static bool take_process(uintptr_t process, uintptr_t attribute, ws_wait *out) {
    ws_types types = {.wanted = {{attribute}, 1}};
    uintptr_t values[WS_WANTED];
    int64_t pid;
    if (attribute == 0 || !ws_attributes_read(&types, process, values)
        || !ws_int_read(values[0], &pid) || pid <= 0 || pid > INT32_MAX) {
        return false;
    }
    out->pid = (long)pid;
    return true;
}

static bool take_import(ws_arena *arena, uintptr_t lock, ws_wait *out, unsigned long *owner) {
    ws_types types = {.wanted = {{ws_known.key_owner, ws_known.key_module}, 2}};
    uintptr_t values[WS_WANTED];
    int64_t ident;
    if (!ws_attributes_read(&types, lock, values)) {
        return false;
    }
    ws_text_read(arena, values[1], &out->keys[0]);
    if (ws_int_read(values[0], &ident) && ident > 0) {
        *owner = (unsigned long)ident;
    }
    return true;
}

static bool take_lock(uintptr_t self, uintptr_t attribute, ws_wait *out) {
    ws_types types = {.wanted = {{attribute}, 1}};
    uintptr_t values[WS_WANTED];
    if (attribute == 0 || !ws_attributes_read(&types, self, values)) {
        return false;
    }
    ws_locks locks = {.count = 0};
    out->object = ws_lock_of(&locks, values[0], &out->kind);
    return out->object != 0;
}

static void read_locals(const ws_spot *const *spots, const ws_function *const *functions,
                        ws_locals *const *out, size_t count) {
    const ws_layout_t *at = &ws_layout;
    uintptr_t codes[TOGETHER] = {0};
    ws_read reads[TOGETHER * (WS_ROLES + 1)];
    size_t reading = 0;
    for (size_t i = 0; i < count; i++) {
        for (int role = 0; role < WS_ROLES; role++) {
            if (functions[i]->locals[role] >= 0) {
                uintptr_t place = (uintptr_t)functions[i]->locals[role] * sizeof(void *);
                reads[reading++] = (ws_read){spots[i]->frame + at->frame_locals + place,
                                             &out[i]->values[role], sizeof(uintptr_t), false};
            }
        }
        /* After the locals: what they were read as is what this function's frame had. */
        reads[reading++] =
            (ws_read){spots[i]->frame + at->frame_code, &codes[i], sizeof codes[i], false};
    }
    ws_read_many(reads, reading);
    for (size_t i = 0, read = 0; i < count; i++) {
        for (int role = 0; role < WS_ROLES; role++) {
            if (functions[i]->locals[role] >= 0) {
                uintptr_t value = reads[read++].ok ? out[i]->values[role] : 0;
                out[i]->values[role] = value & at->frame_code_mask;
            }
        }
        /* If not, another function has taken the frame's place. */
        out[i]->good = reads[read++].ok && (codes[i] & at->frame_code_mask) == spots[i]->code;
    }
}

void ws_locals_read(const ws_spot *spots, const ws_function *const *functions, size_t count,
                    ws_locals *out) {
    const ws_spot *reading[TOGETHER];
    const ws_function *of[TOGETHER];
    ws_locals *into[TOGETHER];
    size_t here = 0;
    memset(out, 0, count * sizeof *out);
    for (size_t i = 0; i < count; i++) {
        if (functions[i] != NULL) {
            reading[here] = &spots[i];
            of[here] = functions[i];
            into[here++] = &out[i];
        }
        if (here == TOGETHER || (i + 1 == count && here > 0)) {
            read_locals(reading, of, into, here);
            here = 0;
        }
    }
}

bool ws_locals_take(ws_arena *arena, const ws_function *function, const ws_spot *spot,
                    const ws_locals *from, ws_wait *out, unsigned long *owner) {
    const uintptr_t *locals = from->values;
    memset(out, 0, sizeof *out);
    *owner = 0;
    if (!from->good) {
        return false;
    }
    out->kind = (ws_wait_kind)function->kind;
    out->source = WS_FROM_LOCALS;
    out->frame = (int)spot->index;
    out->op = function->op;
    uintptr_t self = locals[WS_ROLE_SELF];
    switch (out->kind) {
    case WS_WAIT_LOCK:
        return take_lock(self, function->attribute, out);
    case WS_WAIT_THREAD:
        return take_thread(arena, self, out);
    case WS_WAIT_PROCESS:
        return take_process(self, function->attribute, out);
    case WS_WAIT_IMPORT_LOCK:
        out->object = self;
        return take_import(arena, self, out, owner);
    case WS_WAIT_OPERATION:
        return take_operation(arena, function, locals, out);
    case WS_WAIT_STORE:
    case WS_WAIT_RENDEZVOUS:
        take_keys(arena, locals, out);
        return true;
    default:
        out->object = self;
        return true;
    }
}
