/* Proof that both ends of a connection know the token, which is never sent (docs/security.md).
 *
 * A session is what one connection keeps. One thread uses it at a time. Nothing here allocates,
 * waits, or needs the GIL. The client's half is cluster/ask/engine/guest.c, and
 * in Python cluster/ask/token/proof.py. */
#ifndef WS_PROOF_H
#define WS_PROOF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    WS_KEY = 32,         /* bytes of a key, of a MAC and of a hash */
    WS_NONCE = 16,       /* bytes of either end's nonce */
    WS_WORKER = 192,     /* bytes of a text that says who the worker is */
    WS_CHALLENGE = 640,  /* room for the lines of a challenge */
    WS_PROVEN_LINE = 96, /* room for the line that proves an answer */
    WS_TOKENS = 4,       /* that a worker may have: for everything, read, profile, admin */
};

typedef enum {
    WS_NO_PROOF,   /* the field is of another scheme */
    WS_GREETED,    /* the client wants a challenge */
    WS_DOUBTED,    /* of our scheme, and not good */
    WS_PROVEN,     /* the client knows the token */
} ws_verdict;

typedef struct {
    int wanted;                   /* the place of the token that a greeting is for */
    bool challenged;              /* the fields down to `key` are filled */
    unsigned char nonce[WS_NONCE];
    unsigned char guest[WS_NONCE]; /* the client's nonce */
    unsigned char worker[WS_KEY];  /* the hash of what the challenge said of this worker */
    unsigned char key[WS_KEY];
    uint64_t counter;              /* of the last request that was proven and answered */
    ws_verdict verdict;            /* on the request under way */
    uint64_t asked;                /* its counter */
    unsigned char line[WS_KEY];    /* the hash of its method and target */
} ws_session;

/* The key that stands for a token. */
void ws_proof_key(const void *token, size_t size, unsigned char key[WS_KEY]);

/* Whether the value of an Authorization field is of our scheme. */
bool ws_proof_is_ours(const char *value, size_t size);

/* Judges a request of our scheme; the verdict is kept until the request is answered. `body` is
 * the hash that the request's body has, or NULL if the body has not come yet. The same request may
 * be judged again. */
ws_verdict ws_proof_judge(
    ws_session *session, const unsigned char key[WS_KEY], const char *value, size_t size,
    const char *method, size_t method_size, const char *target, size_t target_size,
    const unsigned char *body
);

/* Begins the session anew with the key, in answer to WS_GREETED. Writes whole header lines, and
 * returns their size. Without randomness there is no session, and the lines say so. `worker`:
 * "PID RANK JOB", at most WS_WORKER bytes. For WS_DOUBTED, and for a key of NULL: lines without a
 * challenge. */
size_t ws_proof_challenge(
    ws_session *session, const unsigned char key[WS_KEY], const char *worker, size_t worker_size,
    char out[WS_CHALLENGE]
);

/* Writes the line that proves the answer to the request under way, and ends the request: its
 * counter is used up. Returns 0, and writes nothing, if the request was not proven. */
size_t ws_proof_answer(
    ws_session *session, int status, const unsigned char body[WS_KEY], char out[WS_PROVEN_LINE]
);

#endif
