/* Feeds the unwinder's interpreter with bytes that pretend to be a function's tables: random ones, and
 * good ones with some bytes changed. tables.c COUNT SEED. Built with sanitizers: what is read or
 * written where it must not be ends the process. With -DWS_LIBFUZZER, libFuzzer brings the bytes. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cfi.h"

static uint64_t state;

static uint32_t next(void) { /* xorshift64* */
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (uint32_t)(state * 0x2545f4914f6cdd1dULL >> 32);
}

/* Memory that is there, and some that isn't. */
static bool peek(void *data, uint64_t address, uint64_t *value) {
    (void)data;
    *value = address * 0x9e3779b97f4a7c15ULL;
    return address % 3 != 0;
}

/* The first two bytes say where the CIE ends, and the next two which instruction is asked for. */
static int feed(const uint8_t *raw, size_t size) {
    ws_found_row found;
    ws_registers frame = {0}, caller;
    bool first;
    if (size < 4)
        return 0;
    size_t length = size - 4, middle = (raw[0] | raw[1] << 8) % (length + 1);
    uint64_t pc = 0x1000 + (raw[2] | raw[3] << 8);
    /* Memory of just this size: each byte that is read behind its end is seen. */
    unsigned char *bytes = malloc(length > 0 ? length : 1);
    memcpy(bytes, raw + 4, length);
    ws_tables tables = {bytes, length, 0x1000, 0, middle, middle, length};
    int good = ws_cfi_row(&tables, pc, &found);
    if (good) {
        for (int i = 0; i < WS_REGISTERS; i++)
            frame.value[i] = 0x7f0000000000 + 8 * (uint64_t)i;
        frame.known = 0x1ffff;
        ws_cfi_step(&tables, &found.row, &frame, peek, NULL, &caller, &first);
    }
    free(bytes);
    return good;
}

#ifdef WS_LIBFUZZER

int LLVMFuzzerTestOneInput(const uint8_t *raw, size_t size) {
    feed(raw, size);
    return 0;
}

#else

#if defined(__aarch64__)
enum { DATA_ALIGN = 0x78, RETURN = 30, STACK = 31 };
#else
enum { DATA_ALIGN = 0x78, RETURN = 16, STACK = 7 };
#endif

/* A CIE and an FDE as GCC writes them, with absolute addresses. */
static const uint8_t GOOD[] = {
    /* where the CIE ends, 19; the instruction asked for, 8 */
    19, 0, 8, 0,
    /* CIE: id, version, "zR", alignments, return address, augmentation: absolute addresses */
    0, 0, 0, 0, 1, 'z', 'R', 0, 1, DATA_ALIGN, RETURN, 1, 0,
    /* def_cfa sp 8, offset return 1, nop */
    0x0c, STACK, 8, 0x80 | RETURN, 1, 0,
    /* FDE: the CIE's place, start, length, no augmentation */
    1, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0,
    /* advance 1, def_cfa_offset 16, offset 6 2, advance 3, remember, expression, restore */
    0x41, 0x0e, 16, 0x86, 2, 0x43, 0x0a, 0x0f, 3, 0x76, 8, 0x06, 0x0b, 0x10, 3, 2, 0x77, 0x10,
};

int main(int count, char **values) {
    long rounds = count > 1 ? atol(values[1]) : 1000, good = 0;
    state = count > 2 ? strtoull(values[2], NULL, 10) : 1;
    uint8_t raw[256];
    if (!feed(GOOD, sizeof GOOD)) {
        fprintf(stderr, "the good tables have no row\n");
        return 1;
    }
    for (long i = 0; i < rounds; i++) {
        size_t size = sizeof GOOD;
        if (i % 4 == 0) {
            size = next() % sizeof raw;
            for (size_t k = 0; k < size; k++)
                raw[k] = (uint8_t)next();
        } else {
            memcpy(raw, GOOD, size);
            /* The program of rows goes on with anything. */
            for (size_t more = next() % 64; more > 0; more--)
                raw[size++] = (uint8_t)next();
            for (uint32_t changes = next() % 4; changes > 0; changes--)
                raw[next() % size] = (uint8_t)next();
        }
        good += feed(raw, size);
    }
    printf("%ld inputs, %ld rows\n", rounds, good);
    return 0;
}

#endif
