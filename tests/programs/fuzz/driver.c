/* libFuzzer with CPython inside. WS_FUZZ_TARGET names the target, WS_FUZZ_SETUP a Python program that
 * defines `target(name)`: an int is the address of a C function, anything else is called with the
 * input as bytes.
 *
 * The walker reads its own process with process_vm_readv(). It calls the one below: that reads, and
 * then changes what was read as the input says. So the walker sees any memory that a process could
 * have, at any moment, and other code sees the memory as it is. */
#define _GNU_SOURCE
#include <Python.h>

#ifndef WS_REPLAY
#include <sanitizer/asan_interface.h>
#else /* no fuzzer and no sanitizer: main() feeds the files that it is given */
#define __asan_region_is_poisoned(start, size) ((void *)0)
#endif
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* One change: of the read number `when` since the beginning, counted in iovecs, or of each read with
 * `when` modulo a small number; the bytes at `at`. */
typedef struct {
    uint8_t when_low, when_high; /* the highest bit: of each such read */
    uint8_t at;                  /* in words of 4 bytes, modulo the read's size */
    uint8_t how;
    uint8_t value[4];
} change;

enum { PLAIN, SMALL, SEEN, NEAR, FLIP, FAIL, WAYS, SEEN_MAX = 256 };

static const change *changes;
static size_t change_count, reads_done, seen_count;
static uintptr_t seen[SEEN_MAX]; /* addresses that were read: good ones */
static PyObject *target;
static int (*function)(const uint8_t *, size_t);

static bool applies(const change *one, size_t number) {
    size_t when = (size_t)(one->when_high & 0x7f) << 8 | one->when_low;
    if (one->when_high & 0x80)
        return number % (1 + when % 64) == when % 7;
    return number == when;
}

/* False: this read fails. */
static bool change_read(size_t number, char *data, size_t size) {
    bool fine = true;
    for (size_t i = 0; i < change_count; i++) {
        const change *one = &changes[i];
        uint32_t given;
        if (!applies(one, number))
            continue;
        memcpy(&given, one->value, sizeof given);
        uintptr_t value = given;
        size_t width = sizeof value, at = (size_t)one->at * 4 % size;
        switch (one->how % WAYS) {
        case PLAIN:
            value = (uintptr_t)given << 16 | given >> 16;
            break;
        case SMALL:
            width = 4;
            break;
        case SEEN:
            value = seen_count > 0 ? seen[given % seen_count] : given;
            break;
        case NEAR:
            if (size >= at + sizeof value)
                memcpy(&value, data + at, sizeof value);
            value += (uintptr_t)(intptr_t)(int8_t)one->value[0];
            break;
        case FLIP:
            data[at] ^= (char)one->value[0];
            continue;
        default:
            fine = false;
            continue;
        }
        if (width > size - at)
            width = size - at;
        memcpy(data + at, &value, width);
    }
    return fine;
}

ssize_t process_vm_readv(pid_t pid, const struct iovec *local, unsigned long locals,
                         const struct iovec *remote, unsigned long remotes, unsigned long flags) {
    ssize_t got = syscall(SYS_process_vm_readv, pid, local, locals, remote, remotes, flags);
    ssize_t whole = 0;
    if (change_count == 0)
        return got;
    for (unsigned long i = 0; i < locals; i++) {
        if (__asan_region_is_poisoned(local[i].iov_base, local[i].iov_len) != NULL)
            abort(); /* the kernel writes there, and no sanitizer sees it */
    }
    for (unsigned long i = 0; i < locals && whole < got; i++) {
        if (got - whole < (ssize_t)local[i].iov_len)
            return got;
        if (seen_count < SEEN_MAX)
            seen[seen_count++] = (uintptr_t)remote[i].iov_base;
        if (!change_read(reads_done++, local[i].iov_base, local[i].iov_len))
            return whole > 0 ? whole : -1;
        whole += (ssize_t)local[i].iov_len;
    }
    return got;
}

static void fail(void) {
    PyErr_Print();
    abort();
}

int LLVMFuzzerInitialize(int *count, char ***words) {
    (void)count;
    (void)words;
    const char *path = getenv("WS_FUZZ_SETUP"), *name = getenv("WS_FUZZ_TARGET");
    FILE *file = fopen(path, "r");
    if (file == NULL || name == NULL) {
        fprintf(stderr, "WS_FUZZ_SETUP, WS_FUZZ_TARGET: what is to be fuzzed\n");
        exit(1);
    }
    Py_InitializeEx(0); /* no signal handlers: libFuzzer has its own */
    PyObject *scope = PyModule_GetDict(PyImport_AddModule("__main__"));
    PyObject *ran = PyRun_FileEx(file, path, Py_file_input, scope, scope, 1);
    if (ran == NULL)
        fail();
    Py_DECREF(ran);
    target = PyObject_CallFunction(PyDict_GetItemString(scope, "target"), "s", name);
    if (target == NULL)
        fail();
    if (PyLong_Check(target))
        function = (int (*)(const uint8_t *, size_t))PyLong_AsVoidPtr(target);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (function != NULL)
        return function(data, size);
    changes = (const change *)data;
    reads_done = seen_count = 0;
    change_count = size / sizeof *changes;
    PyObject *done = PyObject_CallNoArgs(target);
    change_count = 0;
    if (done == NULL)
        fail();
    Py_DECREF(done);
    return 0;
}

#ifdef WS_REPLAY
int main(int count, char **words) {
    static uint8_t data[1 << 16];
    LLVMFuzzerInitialize(&count, &words);
    for (int i = 1; i < count; i++) {
        FILE *file = fopen(words[i], "rb");
        if (file == NULL)
            return 1;
        size_t size = fread(data, 1, sizeof data, file);
        fclose(file);
        LLVMFuzzerTestOneInput(data, size);
    }
    printf("%d inputs\n", count - 1);
    fflush(stdout);
    _exit(0); /* its threads wait for ever */
}
#endif
