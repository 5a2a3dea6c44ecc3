/* What both halves of the proof share: the worker's (proof.c) and the client's
 * (cluster/ask/engine/guest.c). What is hashed, and in which order, is in docs/security.md. */
#ifndef WS_PROOF_PARTS_H
#define WS_PROOF_PARTS_H

#include "proof.h"
#include "blake2b.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/random.h>
#endif

/* Each form has one length, so that each piece has one place. */
static const char SCHEME[] = "WorkerServer ";
static const char HELLO[] = "WorkerServer v=1, n=";
static const char COUNTER[] = "WorkerServer v=1, c=";
static const char BODY[] = ", b=";
static const char MAC[] = ", m=";
static const char LABEL[] = "workerserver proof 1"; /* without its NUL: 20 bytes */
enum { LABEL_SIZE = sizeof LABEL - 1, FORM = sizeof HELLO - 1, BETWEEN = 4 };

static const char DIGITS[] = "0123456789abcdef";

static inline void put_hex(char *out, const unsigned char *bytes, size_t size) {
    for (size_t i = 0; i < size; i++) {
        out[2 * i] = DIGITS[bytes[i] >> 4];
        out[2 * i + 1] = DIGITS[bytes[i] & 15];
    }
}

static inline int digit(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Whether the 2 * size characters are hexadecimal digits. */
static inline bool get_hex(unsigned char *bytes, size_t size, const char *text) {
    for (size_t i = 0; i < size; i++) {
        int high = digit(text[2 * i]), low = digit(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        bytes[i] = (unsigned char)(high << 4 | low);
    }
    return true;
}

static inline void put_number(unsigned char *out, uint64_t number, int bytes) {
    for (int i = bytes; i-- > 0; number >>= 8)
        out[i] = (unsigned char)number;
}

/* All wrong MACs take the same time. */
static inline bool same(const unsigned char *one, const unsigned char *other, size_t size) {
    volatile unsigned char different = 0;
    for (size_t i = 0; i < size; i++)
        different |= one[i] ^ other[i];
    return different == 0;
}

/* The MAC of one message: role 'w' is the worker's greeting, 'q' a request, 'a' its answer. */
static inline void mac(
    const ws_session *session, char role, uint64_t counter, int status,
    const unsigned char line[WS_KEY], const unsigned char body[WS_KEY], unsigned char out[WS_KEY]
) {
    unsigned char text[LABEL_SIZE + 1 + 2 * WS_NONCE + WS_KEY + 8 + 2 + 2 * WS_KEY];
    unsigned char *at = text;
    memcpy(at, LABEL, LABEL_SIZE);
    at += LABEL_SIZE;
    *at++ = (unsigned char)role;
    memcpy(at, session->nonce, WS_NONCE);
    at += WS_NONCE;
    memcpy(at, session->guest, WS_NONCE);
    at += WS_NONCE;
    memcpy(at, session->worker, WS_KEY);
    at += WS_KEY;
    put_number(at, counter, 8);
    at += 8;
    put_number(at, (uint64_t)status, 2);
    at += 2;
    memcpy(at, line, WS_KEY);
    at += WS_KEY;
    memcpy(at, body, WS_KEY);
    ws_blake2b_keyed(session->key, WS_KEY, text, sizeof text, out, WS_KEY);
}

static inline bool randomly(unsigned char *out, size_t size) {
#ifdef __linux__
    return getrandom(out, size, GRND_NONBLOCK) == (ssize_t)size;
#else
    return getentropy(out, size) == 0;
#endif
}

/* The hash of "METHOD TARGET"; a long one is hashed in two steps, so that none needs memory. */
static inline void hash_line(
    const char *method, size_t method_size, const char *target, size_t target_size,
    unsigned char out[WS_KEY]
) {
    unsigned char both[2 * WS_KEY];
    ws_blake2b(method, method_size, both, WS_KEY);
    ws_blake2b(target, target_size, both + WS_KEY, WS_KEY);
    ws_blake2b(both, sizeof both, out, WS_KEY);
}

static inline size_t put_text(char *out, const char *text) {
    size_t size = strlen(text);
    memcpy(out, text, size);
    return size;
}

#endif
