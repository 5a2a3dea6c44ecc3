"""What a forked child keeps of its parent."""

from cpython.ref cimport Py_INCREF


def immortalise(thing):
    """Keep *thing* for as long as the process lives.

    For objects that a forked child inherits and must neither use nor destroy. uvloop's objects
    would close descriptor numbers that belong to something else by then.
    """
    Py_INCREF(thing)
