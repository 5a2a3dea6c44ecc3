/* What a thread waits for and holds, as JSON. */
#ifndef WS_PUT_FACTS_H
#define WS_PUT_FACTS_H

#include "put.h"

/* Writes `,"waits_for":{...}` of the thread at `index`; false: nothing is known. */
bool ws_put_wait(sink *out, const ws_snapshot *snapshot, size_t index);

/* Writes `,"holds":[...]` of that thread, unless it is empty. docs/protocol.md has the fields. */
void ws_put_holds(sink *out, const ws_snapshot *snapshot, size_t index);

#endif
