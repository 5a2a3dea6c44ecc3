"""Recording: where the time of this process's threads goes, by a thread of C for a while."""

from workerserver.stacks.snapshot cimport (
    WS_BY_WALL, WS_ON_CPU, ws_bool, ws_recording, ws_recording_free, ws_recording_left,
    ws_recording_render, ws_recording_runs, ws_recording_start, ws_recording_stop,
)


@cython.final
cdef class Recording:
    """Samples of all Python threads, for *seconds*, *hz* times a second. Made, it runs.

    *mode* ``wall`` counts all threads, ``cpu`` those on a processor. One runs at a time in a
    process: BlockingIOError says that there is another one. NotImplementedError where stacks can't
    be read without the GIL, MemoryError where there is no memory or no thread.

    The thread never needs the GIL and ends by itself. ``stop()`` ends it now; ``json()`` stops it
    and returns what was counted (sampler/render_tree.c). A recording stops with its last reference.
    """

    cdef ws_recording *_c

    def __cinit__(self, double seconds, double hz, str mode="wall"):
        cdef ws_bool busy = False
        if not 0 < seconds <= MAX_RECORDING_SECONDS:
            raise ValueError(f"seconds must be 0 to {MAX_RECORDING_SECONDS}, not {seconds}")
        if not 0 < hz <= MAX_RECORDING_HZ:
            raise ValueError(f"hz must be 0 to {MAX_RECORDING_HZ}, not {hz}")
        if mode not in ("wall", "cpu"):
            raise ValueError(f"mode must be wall or cpu, not {mode}")
        problem = prepare()
        if problem is not None:
            raise NotImplementedError(problem)
        self._c = ws_recording_start(seconds, hz, WS_ON_CPU if mode == "cpu" else WS_BY_WALL, &busy)
        if self._c == NULL:
            if busy:
                raise BlockingIOError("another recording runs in this process")
            raise MemoryError("no memory for a recording, or no thread")

    def __dealloc__(self):
        if self._c != NULL:
            with nogil:
                ws_recording_free(self._c)

    @property
    def running(self):
        """Whether its time isn't over, and nobody has stopped it."""
        return bool(ws_recording_runs(self._c))

    def stop(self):
        """End it now, and wait for its thread without the GIL: a moment."""
        with nogil:
            ws_recording_stop(self._c)

    def json(self):
        """Stop it, and return what it has counted."""
        cdef ws_buffer out = ws_buffer(NULL, 0, 0)
        cdef int status
        with nogil:
            ws_recording_stop(self._c)
            status = ws_recording_render(self._c, &out)
        return _bytes(status, &out)


def recording_left():
    """Seconds until the recording that runs in this process is over; 0.0: none runs."""
    return ws_recording_left()


MAX_RECORDING_SECONDS = 60.0
MAX_RECORDING_HZ = 1000.0
