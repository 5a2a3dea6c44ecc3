/* The sampler's thread: when it looks, which threads it reads, and how a sample is counted.
 *
 * A thread whose clock of processor time stands still has not run, so its stack is that of the
 * sample before: it is counted and not read. The same clock, read before and after the stack, tells
 * whether the thread ran meanwhile. On few cores the sampler may itself have taken the thread's
 * core; so a thread that has run since the last sample is first asked for its state. */
#define _GNU_SOURCE
#include "sampler.h"

#include "dump.h"
#include "recording.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#ifdef __linux__
#include <sys/prctl.h>
#include <sys/syscall.h>
#endif

enum {
    STACK_BYTES = 1 << 20, /* of the thread; what isn't used takes no memory */
    TRIES_FOR_A_NAME = 8,
    /* A round that took t is followed by a pause of at least SPARING * t: at most a fifth of a core
     * is spent. */
    SPARING = 4,
};

#define SECOND UINT64_C(1000000000)

/* The recording of this process. A forked child has another pid, and no recording. */
static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
static ws_recording *running;

static uint64_t now_of(clockid_t clock) {
    struct timespec now;
    if (clock_gettime(clock, &now) != 0)
        return 0;
    return (uint64_t)now.tv_sec * SECOND + (uint64_t)now.tv_nsec;
}

/* The time that a thread has had on processors; 0: not known. */
static uint64_t clock_of(long native_id) {
#ifdef __linux__
    /* As the kernel numbers the clocks of threads: pthread_getcpuclockid() needs a pthread_t, which
     * must not have ended. */
    if (native_id > 0)
        return now_of((clockid_t)(~(uint32_t)native_id << 3 | 6));
#else
    (void)native_id;
#endif
    return 0;
}

/* Whether such a clock shows every run: some sandboxes let it tick a hundred times a second. */
static bool clocks_are_fine(void) {
#ifdef __linux__
    long own = syscall(SYS_gettid);
    uint64_t last = clock_of(own);
    int moves = 0;
    for (int i = 0; i < 64; i++) {
        uint64_t next = clock_of(own);
        moves += next > last;
        last = next;
    }
    return moves >= 60;
#else
    return false;
#endif
}

static bool ready(const ws_tree_thread *thread) {
    return ws_kernel_letter(thread->native_id) == 'R';
}

static void count(ws_recording *recording, const ws_tree_thread *thread, uint32_t node) {
    if (thread->ready)
        recording->tree->nodes[node].active++;
    else if (recording->how == WS_BY_WALL)
        recording->tree->nodes[node].idle++;
}

static bool before(void *data, unsigned long ident, long native_id) {
    ws_recording *recording = data;
    recording->listed = true;
    if (ident == 0) /* from CPython 3.12 on: a thread that is about to start */
        return false;
    ws_tree_thread *thread = ws_tree_thread_of(recording->tree, ident, native_id);
    recording->current = thread;
    if (thread == NULL) {
        recording->tree->cut++;
        return false;
    }
    if (thread->round == recording->round)
        return false; /* before that, such a thread has the ident of the one that starts it */
    thread->round = recording->round;
    uint64_t clock = clock_of(thread->native_id);
    recording->before = clock;
    recording->moved = clock == 0 || clock != thread->clock;
    if (!recording->moved && recording->fine) {
        /* What waited for a processor may still wait for one. What slept has not woken up. */
        thread->ready = thread->ready && ready(thread);
        if (thread->leaf != WS_TREE_NONE) {
            count(recording, thread, thread->leaf);
            return false;
        }
    } else {
        thread->ready = ready(thread);
    }
    if (recording->how == WS_ON_CPU && thread->native_id > 0 && !thread->ready) {
        thread->clock = clock;
        thread->leaf = WS_TREE_NONE;
        return false;
    }
    return true;
}

static void after(void *data, const ws_snapshot *snapshot, const ws_thread *read) {
    ws_recording *recording = data;
    ws_tree_thread *thread = recording->current;
    uint64_t clock = clock_of(thread->native_id);
    bool stood = recording->fine && clock != 0 && clock == recording->before;
    uint32_t leaf =
        ws_tree_node_of(recording->tree, thread, snapshot->frames + read->start, read->count);
    recording->read++;
    thread->unstable += read->unstable;
    thread->clock = clock;
    thread->leaf = stood && !read->unstable ? leaf : WS_TREE_NONE;
    /* Without a clock nothing is known: at its first sample by CPython 3.10 a thread has no id. */
    thread->ready = thread->ready || (recording->fine && clock != 0 && !stood);
    count(recording, thread, leaf);
}

/* Whether a thread of this round has no name yet. Some never get one. */
static bool names(void *data) {
    const ws_recording *recording = data;
    const ws_tree *tree = recording->tree;
    for (uint32_t i = 1; i < tree->thread_count; i++) {
        const ws_tree_thread *thread = &tree->threads[i];
        if (thread->round == recording->round && thread->unnamed < TRIES_FOR_A_NAME
            && (thread->name == WS_TREE_NONE || thread->native_id == 0))
            return true;
    }
    return false;
}

static void look(ws_recording *recording, ws_snapshot *snapshot) {
    ws_visitor visitor = {before, after, names, recording};
    recording->round++;
    recording->listed = false;
    ws_dump_visit(snapshot, &visitor);
    if (recording->listed)
        recording->samples++;
    else
        recording->missed++;
    for (size_t i = 0; i < snapshot->thread_count; i++) {
        const ws_thread *read = &snapshot->threads[i];
        ws_tree_thread *thread = ws_tree_thread_of(recording->tree, read->ident, 0);
        if (thread == NULL || thread->round != recording->round)
            continue;
        if (thread->name == WS_TREE_NONE)
            ws_tree_name(recording->tree, thread, &read->name);
        if (thread->native_id == 0) /* CPython 3.10 tells it with the name */
            thread->native_id = read->native_id;
    }
}

/* At most `most`. */
static uint64_t by_chance(ws_recording *recording, uint64_t most) {
    uint64_t x = recording->chance;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    recording->chance = x;
    return most > 0 ? x % most : 0;
}

/* Waits until `moment`. False: it is time to end. */
static bool wait_until(ws_recording *recording, uint64_t moment) {
    struct timespec until = {(time_t)(moment / SECOND), (long)(moment % SECOND)};
    pthread_mutex_lock(&recording->mutex);
    while (!recording->stopping && now_of(CLOCK_MONOTONIC) < moment)
        pthread_cond_timedwait(&recording->wake, &recording->mutex, &until);
    bool go_on = !recording->stopping;
    pthread_mutex_unlock(&recording->mutex);
    return go_on;
}

static void *record(void *data) {
    ws_recording *recording = data;
    ws_snapshot snapshot = {0};
    uint64_t period = (uint64_t)((double)SECOND / recording->hz);
    uint64_t end = recording->start + (uint64_t)(recording->seconds * (double)SECOND);
#ifdef __linux__
    prctl(PR_SET_NAME, "ws-sampler");
#endif
    recording->fine = clocks_are_fine();
    for (uint64_t share = recording->start; share < end;) {
        uint64_t last = end - share < period ? end - share : period;
        if (!wait_until(recording, share + by_chance(recording, last)))
            break;
        uint64_t begun = now_of(CLOCK_MONOTONIC);
        look(recording, &snapshot);
        uint64_t done = now_of(CLOCK_MONOTONIC), next = share + period;
        uint64_t earliest = done + SPARING * (done - begun);
        while (next + period < earliest && next < end) { /* its whole share is over */
            next += period;
            recording->missed++;
        }
        share = next;
    }
    ws_selfread_free(&snapshot);
    recording->end = now_of(CLOCK_MONOTONIC);
    recording->end = recording->end < end ? recording->end : end;
    recording->cost = now_of(CLOCK_THREAD_CPUTIME_ID);
    pthread_mutex_lock(&recording->mutex);
    recording->over = true;
    pthread_mutex_unlock(&recording->mutex);
    return NULL;
}

static int start_thread(ws_recording *recording) {
    pthread_attr_t how;
    sigset_t all, before;
    if (pthread_attr_init(&how) != 0)
        return -1;
    pthread_attr_setstacksize(&how, STACK_BYTES);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* no signal of the program's comes here */
    int status = pthread_create(&recording->thread, &how, record, recording);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&how);
    return status == 0 ? 0 : -1;
}

static void unmake(ws_recording *recording) {
    if (recording->pid == (int)getpid()) {
        pthread_cond_destroy(&recording->wake);
        pthread_mutex_destroy(&recording->mutex);
    }
    ws_tree_free(recording->tree);
    munmap(recording, sizeof *recording);
}

static ws_recording *make(double seconds, double hz, ws_sampling how) {
    pthread_condattr_t clock;
    void *got = mmap(NULL, sizeof(ws_recording), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (got == MAP_FAILED)
        return NULL;
    ws_recording *recording = got;
    recording->tree = ws_tree_make();
    recording->hz = hz;
    recording->seconds = seconds;
    recording->how = how;
    recording->pid = (int)getpid();
    recording->start = now_of(CLOCK_MONOTONIC);
    recording->started_at = now_of(CLOCK_REALTIME) / 1000;
    recording->chance = recording->start | 1;
    recording->joined = true;
    pthread_mutex_init(&recording->mutex, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&recording->wake, &clock);
    pthread_condattr_destroy(&clock);
    if (recording->tree == NULL) {
        unmake(recording);
        return NULL;
    }
    return recording;
}

static void in_child(void) {
    one = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    running = NULL;
}

static void once(void) {
    pthread_atfork(NULL, NULL, in_child);
}

ws_recording *ws_recording_start(double seconds, double hz, ws_sampling how, bool *busy) {
    static pthread_once_t registered = PTHREAD_ONCE_INIT;
    ws_recording *recording = NULL;
    pthread_once(&registered, once);
    pthread_mutex_lock(&one);
    *busy = running != NULL;
    if (running == NULL)
        recording = make(seconds, hz, how);
    if (recording != NULL && start_thread(recording) == 0) {
        recording->joined = false;
        running = recording;
    } else if (recording != NULL) {
        unmake(recording);
        recording = NULL;
    }
    pthread_mutex_unlock(&one);
    return recording;
}

/* In a forked child the thread doesn't exist, and the mutex of the recording may be held for ever. */
static bool inherited(const ws_recording *recording) {
    return recording->pid != (int)getpid();
}

void ws_recording_stop(ws_recording *recording) {
    if (inherited(recording))
        return;
    pthread_mutex_lock(&one); /* whoever comes second finds it joined */
    if (!recording->joined) {
        pthread_mutex_lock(&recording->mutex);
        recording->stopping = true;
        pthread_cond_signal(&recording->wake);
        pthread_mutex_unlock(&recording->mutex);
        pthread_join(recording->thread, NULL);
        recording->joined = true;
        running = NULL;
    }
    pthread_mutex_unlock(&one);
}

bool ws_recording_runs(ws_recording *recording) {
    if (inherited(recording))
        return false;
    pthread_mutex_lock(&recording->mutex);
    bool runs = !recording->over;
    pthread_mutex_unlock(&recording->mutex);
    return runs;
}

double ws_recording_left(void) {
    double left = 0;
    pthread_mutex_lock(&one);
    if (running != NULL) {
        uint64_t passed = now_of(CLOCK_MONOTONIC) - running->start;
        left = running->seconds - (double)passed * 1e-9;
        left = left > 0.001 ? left : 0.001;
    }
    pthread_mutex_unlock(&one);
    return left;
}

void ws_recording_free(ws_recording *recording) {
    if (recording == NULL)
        return;
    ws_recording_stop(recording);
    unmake(recording);
}
