/* Why the process ends: handlers that wake the thread that writes the black box, wait for it, and
 * go on to what would have happened without us.
 *
 * A handler uses write, poll, clock_gettime, fstat and sigaction, which POSIX allows there. */
#define _GNU_SOURCE
#include "box.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef AT_MINSIGSTKSZ
#define AT_MINSIGSTKSZ 51
#endif

enum { PATIENCE_MS = 1000, STEP_MS = 2, STACK = 128 << 10, GUARD = 4096, ENDS = 6 };

static struct {
    int signal;
    const char *name;
    bool ours; /* installed */
    struct sigaction previous;
} ends[ENDS] = {
    {.signal = SIGTERM, .name = "SIGTERM"}, {.signal = SIGABRT, .name = "SIGABRT"},
    {.signal = SIGSEGV, .name = "SIGSEGV"}, {.signal = SIGBUS, .name = "SIGBUS"},
    {.signal = SIGFPE, .name = "SIGFPE"},   {.signal = SIGILL, .name = "SIGILL"},
};

static int owner;  /* pid; 0: no handler of ours */
static int writer; /* thread id; 0: nobody writes */
static int wake = -1;
static struct stat wake_is; /* a pipe: its inode is nobody else's */
static int claimed;           /* whoever turned it from 0 to 1 may write `ending` */
static unsigned come, written; /* signals so far */
static ws_ending ending;

static int64_t now_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int own_tid(void) {
    return (int)syscall(SYS_gettid);
}

/* Whether the descriptor is still the pipe: something may have closed all of the process's. */
static bool can_wake(void) {
    struct stat found;
    return wake >= 0 && fstat(wake, &found) == 0 && found.st_ino == wake_is.st_ino
           && found.st_dev == wake_is.st_dev;
}

/* Tell the writer, and wait until it has written; bounded. A second thread waits with the first. */
static void tell(int signal, const siginfo_t *info) {
    int nobody = 0;
    const int64_t give_up = now_ns(CLOCK_MONOTONIC) + (int64_t)PATIENCE_MS * 1000000;
    bool first = __atomic_compare_exchange_n(&claimed, &nobody, 1, false, __ATOMIC_ACQ_REL,
                                             __ATOMIC_ACQUIRE);
    if (first) {
        const char one = 1;
        bool sent = info->si_code <= 0; /* by a process */
        ending = (ws_ending){
            .signal = signal,
            .code = info->si_code,
            .pid = sent ? (int)info->si_pid : 0,
            .uid = sent ? (int)info->si_uid : 0,
            .tid = own_tid(),
            .address = sent || signal == SIGTERM ? 0 : (uint64_t)(uintptr_t)info->si_addr,
            .wall_ns = now_ns(CLOCK_REALTIME),
        };
        __atomic_store_n(&come, come + 1, __ATOMIC_RELEASE);
        if (!can_wake() || write(wake, &one, sizeof one) < 0) {
            ws_ends_written();
            __atomic_store_n(&claimed, 0, __ATOMIC_RELEASE);
            return;
        }
    }
    unsigned mine = __atomic_load_n(&come, __ATOMIC_ACQUIRE);
    while (__atomic_load_n(&written, __ATOMIC_ACQUIRE) != mine
           && now_ns(CLOCK_MONOTONIC) < give_up) {
        poll(NULL, 0, STEP_MS);
    }
    if (first) {
        __atomic_store_n(&claimed, 0, __ATOMIC_RELEASE);
    }
}

/* What would have happened without us. */
static void go_on(int index, int signal, siginfo_t *info, void *context) {
    struct sigaction previous = ends[index].previous;
    if (previous.sa_flags & SA_RESETHAND || previous.sa_handler == SIG_DFL) {
        struct sigaction standard;
        memset(&standard, 0, sizeof standard);
        standard.sa_handler = SIG_DFL;
        sigaction(signal, &standard, NULL);
    }
    if (previous.sa_handler == SIG_DFL && !(previous.sa_flags & SA_SIGINFO)) {
        /* A fault comes again when its instruction runs again, and the kernel then does what it
         * does without a handler. A signal that was sent is sent again, with the same siginfo. */
        if (info->si_code > 0 && signal != SIGTERM && signal != SIGABRT) {
            return;
        }
        if (syscall(SYS_rt_tgsigqueueinfo, getpid(), own_tid(), signal, info) != 0) {
            syscall(SYS_tgkill, getpid(), own_tid(), signal);
        }
    } else if (previous.sa_flags & SA_SIGINFO) {
        previous.sa_sigaction(signal, info, context);
    } else if (previous.sa_handler != SIG_IGN) {
        previous.sa_handler(signal);
    }
}

static void on_signal(int signal, siginfo_t *info, void *context) {
    int saved = errno, index = 0;
    while (index < ENDS - 1 && ends[index].signal != signal) {
        index++;
    }
    int tid = __atomic_load_n(&writer, __ATOMIC_ACQUIRE);
    /* After vfork() the child has our handlers and its parent's memory. */
    if (__atomic_load_n(&owner, __ATOMIC_ACQUIRE) == (int)getpid() && tid != 0
        && tid != own_tid()) {
        tell(signal, info);
    }
    errno = saved;
    go_on(index, signal, info, context);
    errno = saved;
}

static bool is_ours(int index) {
    struct sigaction present;
    return ends[index].ours && sigaction(ends[index].signal, NULL, &present) == 0
           && present.sa_flags & SA_SIGINFO && present.sa_sigaction == on_signal;
}

void ws_ends_restore(void) {
    __atomic_store_n(&owner, 0, __ATOMIC_RELEASE);
    for (int i = 0; i < ENDS; i++) {
        if (is_ours(i)) {
            sigaction(ends[i].signal, &ends[i].previous, NULL);
        }
        ends[i].ours = false;
    }
}

static void in_child(void) {
    int saved = errno;
    ws_ends_restore();
    writer = 0;
    claimed = 0;
    wake = -1;
    errno = saved;
}

/* A stack overflow leaves no room for a handler. */
static void give_stack(void) {
    stack_t present, stack;
    size_t size = STACK + (size_t)getauxval(AT_MINSIGSTKSZ);
    size = (size + GUARD - 1) & ~(size_t)(GUARD - 1);
    if (own_tid() != (int)getpid() || sigaltstack(NULL, &present) != 0
        || !(present.ss_flags & SS_DISABLE)) {
        return;
    }
    char *memory = mmap(NULL, size + GUARD, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        return;
    }
    mprotect(memory, GUARD, PROT_NONE);
    memset(&stack, 0, sizeof stack);
    stack.ss_sp = memory + GUARD;
    stack.ss_size = size;
    if (sigaltstack(&stack, NULL) != 0) {
        munmap(memory, size + GUARD);
    }
}

int ws_ends_install(int descriptor) {
    static bool registered;
    if (owner == (int)getpid()) {
        return EBUSY;
    }
    if (!registered) {
        int failed = pthread_atfork(NULL, NULL, in_child);
        if (failed) {
            return failed;
        }
        registered = true;
    }
    if (fstat(descriptor, &wake_is) != 0) {
        return errno;
    }
    wake = descriptor;
    come = written = 0;
    claimed = 0;
    give_stack();
    for (int i = 0; i < ENDS; i++) {
        struct sigaction *previous = &ends[i].previous, action;
        if (sigaction(ends[i].signal, NULL, previous) != 0
            || (!(previous->sa_flags & SA_SIGINFO) && previous->sa_handler == SIG_IGN)) {
            continue;
        }
        action = *previous;
        action.sa_flags = (previous->sa_flags & ~SA_RESETHAND) | SA_SIGINFO | SA_ONSTACK;
        action.sa_sigaction = on_signal;
        ends[i].ours = sigaction(ends[i].signal, &action, NULL) == 0;
    }
    __atomic_store_n(&owner, (int)getpid(), __ATOMIC_RELEASE);
    return 0;
}

void ws_ends_writer(int tid) {
    __atomic_store_n(&writer, tid, __ATOMIC_RELEASE);
}

bool ws_ends_take(ws_ending *out) {
    if (__atomic_load_n(&come, __ATOMIC_ACQUIRE) == __atomic_load_n(&written, __ATOMIC_RELAXED)) {
        return false;
    }
    *out = ending;
    return true;
}

void ws_ends_written(void) {
    __atomic_store_n(&written, __atomic_load_n(&come, __ATOMIC_ACQUIRE), __ATOMIC_RELEASE);
}

size_t ws_ends_put_replaced(char *out, size_t capacity) {
    size_t at = 0;
    if (capacity < 80) {
        return 0;
    }
    out[at++] = '[';
    for (int i = 0; i < ENDS; i++) {
        if (ends[i].ours && !is_ours(i)) {
            if (at > 1) {
                out[at++] = ',';
            }
            out[at++] = '"';
            memcpy(out + at, ends[i].name, strlen(ends[i].name));
            at += strlen(ends[i].name);
            out[at++] = '"';
        }
    }
    out[at++] = ']';
    return at;
}
