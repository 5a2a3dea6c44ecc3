/* What is known of this CPython, and whether it is true: the only file that calls Python.
 *
 * A patch release may keep things elsewhere than the one that this was compiled for. So
 * ws_layout_check() compares what is found without the GIL with what the API says. */
#define PY_SSIZE_T_CLEAN
#include "cpython.h"

#include <frameobject.h> /* CPython 3.10 declares PyFrame_GetBack only there */

#include "internal.h"

#if !WS_CPYTHON

const char *ws_layout_learn(void) {
#if !defined(__linux__)
    return "only on Linux";
#elif defined(Py_GIL_DISABLED)
    return "this is a free-threaded CPython, whose threads never stand still";
#else
    return "only on 64-bit CPython 3.10 to 3.15";
#endif
}

const char *ws_layout_check(const ws_snapshot *snapshot) {
    (void)snapshot;
    return "not supported here";
}

#else

#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DIFFERS "this CPython's memory layout differs from the one known"

static void learn_types(ws_layout_t *at) {
    at->code_type = (uintptr_t)&PyCode_Type;
    at->str_type = (uintptr_t)&PyUnicode_Type;
    at->bytes_type = (uintptr_t)&PyBytes_Type;
    at->dict_type = (uintptr_t)&PyDict_Type;
    at->type_type = (uintptr_t)&PyType_Type;
    at->long_type = (uintptr_t)&PyLong_Type;
    at->true_object = (uintptr_t)Py_True;
    at->false_object = (uintptr_t)Py_False;
    at->object_type = offsetof(PyObject, ob_type);
    at->method_type = (uintptr_t)&PyMethod_Type;
    at->method_self = offsetof(PyMethodObject, im_self);
    at->function_type = (uintptr_t)&PyCFunction_Type;
    at->function_self = offsetof(PyCFunctionObject, m_self);
    at->tuple_type = (uintptr_t)&PyTuple_Type;
}

/* The strings and the dict are kept for ever: other threads compare with their addresses. */
static bool learn_names(ws_layout_t *at) {
    static PyObject *kept[5];
    static const char *const spelled[] = {"_name", "_daemonic", "_native_id"};
    uintptr_t *const into[] = {&at->key_name, &at->key_daemon, &at->key_native};
    for (size_t i = 0; i < 3; i++) {
        if (kept[i] == NULL) {
            kept[i] = PyUnicode_InternFromString(spelled[i]);
        }
        if (kept[i] == NULL) {
            return false;
        }
        *into[i] = (uintptr_t)kept[i];
    }
    if (kept[4] == NULL) {
        kept[4] = PyBytes_FromStringAndSize(NULL, 0); /* the one that all such code shares */
    }
    if (kept[4] == NULL) {
        return false;
    }
    at->no_exceptions = (uintptr_t)kept[4];
    PyObject *modules = PyImport_GetModuleDict(); /* borrowed */
    PyObject *threading =
        modules == NULL ? NULL : PyDict_GetItemString(modules, "threading"); /* borrowed */
    PyObject *active = NULL;
    if (threading != NULL) {
        active = PyObject_GetAttrString(threading, "_active");
        PyErr_Clear();
    }
    if (active != NULL && PyDict_CheckExact(active)) {
        Py_XSETREF(kept[3], active);
        at->active_threads = (uintptr_t)active;
    } else {
        Py_XDECREF(active);
    }
    return true;
}

const char *ws_layout_learn(void) {
    ws_layout_t *at = &ws_layout;
    PyThreadState *state = PyThreadState_Get();
    PyInterpreterState *interpreter = PyInterpreterState_Main();
    memset(at, 0, sizeof *at);
    if (CPY_RUNNING >> 16 != PY_VERSION_HEX >> 16) {
        return DIFFERS " (another minor version)";
    }
    if (PyThreadState_GetInterpreter(state) != interpreter) {
        return "only in the main interpreter";
    }
    at->interpreter = (uintptr_t)interpreter;
    learn_types(at);
    if (!ws_offsets(at)) {
        return DIFFERS;
    }
    if (at->state_size > WS_STATE_MAX || at->frame_size > WS_FRAME_MAX
        || at->code_read > WS_CODE_MAX || at->gil_read > WS_GIL_MAX
        || at->frame_look > WS_FRAME_MAX || at->code_look > WS_CODE_MAX) {
        return DIFFERS " (sizes)";
    }
    if (!learn_names(at)) {
        PyErr_Clear();
        return WS_NO_MEMORY;
    }
    return NULL;
}

static bool same_text(const ws_name *name, PyObject *text) {
    if (text == NULL || !PyUnicode_CheckExact(text)) {
        return name->kind == 0;
    }
    size_t length = (size_t)PyUnicode_GET_LENGTH(text);
    size_t shown = length < WS_MAX_NAME ? length : WS_MAX_NAME;
    return name->kind == PyUnicode_KIND(text) && name->length == shown
           && name->cut == (shown < length)
           && memcmp(name->data, PyUnicode_DATA(text), shown * name->kind) == 0;
}

static bool same_frame(const ws_frame *frame, PyFrameObject *real) {
    PyCodeObject *code = PyFrame_GetCode(real);
    bool same = same_text(&frame->file, code->co_filename)
                && same_text(&frame->function, code->co_name)
                && same_text(&frame->qualname, CPY_QUALNAME(code))
                && frame->line == PyFrame_GetLineNumber(real);
    Py_DECREF(code);
    return same;
}

/* This thread's own stack, with the API and without it. */
static bool same_stack(const ws_snapshot *snapshot, const ws_thread *thread) {
    PyFrameObject *real = PyThreadState_GetFrame(PyThreadState_Get());
    size_t i = 0;
    bool same = true;
    while (real != NULL && same && i < thread->count) {
        same = same_frame(&snapshot->frames[thread->start + i], real);
        PyFrameObject *back = PyFrame_GetBack(real);
        Py_DECREF(real);
        real = back;
        i++;
    }
    PyErr_Clear();
    same = same && i > 0 && i == thread->count && thread->truncated == (real != NULL);
    Py_XDECREF(real);
    return same;
}

/* Native threads may join or leave the list at any time, also now. */
static bool same_threads(void) {
    PyInterpreterState *interpreter = PyInterpreterState_Main();
    size_t found = 0;
    for (PyThreadState *state = PyInterpreterState_ThreadHead(interpreter); state != NULL;
         state = PyThreadState_Next(state)) {
        for (size_t i = 0; i < ws_work->listed_count; i++) {
            if (ws_work->listed[i].state == (uintptr_t)state) {
                found++;
                break;
            }
        }
    }
    return found > 0 && found + 1 >= ws_work->listed_count;
}

static const ws_thread *find_thread(const ws_snapshot *snapshot, unsigned long ident) {
    for (size_t i = 0; i < snapshot->thread_count; i++) {
        if (snapshot->threads[i].ident == ident) {
            return &snapshot->threads[i];
        }
    }
    return NULL;
}

/* Names are left out if they don't come out as threading has them. */
static void check_names(const ws_snapshot *snapshot) {
    PyObject *active = NULL; /* a copy: looking up an attribute may run anything */
    PyObject *key, *thread;
    Py_ssize_t position = 0;
    size_t good = 0, bad = 0;
    if (ws_layout.active_threads != 0) {
        active = PyDict_Copy((PyObject *)ws_layout.active_threads);
    }
    while (active != NULL && PyDict_Next(active, &position, &key, &thread)) {
        unsigned long ident = PyLong_AsUnsignedLong(key);
        const ws_thread *ours = find_thread(snapshot, ident);
        PyObject *name = PyObject_GenericGetAttr(thread, (PyObject *)ws_layout.key_name);
        PyErr_Clear();
        if (ours != NULL && ours->name.kind != 0) {
            bool same = name != NULL && same_text(&ours->name, name);
            good += same;
            bad += !same;
        }
        Py_XDECREF(name);
    }
    Py_XDECREF(active);
    PyErr_Clear();
    if (good == 0 || bad > 0) {
        ws_layout.active_threads = 0;
    }
}

const char *ws_layout_check(const ws_snapshot *snapshot) {
    const ws_thread *thread = find_thread(snapshot, PyThread_get_thread_ident());
    ws_gil gil;
    if (thread == NULL || !same_threads()) {
        return DIFFERS " (threads)";
    }
    if (!same_stack(snapshot, thread)) {
        return DIFFERS " (frames)";
    }
    if (ws_layout.state_native != WS_NONE && thread->native_id != (long)syscall(SYS_gettid)) {
        return DIFFERS " (native ids)";
    }
    ws_gil_read(&gil);
    if (!gil.known || !gil.locked || gil.holder != thread->ident
        || snapshot->holder != thread->ident) {
        return DIFFERS " (the GIL)";
    }
    if (find_thread(snapshot, ws_layout.main_ident) == NULL) {
        ws_layout.main_ident = 0;
    }
    ws_layout.main_state = 0;
    for (size_t i = 0; i < ws_work->listed_count; i++) { /* the oldest one, which comes last */
        if (ws_layout.main_ident != 0 && ws_work->listed[i].ident == ws_layout.main_ident) {
            ws_layout.main_state = ws_work->listed[i].state;
        }
    }
    check_names(snapshot);
    return NULL;
}

#endif
