"""What the hub's Python side uses of a transport."""

from workerserver.http._protocol cimport Session
from workerserver.native._engine cimport Connection


cdef class Link:
    cdef object _loop  # asyncio.AbstractEventLoop
    cdef Connection *_connection
    cdef object _transport  # NativeTransport
    cdef object _protocol  # asyncio.Protocol
    cdef object _socket  # socket.socket on a duplicate of the descriptor, or None
    cdef Session _session  # on the connection's own; None: nobody has asked for it
    cdef dict _extra
    cdef bint _closing
    cdef bint _ended  # write_eof() was called
    cdef bint _paused

    cdef bint open(self, loop, factory, Connection *connection) except -1
    cdef int deliver(self) except -1
    cdef int _lose(self, error) except -1
    cdef int _fail(self, str message, error) except -1
    cdef object _ask(self, str name)
    cdef int _maybe_pause(self) except -1
