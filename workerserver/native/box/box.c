/* The mapped file and its records. */
#define _GNU_SOURCE
#include "box.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define TMPFS 0x01021994L
#define SLOT_MAGIC 0x43525357u /* "WSRC" */
static const char MAGIC[8] = {'W', 'S', 'B', 'L', 'K', 'B', 'O', 'X'};

typedef struct {
    uint32_t kind, slots;
    uint64_t offset, slot_size;
} lane_header;

typedef struct {
    char magic[8];
    uint32_t version, lanes;
    uint64_t size, pid;
    lane_header lane[WS_BOX_LANES];
    uint32_t crc; /* of all that is before it */
} box_header;

/* The magic number is written last and taken away first: a record without it is none. The checksum
 * is that of the header from `kind` to `length`, and of the payload. */
typedef struct {
    uint32_t magic, kind;
    uint64_t sequence;
    int64_t wall_ns, monotonic_ns;
    uint32_t length, crc;
} slot_header;

_Static_assert(sizeof(slot_header) == 40, "the format's own size");
_Static_assert(sizeof(lane_header) == 24, "the format's own size");
_Static_assert(sizeof(box_header) <= WS_BOX_HEADER, "the header is a page");

/* Slots of the lanes, and bytes of each; 0: an equal part of what is left. */
static const struct {
    uint32_t slots, size;
} LANES[WS_BOX_LANES] = {
    [WS_BOX_IDENTITY] = {2, 16 << 10}, [WS_BOX_STATE] = {4, 8 << 10},
    [WS_BOX_STEPS] = {2, 52 << 10},    [WS_BOX_STACKS] = {3, 0},
    [WS_BOX_END] = {4, 16 << 10},      [WS_BOX_LAST] = {2, 0},
    [WS_BOX_KEEPER] = {1, 4 << 10},    [WS_BOX_RECORDER] = {2, 16 << 10},
    [WS_BOX_COUNTERS] = {2, 8 << 10},
};
enum { LEAST_STACKS = 44 << 10 };

static char *base; /* NULL: no box */
static lane_header lanes[WS_BOX_LANES];
static uint64_t sequences[WS_BOX_LANES];
static int writing;
static sigset_t before; /* of the thread that writes */
static uint32_t crc_table[256];

/* The checksum of zlib's crc32(). */
static uint32_t crc(uint32_t so_far, const void *data, size_t size) {
    const unsigned char *at = data;
    so_far = ~so_far;
    while (size-- > 0) {
        so_far = crc_table[(so_far ^ *at++) & 255] ^ so_far >> 8;
    }
    return ~so_far;
}

static void in_child(void) {
    base = NULL; /* MADV_DONTFORK: there is nothing to unmap */
    writing = 0;
}

static bool lay_out(size_t size) {
    size_t fixed = WS_BOX_HEADER, shared = 0, offset = WS_BOX_HEADER;
    for (int i = 0; i < WS_BOX_LANES; i++) {
        fixed += (size_t)LANES[i].slots * LANES[i].size;
        shared += LANES[i].size == 0 ? LANES[i].slots : 0;
    }
    if (size < fixed + shared * LEAST_STACKS) {
        return false;
    }
    size_t each = (size - fixed) / shared & ~(size_t)4095;
    for (int i = 0; i < WS_BOX_LANES; i++) {
        lanes[i] = (lane_header){(uint32_t)i, LANES[i].slots, offset,
                                 LANES[i].size != 0 ? LANES[i].size : each};
        offset += lanes[i].slots * lanes[i].slot_size;
    }
    return true;
}

int ws_box_open(int fd, size_t size) {
    static bool registered;
    struct statfs where;
    if (base != NULL) {
        return EBUSY;
    }
    if (fstatfs(fd, &where) != 0) {
        return errno;
    }
    if (where.f_type != TMPFS) {
        return ENOTSUP;
    }
    if (!lay_out(size)) {
        return EINVAL;
    }
    if (!registered) {
        int failed = pthread_atfork(NULL, NULL, in_child);
        if (failed) {
            return failed;
        }
        registered = true;
    }
    char *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) {
        return errno;
    }
    if (madvise(map, size, MADV_DONTFORK) != 0) {
        int failed = errno;
        munmap(map, size);
        return failed;
    }
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t value = i;
        for (int bit = 0; bit < 8; bit++) {
            value = value & 1 ? 0xedb88320u ^ value >> 1 : value >> 1;
        }
        crc_table[i] = value;
    }
    memset(sequences, 0, sizeof sequences);
    ws_box_watch_none();
    box_header header;
    memset(&header, 0, sizeof header);
    memcpy(header.magic, MAGIC, sizeof MAGIC);
    header.version = WS_BOX_VERSION;
    header.lanes = WS_BOX_LANES;
    header.size = size;
    header.pid = (uint64_t)getpid();
    memcpy(header.lane, lanes, sizeof lanes);
    header.crc = crc(0, &header, offsetof(box_header, crc));
    memcpy(map, &header, sizeof header);
    writing = 0;
    __atomic_store_n(&base, map, __ATOMIC_RELEASE);
    return 0;
}

bool ws_box_there(void) {
    return __atomic_load_n(&base, __ATOMIC_ACQUIRE) != NULL;
}

bool ws_box_lock(int milliseconds) {
    const struct timespec pause = {0, 500000};
    sigset_t sent, mask;
    sigemptyset(&sent);
    sigaddset(&sent, SIGTERM);
    sigaddset(&sent, SIGABRT);
    pthread_sigmask(SIG_BLOCK, &sent, &mask);
    for (int left = 2 * milliseconds;; left--) {
        int nobody = 0;
        if (__atomic_compare_exchange_n(&writing, &nobody, 1, false, __ATOMIC_ACQUIRE,
                                        __ATOMIC_RELAXED)) {
            before = mask;
            return true;
        }
        if (left <= 0) {
            pthread_sigmask(SIG_SETMASK, &mask, NULL);
            return false;
        }
        nanosleep(&pause, NULL);
    }
}

void ws_box_unlock(void) {
    sigset_t mask = before;
    __atomic_store_n(&writing, 0, __ATOMIC_RELEASE);
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
}

size_t ws_box_room(ws_lane lane) {
    return ws_box_there() ? lanes[lane].slot_size - sizeof(slot_header) : 0;
}

static slot_header *next_slot(ws_lane lane) {
    const lane_header *ring = &lanes[lane];
    uint64_t slot = (sequences[lane] + 1) % ring->slots;
    return (slot_header *)(base + ring->offset + slot * ring->slot_size);
}

char *ws_box_begin(ws_lane lane, size_t *capacity) {
    *capacity = 0;
    if (!ws_box_there()) {
        return NULL;
    }
    slot_header *slot = next_slot(lane);
    __atomic_store_n(&slot->magic, 0, __ATOMIC_RELAXED);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    *capacity = ws_box_room(lane);
    return (char *)(slot + 1);
}

void ws_box_commit(ws_lane lane, size_t length) {
    slot_header *slot = next_slot(lane);
    slot_header header = {SLOT_MAGIC, (uint32_t)lane, ++sequences[lane], 0, 0, (uint32_t)length, 0};
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    header.wall_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    clock_gettime(CLOCK_MONOTONIC, &now);
    header.monotonic_ns = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    header.crc = crc(0, &header.kind, offsetof(slot_header, crc) - offsetof(slot_header, kind));
    header.crc = crc(header.crc, slot + 1, length);
    memcpy(&slot->kind, &header.kind, sizeof header - offsetof(slot_header, kind));
    __atomic_store_n(&slot->magic, SLOT_MAGIC, __ATOMIC_RELEASE);
}
