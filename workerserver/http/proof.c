/* See proof.h. What is hashed, and in which order, is in docs/security.md. */
#include "proof_parts.h"

/* What a greeting ends with: for which token it is. */
static const char *const WANTED[WS_TOKENS] = {"", ", t=read", ", t=profile", ", t=admin"};

void ws_proof_key(const void *token, size_t size, unsigned char key[WS_KEY]) {
    ws_blake2b_keyed(LABEL, LABEL_SIZE, token, size, key, WS_KEY);
}

bool ws_proof_is_ours(const char *value, size_t size) {
    return size >= sizeof SCHEME - 1 && memcmp(value, SCHEME, sizeof SCHEME - 1) == 0;
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
