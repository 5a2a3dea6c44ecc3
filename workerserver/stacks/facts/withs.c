/* Which with blocks a frame is inside: the context managers, from its value stack.
 *
 * Before a with block the interpreter pushes the manager's bound __exit__. The depth of that value
 * is the depth at which the block's exception handler begins: it stands in the code's exception
 * table, or before CPython 3.11 on the frame's stack of blocks. A handler is one of a with block if
 * it holds WITH_EXCEPT_START. A frame that is still inside __enter__ has pushed __exit__ too, and
 * its entry in the table begins behind the current instruction.
 *
 * Frames are looked at in groups: a few system calls for all of them. */
#include "cpython.h"

#include "known.h"

#include <assert.h>
#include <string.h>

enum {
    GROUP = 32,
    TABLE_HEAD = 256,
    TABLE_MAX = 65536,
    NESTED = 32,    /* handlers around one instruction, of any kind */
    HANDLERS = 128, /* in one group */
    UNITS = 3,      /* of a handler, where WITH_EXCEPT_START is looked for */
    SETUP_FINALLY = 122, /* 3.10 */
    BOUND = 32, /* bytes of a bound method, with what it is bound to */
};

typedef struct {
    const ws_spot *spot;
    uintptr_t table; /* of exceptions */
    uintptr_t bytecode, names, values;
    int64_t offset;
} look;

typedef struct {
    const look *look;
    uintptr_t handler; /* its bytecode */
    uintptr_t value;   /* where the bound __exit__ lies */
    bool entering;
} block;

typedef struct {
    int64_t start, end, target;
    size_t depth;
} entry;

static uintptr_t clean(uintptr_t reference) {
    return reference & ws_layout.frame_code_mask;
}

/* ---- exception tables: Objects/exception_handling_notes.txt ---- */

/* Six bits a byte, the highest first; bit 6: there is more. Bit 7 starts an entry. */
static int64_t number(const unsigned char *table, size_t size, size_t *at) {
    int64_t value = 0;
    for (int i = 0; i < 6 && *at < size; i++) {
        unsigned char byte = table[(*at)++];
        value = value << 6 | (byte & 63);
        if (!(byte & 64)) {
            return value;
        }
    }
    return -1;
}

static bool next_entry(const unsigned char *table, size_t size, size_t *at, entry *out) {
    int64_t start = number(table, size, at), length = number(table, size, at);
    int64_t target = number(table, size, at), depth = number(table, size, at);
    if (start < 0 || length < 0 || target < 0 || depth < 0) {
        return false;
    }
    *out = (entry){2 * start, 2 * (start + length), 2 * target, (size_t)(depth >> 1)};
    return true;
}

/* The entry that holds the instruction, or with `starts` the one that begins there. */
static bool find_entry(const unsigned char *table, size_t size, int64_t offset, bool starts,
                       entry *out) {
    for (size_t at = 0; next_entry(table, size, &at, out);) {
        if (starts ? out->start == offset : out->start <= offset && offset < out->end) {
            return true;
        }
    }
    return false;
}

static void add_block(block *blocks, size_t *count, const look *from, int64_t target,
                      size_t depth, bool entering) {
    if (*count < HANDLERS && depth > 0 && depth < WS_PAGE) {
        blocks[(*count)++] = (block){from, from->bytecode + (uintptr_t)target,
                                     from->values + (depth - 1) * sizeof(void *), entering};
    }
}

static void in_table(const look *from, const unsigned char *table, size_t size, block *blocks,
                     size_t *count) {
    entry found;
    int64_t offset = from->offset;
    if (from->spot->index == 0
        && find_entry(table, size, offset + 2 * CPY_ENTER_UNITS, true, &found)) {
        add_block(blocks, count, from, found.target, found.depth, true);
    }
    /* A handler lies inside the outer handlers. */
    for (int i = 0; i < NESTED && find_entry(table, size, offset, false, &found); i++) {
        add_block(blocks, count, from, found.target, found.depth, false);
        offset = found.target;
    }
}

/* ---- 3.10's blocks ---- */

static void in_blocks(const look *from, const char *frame, block *blocks, size_t *count) {
    const ws_layout_t *at = &ws_layout;
    int nested = ws_int(frame, at->frame_block_count);
    for (int i = nested - 1; i >= 0 && nested <= WS_BLOCKS; i--) {
        size_t place = at->frame_blocks + (size_t)i * 3 * sizeof(int);
        int kind = ws_int(frame, place), handler = ws_int(frame, place + sizeof(int));
        int level = ws_int(frame, place + 2 * sizeof(int));
        if (kind == SETUP_FINALLY && handler >= 0 && level > 0) {
            add_block(blocks, count, from, 2 * (int64_t)handler, (size_t)level, false);
        }
    }
}

/* ---- the current instruction and the handlers ---- */

/* Whether the frame is inside the call of __enter__. */
static bool enters(const look *from) {
    unsigned char code[2];
    uintptr_t at = from->bytecode + (uintptr_t)from->offset;
    if (CPY_WITH == CPY_WITH_PAIR) {
        /* The call itself may be any specialised one. LOAD_SPECIAL 0 stands before it. */
        return from->offset >= 2 && ws_read_one(at - 2, code, sizeof code)
               && code[0] == ws_known.load_special && code[1] == 0;
    }
    return CPY_WITH == CPY_WITH_BOUND && ws_read_one(at, code, sizeof code)
           && code[0] == ws_known.before_with;
}

/* The managers of with blocks, by what lies on the value stack: the bound __exit__, a pair, or the
 * manager itself. All are read together. */
static void take_managers(const block *const *blocks, size_t count, uintptr_t *managers) {
    const ws_layout_t *at = &ws_layout;
    const size_t word = sizeof(void *);
    uintptr_t values[HANDLERS][2] = {{0}};
    char heads[HANDLERS][BOUND];
    ws_read reads[HANDLERS];
    for (size_t i = 0; i < count; i++) {
        bool pair = CPY_WITH == CPY_WITH_PAIR;
        reads[i] = (ws_read){blocks[i]->value - (pair ? word : 0), values[i],
                             (uint32_t)(pair ? 2 * word : word), false};
    }
    ws_read_many(reads, count);
    for (size_t i = 0; i < count; i++) {
        uintptr_t self = clean(values[i][1]); /* NULL, but for a pair */
        managers[i] = !reads[i].ok ? 0 : self != 0 ? self : clean(values[i][0]);
        reads[i] = (ws_read){managers[i], heads[i], BOUND, false};
    }
    ws_read_many(reads, count);
    for (size_t i = 0; i < count; i++) {
        uintptr_t type = reads[i].ok ? ws_pointer(heads[i], at->object_type) : 0;
        if (type != 0 && (type == at->method_type || type == at->function_type)) {
            managers[i] = ws_pointer(
                heads[i], type == at->method_type ? at->method_self : at->function_self);
        }
    }
}

/* Adds an address to those that are read, once. Threads of one program stand in the same functions,
 * so most addresses come again. Returns its place. */
static size_t add_address(uintptr_t *addresses, size_t *count, uintptr_t address) {
    for (size_t i = 0; i < *count; i++) {
        if (addresses[i] == address) {
            return i;
        }
    }
    addresses[*count] = address;
    return (*count)++;
}

static size_t take_blocks(const block *blocks, size_t count, ws_with *out, size_t most) {
    unsigned char code[HANDLERS][2 * UNITS];
    uintptr_t handlers[HANDLERS], managers[HANDLERS];
    const block *withs[HANDLERS];
    size_t which[HANDLERS], distinct = 0;
    ws_read reads[HANDLERS];
    size_t with_count = 0, found = 0;
    for (size_t i = 0; i < count; i++) {
        which[i] = add_address(handlers, &distinct, blocks[i].handler);
    }
    for (size_t i = 0; i < distinct; i++) {
        reads[i] = (ws_read){handlers[i], code[i], sizeof code[i], false};
    }
    ws_read_many(reads, distinct);
    for (size_t i = 0; i < count; i++) {
        bool with = false;
        for (size_t unit = 0; unit < UNITS && reads[which[i]].ok; unit++) {
            with = with || code[which[i]][2 * unit] == ws_known.with_except_start;
        }
        if (with && (!blocks[i].entering || enters(blocks[i].look))) {
            withs[with_count++] = &blocks[i];
        }
    }
    take_managers(withs, with_count, managers);
    for (size_t i = 0; i < with_count && found < most; i++) {
        const look *from = withs[i]->look;
        if (managers[i] != 0) {
            out[found++] = (ws_with){from->spot->thread, from->spot->index, managers[i],
                                     from->names, withs[i]->entering};
        }
    }
    return found;
}

/* ---- a group of frames ---- */

static size_t take_tables(ws_arena *arena, look *looks, size_t count, block *blocks) {
    const size_t data = offsetof(PyBytesObject, ob_sval);
    char(*heads)[TABLE_HEAD] = ws_arena_take(arena, GROUP * TABLE_HEAD);
    uintptr_t addresses[GROUP];
    const char *tables[GROUP] = {0};
    Py_ssize_t sizes[GROUP];
    ws_read reads[GROUP];
    size_t distinct = 0, found = 0;
    for (size_t i = 0; i < count && heads != NULL; i++) {
        if (looks[i].table != 0 && looks[i].table != ws_layout.no_exceptions) {
            add_address(addresses, &distinct, looks[i].table);
        }
    }
    for (size_t i = 0; i < distinct; i++) {
        reads[i] = (ws_read){addresses[i], heads[i],
                             ws_read_length(addresses[i], data, TABLE_HEAD), false};
    }
    ws_read_many(reads, distinct);
    for (size_t i = 0; i < distinct; i++) {
        memcpy(&sizes[i], heads[i] + offsetof(PyVarObject, ob_size), sizeof sizes[i]);
        if (!reads[i].ok || sizes[i] <= 0 || sizes[i] > TABLE_MAX
            || ws_pointer(heads[i], ws_layout.object_type) != ws_layout.bytes_type) {
            continue;
        }
        tables[i] = heads[i] + data;
        if ((size_t)sizes[i] > reads[i].size - data) {
            char *longer = ws_arena_take(arena, (size_t)sizes[i]);
            bool good = longer != NULL
                        && ws_read_one(addresses[i] + data, longer, (size_t)sizes[i]);
            tables[i] = good ? longer : NULL;
        }
    }
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; j < distinct; j++) {
            if (addresses[j] == looks[i].table && tables[j] != NULL) {
                in_table(&looks[i], (const unsigned char *)tables[j], (size_t)sizes[j], blocks,
                         &found);
            }
        }
    }
    return found;
}

/* The frame's own words, if it still executes its code object. */
static bool take_frame(look *to, const ws_spot *spot, const char *frame) {
    const ws_layout_t *at = &ws_layout;
    if (clean(ws_pointer(frame, at->frame_code)) != spot->code) {
        return false;
    }
    to->spot = spot;
    to->bytecode = spot->code + at->code_instructions;
    if (at->frame_instruction != WS_NONE) {
        to->offset = (int64_t)(ws_pointer(frame, at->frame_instruction) - to->bytecode);
    } else {
        to->offset = 2 * (int64_t)ws_int(frame, at->frame_last);
    }
    to->values = at->frame_values == WS_NONE ? spot->frame + at->frame_locals
                                             : ws_pointer(frame, at->frame_values);
    return to->offset >= 0;
}

static void take_code(look *to, const char *code) {
    const ws_layout_t *at = &ws_layout;
    to->names = ws_pointer(code, at->code_names);
    if (at->code_exceptions != WS_NONE) {
        int locals = ws_int(code, at->code_locals);
        to->table = ws_pointer(code, at->code_exceptions);
        to->values += locals >= 0 && locals < 65536 ? (size_t)locals * sizeof(void *) : 0;
    } else {
        to->bytecode = ws_pointer(code, at->code_bytes) + offsetof(PyBytesObject, ob_sval);
    }
}

static size_t take_group(ws_arena *arena, const ws_spot *spots, size_t count, ws_with *out,
                         size_t most) {
    const ws_layout_t *at = &ws_layout;
    char *frames = ws_arena_take(arena, count * at->frame_look);
    char *codes = ws_arena_take(arena, count * at->code_look);
    ws_read reads[2 * GROUP];
    uintptr_t addresses[GROUP];
    look looks[GROUP];
    block blocks[HANDLERS];
    size_t which[GROUP], distinct = 0, looking = 0, found = 0;
    if (frames == NULL || codes == NULL) {
        return 0;
    }
    for (size_t i = 0; i < count; i++) {
        which[i] = add_address(addresses, &distinct, spots[i].code);
        reads[i] = (ws_read){spots[i].frame, frames + i * at->frame_look,
                             (uint32_t)at->frame_look, false};
    }
    for (size_t i = 0; i < distinct; i++) {
        reads[count + i] = (ws_read){addresses[i], codes + i * at->code_look,
                                     (uint32_t)at->code_look, false};
    }
    ws_read_many(reads, count + distinct);
    for (size_t i = 0; i < count; i++) {
        const char *frame = frames + i * at->frame_look;
        const char *code = codes + which[i] * at->code_look;
        look *to = &looks[looking];
        memset(to, 0, sizeof *to);
        if (!reads[i].ok || !reads[count + which[i]].ok
            || ws_pointer(code, at->object_type) != at->code_type
            || !take_frame(to, &spots[i], frame)) {
            continue;
        }
        take_code(to, code);
        looking++;
        if (CPY_WITH == CPY_WITH_BLOCKS) {
            in_blocks(to, frame, blocks, &found);
        }
    }
    if (CPY_WITH != CPY_WITH_BLOCKS) {
        found = take_tables(arena, looks, looking, blocks);
    }
    return take_blocks(blocks, found, out, most);
}

size_t ws_withs_take(ws_arena *arena, const ws_spot *spots, size_t count, ws_with *out,
                     size_t most) {
    size_t found = 0;
    for (size_t start = 0; start < count && found < most; start += GROUP) {
        size_t used = arena->used;
        size_t here = count - start < GROUP ? count - start : GROUP;
        found += take_group(arena, spots + start, here, out + found, most - found);
        arena->used = used;
    }
    return found;
}

bool ws_names_mention(uintptr_t names, uintptr_t name) {
    struct {
        PyVarObject head;
        uintptr_t items[256];
    } copy;
    const size_t data = offsetof(PyTupleObject, ob_item);
    if (!ws_read_one(names, &copy.head, sizeof copy.head)
        || ws_pointer(&copy.head, ws_layout.object_type) != ws_layout.tuple_type
        || copy.head.ob_size < 0 || copy.head.ob_size > 256
        || (copy.head.ob_size > 0
            && !ws_read_one(names + data, copy.items,
                            (size_t)copy.head.ob_size * sizeof(uintptr_t)))) {
        return true; /* not known, so it may */
    }
    for (Py_ssize_t i = 0; i < copy.head.ob_size; i++) {
        if (copy.items[i] == name) {
            return true;
        }
    }
    return false;
}
