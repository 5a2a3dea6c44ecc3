/* See guest.h. */
#include "guest.h"
#include "proof_parts.h"

static const unsigned char NOTHING[WS_KEY];

size_t ws_guest_greeting(
    ws_guest *guest, const unsigned char key[WS_KEY], const char *token, size_t token_size,
    char out[WS_GUEST_VALUE]
) {
    char *at = out;
    guest->count = 0;
    guest->session.challenged = false;
    memcpy(guest->session.key, key, WS_KEY);
    if (token_size > WS_GUEST_TOKEN || !randomly(guest->session.guest, WS_NONCE))
        return 0;
    at += put_text(at, HELLO);
    put_hex(at, guest->session.guest, WS_NONCE);
    at += 2 * WS_NONCE;
    if (token_size != 0) {
        at += put_text(at, ", t=");
        memcpy(at, token, token_size);
        at += token_size;
    }
    return (size_t)(at - out);
}

/* Reads decimal digits up to the space behind them, and returns the place behind that; NULL if it is
 * no number of 1 to 19 digits. */
static const unsigned char *number(
    const unsigned char *at, const unsigned char *end, int64_t *value
) {
    const unsigned char *first = at;
    uint64_t found = 0;
    for (; at < end && *at >= '0' && *at <= '9' && at - first < 19; at++)
        found = found * 10 + (uint64_t)(*at - '0');
    if (at == first || at == end || *at != ' ' || found > INT64_MAX)
        return NULL;
    *value = (int64_t)found;
    return at + 1;
}

/* Reads "PID RANK JOB"; a rank of "-" is none. */
static bool read_worker(const unsigned char *text, size_t size, int64_t *rank) {
    const unsigned char *end = text + size;
    int64_t pid;
    const unsigned char *at = number(text, end, &pid);
    if (at == NULL)
        return false;
    *rank = -1;
    if (end - at >= 2 && at[0] == '-' && at[1] == ' ')
        return true;
    return number(at, end, rank) != NULL;
}

bool ws_guest_meet(ws_guest *guest, const char *challenge, size_t size, int64_t *rank) {
    static const char WORKER[] = ", w=";
    const size_t fixed = FORM + 2 * WS_NONCE + 2 * BETWEEN + 2 * WS_KEY;
    unsigned char worker[WS_WORKER], given[WS_KEY], right[WS_KEY];
    ws_session *session = &guest->session;
    const char *at = challenge + FORM;
    if (size <= fixed || (size - fixed) % 2 != 0 || (size - fixed) / 2 > WS_WORKER)
        return false;
    size_t told = (size - fixed) / 2;
    if (memcmp(challenge, HELLO, FORM) != 0 || !get_hex(session->nonce, WS_NONCE, at))
        return false;
    if (memcmp(at += 2 * WS_NONCE, WORKER, BETWEEN) != 0 || !get_hex(worker, told, at += BETWEEN))
        return false;
    if (memcmp(at += 2 * told, MAC, BETWEEN) != 0 || !get_hex(given, WS_KEY, at += BETWEEN))
        return false;
    ws_blake2b(worker, told, session->worker, WS_KEY);
    mac(session, 'w', 0, 0, NOTHING, NOTHING, right);
    session->challenged = same(given, right, WS_KEY) && read_worker(worker, told, rank);
    return session->challenged;
}

size_t ws_guest_request(
    ws_guest *guest, const char *method, size_t method_size, const char *target,
    size_t target_size, char out[WS_GUEST_VALUE]
) {
    unsigned char counter[8], body[WS_KEY], proof[WS_KEY];
    unsigned char *line = guest->lines[guest->count % WS_GUEST_REQUESTS];
    char *at = out;
    guest->count++;
    put_number(counter, (uint64_t)guest->count, 8);
    ws_blake2b("", 0, body, WS_KEY);
    hash_line(method, method_size, target, target_size, line);
    mac(&guest->session, 'q', (uint64_t)guest->count, 0, line, body, proof);
    at += put_text(at, COUNTER);
    put_hex(at, counter, 8);
    at += 16;
    at += put_text(at, BODY);
    put_hex(at, body, WS_KEY);
    at += 2 * WS_KEY;
    at += put_text(at, MAC);
    put_hex(at, proof, WS_KEY);
    at += 2 * WS_KEY;
    return (size_t)(at - out);
}

bool ws_guest_answered(
    const ws_guest *guest, int number, int status, const char *body, size_t body_size,
    const char *info, size_t info_size
) {
    unsigned char hashed[WS_KEY], given[WS_KEY], right[WS_KEY];
    if (!guest->session.challenged || number < 0 || number >= guest->count)
        return false;
    if (number < guest->count - WS_GUEST_REQUESTS)
        return false;
    if (info_size != 2 + 2 * WS_KEY || memcmp(info, "m=", 2) != 0)
        return false;
    if (!get_hex(given, WS_KEY, info + 2))
        return false;
    ws_blake2b(body, body_size, hashed, WS_KEY);
    mac(&guest->session, 'a', (uint64_t)number + 1, status, guest->lines[number % WS_GUEST_REQUESTS],
        hashed, right);
    return same(given, right, WS_KEY);
}
