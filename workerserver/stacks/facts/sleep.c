/* Context switches and futexes of threads, from /proc/self/task. System calls only. */
#define _GNU_SOURCE
#include "sleep.h"

#include "render.h"

#include <string.h>

#ifdef __linux__

#include <sys/syscall.h>

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
    if (native_id <= 0 || ws_read_task(native_id, "/status", status, sizeof status) == 0) {
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
    if (native_id <= 0 || ws_read_task(native_id, "/syscall", text, sizeof text) == 0) {
        return 0;
    }
    for (; *at >= '0' && *at <= '9' && number < 4096; at++) {
        number = 10 * number + (uint64_t)(*at - '0');
    }
    if (at == text || number != SYS_futex || strncmp(at, " 0x", 3) != 0) {
        return 0;
    }
    for (at += 3;; at++) {
        int digit = ws_hex_digit(*at);
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
