"""Stack snapshots of every Python thread, atomic under the GIL, and their text.

``sys._current_frames()`` hands out live frames. A walk over them in Python code loses the GIL in
the middle, sees one thread at several moments, and on CPython 3.11 corrupts memory. Here frames
are taken and walked in one piece of C: from the call of ``_current_frames`` to the last frame
copied no bytecode runs, nothing waits and nothing is deallocated, so all stacks are of one moment.
What is copied is plain C (a code object with a reference of its own, a line number); text is made
from that afterwards.

Only threads that share the caller's GIL can be read this way. A process that runs several
interpreters, each with a GIL of its own (CPython 3.12), has no use for this module.
"""

import sys
import threading
from collections import namedtuple
from time import time

cimport cython
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, strlen
from posix.fcntl cimport O_RDONLY, open
from posix.unistd cimport close, getpid, read


cdef extern from *:
    """
    #include <frameobject.h>  /* CPython 3.10 declares PyFrame_GetBack only there */
    static CYTHON_INLINE PyObject *ws_qualname(PyCodeObject *code) {
    #if PY_VERSION_HEX >= 0x030B0000
        return code->co_qualname;
    #else
        return NULL;
    #endif
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
    bint PyUnicode_Check(PyObject *o) noexcept
    Py_ssize_t PyUnicode_GET_LENGTH(PyObject *o) noexcept
    int PyUnicode_KIND(PyObject *o) noexcept
    void *PyUnicode_DATA(PyObject *o) noexcept
    Py_UCS4 PyUnicode_READ(int kind, void *data, Py_ssize_t index) noexcept


cdef struct FrameRecord:
    PyCodeObject *code  # a reference of ours
    int line            # -1: unknown


cdef struct ThreadRecord:
    unsigned long ident
    Py_ssize_t start    # of its frames among all frames
    Py_ssize_t count
    bint truncated
    PyObject *name      # str, a reference of ours; NULL: not known to threading
    long native_id      # 0: unknown
    int daemon          # -1: unknown


cdef struct Buffer:
    char *data          # malloc'ed
    Py_ssize_t size
    Py_ssize_t capacity


# Frames of one thread, threads, and frames of all threads that one snapshot holds at most.
MAX_DEPTH = 1000
MAX_THREADS = 4096
MAX_FRAMES = 65536

# Characters of a name: in faulthandler's text (its own limit), and everywhere else.
cdef Py_ssize_t TEXT_NAME = 500
cdef Py_ssize_t LONG_NAME = 1024

cdef const char *HEX = "0123456789abcdef"

# Ours before anybody could replace it with something that runs bytecode.
cdef object _current_frames = sys._current_frames
cdef unsigned long long _taken = 0

Frame = namedtuple("Frame", "file line function qualname", module=__name__)
ThreadStack = namedtuple(
    "ThreadStack", "ident native_id name daemon current truncated frames", module=__name__
)


@cython.final
cdef class Snapshot:
    """All Python stacks of one moment; made by :func:`snapshot`, never by hand.

    Owns its two C arrays and the references in them, and never changes once it was handed out, so
    any thread may render it. Holds code objects but no frames: nothing that a function's locals
    keep alive outlives its function because of a snapshot.

    ``pid``, ``time`` (seconds since the epoch) and ``current`` (ident of the thread that took the
    snapshot, and so held the GIL) are of the moment; ``truncated`` says that threads were left out.
    """

    cdef FrameRecord *_frames
    cdef ThreadRecord *_threads
    cdef Py_ssize_t _frame_count
    cdef Py_ssize_t _frame_capacity
    cdef Py_ssize_t _thread_count
    cdef readonly int pid
    cdef readonly double time
    cdef readonly unsigned long current
    cdef readonly bint truncated

    def __init__(self):
        raise TypeError("snapshots are made by snapshot()")

    def __dealloc__(self):
        cdef Py_ssize_t i
        for i in range(self._frame_count):
            ws_decref(self._frames[i].code)
        for i in range(self._thread_count):
            if self._threads[i].name != NULL:
                ws_decref(self._threads[i].name)
        free(self._frames)
        free(self._threads)

    # No tracing in these two, whatever the build: a trace function is bytecode.
    @cython.linetrace(False)
    @cython.profile(False)
    cdef int take(self, int max_depth, Py_ssize_t max_threads, Py_ssize_t max_frames) except -1:
        """Fill this new snapshot."""
        cdef dict frames
        cdef int collecting
        self.pid = getpid()
        self.time = time()
        self.current = PyThread_get_thread_ident()
        # Up to CPython 3.11 the garbage collector runs inside an allocation, and frame objects
        # are allocated here: finalizers would run in the middle of the walk, and, while
        # _current_frames holds the interpreter's thread list locked, deadlock (gh-106883).
        # PyGC_Disable, unlike freezing or gc.disable(), is one store and runs no bytecode.
        collecting = PyGC_Disable()
        try:
            # An audit hook may run Python here, but before any frame is taken.
            frames = _current_frames()
            self.copy(<PyObject *>frames, max_depth, max_threads, max_frames)
            frames = None
            self.name_threads()
        finally:
            if collecting:
                PyGC_Enable()
        return 0

    @cython.linetrace(False)
    @cython.profile(False)
    cdef void copy(
        self, PyObject *frames, int max_depth, Py_ssize_t max_threads, Py_ssize_t max_frames
    ) noexcept:
        """Copy each thread's frames, newest first; *frames* maps ident to frame.

        Drops references to frames only where the running thread itself holds another one, and
        allocates from the C heap, so nothing here can run Python code.
        """
        cdef Py_ssize_t pos = 0
        cdef PyObject *key
        cdef PyObject *value
        cdef PyFrameObject *frame
        cdef PyFrameObject *back
        cdef ThreadRecord *thread
        cdef FrameRecord *record
        while PyDict_Next(frames, &pos, &key, &value):
            if self._thread_count >= max_threads or not self.grow_threads():
                self.truncated = True
                return
            thread = &self._threads[self._thread_count]
            self._thread_count += 1
            thread.ident = PyLong_AsUnsignedLong(key)
            thread.start = self._frame_count
            thread.count = 0
            thread.truncated = False
            thread.name = NULL
            thread.native_id = 0
            thread.daemon = -1
            frame = <PyFrameObject *>value
            ws_incref(frame)
            while frame != NULL:
                if (
                    thread.count >= max_depth
                    or self._frame_count >= max_frames
                    or not self.grow_frames()
                ):
                    thread.truncated = True
                    ws_decref(frame)
                    break
                record = &self._frames[self._frame_count]
                record.code = PyFrame_GetCode(frame)
                record.line = PyFrame_GetLineNumber(frame)
                self._frame_count += 1
                thread.count += 1
                back = PyFrame_GetBack(frame)
                ws_decref(frame)
                frame = back
            if PyErr_Occurred() != NULL:
                PyErr_Clear()
                thread.truncated = True

    @cython.linetrace(False)
    @cython.profile(False)
    cdef bint grow_threads(self) noexcept:
        """Make room for one more thread; room doubles at powers of two. False: no memory."""
        cdef Py_ssize_t n = self._thread_count
        cdef void *grown
        if n == 0 or (n >= 16 and n & (n - 1) == 0):
            grown = realloc(self._threads, max(16, 2 * n) * sizeof(ThreadRecord))
            if grown == NULL:
                return False
            self._threads = <ThreadRecord *>grown
        return True

    @cython.linetrace(False)
    @cython.profile(False)
    cdef bint grow_frames(self) noexcept:
        """Make room for one more frame. False: no memory."""
        cdef void *grown
        cdef Py_ssize_t capacity
        if self._frame_count == self._frame_capacity:
            capacity = max(128, 2 * self._frame_capacity)
            grown = realloc(self._frames, capacity * sizeof(FrameRecord))
            if grown == NULL:
                return False
            self._frames = <FrameRecord *>grown
            self._frame_capacity = capacity
        return True

    cdef int name_threads(self) except -1:
        """What threading knows of each thread, read from its table.

        Not by threading.enumerate(), which waits for a lock, nor through properties that are
        Python code: either could hand the GIL away.
        """
        cdef Py_ssize_t i
        cdef object active = threading._active
        cdef object thread, value
        if type(active) is not dict:
            return 0
        for i in range(self._thread_count):
            thread = (<dict>active).get(self._threads[i].ident)
            if thread is None:
                continue
            value = _attribute(thread, "_name")
            if isinstance(value, str):
                ws_incref(<PyObject *>value)
                self._threads[i].name = <PyObject *>value
            value = _attribute(thread, "_daemonic")
            if value is not None:
                self._threads[i].daemon = value is True
            value = _attribute(thread, "_native_id")
            if type(value) is int and 0 < value < 1 << 31:
                self._threads[i].native_id = value
        return 0

    @property
    def threads(self):
        """A tuple of ThreadStack, most recently created thread first; made anew on each use."""
        cdef Py_ssize_t i
        return tuple([self.thread(i) for i in range(self._thread_count)])

    cdef object thread(self, Py_ssize_t i):
        cdef ThreadRecord *thread = &self._threads[i]
        cdef FrameRecord *record
        cdef PyObject *qualname
        cdef Py_ssize_t j
        cdef list frames = []
        for j in range(thread.start, thread.start + thread.count):
            record = &self._frames[j]
            qualname = ws_qualname(record.code)
            frames.append(Frame(
                _name(record.code.co_filename),
                None if record.line < 0 else record.line,
                _name(record.code.co_name),
                None if qualname == NULL else _name(qualname),
            ))
        return ThreadStack(
            thread.ident,
            None if thread.native_id == 0 else thread.native_id,
            None if thread.name == NULL else _name(thread.name),
            None if thread.daemon < 0 else bool(thread.daemon),
            thread.ident == self.current,
            bool(thread.truncated),
            tuple(frames),
        )

    def text(self):
        """The snapshot in the form of ``faulthandler.dump_traceback(all_threads=True)``, ASCII.

        As there, every other character of a name is written as ``\\xNN``, ``\\uNNNN`` or
        ``\\UNNNNNNNN``, names end after 500 characters with ``...``, an unknown line is ``???``.
        Thread names are left out, as before CPython 3.14. Bounds are MAX_DEPTH and MAX_THREADS.
        """
        cdef Buffer out = Buffer(NULL, 0, 0)
        cdef Py_ssize_t i
        try:
            for i in range(self._thread_count):
                if i != 0:
                    _put(&out, "\n")
                if self._threads[i].ident == self.current:
                    _put(&out, "Current thread 0x")
                else:
                    _put(&out, "Thread 0x")
                _put_hex(&out, self._threads[i].ident, 2 * sizeof(unsigned long))
                _put(&out, " (most recent call first):\n")
                self.put_stack(&out, i)
            if self.truncated:
                _put(&out, "\n...\n")
            return out.data[:out.size].decode("ascii")
        finally:
            free(out.data)

    cdef int put_stack(self, Buffer *out, Py_ssize_t i) except -1:
        cdef Py_ssize_t start = self._threads[i].start
        cdef Py_ssize_t j
        cdef FrameRecord *record
        for j in range(start, start + self._threads[i].count):
            record = &self._frames[j]
            _put(out, "  File ")
            if PyUnicode_Check(record.code.co_filename):
                _put(out, '"')
                _put_escaped(out, record.code.co_filename)
                _put(out, '"')
            else:
                _put(out, "???")
            _put(out, ", line ")
            if record.line >= 0:
                _put_decimal(out, record.line)
            else:
                _put(out, "???")
            _put(out, " in ")
            _put_escaped(out, record.code.co_name)
            _put(out, "\n")
        if self._threads[i].truncated:
            _put(out, "  ...\n")
        return 0

    def stack_text(self, Py_ssize_t index):
        """The lines that :meth:`text` has for ``threads[index]``, without its head line."""
        cdef Buffer out = Buffer(NULL, 0, 0)
        if not 0 <= index < self._thread_count:
            raise IndexError(index)
        try:
            self.put_stack(&out, index)
            return out.data[:out.size].decode("ascii")
        finally:
            free(out.data)


def snapshot(
    *, int max_depth=MAX_DEPTH, Py_ssize_t max_threads=MAX_THREADS, Py_ssize_t max_frames=MAX_FRAMES
):
    """The stacks of all Python threads, now. Never waits and never hands the GIL away.

    The bounds may be lowered; ValueError outside 1 to the maximum, MemoryError when there is none.
    """
    global _taken
    if not 1 <= max_depth <= MAX_DEPTH:
        raise ValueError(f"max_depth must be 1 to {MAX_DEPTH}, not {max_depth}")
    if not 1 <= max_threads <= MAX_THREADS:
        raise ValueError(f"max_threads must be 1 to {MAX_THREADS}, not {max_threads}")
    if not 1 <= max_frames <= MAX_FRAMES:
        raise ValueError(f"max_frames must be 1 to {MAX_FRAMES}, not {max_frames}")
    cdef Snapshot taken = Snapshot.__new__(Snapshot)
    taken.take(max_depth, max_threads, max_frames)
    _taken += 1
    return taken


def snapshots_taken():
    """How many snapshots this process has taken."""
    return _taken


cdef object _attribute(object o, str name):
    """An instance attribute without the class's own ``__getattr__``; None if there is none."""
    try:
        return PyObject_GenericGetAttr(o, name)
    except Exception:
        return None


cdef str _name(PyObject *o):
    """A name of bounded length that any encoder can write (no lone surrogates)."""
    if not PyUnicode_Check(o):
        return "???"
    cdef str name = <str><object>o
    if len(name) > LONG_NAME:
        name = name[:LONG_NAME] + "..."
    if not name.isascii():
        name = name.encode("utf-8", "backslashreplace").decode("utf-8")
    return name


def kernel_state(int tid):
    """``(state, wait channel)`` of a thread of this process from /proc, None for what is hidden.

    Read with the GIL held on purpose: procfs doesn't wait, getting the GIL back might.
    """
    cdef bytes stat = _read_small(b"/proc/self/task/%d/stat" % tid)
    cdef bytes wchan = _read_small(b"/proc/self/task/%d/wchan" % tid)
    # The second field is the command in parentheses and may itself hold any character.
    cdef bytes state = stat.rpartition(b")")[2].strip()[:1]
    return (
        state.decode("ascii", "replace") or None,
        None if wchan in (b"", b"0") else wchan.decode("ascii", "replace"),
    )


cdef bytes _read_small(bytes path):
    """At most the first 1023 bytes of a file; empty if it can't be read."""
    cdef char data[1024]
    cdef ssize_t n
    cdef int fd = open(<const char *>path, O_RDONLY)
    if fd < 0:
        return b""
    n = read(fd, data, sizeof(data) - 1)
    close(fd)
    return data[:n] if n > 0 else b""


cdef int _reserve(Buffer *out, Py_ssize_t n) except -1:
    cdef Py_ssize_t capacity
    cdef void *grown
    if out.size + n > out.capacity:
        capacity = max(4096, 2 * out.capacity, out.size + n)
        grown = realloc(out.data, capacity)
        if grown == NULL:
            raise MemoryError
        out.data = <char *>grown
        out.capacity = capacity
    return 0


cdef int _put(Buffer *out, const char *text) except -1:
    cdef Py_ssize_t n = strlen(text)
    _reserve(out, n)
    memcpy(out.data + out.size, text, n)
    out.size += n
    return 0


cdef int _put_hex(Buffer *out, unsigned long value, int digits) except -1:
    cdef int i
    _reserve(out, digits)
    for i in range(digits):
        out.data[out.size + i] = HEX[(value >> 4 * (digits - 1 - i)) & 15]
    out.size += digits
    return 0


cdef int _put_decimal(Buffer *out, int value) except -1:
    cdef char digits[12]
    cdef int i = sizeof(digits)
    while True:
        i -= 1
        digits[i] = c"0" + value % 10
        value //= 10
        if value == 0:
            break
    _reserve(out, sizeof(digits) - i)
    memcpy(out.data + out.size, digits + i, sizeof(digits) - i)
    out.size += sizeof(digits) - i
    return 0


cdef int _put_escaped(Buffer *out, PyObject *name) except -1:
    cdef Py_ssize_t i, size
    cdef int kind
    cdef void *data
    cdef char *to
    cdef Py_UCS4 c
    if not PyUnicode_Check(name):
        return _put(out, "???")
    size = min(PyUnicode_GET_LENGTH(name), TEXT_NAME)
    kind = PyUnicode_KIND(name)
    data = PyUnicode_DATA(name)
    _reserve(out, 10 * size)  # each character may become as long as \UNNNNNNNN
    to = out.data + out.size
    for i in range(size):
        c = (<unsigned char *>data)[i] if kind == 1 else PyUnicode_READ(kind, data, i)
        if 32 <= c <= 126:
            to[0] = <char>c
            to += 1
            continue
        out.size = to - out.data
        if c <= 0xff:
            _put(out, "\\x")
            _put_hex(out, c, 2)
        elif c <= 0xffff:
            _put(out, "\\u")
            _put_hex(out, c, 4)
        else:
            _put(out, "\\U")
            _put_hex(out, c, 8)
        to = out.data + out.size
    out.size = to - out.data
    if size < PyUnicode_GET_LENGTH(name):
        _put(out, "...")
    return 0
