"""A snapshot: its C arrays, how they are filled with the GIL, and its faces in Python."""

import sys
import threading
from collections import namedtuple

cimport cython
from libc.stdlib cimport free, realloc
from libc.string cimport memset
from posix.unistd cimport getpid
from workerserver.stacks.snapshot cimport (
    WS_DIGEST, WS_JSON, WS_MAX_DEPTH, WS_MAX_FRAMES, WS_MAX_NAME, WS_MAX_THREADS, WS_MODE_GIL,
    WS_MODE_KERNEL, WS_MODE_NOGIL, WS_NATIVE_JSON, WS_NATIVE_TEXT, WS_TEXT, ws_buffer,
    ws_buffer_free, ws_check_snapshot, ws_format, ws_frame, ws_has_children, ws_kernel,
    ws_kernel_free, ws_kernel_state, ws_native_free, ws_now, ws_place,
    ws_render, ws_render_headers, ws_render_stack, ws_selfread_free, ws_selfread_problem,
    ws_snapshot, ws_thread, ws_waits_free, ws_waits_with_gil,
)

# The most that one snapshot holds: frames of one thread, threads, frames of all threads.
MAX_DEPTH = WS_MAX_DEPTH
MAX_THREADS = WS_MAX_THREADS
MAX_FRAMES = WS_MAX_FRAMES

# A snapshot with more than this is rendered without the GIL. JSON reads files for each thread.
cdef size_t LONG = 2000  # frames
cdef size_t MANY = 50  # threads
cdef size_t MANY_IN_JSON = 4

cdef tuple MODES = ("gil", "nogil", "kernel")  # by ws_mode
cdef dict FORMATS = {"text": WS_TEXT, "json": WS_JSON, "digest": WS_DIGEST}

# Taken now, before a program can replace it with something that runs bytecode.
cdef object _current_frames = sys._current_frames

Frame = namedtuple("Frame", "file line function qualname", module=__name__)
ThreadStack = namedtuple(
    "ThreadStack",
    "ident native_id name daemon current truncated unstable frames",
    module=__name__,
)


@cython.final
cdef class Snapshot:
    """All Python stacks of one moment; made by :func:`snapshot`, never by hand.

    A snapshot owns its C arrays and the references in them. It never changes after snapshot() has
    returned it, so any thread may render it. It holds code objects but no frames: it never keeps a
    function's locals alive.

    ``mode`` says how it was taken: ``gil``, ``nogil`` or ``kernel`` (no frames). ``pid`` and
    ``time`` (seconds since the epoch) are of that moment. ``holder`` is the ident of the thread
    that held the GIL; in mode gil this thread took the snapshot. None: no thread, or unknown.
    ``truncated`` says that threads were left out.
    """

    cdef ws_snapshot _c
    # In mode gil the arrays are from the C heap, and the names lie in objects of Python.
    cdef PyObject **_held  # these objects; one reference to each is ours
    cdef size_t _held_count
    cdef size_t _held_capacity
    cdef size_t _thread_capacity
    cdef size_t _frame_capacity
    cdef ws_place *_places  # of the frames, while waits are read
    cdef size_t _place_capacity
    cdef bint _facts
    cdef bint _native  # somebody has asked for native frames

    def __init__(self):
        raise TypeError("snapshots are made by snapshot()")

    def __dealloc__(self):
        cdef size_t i
        ws_native_free(self._c.native)
        if self._c.mode == WS_MODE_NOGIL:
            ws_selfread_free(&self._c)
        elif self._c.mode == WS_MODE_KERNEL:
            ws_kernel_free(&self._c)
        else:
            for i in range(self._held_count):
                ws_decref(self._held[i])
            free(self._held)
            free(self._c.threads)
            free(self._c.frames)
            ws_waits_free(&self._c)
            free(self._places)

    # No tracing here, not even in a coverage build: a trace function is bytecode.
    @cython.linetrace(False)
    @cython.profile(False)
    cdef int take(
        self, size_t max_depth, size_t max_threads, size_t max_frames, bint facts
    ) except -1:
        """Fill this new snapshot, with the GIL; with *facts*, with what threads wait for too."""
        cdef dict frames
        cdef int collecting
        # Where frames lie is known once reading without the GIL is prepared.
        self._facts = facts and ws_selfread_problem() == NULL
        self._c.mode = WS_MODE_GIL
        self._c.pid = getpid()
        self._c.time = ws_now()
        self._c.holder = PyThread_get_thread_ident()
        # Up to CPython 3.11 an allocation may run the garbage collector, and frame objects are
        # allocated here. So finalizers would run in the middle of the walk. While _current_frames
        # has the interpreter's list of threads locked, they would deadlock (gh-106883).
        # PyGC_Disable is one store and runs no bytecode, unlike gc.freeze() and gc.disable().
        collecting = PyGC_Disable()
        try:
            # An audit hook may run Python here, but before any frame is taken.
            frames = _current_frames()
            self.copy(<PyObject *>frames, max_depth, max_threads, max_frames)
            self.name_threads()
            if self._facts:
                ws_waits_with_gil(&self._c, self._places)
            frames = None
            ws_check_snapshot(&self._c)
        finally:
            if collecting:
                PyGC_Enable()
        return 0

    @cython.linetrace(False)
    @cython.profile(False)
    cdef void copy(
        self, PyObject *frames, size_t max_depth, size_t max_threads, size_t max_frames
    ) noexcept:
        """Copy each thread's frames, newest first; *frames* maps ident to frame.

        Nothing here can run Python code: memory comes from the C heap, and a reference to a frame
        is dropped only while the running thread holds another one.
        """
        cdef Py_ssize_t pos = 0
        cdef PyObject *key
        cdef PyObject *value
        cdef PyFrameObject *frame
        cdef PyFrameObject *back
        cdef ws_thread *thread
        while PyDict_Next(frames, &pos, &key, &value):
            if self._c.thread_count >= max_threads or not grow(
                <void **>&self._c.threads, self._c.thread_count, &self._thread_capacity,
                sizeof(ws_thread),
            ):
                self._c.truncated = True
                return
            thread = &self._c.threads[self._c.thread_count]
            self._c.thread_count += 1
            memset(thread, 0, sizeof(ws_thread))
            thread.ident = PyLong_AsUnsignedLong(key)
            thread.start = self._c.frame_count
            thread.daemon = -1
            frame = <PyFrameObject *>value
            ws_incref(frame)
            while frame != NULL:
                if (
                    thread.count >= max_depth
                    or self._c.frame_count >= max_frames
                    or not self.add(frame)
                ):
                    thread.truncated = True
                    ws_decref(frame)
                    break
                thread.count += 1
                back = PyFrame_GetBack(frame)
                ws_decref(frame)
                frame = back
            if PyErr_Occurred() != NULL:
                PyErr_Clear()
                thread.truncated = True

    @cython.linetrace(False)
    @cython.profile(False)
    cdef bint add(self, PyFrameObject *frame) noexcept:
        """Copy one frame. False: no memory."""
        cdef ws_frame *to
        cdef PyCodeObject *code
        if not grow(
            <void **>&self._c.frames, self._c.frame_count, &self._frame_capacity, sizeof(ws_frame)
        ):
            return False
        code = PyFrame_GetCode(frame)
        if not self.hold(<PyObject *>code):
            ws_decref(code)
            return False
        if self._facts:
            if grow(
                <void **>&self._places, self._c.frame_count, &self._place_capacity,
                sizeof(ws_place),
            ):
                self._places[self._c.frame_count] = ws_place_of(frame, code)
            else:
                self._facts = False
        to = &self._c.frames[self._c.frame_count]
        to.file = ws_borrow(code.co_filename)
        to.function = ws_borrow(code.co_name)
        to.qualname = ws_borrow(ws_qualname(code))
        to.line = PyFrame_GetLineNumber(frame)
        self._c.frame_count += 1
        return True

    @cython.linetrace(False)
    @cython.profile(False)
    cdef bint hold(self, PyObject *o) noexcept:
        """Take over a reference. False: no memory, and it stays the caller's."""
        if not grow(
            <void **>&self._held, self._held_count, &self._held_capacity, sizeof(PyObject *)
        ):
            return False
        self._held[self._held_count] = o
        self._held_count += 1
        return True

    cdef int name_threads(self) except -1:
        """What threading knows of each thread, read from its tables.

        threading.enumerate() waits for a lock, and the functions and properties of threads are
        Python code. Either could hand the GIL away.
        """
        cdef size_t i
        cdef ws_thread *to
        cdef object active = threading._active
        cdef object thread, value
        value = _attribute(threading._main_thread, "_ident")
        if type(value) is int and 0 < value < 1 << 63:
            self._c.main_ident = value
        if type(active) is not dict:
            return 0
        for i in range(self._c.thread_count):
            to = &self._c.threads[i]
            thread = (<dict>active).get(to.ident)
            if thread is None:
                continue
            value = _attribute(thread, "_name")
            if isinstance(value, str) and self.hold(<PyObject *>value):
                ws_incref(<PyObject *>value)
                to.name = ws_borrow(<PyObject *>value)
            value = _attribute(thread, "_daemonic")
            if value is not None:
                to.daemon = value is True
            value = _attribute(thread, "_native_id")
            if type(value) is int and 0 < value < 1 << 31:
                to.native_id = value
            if to.ident == self._c.main_ident:
                self.number_main(to)
        return 0

    cdef void number_main(self, ws_thread *main) noexcept:
        """In a forked child, threading keeps the number that the main thread had in the parent
        (CPython 3.10 and 3.11). The kernel has no such thread here: the only thread that a child
        begins with has the number of the process."""
        cdef ws_kernel found
        if main.native_id == 0 or main.native_id == self._c.pid:
            return
        ws_kernel_state(main.native_id, &found)
        if found.state == 0:
            ws_kernel_state(self._c.pid, &found)
            if found.state != 0:
                main.native_id = self._c.pid

    @property
    def mode(self):
        return MODES[<int>self._c.mode]

    @property
    def pid(self):
        return self._c.pid

    @property
    def time(self):
        return self._c.time

    @property
    def holder(self):
        return self._c.holder or None

    @property
    def truncated(self):
        return bool(self._c.truncated)

    @property
    def threads(self):
        """A tuple of ThreadStack, most recently created thread first; made anew on each use.

        In mode kernel every ``ident`` is 0, as Python's idents are not known.
        """
        cdef size_t i
        return tuple([self.thread(&self._c.threads[i]) for i in range(self._c.thread_count)])

    cdef object thread(self, ws_thread *thread):
        cdef ws_frame *frame
        cdef size_t i
        cdef list frames = []
        for i in range(thread.start, thread.start + thread.count):
            frame = &self._c.frames[i]
            frames.append(Frame(
                _name(&frame.file),
                None if frame.line < 0 else frame.line,
                _name(&frame.function),
                None if frame.qualname.kind == 0 else _name(&frame.qualname),
            ))
        return ThreadStack(
            thread.ident,
            None if thread.native_id == 0 else thread.native_id,
            None if thread.name.kind == 0 else _name(&thread.name),
            None if thread.daemon < 0 else bool(thread.daemon),
            self._c.holder != 0 and thread.ident == self._c.holder,
            bool(thread.truncated),
            bool(thread.unstable),
            tuple(frames),
        )

    def render(self, str format):
        """The snapshot as ASCII bytes: ``text``, ``json`` or ``digest``, as render.h says. Text
        and JSON of a snapshot with native frames show them."""
        cdef ws_buffer out = ws_buffer(NULL, 0, 0)
        if format not in FORMATS:
            raise ValueError(f"format must be text, json or digest, not {format}")
        cdef ws_format wanted = FORMATS[format]
        cdef int status
        if self._native and wanted != WS_DIGEST:
            wanted = WS_NATIVE_TEXT if wanted == WS_TEXT else WS_NATIVE_JSON
        if (
            self._native
            or self._c.frame_count > LONG or self._c.thread_count > MANY
            or wanted == WS_JSON
            and (self._c.thread_count > MANY_IN_JSON or ws_has_children())
        ):
            # Milliseconds, in JSON up to four files of /proc and 30 us for each thread and process:
            # worth getting the GIL back.
            with nogil:
                status = ws_render(&self._c, wanted, &out)
        else:
            status = ws_render(&self._c, wanted, &out)
        return _bytes(status, &out)

    def text(self):
        """The text form, as str."""
        return self.render("text").decode("ascii")

    def stack_text(self, Py_ssize_t index):
        """The frames of ``threads[index]`` as they stand in the text."""
        cdef ws_buffer out = ws_buffer(NULL, 0, 0)
        if not 0 <= index < <Py_ssize_t>self._c.thread_count:
            raise IndexError(index)
        return _bytes(ws_render_stack(&self._c, index, &out), &out).decode("ascii")

    def headers(self):
        """What a reply says of the snapshot: a tuple of ``(name, value)``."""
        cdef ws_buffer out = ws_buffer(NULL, 0, 0)
        cdef bytes lines = _bytes(ws_render_headers(&self._c, &out), &out)
        return tuple([
            tuple(line.split(": ", 1)) for line in lines.decode("ascii").split("\r\n")[:-1]
        ])


@cython.linetrace(False)
@cython.profile(False)
cdef bint grow(void **array, size_t count, size_t *capacity, size_t size) noexcept:
    """Make room for one more element of *size* bytes, from the C heap. False: no memory."""
    cdef void *grown
    cdef size_t more
    if count == capacity[0]:
        more = max(<size_t>64, 2 * capacity[0])
        grown = realloc(array[0], more * size)
        if grown == NULL:
            return False
        array[0] = grown
        capacity[0] = more
    return True


cdef bytes _bytes(int status, ws_buffer *out):
    """What was rendered; frees *out*."""
    try:
        if status != 0:
            raise MemoryError
        return out.data[:out.size]
    finally:
        ws_buffer_free(out)


cdef object _attribute(object o, str name):
    """An instance attribute without the class's own ``__getattr__``; None if there is none."""
    try:
        return PyObject_GenericGetAttr(o, name)
    except Exception:
        return None


cdef str _name(ws_name *name):
    """A name of bounded length that any encoder can write (no lone surrogates)."""
    if name.kind == 0:
        return "???"
    cdef size_t length = min(name.length, <size_t>WS_MAX_NAME)
    cdef str text = PyUnicode_FromKindAndData(name.kind, name.data, length)
    if length < name.length or name.cut:
        text += "..."
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text
