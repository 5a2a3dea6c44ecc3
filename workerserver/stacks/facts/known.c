/* The table of library functions whose locals may be read, by the address of their code. */
#include "known.h"

#include <assert.h>
#include <stdatomic.h>

ws_known_t ws_known;

const ws_function *ws_function_find(uintptr_t code) {
    size_t place = (size_t)((code >> 4) * UINT64_C(0x9E3779B97F4A7C15) >> 55);
    assert(place < WS_FUNCTIONS);
    for (size_t i = 0; i < WS_FUNCTIONS; i++) {
        const ws_function *function = &ws_known.functions[(place + i) % WS_FUNCTIONS];
        uintptr_t there = atomic_load_explicit(&function->code, memory_order_acquire);
        if (there == code || there == 0) {
            return there == 0 ? NULL : function;
        }
    }
    return NULL;
}

ws_function *ws_function_add(uintptr_t code) {
    size_t place = (size_t)((code >> 4) * UINT64_C(0x9E3779B97F4A7C15) >> 55);
    if (ws_known.count == WS_FUNCTIONS / 2 || ws_function_find(code) != NULL) {
        return NULL;
    }
    while (atomic_load(&ws_known.functions[place % WS_FUNCTIONS].code) != 0) {
        place++;
    }
    ws_known.count++;
    return &ws_known.functions[place % WS_FUNCTIONS];
}
