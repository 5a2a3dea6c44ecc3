/* Native stacks as text and as JSON. */
#ifndef WS_PUT_NATIVE_H
#define WS_PUT_NATIVE_H

#include "put.h"
#include "unwind.h"

#pragma GCC visibility push(hidden)

/* One Python frame, as a line of text (render.c). */
typedef void ws_put_frame(sink *out, const ws_frame *frame);

/* The lines of one of the snapshot's threads: its Python frames between the native ones where they
 * are known to belong together, else behind them. */
void ws_put_native_text(sink *out, const ws_snapshot *snapshot, size_t index, ws_put_frame *put);
/* The threads that Python doesn't know. */
void ws_put_native_others_text(sink *out, const ws_snapshot *snapshot);

/* `,"native":{...}` of one of the snapshot's threads:
 *
 * end      "whole", "running" (it has no frames then), or what is not known of the next frame: the
 *          words are in put_native.c
 * matched  whether `python` says all that there is to say
 * frames   newest first: `address`; `module`, the number of a file in the answer's `native`, and
 *          `offset`, the address in that file (both left out for code that no file holds); `signal`,
 *          true for the frame that a signal has made: the next one was interrupted at its address,
 *          while all others return there; `python`, for a frame of the interpreter's loop: the first
 *          of the thread's `frames` that it stands for, and how many */
void ws_put_native_json(sink *out, const ws_snapshot *snapshot, size_t index);
/* `,"native":{...}` of the answer: `files`, each with `path` and `build_id` (null: it has none);
 * `threads`, those that Python doesn't know, with `native_id`, `name` and `native`; `truncated`.
 * null: nothing could be had. */
void ws_put_native_files_json(sink *out, const ws_snapshot *snapshot);

#pragma GCC visibility pop

#endif
