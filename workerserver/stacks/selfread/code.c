/* Code objects and their names, read together and kept for one snapshot.
 *
 * A code object can vanish while it is read. Another code object can take its address, and other
 * names the addresses of its names. So what was read is trusted only if the thread with this stack
 * stood still, or if a second reading gives the same; see stack.c. */
#include "cpython.h"

#include "internal.h"

#include <assert.h>
#include <string.h>

static const size_t NAMES = 3;

static uint32_t bucket(uintptr_t address) {
    return (uint32_t)((address >> 4) * UINT64_C(0x9E3779B97F4A7C15) >> 54) % WS_BUCKETS;
}

void ws_codes_clear(void) {
    memset(ws_work->code_buckets, 0, sizeof ws_work->code_buckets);
    memset(ws_work->string_buckets, 0, sizeof ws_work->string_buckets);
    ws_work->code_count = 0;
    ws_work->string_count = 0;
    ws_work->epoch = 1;
    ws_work->moment.known = false;
}

void ws_codes_doubt(void) {
    ws_work->epoch++;
}

ws_code *ws_codes_find(uintptr_t address) {
    uint32_t index = ws_work->code_buckets[bucket(address)];
    while (index != 0) {
        ws_code *code = &ws_work->codes[index - 1];
        assert(index <= ws_work->code_count && code->next < index);
        if (code->address == address) {
            return code;
        }
        index = code->next;
    }
    return NULL;
}

static ws_code *add_code(uintptr_t address) {
    if (ws_work->code_count == WS_CODES) {
        return NULL;
    }
    ws_code *code = &ws_work->codes[ws_work->code_count++];
    memset(code, 0, sizeof *code);
    code->address = address;
    code->next = ws_work->code_buckets[bucket(address)];
    ws_work->code_buckets[bucket(address)] = (uint32_t)ws_work->code_count;
    return code;
}

static ws_string *find_string(uintptr_t address, bool *added) {
    uint32_t index = ws_work->string_buckets[bucket(address)];
    *added = false;
    while (index != 0) {
        ws_string *string = &ws_work->strings[index - 1];
        assert(index <= ws_work->string_count && string->next < index);
        if (string->address == address) {
            return string;
        }
        index = string->next;
    }
    if (ws_work->string_count == WS_STRINGS) {
        return NULL;
    }
    ws_string *string = &ws_work->strings[ws_work->string_count++];
    memset(string, 0, sizeof *string);
    string->address = address;
    string->next = ws_work->string_buckets[bucket(address)];
    ws_work->string_buckets[bucket(address)] = (uint32_t)ws_work->string_count;
    *added = true;
    return string;
}

size_t ws_string_header_size(void) {
    return sizeof(PyCompactUnicodeObject);
}

bool ws_string_header(const void *header, ws_name *name, size_t *offset) {
    PyASCIIObject string;
    memcpy(&string, header, sizeof string);
    unsigned kind = string.state.kind;
    memset(name, 0, sizeof *name);
    if (ws_pointer(header, ws_layout.object_type) != ws_layout.str_type || string.length < 0
        || !string.state.compact || (kind != 1 && kind != 2 && kind != 4)
        || (string.state.ascii && kind != 1) || !CPY_STR_IS_READY(&string)) {
        return false;
    }
    name->kind = (uint8_t)kind;
    name->length = (size_t)string.length;
    name->cut = name->length > WS_MAX_NAME;
    if (name->cut) {
        name->length = WS_MAX_NAME;
    }
    *offset = string.state.ascii ? sizeof(PyASCIIObject) : sizeof(PyCompactUnicodeObject);
    return true;
}

/* What was a str when its header was read may be something else by now. */
static bool all_characters(const ws_name *name) {
    const uint32_t *data = name->data;
    for (size_t i = 0; name->kind == 4 && i < name->length; i++) {
        if (data[i] > 0x10FFFF) {
            return false;
        }
    }
    return true;
}

void ws_string_finish(ws_arena *arena, uintptr_t address, const char *head, size_t got,
                      ws_name *name) {
    size_t offset;
    memset(name, 0, sizeof *name);
    ws_name found;
    assert(got <= WS_TEXT_HEAD);
    if (got < ws_string_header_size() || !ws_string_header(head, &found, &offset)) {
        return;
    }
    assert(found.length <= WS_MAX_NAME && offset <= got);
    size_t size = found.length * found.kind;
    char *data = ws_arena_take(arena, size + 1);
    if (data == NULL) {
        return;
    }
    size_t here = size < got - offset ? size : got - offset;
    memcpy(data, head + offset, here);
    if (here < size && !ws_read_one(address + offset + here, data + here, size - here)) {
        return;
    }
    found.data = data;
    if (all_characters(&found)) {
        *name = found;
    }
}

static bool same_name(const ws_name *one, const ws_name *other) {
    return one->kind == other->kind && one->length == other->length && one->cut == other->cut
           && (one->kind == 0 || memcmp(one->data, other->data, one->length * one->kind) == 0);
}

typedef struct {
    ws_string *of_code[WS_GROUP][3];
    ws_string *strings[WS_GROUP * 3]; /* those that are read; each one once for each resolve */
    size_t count;
} texts;

static void ask_strings(ws_code **codes, size_t count, texts *out) {
    ws_read *reads = ws_work->reads;
    out->count = 0;
    for (size_t i = 0; i < count; i++) {
        const uintptr_t pointers[] = {codes[i]->file, codes[i]->name, codes[i]->qualname};
        for (size_t j = 0; j < NAMES; j++) {
            bool added;
            ws_string *string = pointers[j] ? find_string(pointers[j], &added) : NULL;
            out->of_code[i][j] = string;
            if (string == NULL || (!added && string->mark == ws_work->mark)) {
                continue;
            }
            string->mark = ws_work->mark;
            out->strings[out->count] = string;
            reads[out->count] = (ws_read){
                string->address, ws_work->text_heads[out->count],
                ws_read_length(string->address, ws_string_header_size(), WS_TEXT_HEAD), false};
            out->count++;
        }
    }
}

static void take_strings(ws_arena *arena, ws_code **codes, size_t count, const texts *from) {
    const ws_read *reads = ws_work->reads;
    for (size_t i = 0; i < from->count; i++) {
        ws_string *string = from->strings[i];
        ws_name name = {0};
        size_t used = arena->used;
        if (reads[i].ok) { /* read_one() uses no part of the work space */
            ws_string_finish(arena, string->address, ws_work->text_heads[i], reads[i].size, &name);
        }
        if (same_name(&name, &string->name)) {
            arena->used = used;
        } else {
            string->name = name;
        }
    }
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; j < NAMES; j++) {
            const ws_string *string = from->of_code[i][j];
            if (string != NULL) {
                if (!same_name(&codes[i]->names[j], &string->name)) {
                    codes[i]->changed = ws_work->mark;
                }
                codes[i]->names[j] = string->name;
            }
        }
    }
}

/* A line table, from the first `got` bytes of its bytes object; NULL: not readable. */
static const unsigned char *read_table(ws_arena *arena, uintptr_t address, const char *head,
                                       size_t got, size_t *size) {
    const size_t offset = offsetof(PyBytesObject, ob_sval);
    Py_ssize_t length;
    assert(got >= offset && got <= WS_LINES_HEAD);
    memcpy(&length, head + offsetof(PyVarObject, ob_size), sizeof length);
    if (ws_pointer(head, ws_layout.object_type) != ws_layout.bytes_type || length < 0
        || length > WS_LINES_MAX) {
        return NULL;
    }
    *size = (size_t)length;
    char *table = ws_arena_take(arena, *size + 1);
    size_t here = *size < got - offset ? *size : got - offset;
    if (table == NULL) {
        return NULL;
    }
    memcpy(table, head + offset, here);
    if (here < *size && !ws_read_one(address + offset + here, table + here, *size - here)) {
        return NULL;
    }
    return (const unsigned char *)table;
}

static void ask_tables(ws_code **codes, size_t count, ws_read *reads) {
    for (size_t i = 0; i < count; i++) {
        reads[i] = (ws_read){
            codes[i]->lines, ws_work->lines_heads[i],
            ws_read_length(codes[i]->lines, offsetof(PyBytesObject, ob_sval), WS_LINES_HEAD),
            false};
    }
}

static void take_tables(ws_arena *arena, ws_code **codes, size_t count, const ws_read *reads) {
    for (size_t i = 0; i < count; i++) {
        ws_code *code = codes[i];
        size_t size = 0, used = arena->used;
        const unsigned char *table =
            reads[i].ok ? read_table(arena, code->lines, ws_work->lines_heads[i], reads[i].size,
                                     &size)
                        : NULL;
        if (table != NULL && code->table != NULL && size == code->table_size
            && memcmp(table, code->table, size) == 0) {
            arena->used = used;
            continue;
        }
        if (table != NULL || code->table != NULL) {
            code->changed = ws_work->mark;
        }
        code->table = table;
        code->table_size = size;
        code->last_at = -1;
    }
}

/* Reads the names and the line tables of code objects. */
static void renew(ws_arena *arena, ws_code **codes, size_t count) {
    texts names;
    assert(count <= WS_GROUP);
    ask_strings(codes, count, &names);
    ws_read *tables = ws_work->reads + names.count;
    ask_tables(codes, count, tables);
    ws_read_near(ws_work->reads, names.count + count);
    take_strings(arena, codes, count, &names);
    take_tables(arena, codes, count, tables);
}

/* Takes over what was read of a code object. Whether it is as it was. */
static bool update(ws_code *code, const char *head, bool readable) {
    const ws_layout_t *at = &ws_layout;
    ws_code now = {0};
    Py_ssize_t units = 0;
    if (readable && ws_pointer(head, at->object_type) == at->code_type) {
        now.file = ws_pointer(head, at->code_file);
        now.name = ws_pointer(head, at->code_name);
        now.qualname = at->code_qualname == WS_NONE ? 0 : ws_pointer(head, at->code_qualname);
        now.lines = ws_pointer(head, at->code_lines);
        now.exceptions =
            at->code_exceptions == WS_NONE ? 0 : ws_pointer(head, at->code_exceptions);
        now.first_line = ws_int(head, at->code_first_line);
        if (at->code_units != WS_NONE) {
            memcpy(&units, head + at->code_units, sizeof units);
        } else {
            units = INT32_MAX; /* 3.10: in another object; the line table bounds it too */
        }
        if (at->code_first_traceable != WS_NONE) {
            now.first_traceable = ws_int(head, at->code_first_traceable);
        }
        now.units = units;
        now.good = units >= 0 && units <= INT32_MAX && now.first_line >= -1
                   && now.first_traceable >= 0;
    }
    bool same = code->good == now.good && code->file == now.file && code->name == now.name
                && code->qualname == now.qualname && code->lines == now.lines
                && code->exceptions == now.exceptions
                && code->first_line == now.first_line && code->units == now.units
                && code->first_traceable == now.first_traceable;
    if (!same) {
        now.address = code->address;
        now.next = code->next;
        now.mark = code->mark;
        now.changed = ws_work->mark;
        now.last_at = -1;
        *code = now;
    }
    return same;
}

#ifndef NDEBUG
/* After a resolve: each of `addresses` was looked at, unless the cache is full. */
static void check_resolved(const uintptr_t *addresses, size_t count) {
    assert(ws_work->code_count <= WS_CODES && ws_work->string_count <= WS_STRINGS);
    for (size_t i = 0; i < count; i++) {
        const ws_code *code = ws_codes_find(addresses[i]);
        assert(code == NULL ? ws_work->code_count == WS_CODES : code->mark == ws_work->mark);
        assert(code == NULL || !code->good || code->epoch == ws_work->epoch);
    }
}
#else
#define check_resolved(addresses, count) ((void)0)
#endif

bool ws_codes_resolve(ws_arena *arena, const uintptr_t *addresses, size_t count, bool again) {
    bool changed = false;
    ws_work->mark++;
    for (size_t start = 0; start < count;) {
        ws_code *codes[WS_GROUP], *renewing[WS_GROUP];
        bool known[WS_GROUP];
        size_t reading = 0, renewed = 0;
        ws_read *reads = ws_work->reads;
        for (; start < count && reading < WS_GROUP; start++) {
            ws_code *code = ws_codes_find(addresses[start]);
            known[reading] = code != NULL;
            if (code == NULL) {
                code = add_code(addresses[start]);
            } else if (code->mark == ws_work->mark) {
                continue;
            }
            if (code == NULL) {
                continue;
            }
            code->mark = ws_work->mark;
            codes[reading] = code;
            reads[reading] = (ws_read){code->address, ws_work->code_heads[reading],
                                       (uint32_t)ws_layout.code_read, false};
            reading++;
        }
        ws_read_near(reads, reading);
        for (size_t i = 0; i < reading; i++) {
            bool same = update(codes[i], ws_work->code_heads[i], reads[i].ok);
            if (codes[i]->good && (!same || again || codes[i]->epoch != ws_work->epoch)) {
                codes[i]->epoch = ws_work->epoch;
                renewing[renewed++] = codes[i];
            }
        }
        renew(arena, renewing, renewed);
        for (size_t i = 0; i < reading; i++) {
            changed = changed || (known[i] && codes[i]->changed == ws_work->mark);
        }
    }
    check_resolved(addresses, count);
    return changed;
}
