/* Waits in functions that count from their frame pointer: compiled with -fno-omit-frame-pointer. */
#include <string.h>
#include <unistd.h>

static int here(int descriptor) {
    char byte;
    return (int)read(descriptor, &byte, 1);
}

/* More registers than one, and room that it fills. */
static int with_room(int descriptor, int depth) {
    volatile char room[333];
    memset((char *)room, depth, sizeof room);
    int got = depth > 0 ? with_room(descriptor, depth - 1) : here(descriptor);
    return got + room[depth];
}

/* Moves its stack pointer: what lies where is then not known from its code. */
static int with_moved_stack(int descriptor, int depth) {
    volatile char *room = __builtin_alloca((size_t)depth * 16 + 16);
    room[0] = 1;
    return with_room(descriptor, depth) + room[0];
}

int wait_in(int descriptor, int depth) {
    return depth % 4 == 3 ? with_moved_stack(descriptor, depth) : with_room(descriptor, depth);
}
