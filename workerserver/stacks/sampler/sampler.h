/* Records where the time of this process's Python threads goes: samples of all stacks, taken by a
 * thread of its own without the GIL, and counted in a tree. */
#ifndef WS_SAMPLER_H
#define WS_SAMPLER_H

#include "render.h"

/* WS_BY_WALL counts all threads, those that don't run as idle. WS_ON_CPU counts only threads that
 * are on a processor or wait for one. */
typedef enum { WS_BY_WALL, WS_ON_CPU } ws_sampling;

typedef struct ws_recording ws_recording;

/* Begins to record: for `seconds`, `hz` times a second, at moments that are spread by chance within
 * their shares of a second. Any thread, never waits for the GIL. NULL: no memory or no thread
 * (`*busy` is false), or another recording runs in this process (`*busy` is true). */
ws_recording *ws_recording_start(double seconds, double hz, ws_sampling how, bool *busy);

/* Ends the recording now and waits for its thread, which waits for no lock but the readers' and
 * never for the GIL. More calls do nothing. In a forked child there is no thread to wait for. */
void ws_recording_stop(ws_recording *recording);

/* Whether its time isn't over yet. */
bool ws_recording_runs(ws_recording *recording);

/* Seconds until the recording of this process ends; 0: there is none. */
double ws_recording_left(void);

/* After ws_recording_stop(): what was counted, as JSON (render_tree.c). 0, or -1 without memory. */
int ws_recording_render(const ws_recording *recording, ws_buffer *out);

/* Stops it, if need be, and frees it. */
void ws_recording_free(ws_recording *recording);

#endif
