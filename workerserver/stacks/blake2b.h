/* BLAKE2b without a key (RFC 7693). No allocation. */
#ifndef WS_BLAKE2B_H
#define WS_BLAKE2B_H

#include <stddef.h>

/* Writes the hash of `size` bytes; digest_size is 1 to 64, and part of what is hashed. */
void ws_blake2b(const void *data, size_t size, unsigned char *digest, size_t digest_size);

#endif
