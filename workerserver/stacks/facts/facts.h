/* What threads wait for and which locks they hold, read from their frames.
 *
 * With the GIL or without it, by the same checked reads. Internal to stacks/. */
#ifndef WS_FACTS_H
#define WS_FACTS_H

#include "snapshot.h"

/* With the GIL: fills waits and holds, if the layout is proven in this process. `places` are those
 * of all frames. Without memory nothing is filled. ws_waits_free() in either case. */
void ws_waits_with_gil(ws_snapshot *snapshot, const ws_place *places);
void ws_waits_free(ws_snapshot *snapshot);

#endif
