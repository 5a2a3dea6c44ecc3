/* Reads that lie near each other, done as one.
 *
 * What a read costs is that the kernel pins its page, however short the read is. So reads that
 * begin on the same page become one piece, from the first byte that is wanted to the last one. No
 * page is read that nobody asked for, so a piece is readable if each of its reads is. */
#include "internal.h"

#include <assert.h>
#include <string.h>

enum {
    LONG = 1024, /* longer reads stay alone: to copy them twice would cost more than it saves */
    BUCKETS = 512,
};

_Static_assert(BUCKETS >= 2 * WS_NEAR, "half of the buckets stay empty");
_Static_assert(WS_PAGE + LONG <= WS_PIECE, "the longest piece");

static bool alone(const ws_read *read) {
    return read->size > LONG || read->address > UINTPTR_MAX - WS_PIECE;
}

/* The place in `joined` of the piece that `read` is a part of; a new one is empty. */
static size_t find_piece(const ws_read *read, size_t *count) {
    ws_near_t *near = &ws_work->near;
    uintptr_t page = read->address / WS_PAGE;
    size_t place = (size_t)(page * UINT64_C(0x9E3779B97F4A7C15) >> 55);
    if (!alone(read)) {
        for (; near->buckets[place] != 0; place = (place + 1) % BUCKETS) {
            if (near->joined[near->buckets[place] - 1].address / WS_PAGE == page) {
                return near->buckets[place] - 1u;
            }
        }
        near->buckets[place] = (uint16_t)(*count + 1);
    }
    near->joined[*count] = (ws_read){read->address, NULL, 0, false};
    return (*count)++;
}

/* Makes the piece as long as it has to be. Its first read alone needs no copy. */
static void join(ws_read *piece, const ws_read *read) {
    uintptr_t end = piece->address + piece->size, end_of_read = read->address + read->size;
    if (piece->size == 0) {
        piece->into = read->into;
        piece->size = read->size;
        return;
    }
    piece->into = NULL;
    piece->address = read->address < piece->address ? read->address : piece->address;
    piece->size = (uint32_t)((end_of_read > end ? end_of_read : end) - piece->address);
    assert(piece->size <= WS_PIECE);
}

static void read_near(ws_read *reads, size_t count) {
    ws_near_t *near = &ws_work->near;
    size_t pieces = 0, used = 0;
    memset(near->buckets, 0, sizeof near->buckets);
    for (size_t i = 0; i < count; i++) {
        near->piece[i] = (uint16_t)find_piece(&reads[i], &pieces);
        join(&near->joined[near->piece[i]], &reads[i]);
    }
    for (size_t i = 0; i < pieces; i++) {
        if (near->joined[i].into == NULL) {
            near->joined[i].into = near->data + used;
            used += near->joined[i].size;
        }
    }
    assert(used <= sizeof near->data);
    ws_read_many(near->joined, pieces);
    for (size_t i = 0; i < count; i++) {
        const ws_read *piece = &near->joined[near->piece[i]];
        reads[i].ok = piece->ok;
        if (piece->into == reads[i].into) {
            continue;
        }
        if (piece->ok) {
            memcpy(reads[i].into, (const char *)piece->into + (reads[i].address - piece->address),
                   reads[i].size);
        } else { /* for the sake of one of the others */
            reads[i].ok = ws_read_one(reads[i].address, reads[i].into, reads[i].size);
        }
    }
}

void ws_read_near(ws_read *reads, size_t count) {
    for (size_t i = 0; i < count; i += WS_NEAR) {
        read_near(reads + i, count - i < WS_NEAR ? count - i : WS_NEAR);
    }
}
