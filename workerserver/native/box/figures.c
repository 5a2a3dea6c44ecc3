/* Small files of /proc and of the cgroup, as one JSON object. */
#define _GNU_SOURCE
#include "box.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

enum { FILES = 12, NAME = 32, PATH = 400, CONTENT = 512 };

static struct {
    char name[NAME], path[PATH];
} files[FILES];
static int count;

bool ws_box_watch(const char *name, const char *path) {
    if (count == FILES || strlen(name) >= NAME || strlen(path) >= PATH) {
        return false;
    }
    strcpy(files[count].name, name);
    strcpy(files[count].path, path);
    count++;
    return true;
}

void ws_box_watch_none(void) {
    count = 0;
}

static size_t put(char *out, size_t at, size_t capacity, const char *text) {
    size_t size = strlen(text);
    if (at > capacity || capacity - at <= size) {
        return capacity + 1; /* no further text fits either */
    }
    memcpy(out + at, text, size);
    return at + size;
}

static size_t put_content(char *out, size_t at, size_t capacity, const char *path) {
    char content[CONTENT];
    int saved = errno;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t size = fd < 0 ? -1 : read(fd, content, sizeof content);
    if (fd >= 0) {
        close(fd);
    }
    errno = saved;
    for (ssize_t i = 0; i < size; i++) {
        char one[2] = {content[i], 0};
        if (content[i] == '\n') {
            at = put(out, at, capacity, "\\n");
        } else if (content[i] >= ' ' && content[i] < 127 && content[i] != '"'
                   && content[i] != '\\') {
            at = put(out, at, capacity, one);
        }
    }
    return at;
}

size_t ws_box_put_files(char *out, size_t capacity) {
    size_t at = put(out, 0, capacity, "{");
    for (int i = 0; i < count; i++) {
        at = put(out, at, capacity, i == 0 ? "\"" : ",\"");
        at = put(out, at, capacity, files[i].name);
        at = put(out, at, capacity, "\":\"");
        at = put_content(out, at, capacity, files[i].path);
        at = put(out, at, capacity, "\"");
    }
    at = put(out, at, capacity, "}");
    return at > capacity ? 0 : at;
}
