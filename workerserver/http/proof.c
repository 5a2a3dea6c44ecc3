/* See proof.h. What is hashed, and in which order, is in docs/security.md. */
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

/* What a greeting ends with: for which token it is. */
static const char *const WANTED[WS_TOKENS] = {"", ", t=read", ", t=profile", ", t=admin"};

static const char DIGITS[] = "0123456789abcdef";

static void put_hex(char *out, const unsigned char *bytes, size_t size) {
    for (size_t i = 0; i < size; i++) {
        out[2 * i] = DIGITS[bytes[i] >> 4];
        out[2 * i + 1] = DIGITS[bytes[i] & 15];
    }
}

static int digit(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Whether the 2 * size characters are hexadecimal digits. */
static bool get_hex(unsigned char *bytes, size_t size, const char *text) {
    for (size_t i = 0; i < size; i++) {
        int high = digit(text[2 * i]), low = digit(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        bytes[i] = (unsigned char)(high << 4 | low);
    }
    return true;
}

static void put_number(unsigned char *out, uint64_t number, int bytes) {
    for (int i = bytes; i-- > 0; number >>= 8)
        out[i] = (unsigned char)number;
}

/* All wrong MACs take the same time. */
static bool same(const unsigned char *one, const unsigned char *other, size_t size) {
    volatile unsigned char different = 0;
    for (size_t i = 0; i < size; i++)
        different |= one[i] ^ other[i];
    return different == 0;
}

/* The MAC of one message: role 'w' is the worker's greeting, 'q' a request, 'a' its answer. */
static void mac(
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

static bool randomly(unsigned char *out, size_t size) {
#ifdef __linux__
    return getrandom(out, size, GRND_NONBLOCK) == (ssize_t)size;
#else
    return getentropy(out, size) == 0;
#endif
}

void ws_proof_key(const void *token, size_t size, unsigned char key[WS_KEY]) {
    ws_blake2b_keyed(LABEL, LABEL_SIZE, token, size, key, WS_KEY);
}

bool ws_proof_is_ours(const char *value, size_t size) {
    return size >= sizeof SCHEME - 1 && memcmp(value, SCHEME, sizeof SCHEME - 1) == 0;
}

/* The hash of "METHOD TARGET"; a long one is hashed in two steps, so that none needs memory. */
static void hash_line(
    const char *method, size_t method_size, const char *target, size_t target_size,
    unsigned char out[WS_KEY]
) {
    unsigned char both[2 * WS_KEY];
    ws_blake2b(method, method_size, both, WS_KEY);
    ws_blake2b(target, target_size, both + WS_KEY, WS_KEY);
    ws_blake2b(both, sizeof both, out, WS_KEY);
}

static bool holds(
    ws_session *session, const unsigned char key[WS_KEY], const char *value, size_t size,
    const char *method, size_t method_size, const char *target, size_t target_size,
    const unsigned char *body
) {
    unsigned char counter[8], hashed[WS_KEY], given[WS_KEY], right[WS_KEY];
    const char *at = value + FORM;
    if (size != FORM + 16 + 2 * (BETWEEN + 2 * WS_KEY) || memcmp(value, COUNTER, FORM) != 0)
        return false;
    if (!get_hex(counter, 8, at) || memcmp(at += 16, BODY, BETWEEN) != 0)
        return false;
    if (!get_hex(hashed, WS_KEY, at += BETWEEN) || memcmp(at += 2 * WS_KEY, MAC, BETWEEN) != 0)
        return false;
    if (!get_hex(given, WS_KEY, at += BETWEEN))
        return false;
    session->asked = 0;
    for (int i = 0; i < 8; i++)
        session->asked = session->asked << 8 | counter[i];
    if (!session->challenged || session->asked <= session->counter)
        return false;
    if (!same(session->key, key, WS_KEY))
        return false; /* another rule's session */
    hash_line(method, method_size, target, target_size, session->line);
    mac(session, 'q', session->asked, 0, session->line, hashed, right);
    if (!same(given, right, WS_KEY))
        return false;
    return body == NULL || same(hashed, body, WS_KEY);
}

/* The place of the token that a greeting is for; -1: it is no greeting. */
static int greeted(const char *value, size_t size, unsigned char guest[WS_NONCE]) {
    size_t plain = FORM + 2 * WS_NONCE;
    if (size < plain || memcmp(value, HELLO, FORM) != 0 || !get_hex(guest, WS_NONCE, value + FORM))
        return -1;
    for (int i = 0; i < WS_TOKENS; i++) {
        size_t more = strlen(WANTED[i]);
        if (size == plain + more && memcmp(value + plain, WANTED[i], more) == 0)
            return i;
    }
    return -1;
}

ws_verdict ws_proof_judge(
    ws_session *session, const unsigned char key[WS_KEY], const char *value, size_t size,
    const char *method, size_t method_size, const char *target, size_t target_size,
    const unsigned char *body
) {
    unsigned char guest[WS_NONCE];
    int wanted = greeted(value, size, guest);
    session->verdict = WS_DOUBTED;
    if (wanted >= 0) {
        session->wanted = wanted;
        memcpy(session->guest, guest, WS_NONCE);
        session->challenged = false; /* the nonces of the session before no longer count */
        session->verdict = WS_GREETED;
    } else if (holds(
                   session, key, value, size, method, method_size, target, target_size, body
               )) {
        session->verdict = WS_PROVEN;
    }
    return session->verdict;
}

static size_t put_text(char *out, const char *text) {
    size_t size = strlen(text);
    memcpy(out, text, size);
    return size;
}

size_t ws_proof_challenge(
    ws_session *session, const unsigned char key[WS_KEY], const char *worker, size_t worker_size,
    char out[WS_CHALLENGE]
) {
    static const unsigned char nothing[WS_KEY];
    unsigned char proof[WS_KEY];
    bool asked = session->verdict == WS_GREETED && key != NULL && worker_size <= WS_WORKER;
    size_t at = put_text(out, "WWW-Authenticate: Bearer\r\nWWW-Authenticate: WorkerServer v=1");
    session->verdict = WS_NO_PROOF;
    if (asked && randomly(session->nonce, WS_NONCE)) {
        ws_blake2b(worker, worker_size, session->worker, WS_KEY);
        memcpy(session->key, key, WS_KEY);
        session->counter = 0;
        session->challenged = true;
        mac(session, 'w', 0, 0, nothing, nothing, proof);
        at += put_text(out + at, ", n=");
        put_hex(out + at, session->nonce, WS_NONCE);
        at += 2 * WS_NONCE;
        at += put_text(out + at, ", w=");
        put_hex(out + at, (const unsigned char *)worker, worker_size);
        at += 2 * worker_size;
        at += put_text(out + at, ", m=");
        put_hex(out + at, proof, WS_KEY);
        at += 2 * WS_KEY;
    }
    return at + put_text(out + at, "\r\n");
}

size_t ws_proof_answer(
    ws_session *session, int status, const unsigned char body[WS_KEY], char out[WS_PROVEN_LINE]
) {
    unsigned char proof[WS_KEY];
    size_t at;
    if (session->verdict != WS_PROVEN)
        return 0;
    session->verdict = WS_NO_PROOF;
    session->counter = session->asked;
    mac(session, 'a', session->asked, status, session->line, body, proof);
    at = put_text(out, "Authentication-Info: m=");
    put_hex(out + at, proof, WS_KEY);
    at += 2 * WS_KEY;
    return at + put_text(out + at, "\r\n");
}
