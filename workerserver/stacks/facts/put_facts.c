/* waits_for and holds: the words of ws_wait and ws_hold. */
#include "put_facts.h"

#include "check.h"

static const char *const KINDS[WS_WAIT_KINDS] = {
    NULL, "lock", "rlock", "condition", "event", "semaphore", "barrier", "thread", "process",
    "queue", "future", "gil", "import_lock", "store", "operation", "rendezvous",
};
static const char *const SOURCES[] = {"locals", "with", "interpreter"};

static void put_number(sink *out, const char *key, long long value) {
    ws_put(out, key);
    if (value < 0)
        ws_put(out, "-");
    ws_put_decimal(out, value < 0 ? 0 - (uint64_t)value : (uint64_t)value);
}

static void put_object(sink *out, uintptr_t object) {
    ws_put(out, ",\"object\":\"");
    ws_put_ident(out, object);
    ws_put(out, "\"");
}

static void put_group(sink *out, const ws_wait *wait) {
    ws_put(out, ",\"group\":{\"name\":");
    ws_put_json_name(out, &wait->group);
    if (wait->description.kind != 0) {
        ws_put(out, ",\"description\":");
        ws_put_json_name(out, &wait->description);
    }
    if (wait->ranks.kind != 0) {
        ws_put(out, ",\"ranks\":[");
        ws_put_bytes(out, wait->ranks.data, wait->ranks.length);
        ws_put(out, "]");
    }
    ws_put(out, "}");
}

static void put_thread(sink *out, const ws_wait *wait) {
    ws_put(out, ",\"thread\":{\"native_id\":");
    if (wait->native_id > 0)
        ws_put_decimal(out, (uint64_t)wait->native_id);
    else
        ws_put(out, "null");
    if (wait->thread_name.kind != 0) {
        ws_put(out, ",\"name\":");
        ws_put_json_name(out, &wait->thread_name);
    }
    ws_put(out, "}");
}

static void put_keys(sink *out, const ws_wait *wait) {
    /* A module has one name, and a store's wait has keys. */
    bool module = wait->kind == WS_WAIT_IMPORT_LOCK;
    ws_put(out, module ? ",\"module\":" : ",\"keys\":[");
    for (size_t i = 0; i < WS_WAIT_KEYS && wait->keys[i].kind != 0; i++) {
        ws_put(out, i > 0 ? "," : "");
        ws_put_json_name(out, &wait->keys[i]);
    }
    ws_put(out, module ? "" : "]");
}

bool ws_put_wait(sink *out, const ws_snapshot *snapshot, size_t index) {
    if (snapshot->waits == NULL)
        return false;
    assert(index < snapshot->thread_count);
    const ws_wait *wait = &snapshot->waits[index];
    if (wait->kind == WS_WAIT_NONE)
        return false;
    assert(wait->kind > WS_WAIT_NONE && wait->kind < WS_WAIT_KINDS);
    ws_put(out, ",\"waits_for\":{\"kind\":");
    ws_put_json_text(out, KINDS[wait->kind]);
    ws_put(out, ",\"source\":");
    ws_put_json_text(out, SOURCES[wait->source]);
    if (wait->frame >= 0)
        put_number(out, ",\"frame\":", wait->frame);
    if (wait->object != 0)
        put_object(out, wait->object);
    if (wait->kind == WS_WAIT_LOCK || wait->kind == WS_WAIT_RLOCK || wait->kind == WS_WAIT_GIL
        || wait->kind == WS_WAIT_IMPORT_LOCK) {
        ws_put(out, ",\"holder\":");
        if (wait->holder > 0)
            ws_put_decimal(out, (uint64_t)wait->holder);
        else
            ws_put(out, "null");
    }
    if (wait->kind == WS_WAIT_THREAD)
        put_thread(out, wait);
    if (wait->pid > 0)
        put_number(out, ",\"pid\":", wait->pid);
    if (wait->op != NULL) {
        ws_put(out, ",\"op\":");
        ws_put_json_text(out, wait->op);
    }
    if (wait->has_peer)
        put_number(out, ",\"peer\":", wait->peer);
    if (wait->group.kind != 0)
        put_group(out, wait);
    if (wait->has_tag)
        put_number(out, ",\"tag\":", wait->tag);
    if (wait->keys[0].kind != 0)
        put_keys(out, wait);
    ws_put(out, "}");
    return true;
}

void ws_put_holds(sink *out, const ws_snapshot *snapshot, size_t index) {
    bool first = true;
    for (size_t i = 0; i < snapshot->hold_count; i++) {
        const ws_hold *hold = &snapshot->holds[i];
        if (hold->thread != index)
            continue;
        ws_put(out, first ? ",\"holds\":[{\"kind\":" : ",{\"kind\":");
        ws_put_json_text(out, KINDS[hold->kind]);
        put_object(out, hold->object);
        if (hold->frame >= 0)
            put_number(out, ",\"frame\":", hold->frame);
        ws_put(out, "}");
        first = false;
    }
    if (!first)
        ws_put(out, "]");
}
