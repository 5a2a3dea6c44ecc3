/* Which threads wait for the GIL. Without the GIL only: with it, all others do, or may. */
#include "known.h"
#include "sleep.h"

void ws_gil_waits_take(ws_snapshot *out) {
    const ws_layout_t *at = &ws_layout;
    ws_gil gil, again;
    ws_gil_read(&gil);
    int64_t holder = gil.known && gil.locked ? ws_thread_of(out, gil.holder) : -1;
    for (size_t i = 0; i < out->thread_count && holder >= 0; i++) {
        long native = out->threads[i].native_id;
        ws_switches before, after;
        if ((int64_t)i == holder || out->waits[i].kind != WS_WAIT_NONE || native <= 0) {
            continue;
        }
        uintptr_t first = ws_kernel_futex(native);
        if (first < at->gil || first - at->gil >= at->gil_size) {
            continue;
        }
        ws_kernel_switches(native, &before);
        first = ws_kernel_futex(native);
        ws_gil_read(&again);
        uintptr_t second = ws_kernel_futex(native);
        ws_kernel_switches(native, &after);
        if (first != second || second < at->gil || second - at->gil >= at->gil_size) {
            continue;
        }
        bool proven = ws_stood(&before, &after) && ws_sleeps(&after) && again.known && again.locked
                      && again.holder == gil.holder && again.switches == gil.switches;
        out->waits[i] = (ws_wait){
            .kind = WS_WAIT_GIL, .source = WS_FROM_INTERPRETER, .frame = -1,
            .holder = proven ? out->threads[holder].native_id : 0,
        };
    }
}
