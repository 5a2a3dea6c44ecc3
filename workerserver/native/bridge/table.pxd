"""What a listener keeps of its table."""

from workerserver.native._engine cimport Route, Rule, TableData, Text


cdef class Table:
    cdef TableData data
    cdef Route* _routes
    cdef Rule* _rules
    cdef Text* _names
    cdef char* _text
    cdef Py_ssize_t _used  # bytes of _text

    cdef Text _keep(self, bytes text) except *
    cdef int _set_routes(self, list entries) except -1
    cdef int _set_rules(self, list forms) except -1
