"""CPython's frames and names, as the walk with the GIL uses them.

Plain C types instead of Python objects: Cython adds no reference count and no check of its own.
"""

from libc.stdint cimport uintptr_t
from workerserver.stacks.snapshot cimport ws_name, ws_place


cdef extern from *:
    """
    #include "cpython.h"

    #include <frameobject.h>  /* CPython 3.10 declares PyFrame_GetBack only there */

    static PyObject *ws_qualname(PyCodeObject *code) {
        return CPY_QUALNAME(code);
    }

    /* The name in a str, borrowed from it; kind 0 for anything else. */
    static ws_name ws_borrow(PyObject *o) {
        ws_name name = {0};
        if (o != NULL && PyUnicode_Check(o) && CPY_STR_IS_READY(o)) {
            name.data = PyUnicode_DATA(o);
            name.length = (size_t)PyUnicode_GET_LENGTH(o);
            name.kind = (uint8_t)PyUnicode_KIND(o);
        }
        return name;
    }

    #define ws_incref(o) Py_INCREF((PyObject *)(o))
    #define ws_decref(o) Py_DECREF((PyObject *)(o))
    """
    ctypedef struct PyObject:
        pass
    ctypedef struct PyFrameObject:
        pass
    ctypedef struct PyCodeObject:
        PyObject *co_filename
        PyObject *co_name
    # Borrowed from the code object; NULL before CPython 3.11.
    PyObject *ws_qualname(PyCodeObject *code) noexcept
    ws_name ws_borrow(PyObject *o) noexcept
    void ws_incref(void *o) noexcept
    void ws_decref(void *o) noexcept
    # New references. GetBack leaves a MemoryError when it could not make the frame object.
    PyFrameObject *PyFrame_GetBack(PyFrameObject *frame) noexcept
    PyCodeObject *PyFrame_GetCode(PyFrameObject *frame) noexcept
    int PyFrame_GetLineNumber(PyFrameObject *frame) noexcept
    # Each returns what was set before.
    int PyGC_Disable() noexcept
    int PyGC_Enable() noexcept
    PyObject *PyErr_Occurred() noexcept
    void PyErr_Clear() noexcept
    unsigned long PyThread_get_thread_ident() noexcept
    # Borrowed references.
    int PyDict_Next(PyObject *d, Py_ssize_t *pos, PyObject **key, PyObject **value) noexcept
    unsigned long PyLong_AsUnsignedLong(PyObject *o) noexcept
    object PyObject_GenericGetAttr(object o, object name)
    object PyUnicode_FromKindAndData(int kind, const void *data, Py_ssize_t size)


cdef extern from "learn.h":
    bint ws_learn_keys() noexcept
    void ws_learn_instructions(int before_with, int with_except_start, int load_special) noexcept
    void ws_learn_locks(
        PyObject *lock, PyObject *rlock, PyObject *condition, size_t lock_locked,
        size_t rlock_owner,
    ) noexcept
    void ws_learn_groups(
        PyObject *names, PyObject *ranks, PyObject *words, PyObject *world
    ) noexcept
    bint ws_learn_function(
        PyObject *code, int kind, const char *op, PyObject *attribute, const int *places
    ) noexcept
    void ws_learn_proven(bint locals, bint withs) noexcept
    ws_place ws_place_of(PyFrameObject *frame, PyCodeObject *code) noexcept
    size_t ws_probe_withs(uintptr_t *managers, size_t most, uintptr_t *entering) noexcept
    uintptr_t ws_probe_local(int place) noexcept
    bint ws_probe_int(uintptr_t o, long long *value) noexcept
    bint ws_probe_text(uintptr_t o, char *to, size_t size) noexcept
    uintptr_t ws_probe_lock(uintptr_t o) noexcept
    uintptr_t ws_probe_attribute(uintptr_t o, PyObject *name) noexcept
