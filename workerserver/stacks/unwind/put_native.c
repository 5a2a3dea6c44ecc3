/* Native stacks as text and as JSON. Names of functions are found by whoever reads: to look them up
 * takes files, and memory. */
#include "put_native.h"

#include <string.h>

static const struct {
    const char *word, *text;
} ENDS[WS_NATIVE_ENDS] = {
    [WS_NATIVE_WHOLE] = {"whole", NULL},
    [WS_NATIVE_RUNNING] = {"running", "the thread runs"},
    [WS_NATIVE_HIDDEN] = {"hidden", "the kernel doesn't tell where the thread is"},
    [WS_NATIVE_LATE] = {"late", "no time was left"},
    [WS_NATIVE_DEEP] = {"deep", "there are more than are shown"},
    [WS_NATIVE_NO_CODE] = {"no_code", "the next address is in no code"},
    [WS_NATIVE_MADE] = {"generated", "this code lies in no file"},
    [WS_NATIVE_NO_TABLE] = {"no_table", "the file has no unwind table for this function"},
    [WS_NATIVE_NO_RULE] = {"no_rule", "the file has no unwind rule that is known here"},
    [WS_NATIVE_LOST] = {"lost_register", "a register is not known"},
    [WS_NATIVE_NO_CALL] = {"no_call", "no call stands before the next address"},
    [WS_NATIVE_NO_STACK] = {"no_stack", "the stack can't be read"},
    [WS_NATIVE_CHANGED] = {"changed", "libraries were loaded meanwhile"},
};

static const ws_native_frame *frame_of(
    const ws_native *native, const ws_native_stack *stack, size_t i) {
    return &native->frames[stack->start + i];
}

static ws_name name_of(const ws_native *native, const ws_module *module) {
    const char *path = native->paths + module->path;
    return (ws_name){.data = path, .length = strlen(path), .kind = 1};
}

static bool in_file(const ws_native *native, const ws_native_frame *frame) {
    return frame->module >= 0 && native->modules[frame->module].base != 0;
}

static const ws_thread *thread_of(const ws_native *native, const ws_native_stack *stack) {
    for (size_t i = 0; i < native->threads.thread_count; i++) {
        if (native->threads.threads[i].native_id == stack->native_id) {
            return &native->threads.threads[i];
        }
    }
    return NULL;
}

/* ---- text ---- */

static void put_native_line(sink *out, const ws_native *native, const ws_native_frame *frame) {
    ws_put(out, "  Native ");
    ws_put_ident(out, frame->pc);
    if (in_file(native, frame)) {
        const ws_module *module = &native->modules[frame->module];
        ws_name name = name_of(native, module);
        ws_put(out, " in \"");
        ws_put_escaped(out, &name);
        ws_put(out, "\"+0x");
        uint64_t offset = frame->pc - module->bias;
        int digits = 1;
        while (digits < 16 && offset >> 4 * digits != 0)
            digits++;
        ws_put_hex(out, offset, digits);
    }
    ws_put(out, "\n");
}

static void put_end(sink *out, const ws_native_stack *stack) {
    if (ENDS[stack->end].text == NULL)
        return;
    ws_put(out, "  (no further native frames: ");
    ws_put(out, ENDS[stack->end].text);
    ws_put(out, ")\n");
}

void ws_put_native_text(sink *out, const ws_snapshot *snapshot, size_t index, ws_put_frame *put) {
    const ws_native *native = snapshot->native;
    const ws_thread *thread = &snapshot->threads[index];
    size_t next = 0;
    if (native != NULL) {
        const ws_native_stack *stack = &native->stacks[index];
        for (size_t i = 0; i < stack->count; i++) {
            const ws_native_frame *frame = frame_of(native, stack, i);
            if (!stack->matched || !frame->evaluates) {
                put_native_line(out, native, frame);
                continue;
            }
            for (; next < frame->first + frame->count; next++)
                put(out, &snapshot->frames[thread->start + next]);
        }
        put_end(out, stack);
    }
    for (; next < thread->count; next++)
        put(out, &snapshot->frames[thread->start + next]);
}

void ws_put_native_others_text(sink *out, const ws_snapshot *snapshot) {
    const ws_native *native = snapshot->native;
    if (native == NULL)
        return;
    for (size_t i = snapshot->thread_count; i < native->stack_count; i++) {
        const ws_native_stack *stack = &native->stacks[i];
        const ws_thread *thread = thread_of(native, stack);
        ws_put(out, "\nNative thread ");
        ws_put_decimal(out, (uint64_t)stack->native_id);
        if (thread != NULL && thread->name.kind != 0) {
            ws_put(out, " [");
            ws_put_escaped(out, &thread->name);
            ws_put(out, "]");
        }
        ws_put(out, " (most recent call first):\n");
        for (size_t k = 0; k < stack->count; k++)
            put_native_line(out, native, frame_of(native, stack, k));
        put_end(out, stack);
    }
}

/* ---- JSON ---- */

static void put_frame_json(
    sink *out, const ws_native *native, const ws_native_frame *frame, bool matched) {
    ws_put(out, "{\"address\":");
    ws_put_decimal(out, frame->pc);
    if (in_file(native, frame)) {
        const ws_module *module = &native->modules[frame->module];
        ws_put(out, ",\"module\":");
        ws_put_decimal(out, module->number);
        ws_put(out, ",\"offset\":");
        ws_put_decimal(out, frame->pc - module->bias);
    }
    if (frame->signal)
        ws_put(out, ",\"signal\":true");
    if (matched && frame->evaluates) {
        ws_put(out, ",\"python\":[");
        ws_put_decimal(out, frame->first);
        ws_put(out, ",");
        ws_put_decimal(out, frame->count);
        ws_put(out, "]");
    }
    ws_put(out, "}");
}

static void put_stack_json(sink *out, const ws_native *native, const ws_native_stack *stack) {
    ws_put(out, ",\"native\":{\"end\":\"");
    ws_put(out, ENDS[stack->end].word);
    ws_put(out, "\",\"matched\":");
    ws_put_json_bool(out, stack->matched);
    ws_put(out, ",\"frames\":[");
    for (size_t i = 0; i < stack->count; i++) {
        ws_put(out, i > 0 ? "," : "");
        put_frame_json(out, native, frame_of(native, stack, i), stack->matched);
    }
    ws_put(out, "]}");
}

void ws_put_native_json(sink *out, const ws_snapshot *snapshot, size_t index) {
    const ws_native *native = snapshot->native;
    if (native != NULL)
        put_stack_json(out, native, &native->stacks[index]);
}

static void put_file(sink *out, const ws_native *native, const ws_module *module) {
    const char *path = native->paths + module->path;
    size_t size = strlen(path);
    ws_put(out, "{\"path\":");
    ws_put_json_bytes(out, path, size < WS_MAX_BYTES ? size : WS_MAX_BYTES, size > WS_MAX_BYTES);
    ws_put(out, ",\"build_id\":");
    if (module->id_size > 0)
        ws_put(out, "\"");
    for (size_t i = 0; i < module->id_size; i++)
        ws_put_hex(out, module->id[i], 2);
    ws_put(out, module->id_size > 0 ? "\"}" : "null}");
}

static void put_other(sink *out, const ws_native *native, const ws_native_stack *stack) {
    const ws_thread *thread = thread_of(native, stack);
    ws_put(out, "{\"native_id\":");
    ws_put_decimal(out, (uint64_t)stack->native_id);
    ws_put(out, ",\"name\":");
    if (thread != NULL && thread->name.kind != 0)
        ws_put_json_bytes(out, thread->name.data, thread->name.length, false);
    else
        ws_put(out, "null");
    put_stack_json(out, native, stack);
    ws_put(out, "}");
}

void ws_put_native_files_json(sink *out, const ws_snapshot *snapshot) {
    const ws_native *native = snapshot->native;
    uint64_t number = 0;
    if (native == NULL) {
        ws_put(out, ",\"native\":null");
        return;
    }
    ws_put(out, ",\"native\":{\"files\":[");
    for (size_t i = 0; i < native->module_count; i++) {
        const ws_module *module = &native->modules[i];
        if (module->base != 0 && module->read && module->number == number) {
            ws_put(out, number > 0 ? "," : "");
            put_file(out, native, module);
            number++;
        }
    }
    ws_put(out, "],\"threads\":[");
    for (size_t i = snapshot->thread_count; i < native->stack_count; i++) {
        ws_put(out, i > snapshot->thread_count ? "," : "");
        put_other(out, native, &native->stacks[i]);
    }
    ws_put(out, "],\"truncated\":");
    ws_put_json_bool(out, native->cut);
    ws_put(out, "}");
}
