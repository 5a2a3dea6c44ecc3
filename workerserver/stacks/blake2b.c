/* BLAKE2b, written from RFC 7693, section 3. */
#include "blake2b.h"

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { BLOCK = 128, ROUNDS = 12 };

/* Section 2.6: the fractional parts of the square roots of the first eight primes. */
static const uint64_t IV[8] = {
    0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
    0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179,
};

/* Section 2.7; rounds 10 and 11 use rows 0 and 1 again. */
static const uint8_t SIGMA[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4},
    {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13},
    {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11},
    {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5},
    {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
};

static inline uint64_t turned(uint64_t word, int bits) {
    return word >> bits | word << (64 - bits);
}

static inline uint64_t little_endian(const unsigned char *at) {
    uint64_t word = 0;
    for (int i = 7; i >= 0; i--)
        word = word << 8 | at[i];
    return word;
}

/* Section 3.1, the mixing function G. */
static inline void mix(uint64_t *v, int a, int b, int c, int d, uint64_t x, uint64_t y) {
    v[a] = v[a] + v[b] + x;
    v[d] = turned(v[d] ^ v[a], 32);
    v[c] = v[c] + v[d];
    v[b] = turned(v[b] ^ v[c], 24);
    v[a] = v[a] + v[b] + y;
    v[d] = turned(v[d] ^ v[a], 16);
    v[c] = v[c] + v[d];
    v[b] = turned(v[b] ^ v[c], 63);
}

/* Section 3.2, the compression function F. `total`: bytes hashed so far, this block included. */
static void compress(uint64_t h[8], const unsigned char *block, uint64_t total, bool last) {
    uint64_t v[16], m[16];
    for (int i = 0; i < 16; i++)
        m[i] = little_endian(block + 8 * i);
    memcpy(v, h, 64);
    memcpy(v + 8, IV, 64);
    v[12] ^= total; /* the counter's high word stays 0: nothing here has 2**64 bytes */
    if (last)
        v[14] = ~v[14];
    for (int round = 0; round < ROUNDS; round++) {
        const uint8_t *s = SIGMA[round % 10];
        mix(v, 0, 4, 8, 12, m[s[0]], m[s[1]]);
        mix(v, 1, 5, 9, 13, m[s[2]], m[s[3]]);
        mix(v, 2, 6, 10, 14, m[s[4]], m[s[5]]);
        mix(v, 3, 7, 11, 15, m[s[6]], m[s[7]]);
        mix(v, 0, 5, 10, 15, m[s[8]], m[s[9]]);
        mix(v, 1, 6, 11, 12, m[s[10]], m[s[11]]);
        mix(v, 2, 7, 8, 13, m[s[12]], m[s[13]]);
        mix(v, 3, 4, 9, 14, m[s[14]], m[s[15]]);
    }
    for (int i = 0; i < 8; i++)
        h[i] ^= v[i] ^ v[i + 8];
}

void ws_blake2b_keyed(
    const void *key, size_t key_size, const void *data, size_t size, unsigned char *digest,
    size_t digest_size
) {
    const unsigned char *at = data;
    unsigned char block[BLOCK] = {0};
    uint64_t h[8];
    uint64_t before = 0, total = 0; /* bytes hashed: of the key's block, of the data */
    assert(digest_size >= 1 && digest_size <= 64);
    assert(key_size <= 64);
    memcpy(h, IV, sizeof h);
    h[0] ^= 0x01010000 ^ key_size << 8 ^ digest_size; /* section 2.5: fanout 1, depth 1 */
    if (key_size > 0) {
        memcpy(block, key, key_size);
        before = BLOCK;
        if (size > 0) {
            compress(h, block, before, false);
            memset(block, 0, sizeof block);
        }
    }
    while (size - total > BLOCK) {
        total += BLOCK;
        compress(h, at + total - BLOCK, before + total, false);
    }
    if (size > total) /* an empty input may come with a null pointer */
        memcpy(block, at + total, size - total);
    compress(h, block, before + size, true);
    for (size_t i = 0; i < digest_size; i++)
        digest[i] = (unsigned char)(h[i / 8] >> 8 * (i % 8));
}

void ws_blake2b(const void *data, size_t size, unsigned char *digest, size_t digest_size) {
    ws_blake2b_keyed(NULL, 0, data, size, digest, digest_size);
}
