"""Asyncio transports whose sockets belong to the native I/O thread.

A ``NativeTransport`` works for any protocol in which the client speaks first. Transport and
protocol are made when the first bytes come that the I/O thread does not answer. One method is not
asyncio's: with ``want_bytes(boundary)`` a protocol that owes no reply gives the connection back to
the I/O thread, which may then answer the next requests. A protocol that never calls this method
gets all bytes.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdlib cimport free

from workerserver.http._protocol cimport Session
from workerserver.native._engine cimport (
    Connection, Event, connection_attach, connection_close, connection_descriptor,
    connection_detach, connection_full, connection_pause, connection_prove, connection_shut,
    connection_take, connection_unsent, connection_want, connection_write, hub_lock, hub_unlock,
)

import asyncio
import os
import socket
from asyncio.trsock import TransportSocket


@cython.final
cdef class Link:
    """What a NativeTransport does, bound to its connection. Used by the loop's thread only.

    ``_connection`` is NULL once connection_lost() is called; until then the struct holds a
    reference to this object.
    """

    cdef bint open(self, loop, factory, Connection *connection) except -1:
        """Make the transport and the protocol of *connection*; False if the protocol fails or
        closes the transport."""
        try:
            self._loop = loop
            self._extra = {}
            self._transport = NativeTransport(self)
        except BaseException:
            connection_close(connection, True)
            raise
        self._connection = connection
        connection_attach(connection, <void *>self)
        Py_INCREF(self)
        try:
            self._protocol = factory()
            self._protocol.connection_made(self._transport)
        except BaseException as error:
            self._fail("the protocol failed in connection_made()", error)
        return self._connection != NULL and not self._closing

    cdef int deliver(self) except -1:
        """Tell the protocol what has happened; the connection is claimed."""
        cdef Event event
        cdef bytes data = None
        connection_take(self._connection, &event)
        try:
            try:
                if event.data != NULL:
                    data = PyBytes_FromStringAndSize(event.data, event.size)
            finally:
                free(event.data)
            # Data first: in resume_writing() a protocol may ask for bytes, and then the connection
            # belongs to the I/O thread.
            if data is not None:
                self._protocol.data_received(data)
            if event.resume and not self._closing:
                self._protocol.resume_writing()
            if event.eof and not self._closing and not self._protocol.eof_received():
                self.close()
            if event.lost:
                self._lose(
                    OSError(event.error, os.strerror(event.error)) if event.error else None
                )
        except BaseException as error:
            self._fail("the protocol failed", error)
        return 0

    cdef int _lose(self, error) except -1:
        """Call connection_lost(), once, and let go of the connection."""
        cdef Connection *connection = self._connection
        if connection == NULL:
            return 0
        self._closing = True
        self._connection = NULL
        if self._session is not None:
            self._session.session = &self._session.own  # which proves nothing
            self._session = None
        protocol = self._protocol
        try:
            if protocol is not None:
                protocol.connection_lost(error)
        finally:
            if self._socket is not None:
                self._socket.close()
            self._socket = self._transport = self._protocol = None
            connection_close(connection, True)
            connection_detach(connection)
            Py_DECREF(self)
        return 0

    def lose(self):
        self._lose(None)

    cdef int _fail(self, str message, error) except -1:
        """The protocol has raised: as in asyncio, call the loop's exception handler and end the
        connection."""
        self._loop.call_exception_handler({
            "message": message,
            "exception": error,
            "transport": self._transport,
            "protocol": self._protocol,
        })
        self.abort()
        return 0

    # --- asyncio.Transport

    def get_extra_info(self, name, default):
        if name not in ("peername", "sockname", "socket"):
            return default
        if name not in self._extra:
            self._extra[name] = self._ask(name)
        found = self._extra[name]
        return default if found is None else found

    cdef object _ask(self, str name):
        """Ask a duplicate of the descriptor: the I/O thread may close the other at any time."""
        cdef int fd = -1 if self._connection == NULL else connection_descriptor(self._connection)
        if fd < 0:
            return None
        sock = socket.socket(fileno=fd)
        if name == "socket":
            self._socket = sock
            return TransportSocket(sock)
        with sock:
            try:
                return sock.getpeername() if name == "peername" else sock.getsockname()
            except OSError:
                return None

    def set_protocol(self, protocol):
        self._protocol = protocol

    def get_protocol(self):
        return self._protocol

    def is_closing(self):
        return self._closing

    def close(self):
        if self._closing:
            return
        self._closing = True
        if connection_close(self._connection, False):
            self._loop.call_soon(self.lose)

    def abort(self):
        if self._connection == NULL:
            return
        self._closing = True
        if connection_close(self._connection, True):
            self._loop.call_soon(self.lose)

    def pause_reading(self):
        if self._closing or self._paused:
            return
        self._paused = True
        connection_pause(self._connection, True)

    def resume_reading(self):
        if self._closing or not self._paused:
            return
        self._paused = False
        connection_pause(self._connection, False)

    def is_reading(self):
        return not self._paused and not self._closing

    def want_bytes(self, bint boundary):
        if not self._closing:
            connection_want(self._connection, boundary)

    def trust(self):
        if self._connection != NULL:
            connection_prove(self._connection)

    def session(self):
        cdef Session session = Session()
        if self._connection != NULL:
            session.session = &self._connection.session
            self._session = session
        return session

    def set_limits(self, high, low):
        cdef size_t top, bottom
        if high is None:
            high = 64 * 1024 if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        top = high
        bottom = low
        if self._connection == NULL:
            return
        hub_lock(self._connection.hub)
        self._connection.high = top
        self._connection.low = bottom
        hub_unlock(self._connection.hub)
        self._maybe_pause()

    def get_limits(self):
        if self._connection == NULL:
            return 0, 0
        return self._connection.low, self._connection.high

    def get_write_buffer_size(self):
        return 0 if self._connection == NULL else connection_unsent(self._connection)

    def write(self, data):
        cdef bytes piece
        cdef int kept
        if type(data) is bytes:
            piece = data
        elif isinstance(data, (bytes, bytearray, memoryview)):
            piece = bytes(data)  # the caller may change *data* before all of it is sent
        else:
            raise TypeError(
                f"data must be a bytes-like object, not {type(data).__name__}"
            )
        if self._ended:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self._connection == NULL or not PyBytes_GET_SIZE(piece):
            return
        Py_INCREF(piece)
        kept = connection_write(
            self._connection, PyBytes_AS_STRING(piece), PyBytes_GET_SIZE(piece), <void *>piece
        )
        if kept == 1:
            self._maybe_pause()
        else:
            Py_DECREF(piece)

    cdef int _maybe_pause(self) except -1:
        if connection_full(self._connection):
            try:
                self._protocol.pause_writing()
            except BaseException as error:
                self._loop.call_exception_handler({
                    "message": "protocol.pause_writing() failed",
                    "exception": error,
                    "transport": self._transport,
                    "protocol": self._protocol,
                })
        return 0

    def write_eof(self):
        if self._ended or self._closing:
            return
        self._ended = True
        connection_shut(self._connection)


class NativeTransport(asyncio.Transport):
    """An asyncio transport on a connection of the native I/O thread; made by its hub.

    What write() can't send at once, the I/O thread sends later. A bytes object is not copied; other
    bytes-like objects are. All methods are for the loop's thread.
    """

    __slots__ = ("_link",)

    def __init__(self, link):
        super().__init__()
        self._link = link

    def get_extra_info(self, name, default=None):
        return self._link.get_extra_info(name, default)

    def set_protocol(self, protocol):
        self._link.set_protocol(protocol)

    def get_protocol(self):
        return self._link.get_protocol()

    def is_closing(self):
        return self._link.is_closing()

    def close(self):
        self._link.close()

    def abort(self):
        self._link.abort()

    def pause_reading(self):
        self._link.pause_reading()

    def resume_reading(self):
        self._link.resume_reading()

    def is_reading(self):
        return self._link.is_reading()

    def want_bytes(self, boundary):
        """The protocol owes no reply and wants bytes. With *boundary*, the next byte begins a
        message, so the I/O thread may answer what it recognises. Not a method of asyncio's."""
        self._link.want_bytes(boundary)

    def trust(self):
        """The client has shown the token. Not a method of asyncio's."""
        self._link.trust()

    def session(self):
        """What the client has proven on this connection, to the I/O thread too. Not a method of
        asyncio's."""
        return self._link.session()

    def set_write_buffer_limits(self, high=None, low=None):
        self._link.set_limits(high, low)

    def get_write_buffer_limits(self):
        return self._link.get_limits()

    def get_write_buffer_size(self):
        return self._link.get_write_buffer_size()

    def write(self, data):
        self._link.write(data)

    def writelines(self, list_of_data):
        self._link.write(b"".join(list_of_data))

    def write_eof(self):
        self._link.write_eof()

    def can_write_eof(self):
        return True

    def __repr__(self):
        return f"<NativeTransport{' closing' if self.is_closing() else ''}>"
