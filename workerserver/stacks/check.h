/* What is promised of buffers and snapshots, checked in debug builds (NDEBUG not defined). */
#ifndef WS_CHECK_H
#define WS_CHECK_H

#include <assert.h>

#include "render.h"

/* A failed check ends the process with the line of check.c that says what doesn't hold. */
#ifdef NDEBUG
#define ws_check_buffer(buffer) ((void)0)
#define ws_check_ascii(buffer, from) ((void)0)
#define ws_check_snapshot(snapshot) ((void)0)
#define ws_check_kernel(kernel) ((void)0)
#else
void ws_check_buffer(const ws_buffer *buffer);
/* The bytes of a rendering, from the place `from` on. */
void ws_check_ascii(const ws_buffer *buffer, size_t from);
void ws_check_snapshot(const ws_snapshot *snapshot);
void ws_check_kernel(const ws_kernel *kernel);
#endif

#endif
