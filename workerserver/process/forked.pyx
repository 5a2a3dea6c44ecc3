"""What a forked child keeps of its parent."""

from cpython.ref cimport Py_INCREF


def immortalise(thing):
    """Keep *thing* for as long as the process lives.

    For what a forked child inherits and must neither use nor destroy: uvloop's objects would
    close descriptor numbers that are no longer theirs.
    """
    Py_INCREF(thing)
