/* Context switches and futexes of threads, from /proc/self/task. System calls only. */
#define _GNU_SOURCE
#include "sleep.h"

#include <assert.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#ifdef __linux__

#include <sys/syscall.h>

/* /proc/self/task/ID/NAME, at most size - 1 bytes and a NUL; returns how many. */
static size_t read_task(long id, const char *name, char *to, size_t size) {
    static const char FOLDER[] = "/proc/self/task/";
    char path[64], digits[24];
    char *at = path + strlen(FOLDER);
    size_t count = 0;
    assert(strlen(FOLDER) + sizeof digits + strlen(name) < sizeof path);
    memcpy(path, FOLDER, strlen(FOLDER));
    for (; id > 0; id /= 10) {
        digits[count++] = (char)('0' + id % 10);
    }
    while (count > 0) {
        *at++ = digits[--count];
    }
    memcpy(at, name, strlen(name) + 1);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = -1;
    if (file >= 0) {
        got = read(file, to, size - 1);
        close(file);
    }
    to[got > 0 ? got : 0] = 0;
    return got > 0 ? (size_t)got : 0;
}

static const char *blanks(const char *text) {
    while (*text == ' ' || *text == '\t') {
        text++;
    }
    return text;
}

static bool add_count(const char *status, const char *name, uint64_t *total) {
    const char *at = strstr(status, name);
    if (at == NULL) {
        return false;
    }
    uint64_t value = 0;
    for (at = blanks(at + strlen(name)); *at >= '0' && *at <= '9'; at++) {
        value = 10 * value + (uint64_t)(*at - '0');
    }
    *total += value;
    return true;
}

void ws_kernel_switches(long native_id, ws_switches *out) {
    char status[4096];
    memset(out, 0, sizeof *out);
    if (native_id <= 0 || read_task(native_id, "/status", status, sizeof status) == 0) {
        return;
    }
    /* The first line is the thread's name, whose line breaks the kernel escapes. */
    const char *state = strstr(status, "\nState:");
    out->state = state == NULL ? 0 : *blanks(state + strlen("\nState:"));
    out->known = add_count(status, "\nvoluntary_ctxt_switches:", &out->count)
                 && add_count(status, "\nnonvoluntary_ctxt_switches:", &out->count);
}

/* "202 0x7f12... 0x189 ...", "running", or "-1 ..." outside of system calls. */
uintptr_t ws_kernel_futex(long native_id) {
    char text[256];
    uint64_t number = 0;
    uintptr_t address = 0;
    const char *at = text;
    if (native_id <= 0 || read_task(native_id, "/syscall", text, sizeof text) == 0) {
        return 0;
    }
    for (; *at >= '0' && *at <= '9' && number < 4096; at++) {
        number = 10 * number + (uint64_t)(*at - '0');
    }
    if (at == text || number != SYS_futex || strncmp(at, " 0x", 3) != 0) {
        return 0;
    }
    for (at += 3;; at++) {
        int digit = *at >= '0' && *at <= '9' ? *at - '0' : *at >= 'a' && *at <= 'f' ? *at - 'a' + 10
                                                                                    : -1;
        if (digit < 0) {
            return address;
        }
        address = address << 4 | (uintptr_t)digit;
    }
}

#else

void ws_kernel_switches(long native_id, ws_switches *out) {
    (void)native_id;
    memset(out, 0, sizeof *out);
}

uintptr_t ws_kernel_futex(long native_id) {
    (void)native_id;
    return 0;
}

#endif
