/* Shared by the files of selfread/: where CPython keeps things, reading, code objects.
 *
 * offsets.c and layout.c fill `ws_layout` once, with the GIL. All other files follow the addresses
 * and offsets in it. What differs between the versions of CPython is in cpython.h. */
#ifndef WS_SELFREAD_INTERNAL_H
#define WS_SELFREAD_INTERNAL_H

#include "selfread.h"

#pragma GCC visibility push(hidden)

enum {
    WS_PAGE = 4096,         /* reads that guess a length end here: what starts a page is mapped */
    WS_LINKS = 2048,        /* frames of one chain, with the ones that are skipped */
    WS_WINDOWS = 64,        /* pages of frames kept from one walk of a chain */
    WS_FRAME_MAX = 512,     /* bytes read of a frame, a thread state, a code object */
    WS_STATE_MAX = 1024,
    WS_TOGETHER = 32, /* thread states that are listed by one system call */
    WS_GIL_MAX = 64,
    WS_BLOCKS = 20,         /* 3.10: of a frame */
    WS_CODE_MAX = 512,
    WS_GROUP = 64,          /* code objects, or threads, that are read together */
    WS_TEXT_HEAD = 256,     /* bytes of a string, of a line table that are read with its header */
    WS_CHUNKS = 4096,       /* of a thread's stack of frames */
    WS_LINES_HEAD = 512,
    WS_NEAR = 256,          /* reads that are joined to fewer, longer ones */
    WS_PIECE = WS_PAGE + 1024, /* bytes of such a one */
    WS_PAGES = 256,         /* pages of frames of several threads */
    WS_PAGE_BUCKETS = 512,
    WS_AHEAD = 16, /* of these, of one thread that may run */
    WS_CODES = 32768,       /* code objects in one snapshot's cache */
    WS_STRINGS = 32768,
    WS_BUCKETS = 1024,
    WS_ARENA = 64 << 20,    /* bytes of address space for one snapshot */
    WS_SMALL = 512 << 10,   /* bytes of a snapshot whose memory is kept for the next one */
    WS_LINES_MAX = 8 << 20, /* bytes of one line table */
    WS_BUDGET_MS = 100,     /* of the processor, for one snapshot */
    WS_PATIENCE_MS = 200,   /* of the clock, where the processor is busy with others */
};

#define WS_NONE SIZE_MAX /* an offset that this CPython doesn't have */

/* Offsets in bytes; addresses of this process. Written by ws_layout_learn(), then constant. */
typedef struct {
    /* Addresses */
    uintptr_t interpreter;
    uintptr_t gil;
    uintptr_t code_type, str_type, bytes_type, dict_type, frame_type, type_type, long_type;
    uintptr_t true_object, false_object;
    uintptr_t active_threads;                  /* threading._active, or 0 */
    uintptr_t key_name, key_daemon, key_native; /* interned "_name", "_daemonic", "_native_id" */
    unsigned long main_ident;
    uintptr_t main_state; /* PyThreadState of the main thread; 0: not known */
    /* PyInterpreterState, PyThreadState */
    size_t thread_head;
    size_t state_next, state_prev, state_interpreter, state_ident, state_native, state_frame;
    size_t state_size;
    size_t cframe_frame; /* 3.11, 3.12: state_frame leads to a _PyCFrame */
    size_t state_chunk;  /* of the stack that frames are made on; not 3.10 */
    size_t chunk_previous, chunk_first; /* _PyStackChunk; where a thread's first frame is */
    /* _PyInterpreterFrame, or 3.10's PyFrameObject */
    size_t frame_previous, frame_code, frame_instruction, frame_owner, frame_size;
    size_t frame_last, frame_line, frame_generator; /* 3.10 */
    size_t frame_entry; /* 3.11: whether C has called the interpreter for this frame */
    uintptr_t frame_code_mask;     /* 3.14: tag bits of a stack reference */
    int owner_generator;
    int owner_not_python; /* this one and greater ones */
    /* PyCodeObject */
    size_t code_file, code_name, code_qualname, code_lines, code_first_line, code_units;
    size_t code_first_traceable, code_instructions, code_read;
    /* Other objects */
    size_t object_type;
    size_t gil_holder, gil_locked, gil_switches, gil_read, gil_size;
    size_t keys_count, keys_index_bytes, keys_kind, keys_size, keys_read; /* dict keys */
    size_t links; /* of one chain */
    /* Values: what waits are read from */
    size_t object_frame; /* from a frame object to its frame; WS_NONE: the same */
    size_t frame_locals, frame_values, frame_blocks, frame_block_count, frame_look;
    size_t code_locals, code_exceptions, code_bytes, code_names, code_look;
    uintptr_t no_exceptions; /* the table of code that catches none; 0: not known */
    uintptr_t method_type, function_type, tuple_type; /* a bound method, a bound C function */
    size_t method_self, function_self;
} ws_layout_t;

extern ws_layout_t ws_layout;

/* --- reading: memory.c */

typedef struct {
    uintptr_t address;
    void *into;
    uint32_t size; /* not 0 */
    bool ok;
} ws_read;

/* Each read succeeds whole or fails alone. */
void ws_read_many(ws_read *reads, size_t count);
bool ws_read_one(uintptr_t address, void *into, size_t size);
/* The same in fewer and longer reads, where some lie on the same page: near.c. They are not done in
 * their order. */
void ws_read_near(ws_read *reads, size_t count);
/* How many bytes from `address` on are sure to lie in mapped memory, if its first ones do: as many
 * as wanted or up to the page's end, but at least `least`. */
uint32_t ws_read_length(uintptr_t address, size_t least, size_t wanted);

/* The process to read: the one that calls. */
void ws_read_start(void);

/* Starts the time of a snapshot; whether it is over. */
void ws_time_start(void);
bool ws_time_over(void);

/* The snapshot's memory. ws_arena_take() gives 16-byte aligned bytes, or NULL when all are used.
 * They are zero: those below `dirty` may be of an earlier snapshot, and are made zero. To give the
 * last ones back, set `used` to its old value. */
typedef struct {
    char *base;
    size_t used, dirty;
} ws_arena;

bool ws_arena_make(ws_arena *arena);
void *ws_arena_take(ws_arena *arena, size_t size);

static inline uintptr_t ws_pointer(const void *data, size_t offset) {
    uintptr_t value;
    __builtin_memcpy(&value, (const char *)data + offset, sizeof value);
    return value;
}

static inline int ws_int(const void *data, size_t offset) {
    int value;
    __builtin_memcpy(&value, (const char *)data + offset, sizeof value);
    return value;
}

static inline unsigned char ws_byte(const void *data, size_t offset) {
    return ((const unsigned char *)data)[offset];
}

/* --- strings, code objects and lines: code.c, lines.c */

typedef struct {
    uintptr_t address;
    ws_name name; /* in the arena */
    uint32_t next;
    uint32_t mark;
} ws_string;

typedef struct {
    uintptr_t address;
    uintptr_t file, name, qualname, lines, exceptions; /* as in the code object, to see whether it changed */
    int64_t units;                         /* 2 bytes of bytecode each */
    int first_line;
    int first_traceable; /* in units */
    ws_name names[3];    /* file, name, qualname */
    const unsigned char *table; /* of lines; NULL: not readable */
    size_t table_size;
    int64_t last_at; /* the last line asked for, -1: none */
    int last_line;
    uint32_t next;
    uint32_t mark;    /* of the resolve that last looked at it */
    uint32_t changed; /* the mark when it was last read and not as before */
    uint32_t epoch;   /* in which its names and lines were read */
    bool good;        /* a code object, and readable */
} ws_code;

/* A string's header: whether it is a str whose data follows at `*offset`. */
bool ws_string_header(const void *header, ws_name *name, size_t *offset);
size_t ws_string_header_size(void);
/* Finishes a string of which `got` bytes were read to `head`: copies or reads the rest. */
void ws_string_finish(ws_arena *arena, uintptr_t address, const char *head, size_t got,
                      ws_name *name);

/* Forgets all code objects. */
void ws_codes_clear(void);
ws_code *ws_codes_find(uintptr_t address);
/* Reads the code objects that are new and those known from another epoch; with `again`, all. Of the
 * others it only looks whether they are still there. Returns whether a code object that was known
 * has changed. A code object that can't be read is in the cache, but not good. */
bool ws_codes_resolve(ws_arena *arena, const uintptr_t *addresses, size_t count, bool again);
/* From now on no known code object is trusted before it is read again. */
void ws_codes_doubt(void);

/* The line of a byte offset in the bytecode; -1: none, or unknown. */
int ws_line(ws_code *code, int64_t at);

/* --- stacks: stack.c */

typedef struct {
    uintptr_t frame, code;
    uintptr_t instruction; /* 3.10: the offset in bytes, as a number */
    int line;              /* 3.10: set while tracing, else 0 */
    bool generator;
} ws_link;

/* The GIL, as it was read once. `switches` counts only changes from one thread to another. While it
 * stays the same, all threads but the last holder stand still. */
typedef struct {
    bool known;
    uintptr_t holder; /* the last one, PyThreadState */
    unsigned long switches;
} ws_moment;

typedef struct {
    ws_moment moment;
    size_t count;
    bool more;   /* deeper than WS_LINKS */
    bool broken; /* ends in something that is no frame */
    bool prompt; /* read in one system call, and the newest frame was the same before and after */
    bool idle;   /* no frame at all, not even of C */
    ws_link links[WS_LINKS];
} ws_chain;

typedef struct {
    uintptr_t state; /* PyThreadState */
    unsigned long ident;
    long native_id;
    uintptr_t frame; /* the newest one, or what leads to it, at the moment of the list */
} ws_listed;

/* chain.c. `gil`: its bytes, if `known`. */
ws_moment ws_moment_of(const char *gil, bool known);
/* Whether the GIL has gone to no other thread in between. */
bool ws_same_moment(const ws_moment *one, const ws_moment *other);
bool ws_is_frame(const char *data);
/* False: a frame that is not of Python code. */
bool ws_link_take(ws_link *link, uintptr_t frame, const char *data);
/* Whether each frame executes its code object, as far as is known of that. */
bool ws_chain_whole(const ws_chain *chain);
/* Begins the stack of a thread, without frames and unstable. */
void ws_thread_start(ws_thread *thread, const ws_listed *listed, const ws_snapshot *out);
/* Appends a chain whose code objects were resolved, from its frame `from` on. */
void ws_chain_append(const ws_chain *chain, size_t from, ws_snapshot *out, ws_thread *thread);

/* together.c: before the first one of a snapshot. */
void ws_together_start(void);
/* Reads stacks, from the thread listed[first] on. How many are ready for ws_together_take(): until
 * another function of the walker reads. */
size_t ws_together_read(ws_arena *arena, size_t first);
/* Appends the stack of listed[first + index]. False: it has to be read by itself. */
bool ws_together_take(size_t index, const ws_listed *listed, ws_snapshot *out, ws_thread *thread);

#ifdef NDEBUG
#define ws_stack_check(listed, chain) ((void)0)
#else
/* Checks that a thread that stood still has the same stack in one more reading. */
void ws_stack_check(const ws_listed *listed, const ws_chain *chain);
#endif

/* Fills `thread` and appends its frames. False: the thread has ended. */
bool ws_stack_take(ws_arena *arena, const ws_listed *listed, ws_snapshot *out, ws_thread *thread);

/* --- attributes and dicts: attributes.c. They use no part of the work space, so any thread may. */

enum {
    WS_WANTED = 3, /* attributes looked up together */
    WS_TYPES = 16, /* known at one time */
};

/* Interned strings: an attribute's key is one of them, so addresses are compared. */
typedef struct {
    uintptr_t keys[WS_WANTED];
    size_t count;
} ws_wanted;

/* Keys of a dict, or of all instances of a type. key_at is 0 where entries hold no hash. */
typedef struct {
    uintptr_t entries;
    size_t count, entry_size, key_at, value_at;
} ws_keys;

typedef struct {
    uintptr_t address;
    unsigned long flags;
    ptrdiff_t dict_offset, basic_size;
    bool good;
    int slots[WS_WANTED]; /* of the wanted attributes in the type's shared keys; -1: none */
} ws_type;

typedef struct {
    ws_wanted wanted;
    size_t count;
    ws_type types[WS_TYPES];
} ws_types;

/* The entries of a dict, copied into the arena. An entry that was deleted has the value 0. */
typedef struct {
    const char *data;
    ws_keys keys;
} ws_entries;

/* NULL: too many types. */
const ws_type *ws_type_find(ws_types *types, uintptr_t address);
/* Where the values of the wanted attributes are; 0: nowhere. `before`: four words before the
 * object, and its head. */
void ws_attributes_locate(uintptr_t found[WS_WANTED], uintptr_t object, const char *before,
                          const ws_type *type, const ws_wanted *wanted);
/* The values of an instance's wanted attributes; 0: none, or not readable. */
bool ws_attributes_read(ws_types *types, uintptr_t object, uintptr_t values[WS_WANTED]);
/* False: not a dict of at most `most` entries, empty, or one with split keys. */
bool ws_dict_read(ws_arena *arena, uintptr_t address, size_t most, ws_entries *out);

/* --- values: values.c. Any thread too. */

/* The type of an object; 0: not readable. */
uintptr_t ws_type_read(uintptr_t object);
/* False: not an int, or one of more than 62 bits. */
bool ws_int_read(uintptr_t object, int64_t *value);
/* A str, at most WS_MAX_NAME characters of it. False: not a str. */
bool ws_text_read(ws_arena *arena, uintptr_t object, ws_name *name);

/* --- what threads wait for: facts/facts.c */

/* Fills waits and holds of a snapshot taken without the GIL. Each is read twice. */
void ws_waits_take(ws_arena *arena, ws_snapshot *out, const ws_place *places);

/* --- names of threads: names.c */

void ws_names_take(ws_arena *arena, ws_snapshot *out);

/* --- what is kept between snapshots: one mapping, made by ws_selfread_prepare() */

typedef struct {
    uint16_t buckets[2 * WS_NEAR], piece[WS_NEAR]; /* buckets: index + 1 */
    ws_read joined[WS_NEAR];
    char data[WS_NEAR * WS_PIECE];
} ws_near_t;

typedef struct {
    char data[WS_PAGE + WS_FRAME_MAX];
    uintptr_t base;
    uint32_t size;
    bool ok, wanted;
} ws_window;

/* Pages of frames of several threads. */
typedef struct {
    uint16_t buckets[WS_PAGE_BUCKETS], wanted[WS_GROUP + 1]; /* index + 1 */
    size_t count, wanted_count;
    bool full;
    ws_window windows[WS_PAGES];
} ws_pages_t;

/* Where to look first for the frames of one thread. No more than a guess. */
typedef struct {
    uintptr_t state; /* 0: of none */
    uintptr_t cframe;
    uintptr_t pages[WS_AHEAD];
    size_t count;
} ws_ahead_t;

typedef struct {
    /* Small parts first: a usual snapshot touches few pages. */
    uint32_t code_buckets[WS_BUCKETS], string_buckets[WS_BUCKETS]; /* index + 1 */
    size_t code_count, string_count;
    uint32_t mark, epoch;
    ws_moment moment; /* at the start of this epoch */
    ws_moment listed_at;
    size_t listed_count;
    size_t together; /* threads that are read together, at most */
    uintptr_t tops[WS_GROUP + 1]; /* their newest frames */
    ws_ahead_t ahead;
    size_t guess_count; /* states of the last whole listing, which may have ended since */
    uintptr_t first_frame; /* of the thread that is read */
    char state[WS_STATE_MAX];
    char states[WS_TOGETHER][WS_STATE_MAX];
    char gil[WS_GIL_MAX];
    ws_read reads[WS_GROUP * 4];
    uintptr_t addresses[WS_LINKS];
    ws_chain chains[2], longest;
    size_t window_count;
    ws_window windows[WS_WINDOWS];
    char code_heads[WS_GROUP][WS_CODE_MAX];
    char text_heads[WS_GROUP * 3][WS_TEXT_HEAD];
    char lines_heads[WS_GROUP][WS_LINES_HEAD];
#ifndef NDEBUG
    ws_chain checked; /* a settled chain, read once more */
#endif
    ws_listed listed[WS_MAX_THREADS];
    uintptr_t guesses[WS_MAX_THREADS];
    ws_near_t near;
    ws_pages_t pages;
    ws_place places[WS_MAX_FRAMES]; /* of the snapshot's frames */
    ws_code codes[WS_CODES];
    ws_string strings[WS_STRINGS];
} ws_work_t;

extern ws_work_t *ws_work;

/* The holder of the GIL: selfread.c. Any thread, at any time. */
void ws_gil_read(ws_gil *out);

/* --- CPython: offsets.c, layout.c, all with the GIL */

/* Fills in offsets, and addresses inside the interpreter. False: not a CPython that is known. */
bool ws_offsets(ws_layout_t *layout);

/* Why not, where the process has no memory left, or no address space: that may pass. */
extern const char WS_NO_MEMORY[];

/* Fills ws_layout. NULL, or why not. */
const char *ws_layout_learn(void);
/* Compares a snapshot, and what ws_work still holds of it, with what Python says of the calling
 * thread. NULL, or what differs. */
const char *ws_layout_check(const ws_snapshot *snapshot);

#pragma GCC visibility pop

#endif
