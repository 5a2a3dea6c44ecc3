"""The black box of this process, as Python opens it and writes into it.

Samples are the I/O thread's (native/box/sampler.pyx). What only Python knows is written from here,
in the calling thread.
"""

from workerserver.native._engine cimport (
    box_counters, box_end, box_identity, box_open, box_recorder, box_watch, ends_restore,
)


def open_box(int fd, size_t size):
    """Map the file *fd*, which is empty and allocated, as this process's black box.

    OSError: ENOTSUP if the file is on no tmpfs, EINVAL if *size* is too small, EBUSY if this
    process has a black box already.
    """
    cdef int failed = box_open(fd, size)
    if failed:
        raise OSError(failed, os.strerror(failed))


def watch_file(bytes name not None, bytes path not None):
    """Put the beginning of a small file, as of /proc, into each record of figures. False if there
    are too many of them."""
    return bool(box_watch(name, path))


cdef bint _write(bint (*write)(const char *, size_t) noexcept nogil, bytes text) except -1:
    cdef const char *data = text
    cdef size_t size = len(text)
    cdef bint written
    with nogil:
        written = write(data, size)
    return written


def write_identity(bytes text not None):
    """Write a record of who this process is. False if it could not be written."""
    return bool(_write(box_identity, text))


def write_recorder(bytes text not None):
    """Write what the flight recorders hold. False if it could not be written."""
    return bool(_write(box_recorder, text))


def write_counters(bytes text not None):
    """Write torch's wait counters. False if they could not be written."""
    return bool(_write(box_counters, text))


def write_end(bytes text not None):
    """Write why the process ends, the last figures and the last stacks. False if the reason could
    not be written."""
    return bool(_write(box_end, text))


def restore_signals():
    """Give the handlers of signals back that keep_box() installed."""
    ends_restore()
