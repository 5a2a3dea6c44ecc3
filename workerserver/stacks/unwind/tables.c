/* What an ELF file in memory says of itself: its build id, and its functions' tables. */
#include "parts.h"

#include <elf.h>
#include <string.h>

enum {
    SEGMENTS = 64,    /* a file with more is not read */
    NOTES = 1024,     /* bytes of notes that are looked at */
    TOGETHER = 64,    /* entries of the sorted table that are read at once */
    TABLE_FORM = 0x3b /* four bytes, signed, from the header on: what linkers write */
};

/* "GNU", its length and kind, then the id. */
static void read_id(ws_module *module, uintptr_t address, size_t size) {
    unsigned char notes[NOTES];
    size = size < sizeof notes ? size : sizeof notes;
    if (!ws_native_read(address, notes, size)) {
        return;
    }
    for (size_t at = 0; size - at >= 12;) {
        uint32_t name, length, kind;
        memcpy(&name, notes + at, 4);
        memcpy(&length, notes + at + 4, 4);
        memcpy(&kind, notes + at + 8, 4);
        at += 12;
        uint64_t name_end = ((uint64_t)name + 3) & ~(uint64_t)3;
        uint64_t end = name_end + (((uint64_t)length + 3) & ~(uint64_t)3);
        if (end > size - at) {
            return;
        }
        if (kind == NT_GNU_BUILD_ID && name == 4 && memcmp(notes + at, "GNU", 4) == 0
            && length <= sizeof module->id) {
            memcpy(module->id, notes + at + name_end, length);
            module->id_size = (uint8_t)length;
            return;
        }
        at += end;
    }
}

static void read_header(ws_module *module, uintptr_t address) {
    unsigned char head[4 + 2 * 8];
    uint64_t frames, count;
    size_t next = 4;
    if (!ws_native_read(address, head, sizeof head) || head[0] != 1 || head[3] != TABLE_FORM
        || !ws_cfi_pointer(head, sizeof head, &next, head[1], address, address, &frames)
        || !ws_cfi_pointer(head, sizeof head, &next, head[2], address, address, &count)
        || count > INT32_MAX) {
        return;
    }
    module->header = address;
    module->table = address + next;
    module->table_count = count;
    module->has_table = count > 0;
}

void ws_module_read(ws_module *module) {
    Elf64_Ehdr head;
    Elf64_Phdr segments[SEGMENTS];
    module->read = true;
    if (module->base == 0 || !ws_native_read(module->base, &head, sizeof head)
        || memcmp(head.e_ident, ELFMAG, SELFMAG) != 0 || head.e_ident[EI_CLASS] != ELFCLASS64
        || head.e_phnum == 0 || head.e_phnum > SEGMENTS
        || head.e_phentsize != sizeof segments[0]
        || !ws_native_read(module->base + head.e_phoff, segments,
                           head.e_phnum * sizeof segments[0])) {
        module->base = 0;
        return;
    }
    bool placed = false;
    for (int i = 0; i < head.e_phnum; i++) {
        if (segments[i].p_type == PT_LOAD && segments[i].p_offset < 4096) {
            module->bias = module->base - (segments[i].p_vaddr - segments[i].p_offset);
            placed = true;
            break;
        }
    }
    if (!placed) {
        module->base = 0;
        return;
    }
    for (int i = 0; i < head.e_phnum; i++) {
        uintptr_t address = module->bias + segments[i].p_vaddr;
        if (segments[i].p_type == PT_NOTE && module->id_size == 0) {
            read_id(module, address, segments[i].p_memsz);
        } else if (segments[i].p_type == PT_GNU_EH_FRAME) {
            read_header(module, address);
        }
    }
}

/* An entry of the sorted table: a function's start and its FDE, both from the header on. */
typedef struct {
    int32_t start, fde;
} entry;

/* The last function that starts at or before `pc`. */
static bool search(const ws_module *module, uintptr_t pc, uintptr_t *fde) {
    entry entries[TOGETHER];
    uint64_t low = 0, high = module->table_count; /* starts: low at or before pc, high behind */
    while (high - low > TOGETHER) {
        uint64_t middle = low + (high - low) / 2;
        if (!ws_native_read(module->table + middle * sizeof(entry), entries, sizeof(entry))) {
            return false;
        }
        if (module->header + (uintptr_t)(intptr_t)entries[0].start <= pc) {
            low = middle;
        } else {
            high = middle;
        }
    }
    size_t count = (size_t)(high - low), found = count;
    if (!ws_native_read(module->table + low * sizeof(entry), entries, count * sizeof(entry))) {
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        if (module->header + (uintptr_t)(intptr_t)entries[i].start > pc) {
            break;
        }
        found = i;
    }
    if (found == count) {
        return false;
    }
    *fde = module->header + (uintptr_t)(intptr_t)entries[found].fde;
    return true;
}

/* Appends an entry of .eh_frame, without its length. */
static bool copy(ws_table_copy *out, uintptr_t address, size_t *start, size_t *end) {
    uint32_t size;
    ws_tables *tables = &out->tables;
    if (!ws_native_read(address, &size, sizeof size) || size < 8 || size > WS_TABLES_MAX
        || !ws_native_read(address + 4, out->bytes + tables->size, size)) {
        return false;
    }
    *start = tables->size;
    *end = tables->size += size;
    return true;
}

bool ws_tables_find(const ws_module *module, uintptr_t pc, ws_table_copy *out) {
    uintptr_t fde;
    uint32_t back;
    ws_tables *tables = &out->tables;
    tables->bytes = out->bytes;
    tables->size = 0;
    if (!module->has_table || !search(module, pc, &fde)
        || !copy(out, fde, &tables->fde, &tables->fde_end)) {
        return false;
    }
    tables->address = fde + 4;
    memcpy(&back, out->bytes, sizeof back); /* from here to the CIE */
    return back != 0 && copy(out, fde + 4 - back, &tables->cie, &tables->cie_end);
}
