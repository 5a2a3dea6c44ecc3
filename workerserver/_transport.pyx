"""The loop's side of the native I/O thread: its hub, its listeners and its transports.

A ``NativeTransport`` is an asyncio transport whose socket belongs to the I/O thread. It works for
any protocol of which the client speaks first: transport and protocol are made when the first bytes
come that the I/O thread doesn't answer. One extension lets it answer what it recognises later on,
too: a protocol that calls ``want_bytes(boundary)`` whenever it owes nothing and waits for bytes
gives the connection back until they have come. Without that call all bytes go to the protocol.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport errno
from libc.stdlib cimport free
from libc.string cimport memcpy, memset
from posix.unistd cimport geteuid, read

from workerserver._connection cimport (
    ACTION_DUMP, ACTION_HEALTH, ACTION_LATE, ACTION_RELAY, ACTION_STATIC, COUNTS, Answer, Chunk,
    Connection, Count, Event, Hub, Listener, ask_turn, connection_close, connection_detach,
    connection_descriptor, connection_full, connection_pause, connection_shut, connection_take,
    connection_unsent, connection_want, connection_write, hub_lock, hub_unlock, monotonic,
    turn_begin, turn_next,
)
from workerserver._hub cimport (
    hub_drop, hub_forget, hub_free, hub_ignore, hub_listen, hub_new, hub_stop,
)
from workerserver._io cimport hub_run
from workerserver._recognise cimport Table

import asyncio
import os
import socket
import threading
from asyncio.trsock import TransportSocket

from workerserver import turns

STATIC = ACTION_STATIC
LATE = ACTION_LATE
HEALTH = ACTION_HEALTH
DUMP = ACTION_DUMP
RELAY = ACTION_RELAY

NAME = "workerserver-io"

cdef enum:
    ANSWERS = 64  # of one listener
    TURN = 256  # connections that one turn of the loop serves; then others have theirs


@cython.final
cdef class NativeHub:
    """One I/O thread and the loop that it works for.

    Made, attached and closed on the loop's thread. *watch*: the loop is asked for a turn every so
    many seconds, to see how long it takes to get the GIL; 0 is never.
    """

    cdef Hub *_hub
    cdef readonly object loop  # asyncio.AbstractEventLoop
    cdef readonly object thread  # threading.Thread
    cdef set _listeners  # of NativeListener
    cdef double _refreshed_at

    def __cinit__(self):
        self._hub = NULL

    def __init__(self, loop, double watch):
        self.loop = loop
        self._listeners = set()
        self._hub = hub_new(watch)
        if self._hub == NULL:
            raise OSError(errno, os.strerror(errno))
        loop.add_reader(self._hub.turn, self._turn)
        self.thread = threading.Thread(target=self._run, name=NAME, daemon=True)

    def _run(self):
        try:
            with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as file:
                file.write(NAME)
        except OSError:
            pass
        with nogil:
            hub_run(self._hub)

    def set_relay(self, bytes path, int listener, unsigned long inode):
        """Where torch's own server can be reached, and the descriptor that it listens on."""
        if len(path) >= <Py_ssize_t>sizeof(self._hub.relay_path):
            raise ValueError("the path of torch's server is too long for a socket")
        if self._hub == NULL:
            return
        hub_lock(self._hub)
        memset(self._hub.relay_path, 0, sizeof(self._hub.relay_path))
        memcpy(self._hub.relay_path, PyBytes_AS_STRING(path), len(path))
        self._hub.relay_listener = listener
        self._hub.relay_inode = inode
        hub_unlock(self._hub)

    def _turn(self):
        """The I/O thread has asked for a turn: see to everything in its queue."""
        cdef unsigned char counter[8]
        cdef Connection *connection = NULL
        cdef int _i
        cdef double now
        if self._hub == NULL:
            return
        if read(self._hub.turn, counter, 8) < 0:
            pass  # another turn has read it
        self._release(turn_begin(self._hub))
        turns.begin()
        try:
            for _i in range(TURN):
                connection = NULL if self._hub == NULL else turn_next(self._hub)
                if connection == NULL:
                    break
                self._deliver(connection)
        finally:
            if connection != NULL and self._hub != NULL:  # there may be more in the queue
                hub_lock(self._hub)
                ask_turn(self._hub)
                hub_unlock(self._hub)
            turns.end()
        now = monotonic()
        if now - self._refreshed_at > 1.0:
            self._refreshed_at = now
            for listener in tuple(self._listeners):
                (<NativeListener>listener)._refresh()

    cdef int _release(self, Chunk *chunk) except -1:
        """Drop the references to bytes that are sent."""
        cdef Chunk *following
        while chunk != NULL:
            following = chunk.next
            Py_DECREF(<object>chunk.owner)
            free(chunk)
            chunk = following
        return 0

    cdef int _deliver(self, Connection *connection) except -1:
        """Tell a claimed connection's protocol what has happened; make it first if need be."""
        cdef Event event
        cdef Link link
        cdef bytes data = None
        if connection.transport != NULL:
            link = <Link>connection.transport
        elif connection.listener.owner == NULL:
            connection_close(connection, True)
            return 0
        else:
            link = self._connect(connection)
            if link._connection == NULL or link._closing:
                return 0
        connection_take(connection, &event)
        try:
            try:
                if event.data != NULL:
                    data = PyBytes_FromStringAndSize(event.data, event.size)
            finally:
                free(event.data)
            # Data first: a protocol that is told to go on may ask for bytes, and the connection is
            # the I/O thread's from then on.
            if data is not None:
                link._protocol.data_received(data)
            if event.resume and not link._closing:
                link._protocol.resume_writing()
            if event.eof and not link._closing and not link._protocol.eof_received():
                link.close()
            if event.lost:
                link._lose(
                    OSError(event.error, os.strerror(event.error)) if event.error else None
                )
        except BaseException as error:
            link._fail("the protocol failed", error)
        return 0

    cdef Link _connect(self, Connection *connection):
        """Make the transport and the protocol of *connection*."""
        cdef Link link
        try:
            link = Link()
            link._attach(self, connection)
        except BaseException:
            connection_close(connection, True)
            raise
        try:
            link._protocol = (<NativeListener>connection.listener.owner).factory()
            link._protocol.connection_made(link._transport)
        except BaseException as error:
            link._fail("the protocol failed in connection_made()", error)
        return link

    def close(self):
        """End the I/O thread and every connection."""
        cdef Connection *connection
        if self._hub == NULL:
            return
        hub_stop(self._hub)
        if self.thread.ident is not None:
            self.thread.join(5.0)
            if self.thread.is_alive():
                return  # it may still touch the hub's memory, so that stays
        else:
            with nogil:
                hub_run(self._hub)
        self.loop.remove_reader(self._hub.turn)
        self._release(turn_begin(self._hub))
        while True:
            connection = turn_next(self._hub)
            if connection == NULL:
                break
            self._deliver(connection)
        self._release(turn_begin(self._hub))
        for listener in tuple(self._listeners):
            (<NativeListener>listener).close()
        with nogil:
            hub_run(self._hub)  # stopped already: frees what the transports have let go
        if self._hub.connections == NULL:
            hub_free(self._hub)
        self._hub = NULL


@cython.final
cdef class NativeListener:
    """One listening socket of a hub, and what the I/O thread may answer on it.

    *factory* makes the protocol of a connection; *refresh* is called on the loop's thread now and
    then, when the hub has a turn anyway.
    """

    cdef NativeHub _hub
    cdef Listener *_listener
    cdef readonly object factory
    cdef object _refresh_callback
    cdef tuple _keep  # what the C side borrows: the table and the answers ...
    cdef tuple _finals  # ... and the last words
    cdef Answer _answers[ANSWERS]
    cdef tuple _names  # of the routes' counts
    cdef dict _counted  # under the tables before

    def __init__(
        self, NativeHub hub, int fd, factory, refresh, *, bint local, limits, double started,
        bytes too_many, bytes forbidden, bytes head_late,
    ):
        cdef Listener model
        if hub._hub == NULL:
            raise RuntimeError("the hub is closed")
        self._hub = hub
        self.factory = factory
        self._refresh_callback = refresh
        self._counted = {}
        self._names = ()
        self._keep = (Table([], check_host=False), ())
        self._finals = (too_many, forbidden, head_late)
        memset(&model, 0, sizeof(model))
        model.fd = fd
        model.local = local
        model.uid = geteuid()  # as access.peer_allowed()
        model.max_connections = limits.max_connections
        model.head_timeout = limits.head_timeout
        model.idle_timeout = limits.idle_timeout
        model.gil_deadline = limits.gil_deadline
        model.gil_timeout = limits.gil_timeout
        model.started = started
        model.owner = <void *>self
        model.table = &(<Table>self._keep[0]).data
        model.answers = self._answers
        _set_final(&model.too_many, too_many)
        _set_final(&model.forbidden, forbidden)
        _set_final(&model.head_late, head_late)
        self._listener = hub_listen(hub._hub, &model)
        if self._listener == NULL:
            raise OSError(errno, os.strerror(errno))
        # The C side's own reference: an interpreter that is taken apart under a running I/O thread
        # must not free what it answers from.
        Py_INCREF(self)
        hub._listeners.add(self)

    def publish(self, Table table, tuple names, tuple answers):
        """Answer by *table* from now on.

        The number above an action's lowest 8 bits says which of *names* a reply counts for, the
        same in every table, and which of *answers* it is: pairs of whole replies, keep-alive and
        ``Connection: close``.
        """
        cdef int i
        cdef bytes whole, closing
        cdef Answer[ANSWERS] fresh
        if len(answers) > ANSWERS or len(names) != len(answers):
            raise ValueError(f"{len(answers)} answers, {len(names)} names")
        if self._listener == NULL:
            return
        self._harvest()
        self._names = names  # they only grow, so older counts keep their names
        for i in range(len(answers)):
            whole, closing = answers[i]
            fresh[i].data = PyBytes_AS_STRING(whole)
            fresh[i].size = PyBytes_GET_SIZE(whole)
            fresh[i].closing = PyBytes_AS_STRING(closing)
            fresh[i].closing_size = PyBytes_GET_SIZE(closing)
        hub_lock(self._hub._hub)
        memcpy(self._answers, fresh, len(answers) * sizeof(Answer))
        self._listener.table = &table.data
        self._listener.memo.size = 0
        hub_unlock(self._hub._hub)
        self._keep = (table, answers)  # not before: until here the old ones were in use

    cdef int _refresh(self) except -1:
        try:
            self._refresh_callback()
        except BaseException as error:
            self._hub.loop.call_exception_handler(
                {"message": "the server's refresh failed", "exception": error}
            )
        return 0

    cdef int _harvest(self) except -1:
        cdef Count[COUNTS] counts
        cdef int i, used
        if self._listener == NULL:
            return 0
        # Nothing of Python under the lock: a finalizer might hand the GIL to a thread that waits
        # for the lock with it.
        hub_lock(self._hub._hub)
        used = self._listener.count_used
        memcpy(counts, self._listener.counts, used * sizeof(Count))
        self._listener.count_used = 0
        hub_unlock(self._hub._hub)
        for i in range(used):
            name = "" if counts[i].route < 0 else self._names[counts[i].route]
            key = (name, counts[i].status)
            self._counted[key] = self._counted.get(key, 0) + counts[i].number
        return 0

    @property
    def requests(self):
        """Replies of the I/O thread so far, by (handler name, status)."""
        self._harvest()
        return dict(self._counted)

    @property
    def connections(self):
        """Connections open now, whoever owns them."""
        cdef int number
        if self._listener == NULL:
            return 0
        hub_lock(self._hub._hub)
        number = self._listener.connections
        hub_unlock(self._hub._hub)
        return number

    def ignore(self, bint closing=False):
        """Accept no more connections. With *closing*, the caller closes the socket, and a forked
        child won't. From any thread."""
        if self._listener != NULL:
            hub_ignore(self._hub._hub, self._listener, closing)

    def drop(self, bint everything):
        """Close the connections that are idle, or every one; on the loop's thread."""
        if self._listener != NULL:
            hub_drop(self._hub._hub, self._listener, everything)

    def close(self):
        """Let go of it all, on the loop's thread."""
        if self._listener == NULL:
            return
        self.ignore(True)
        self.drop(True)
        self._harvest()
        hub_forget(self._hub._hub, self._listener)
        self._listener = NULL
        self._hub._listeners.discard(self)
        Py_DECREF(self)


cdef int _set_final(Answer *answer, bytes reply) except -1:
    answer.data = answer.closing = PyBytes_AS_STRING(reply)
    answer.size = answer.closing_size = PyBytes_GET_SIZE(reply)
    return 0


@cython.final
cdef class Link:
    """What a NativeTransport does, bound to its connection. Used by the loop's thread only.

    ``_connection`` is NULL once connection_lost() is called; until then the struct holds a
    reference to this object.
    """

    cdef NativeHub _hub
    cdef Connection *_connection
    cdef object _transport  # NativeTransport
    cdef object _protocol  # asyncio.Protocol
    cdef object _socket  # socket.socket on a duplicate of the descriptor, or None
    cdef dict _extra
    cdef bint _closing
    cdef bint _ended  # write_eof() was called
    cdef bint _paused

    cdef int _attach(self, NativeHub hub, Connection *connection) except -1:
        self._hub = hub
        self._extra = {}
        self._transport = NativeTransport(self)
        self._connection = connection
        connection.transport = <void *>self
        Py_INCREF(self)
        return 0

    cdef int _lose(self, error) except -1:
        """Say connection_lost(), once, and let go of the connection."""
        cdef Connection *connection = self._connection
        if connection == NULL:
            return 0
        self._closing = True
        self._connection = NULL
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
        """The protocol has raised: as in asyncio, the loop's handler is told, and the connection
        ends."""
        self._hub.loop.call_exception_handler({
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
        """From a duplicate of the descriptor: the I/O thread may close its own at any time."""
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
            self._hub.loop.call_soon(self.lose)

    def abort(self):
        if self._connection == NULL:
            return
        self._closing = True
        if connection_close(self._connection, True):
            self._hub.loop.call_soon(self.lose)

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
        hub_lock(self._hub._hub)
        self._connection.high = top
        self._connection.low = bottom
        hub_unlock(self._hub._hub)
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
            piece = bytes(data)  # the caller may change its own before all of it is sent
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
                self._hub.loop.call_exception_handler({
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

    What write() can't send at once is sent by the I/O thread, from the very bytes object that was
    given; other bytes-like objects are copied first. All methods are for the loop's thread.
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
        """The protocol owes nothing and wants bytes; with *boundary*, the first byte of a new
        message, so that the I/O thread may answer what it recognises. Not asyncio's."""
        self._link.want_bytes(boundary)

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
