"""What others use: Python functions, and functions for other compiled modules."""

import os

from posix.unistd cimport usleep
from workerserver.stacks.snapshot cimport (
    ws_dump, ws_dump_init, ws_dump_prepare, ws_dump_take, ws_dump_take_native, ws_dump_within,
    ws_dumps_taken, ws_gil, ws_kernel_take, ws_selfread_gil, ws_selfread_problem,
    ws_waits_store,
)

if ws_dump_init() != 0:
    raise MemoryError

cdef unsigned long long _taken = 0  # snapshots with the GIL


def snapshot(
    *,
    str mode="gil",
    bint facts=False,
    bint native=False,
    int max_depth=MAX_DEPTH,
    Py_ssize_t max_threads=MAX_THREADS,
    Py_ssize_t max_frames=MAX_FRAMES,
):
    """The stacks of all Python threads, now.

    Mode ``gil`` never waits and never hands the GIL away. ``nogil`` releases it, reads the stacks
    while others may run, and takes it again: NotImplementedError where that is not possible here,
    RuntimeError if it failed this time. ``kernel``: what the kernel knows; RuntimeError without
    /proc. With *facts* the snapshot also says what threads wait for and which locks they hold, as
    far as known.publish() has made that readable.

    With *native*, in mode nogil alone, its text and JSON show native frames too (unwind.h). Where
    Python's stacks can't be read, such a snapshot is of mode ``kernel``, and has native frames
    only; RuntimeError without /proc. The bounds are for mode gil and may be lowered;
    ValueError outside 1 to the maximum.
    MemoryError when there is no memory.
    """
    global _taken
    if not 1 <= max_depth <= MAX_DEPTH:
        raise ValueError(f"max_depth must be 1 to {MAX_DEPTH}, not {max_depth}")
    if not 1 <= max_threads <= MAX_THREADS:
        raise ValueError(f"max_threads must be 1 to {MAX_THREADS}, not {max_threads}")
    if not 1 <= max_frames <= MAX_FRAMES:
        raise ValueError(f"max_frames must be 1 to {MAX_FRAMES}, not {max_frames}")
    if mode != "gil" and (max_depth, max_threads, max_frames) != (
        MAX_DEPTH, MAX_THREADS, MAX_FRAMES
    ):
        raise ValueError("bounds are for mode gil")
    if native and mode != "nogil":
        raise ValueError("native frames are for mode nogil")
    cdef Snapshot taken = Snapshot.__new__(Snapshot)
    cdef int status
    if mode == "gil":
        taken.take(max_depth, max_threads, max_frames, facts)
        _taken += 1
    elif mode == "nogil":
        problem = prepare()
        taken._native = native
        if native:
            with nogil:
                status = ws_dump_take_native(&taken._c, facts)
        elif problem is not None:
            raise NotImplementedError(problem)
        else:
            with nogil:
                status = ws_dump_take(&taken._c, facts)
        if status != 0:
            raise RuntimeError("stacks could not be read without the GIL")
    elif mode == "kernel":
        if ws_kernel_take(&taken._c) != 0:
            raise RuntimeError("/proc/self/task can't be read")
    else:
        raise ValueError(f"mode must be gil, nogil or kernel, not {mode}")
    return taken


def snapshots_taken():
    """How many snapshots this process has taken, with the GIL and without it."""
    return _taken + ws_dumps_taken()


def kernel_state(long tid):
    """``(state, wait channel)`` of a thread of this process from /proc, None for what is hidden.

    Read with the GIL held, on purpose: procfs doesn't wait, but to get the GIL back might.
    """
    cdef ws_kernel found
    ws_kernel_state(tid, &found)
    return (
        chr(found.state) if found.state else None,
        found.wchan.decode("ascii", "replace") or None,
    )


def prepare():
    """Learn to read stacks without the GIL. Before that, such dumps are of mode kernel.

    Call it once in a process, and again in a forked child; further calls are cheap. Returns None,
    or the reason why stacks can't be read without the GIL here.

    It also learns the port of the job's store from the environment: whoever waits for an answer
    from there waits for other ranks.
    """
    cdef const char *problem
    cdef str port = os.environ.get("MASTER_PORT", "")
    ws_waits_store(int(port) if port.isdecimal() and len(port) < 6 else 0)
    while ws_selfread_problem() != NULL and ws_dump_prepare() != 0:
        with nogil:
            usleep(200)
    problem = ws_selfread_problem()
    return None if problem == NULL else problem.decode("utf-8", "replace")


# ---- for other compiled modules: any thread, no GIL. Untraced, because tracing takes the GIL.


@cython.linetrace(False)
@cython.profile(False)
cdef int dump_reply(int wanted, ws_buffer *outs, ws_buffer *headers) noexcept nogil:
    return ws_dump(wanted, outs, headers)


@cython.linetrace(False)
@cython.profile(False)
cdef int dump_within(size_t limit, ws_buffer *outs, ws_buffer *headers) noexcept nogil:
    return ws_dump_within(limit, outs, headers)


@cython.linetrace(False)
@cython.profile(False)
cdef void buffer_free(ws_buffer *buffer) noexcept nogil:
    ws_buffer_free(buffer)


@cython.linetrace(False)
@cython.profile(False)
cdef void gil_state(ws_gil *out) noexcept nogil:
    ws_selfread_gil(out)
