/* What a thread waits for and holds, as JSON. */
#ifndef WS_PUT_FACTS_H
#define WS_PUT_FACTS_H

#include "put.h"

/* Writes `,"waits_for":{...}` and `,"holds":[...]` of the thread at `index`, each only if something
 * is known. Returns whether `waits_for` was written. docs/protocol.md has the fields. */
bool ws_put_facts(sink *out, const ws_snapshot *snapshot, size_t index);

#endif
