"""What a listener keeps of its table."""

from workerserver.native._engine cimport Route, TableData, Text


cdef class Table:
    cdef TableData data
    cdef Route* _routes
    cdef Text* _names
    cdef char* _text
    cdef Py_ssize_t _used  # bytes of _text

    cdef Text _keep(self, bytes text) except *
