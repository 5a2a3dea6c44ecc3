/* The client's half of the proof that both ends of a connection know the token; the worker's is
 * http/proof.c. It is the same protocol as cluster/ask/token/proof.py, of which the client of Python
 * makes use. Nothing here allocates, waits, or needs the GIL. */
#ifndef WS_GUEST_H
#define WS_GUEST_H

#include "proof.h"

enum {
    WS_GUEST_REQUESTS = 8, /* on one connection that have no answer yet */
    WS_GUEST_TOKEN = 16,   /* bytes of a token's name */
    WS_GUEST_VALUE = 256,  /* room for the value of an Authorization field */
};

/* What one connection keeps. */
typedef struct {
    ws_session session;
    int count; /* of requests */
    /* The hashes of their methods and targets, of the last ones. */
    unsigned char lines[WS_GUEST_REQUESTS][WS_KEY];
} ws_guest;

/* Begins a session with the key of the token of this name, at most WS_GUEST_TOKEN bytes. Writes the
 * value of the greeting's Authorization field and returns its size; 0 without randomness. */
size_t ws_guest_greeting(
    ws_guest *guest, const unsigned char key[WS_KEY], const char *token, size_t token_size,
    char out[WS_GUEST_VALUE]
);

/* Whether the worker proves, with this WWW-Authenticate field, that it knows the token. `rank`: the
 * worker's own, -1 if it has none. */
bool ws_guest_meet(ws_guest *guest, const char *challenge, size_t size, int64_t *rank);

/* Writes the value of the Authorization field of the next request, which has no body. Returns its
 * size. */
size_t ws_guest_request(
    ws_guest *guest, const char *method, size_t method_size, const char *target,
    size_t target_size, char out[WS_GUEST_VALUE]
);

/* Whether an answer to request `number`, counted from 0 over the whole connection, is the worker's
 * own, as it was sent. `info`: its Authentication-Info field. */
bool ws_guest_answered(
    const ws_guest *guest, int number, int status, const char *body, size_t body_size,
    const char *info, size_t info_size
);

#endif
