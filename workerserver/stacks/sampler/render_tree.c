/* A recording as JSON, ASCII only.
 *
 * `version` 1, `pid`, `mode` ("wall", "cpu"), `hz` as it was asked for, `time` (of its start, seconds
 * since the epoch), `seconds` that it took, `samples` (moments at which stacks were read), `missed`
 * (moments that were left out: the process could not be read, or reading took too much time),
 * `unstable` (stacks of which only the older frames are known), `cut` (stacks for which a bound of
 * the tree was in the way), `read` (stacks that were read; the others had not moved),
 * `cost_seconds` (of a processor). `functions`: [file, name, first line], null for a name that is
 * not known. `threads`: [name or null, ident, native id]. `nodes`: [parent, function, active, idle]:
 * a parent comes before its children; parent -1: the root of a thread, and `function` is then that
 * thread's place in `threads`. `active` and `idle` are the samples that ended in this very node, with
 * the thread on a processor (or waiting for one), and off it. */
#include "put.h"
#include "recording.h"

static void put_string(sink *out, const ws_tree *tree, uint32_t index) {
    if (index == WS_TREE_NONE)
        ws_put(out, "null");
    else
        ws_put_json_name(out, &tree->strings[index].name);
}

static void put_number(sink *out, const char *before, uint64_t value) {
    ws_put(out, before);
    ws_put_decimal(out, value);
}

static void put_head(sink *out, const ws_recording *recording) {
    uint64_t unstable = 0;
    for (uint32_t i = 1; i < recording->tree->thread_count; i++)
        unstable += recording->tree->threads[i].unstable;
    put_number(out, "{\"version\":1,\"pid\":", (uint64_t)recording->pid);
    ws_put(out, recording->how == WS_ON_CPU ? ",\"mode\":\"cpu\"" : ",\"mode\":\"wall\"");
    ws_put(out, ",\"hz\":");
    ws_put_json_micros(out, (uint64_t)(recording->hz * 1e6 + 0.5));
    ws_put(out, ",\"time\":");
    ws_put_json_micros(out, recording->started_at);
    ws_put(out, ",\"seconds\":");
    ws_put_json_micros(out, (recording->end - recording->start) / 1000);
    put_number(out, ",\"samples\":", recording->samples);
    put_number(out, ",\"missed\":", recording->missed);
    put_number(out, ",\"unstable\":", unstable);
    put_number(out, ",\"cut\":", recording->tree->cut);
    put_number(out, ",\"read\":", recording->read);
    ws_put(out, ",\"cost_seconds\":");
    ws_put_json_micros(out, recording->cost / 1000);
}

static void put_functions(sink *out, const ws_tree *tree) {
    ws_put(out, ",\"functions\":[");
    for (uint32_t i = 1; i < tree->function_count && !out->failed; i++) {
        const ws_tree_function *function = &tree->functions[i];
        ws_put(out, i > 1 ? ",[" : "[");
        put_string(out, tree, function->file);
        ws_put(out, ",");
        put_string(out, tree, function->name);
        put_number(out, ",", function->first_line > 0 ? (uint64_t)function->first_line : 0);
        ws_put(out, "]");
    }
}

static void put_threads(sink *out, const ws_tree *tree) {
    ws_put(out, "],\"threads\":[");
    for (uint32_t i = 1; i < tree->thread_count && !out->failed; i++) {
        const ws_tree_thread *thread = &tree->threads[i];
        ws_put(out, i > 1 ? ",[" : "[");
        put_string(out, tree, thread->name);
        put_number(out, ",", thread->ident);
        put_number(out, ",", (uint64_t)thread->native_id);
        ws_put(out, "]");
    }
}

static void put_nodes(sink *out, const ws_tree *tree) {
    ws_put(out, "],\"nodes\":[");
    for (uint32_t i = 1; i < tree->node_count && !out->failed; i++) {
        const ws_tree_node *node = &tree->nodes[i];
        ws_put(out, i > 1 ? ",[" : "[");
        if (node->parent == WS_TREE_NONE)
            ws_put(out, "-1");
        else
            ws_put_decimal(out, node->parent - 1);
        put_number(out, ",", node->function - 1);
        put_number(out, ",", node->active);
        put_number(out, ",", node->idle);
        ws_put(out, "]");
    }
    ws_put(out, "]}\n");
}

int ws_recording_render(const ws_recording *recording, ws_buffer *out) {
    sink to = {out, false};
    size_t size = out->size;
    put_head(&to, recording);
    put_functions(&to, recording->tree);
    put_threads(&to, recording->tree);
    put_nodes(&to, recording->tree);
    if (to.failed)
        out->size = size;
    return to.failed ? -1 : 0;
}
