/* What a recording is made of. Internal to the sampler. */
#ifndef WS_RECORDING_H
#define WS_RECORDING_H

#include "sampler.h"
#include "tree.h"

#include <pthread.h>

struct ws_recording {
    ws_tree *tree;
    ws_sampling how;
    double hz, seconds;
    int pid;
    pthread_t thread;
    bool joined;
    /* --- under the mutex */
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    bool stopping, over;
    /* --- the sampler's thread alone, until it was joined */
    bool fine;             /* the clocks of threads show each run, however short */
    uint64_t round;        /* of samples, from 1 on */
    uint64_t samples;      /* rounds in which threads could be read */
    uint64_t missed;       /* rounds that came too late, or could not read */
    uint64_t start, end;   /* nanoseconds of the monotonic clock */
    uint64_t started_at;   /* microseconds since the epoch */
    uint64_t cost;         /* nanoseconds on a processor */
    uint64_t chance;
    uint64_t read;         /* stacks that were read; the others had not moved */
    /* --- of the round under way */
    ws_tree_thread *current;
    uint64_t before;
    bool listed, moved; /* moved: the thread has run since its last sample */
};

#endif
