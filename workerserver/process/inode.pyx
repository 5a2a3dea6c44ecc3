"""Which file a descriptor is."""

from posix.stat cimport fstat, struct_stat


def inode_of(int fd):
    """``(device, inode)`` of *fd*; None if it is closed.

    Unlike os.fstat() it keeps the GIL: nothing in Python closes *fd* between this look and what
    the caller does next, up to a wait.
    """
    cdef struct_stat found
    if fstat(fd, &found) != 0:
        return None
    return found.st_dev, found.st_ino
