/* BLAKE2b (RFC 7693). No allocation. */
#ifndef WS_BLAKE2B_H
#define WS_BLAKE2B_H

#include <stddef.h>

/* Writes the hash of `size` bytes; digest_size is 1 to 64, and part of what is hashed. */
void ws_blake2b(const void *data, size_t size, unsigned char *digest, size_t digest_size);

/* The same with a key of 1 to 64 bytes: a MAC. A key of 0 bytes is no key. */
void ws_blake2b_keyed(
    const void *key, size_t key_size, const void *data, size_t size, unsigned char *digest,
    size_t digest_size
);

#endif
