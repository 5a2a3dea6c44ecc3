"""The bytes of replies, for the protocol."""

cdef bytes reply_head(response, Py_ssize_t length, bint close, bint http_1_0, bytes proof=*)
