/* Which file's code is mapped where, from /proc: the linker would give it too, under its lock. */
#define _GNU_SOURCE
#include "parts.h"

#include "render.h"

#include <fcntl.h>
#include <string.h>
#include <unistd.h>

enum {
    PIECE = 8192,  /* bytes that are read at once; a line is shorter */
    PIECES = 1024, /* of a list that is read at all */
};

typedef struct {
    uintptr_t start, end;
    uint64_t offset; /* in the file */
    bool code;
    const char *path; /* up to the line's end; empty: no file */
    size_t path_size;
} mapping;

/* What a list is made into: modules, or only its print. */
typedef struct {
    ws_native *native; /* NULL: the print alone */
    uint64_t print;
    uintptr_t base; /* of the file whose first page was listed last */
    char base_path[512];
    size_t base_size;
} listing;

static bool take_number(const char **at, const char *end, char last, uint64_t *value) {
    const char *c = *at;
    *value = 0;
    for (; c < end && *c != last; c++) {
        int digit = ws_hex_digit(*c);
        if (digit < 0) {
            return false;
        }
        *value = *value << 4 | (uint64_t)digit;
    }
    *at = c + 1;
    return c < end;
}

/* "7f0000000000-7f0000001000 r-xp 00001000 fe:00 1234     /lib/x.so" */
static bool parse(const char *line, const char *end, mapping *out) {
    uint64_t start, stop;
    const char *at = line;
    if (!take_number(&at, end, '-', &start) || !take_number(&at, end, ' ', &stop)
        || end - at < 5) {
        return false;
    }
    out->start = start;
    out->end = stop;
    out->code = at[2] == 'x';
    at += 5;
    if (!take_number(&at, end, ' ', &out->offset)) {
        return false;
    }
    for (int i = 0; i < 2; i++) { /* the device and the inode */
        const char *space = memchr(at, ' ', (size_t)(end - at));
        if (space == NULL) {
            at = end;
            break;
        }
        at = space + 1;
    }
    while (at < end && *at == ' ') {
        at++;
    }
    out->path = at;
    out->path_size = (size_t)(end - at);
    return start < stop;
}

/* The place of a name; 0: no name, or no room. */
static uint32_t keep_path(ws_native *native, const mapping *from) {
    if (from->path_size == 0) {
        return 0;
    }
    if (from->path_size >= WS_NATIVE_PATHS - native->path_size) {
        native->cut = true;
        return 0;
    }
    uint32_t place = (uint32_t)native->path_size;
    memcpy(native->paths + place, from->path, from->path_size);
    native->paths[place + from->path_size] = 0;
    native->path_size += from->path_size + 1;
    return place;
}

static void add(listing *list, const mapping *from) {
    ws_native *native = list->native;
    bool same = from->path_size == list->base_size && from->path_size > 0
                && memcmp(from->path, list->base_path, from->path_size) == 0;
    bool file = from->path_size > 0 && (from->path[0] == '/' || from->path[0] == '[');
    if (file && from->offset == 0 && from->path_size < sizeof list->base_path) {
        memcpy(list->base_path, from->path, from->path_size);
        list->base_size = from->path_size;
        list->base = from->start;
        same = true;
    }
    if (!from->code) {
        return;
    }
    ws_print_add(&list->print, &from->start, sizeof from->start);
    ws_print_add(&list->print, &from->end, sizeof from->end);
    ws_print_add(&list->print, from->path, from->path_size);
    if (native == NULL) {
        return;
    }
    if (native->module_count == WS_NATIVE_MODULES) {
        native->cut = true;
        return;
    }
    ws_module *module = &native->modules[native->module_count++];
    module->start = from->start;
    module->end = from->end;
    module->base = file && same ? list->base : 0;
    module->path = file ? keep_path(native, from) : 0;
}

static bool read_list(listing *list) {
    char piece[PIECE];
    size_t held = 0;
    int left = PIECES;
    list->print = WS_PRINT_START;
    /* /proc/self is the main thread's, which may have ended. */
    int file = open("/proc/thread-self/maps", O_RDONLY | O_CLOEXEC);
    if (file < 0) {
        return false;
    }
    for (; left > 0; left--) {
        ssize_t got = read(file, piece + held, sizeof piece - held);
        if (got <= 0) {
            break;
        }
        const char *at = piece, *end = piece + held + got, *line_end;
        while ((line_end = memchr(at, '\n', (size_t)(end - at))) != NULL) {
            mapping found;
            if (parse(at, line_end, &found)) {
                add(list, &found);
            }
            at = line_end + 1;
        }
        held = (size_t)(end - at);
        if (held == sizeof piece) {
            break; /* no line of /proc is so long */
        }
        memmove(piece, at, held);
    }
    close(file);
    return left > 0 && held == 0;
}

bool ws_modules_list(ws_native *native) {
    listing list = {.native = native};
    native->module_count = 0;
    native->path_size = 1;
    bool whole = read_list(&list);
    native->print = list.print;
    return whole && native->module_count > 0;
}

bool ws_modules_same(const ws_native *native) {
    listing list = {.native = NULL};
    return read_list(&list) && list.print == native->print;
}

int ws_module_of(const ws_native *native, uintptr_t pc) {
    size_t low = 0, high = native->module_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (native->modules[middle].end <= pc) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < native->module_count && native->modules[low].start <= pc ? (int)low : -1;
}
