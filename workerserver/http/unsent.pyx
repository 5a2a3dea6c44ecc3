"""Replies of one connection that its client has not taken yet."""

cimport cython

cdef Py_ssize_t MAX_SMALL_BYTES = 1024  # bodies up to this are sent whatever is unsent


@cython.final
@cython.internal
cdef class Unsent:
    """What is unsent on a connection, and who is to hear when that is sent. Used by the loop's
    thread only.

    The native transport counts for itself; then ``counts`` is False. ``blind``: TLS, where the
    transport does not tell. There a reply counts until the client asks again, or is gone.
    """

    cdef ServerState _state
    cdef bint counts
    cdef bint blind
    cdef Py_ssize_t _counted  # our share of _state.unsent_here
    cdef object _sent  # of the reply under way: to be called when it is sent; else None

    def __init__(self, ServerState state):
        self._state = state

    cdef bint takes(self, Py_ssize_t size) except -1:
        """Whether a reply of *size* bytes may be written: the unsent ones of all clients have a
        limit. Where all is sent, a reply may have any size."""
        cdef Py_ssize_t unsent
        if size <= MAX_SMALL_BYTES:
            return True
        unsent = self._state.unsent
        return unsent == 0 or unsent + size <= self._state.limits.max_unsent

    cdef int begin(self, sent) except -1:
        """A reply is to be written; *sent* is to hear of it, unless it is None."""
        self._sent = sent
        return 0

    cdef int wrote(self, Py_ssize_t size, transport) except -1:
        """A large body of *size* bytes is with the transport."""
        if self.counts:
            self._count(size if self.blind else transport.get_write_buffer_size())
        return 0

    cdef int went_out(self, transport) except -1:
        """The transport takes bytes again, or took all of the reply at once."""
        if not self.blind:
            if self._counted:
                self._count(transport.get_write_buffer_size())
            self._tell()
        return 0

    cdef int asked_again(self, transport) except -1:
        """The next request came: as a rule its client has read the reply before."""
        if self._counted or self._sent is not None:
            self._count(0 if self.blind else transport.get_write_buffer_size())
            self._tell()
        return 0

    cdef int end(self) except -1:
        """Nothing is sent any more."""
        self._count(0)
        self._tell()
        return 0

    cdef int _count(self, Py_ssize_t size) except -1:
        self._state.unsent_here += size - self._counted
        self._counted = size
        return 0

    cdef int _tell(self) except -1:
        sent = self._sent
        if sent is not None:
            self._sent = None
            try:
                sent()
            except Exception:
                _logger.warning("a response's sent() failed", exc_info=True)
        return 0
