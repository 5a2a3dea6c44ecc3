/* What waits are read with: learnt with the GIL, once, and proven on a planted frame.
 *
 * Every object that the table points at is kept for ever. So none of its addresses can become the
 * address of something else. */
#define PY_SSIZE_T_CLEAN
#include "cpython.h"

#include <frameobject.h> /* CPython 3.10 declares PyFrame_GetCode only there */

#include "known.h"
#include "learn.h"

#include <stdatomic.h>
#include <sys/mman.h>

static uintptr_t keep(PyObject *object) {
    Py_XINCREF(object);
    return (uintptr_t)object;
}

bool ws_learn_keys(void) {
    static const char *const spelled[] = {
        "_lock", "owner", "_name", "_native_id", "name", "release", "_default_pg"};
    uintptr_t *const into[] = {
        &ws_known.key_lock,   &ws_known.key_owner,   &ws_known.key_name,   &ws_known.key_native,
        &ws_known.key_module, &ws_known.key_release, &ws_known.key_default};
    for (size_t i = 0; i < sizeof spelled / sizeof *spelled; i++) {
        if (*into[i] == 0) {
            *into[i] = (uintptr_t)PyUnicode_InternFromString(spelled[i]);
        }
        if (*into[i] == 0) {
            return false;
        }
    }
    ws_known.none_object = (uintptr_t)Py_None;
    return true;
}

void ws_learn_instructions(int before_with, int with_except_start, int load_special) {
    ws_known.before_with = (unsigned char)before_with;
    ws_known.with_except_start = (unsigned char)with_except_start;
    ws_known.load_special = (unsigned char)load_special;
}

void ws_learn_locks(PyObject *lock, PyObject *rlock, PyObject *condition, size_t lock_locked,
                    size_t rlock_owner) {
    ws_known.lock_type = keep(lock);
    ws_known.rlock_type = keep(rlock);
    ws_known.condition_type = keep(condition);
    ws_known.lock_locked = lock_locked;
    ws_known.rlock_owner = rlock_owner;
}

void ws_learn_groups(PyObject *names, PyObject *ranks, PyObject *words, PyObject *world) {
    atomic_store(&ws_known.group_names, keep(names));
    atomic_store(&ws_known.group_ranks, keep(ranks));
    atomic_store(&ws_known.group_words, keep(words));
    atomic_store(&ws_known.world, keep(world));
}

bool ws_learn_function(PyObject *code, int kind, const char *op, PyObject *attribute,
                       const int *places) {
    ws_function *function = ws_function_add((uintptr_t)code);
    if (function == NULL) {
        return false;
    }
    function->kind = (uint8_t)kind;
    function->op = op;
    function->attribute = keep(attribute);
    for (int role = 0; role < WS_ROLES; role++) {
        function->locals[role] = (int16_t)places[role];
    }
    atomic_store_explicit(&function->code, keep(code), memory_order_release);
    return true;
}

/* One for all probes: to map memory for each of them took most of their time. */
static ws_arena probing;

static bool begin_probe(ws_arena *arena) {
    if (probing.base == NULL && !ws_arena_make(&probing)) {
        return false;
    }
    *arena = (ws_arena){probing.base, 0};
    return true;
}

void ws_learn_proven(bool locals, bool withs) {
    if (probing.base != NULL) {
        munmap(probing.base, WS_ARENA);
        probing.base = NULL;
    }
    atomic_store(&ws_known.withs, locals && withs);
    atomic_store(&ws_known.locals, locals);
}

ws_place ws_place_of(PyFrameObject *frame, PyCodeObject *code) {
    const ws_layout_t *at = &ws_layout;
    return (ws_place){
        .frame = at->object_frame == WS_NONE ? (uintptr_t)frame
                                             : ws_pointer(frame, at->object_frame),
        .code = (uintptr_t)code,
        .plain = at->code_exceptions != WS_NONE
                 && ws_pointer(code, at->code_exceptions) == at->no_exceptions,
    };
}

/* The frame of Python that calls; its code object lives as long as it runs. */
static ws_spot calling(void) {
    PyFrameObject *frame = PyThreadState_GetFrame(PyThreadState_Get());
    ws_spot spot = {0};
    if (frame != NULL) {
        PyCodeObject *code = PyFrame_GetCode(frame);
        ws_place place = ws_place_of(frame, code);
        spot = (ws_spot){place.frame, place.code, 0, 0};
        Py_DECREF(code);
        Py_DECREF(frame);
    }
    return spot;
}

size_t ws_probe_withs(uintptr_t *managers, size_t most, uintptr_t *entering) {
    ws_with withs[32];
    ws_arena arena;
    ws_spot spot = calling();
    size_t found = 0, count = 0;
    *entering = 0;
    if (spot.frame == 0 || !begin_probe(&arena)) {
        return 0;
    }
    count = ws_withs_take(&arena, &spot, 1, withs, 32);
    for (size_t i = 0; i < count; i++) {
        if (withs[i].entering) {
            *entering = withs[i].manager;
        } else if (found < most) {
            managers[found++] = withs[i].manager;
        }
    }
    return found;
}

uintptr_t ws_probe_local(int place) {
    uintptr_t value = 0;
    ws_spot spot = calling();
    size_t offset = ws_layout.frame_locals + (size_t)place * sizeof(void *);
    return spot.frame != 0 && ws_read_one(spot.frame + offset, &value, sizeof value)
               ? value & ws_layout.frame_code_mask
               : 0;
}

bool ws_probe_int(uintptr_t object, long long *value) {
    int64_t found = 0;
    bool good = ws_int_read(object, &found);
    *value = found;
    return good;
}

bool ws_probe_text(uintptr_t object, char *to, size_t size) {
    ws_arena arena;
    ws_name name;
    if (!begin_probe(&arena)) {
        return false;
    }
    bool good = ws_text_read(&arena, object, &name) && name.kind == 1 && name.length < size;
    if (good) {
        __builtin_memcpy(to, name.data, name.length);
        to[name.length] = 0;
    }
    return good;
}

uintptr_t ws_probe_lock(uintptr_t object) {
    ws_locks known = {.count = 0};
    ws_wait_kind kind;
    return ws_lock_of(&known, object, &kind);
}

uintptr_t ws_probe_attribute(uintptr_t object, PyObject *name) {
    ws_types types = {.wanted = {{(uintptr_t)name}, 1}};
    uintptr_t values[WS_WANTED];
    return ws_attributes_read(&types, object, values) ? values[0] : 0;
}
