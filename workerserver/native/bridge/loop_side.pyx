"""The loop's side of the native I/O thread: its hub and its listeners.

Everything here is for the loop's thread, unless it says otherwise.
"""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset
from posix.unistd cimport read

from workerserver.http.date cimport DATE_AT
from workerserver.process.clock cimport monotonic
from workerserver.process._pulse cimport Meter, Readings, metrics_bytes
from workerserver.native._engine cimport (
    ACTION_DUMP, ACTION_HEALTH, ACTION_LATE, ACTION_METRICS, ACTION_RELAY, ACTION_STATIC,
    ACTION_STEPS, PEER_BUCKETS, ROUTES, STANDING_UNPROVEN, Answer, Chunk, Connection, Hub, Listener,
    Peer, ask_turn, connection_close, hub_lock, hub_unlock, read_hub, turn_begin, turn_next,
)
from workerserver.native._engine cimport (
    hub_await, hub_drop, hub_forget, hub_free, hub_gone, hub_ignore, hub_listen, hub_new, hub_stop,
)
from workerserver.native._engine cimport box_begin, ends_begin, hub_run

import os
import threading

from workerserver.process import loop_turn
from workerserver.process.sockets import Figures
from workerserver.process.threads import name_this_thread

STATIC = ACTION_STATIC
LATE = ACTION_LATE
HEALTH = ACTION_HEALTH
DUMP = ACTION_DUMP
RELAY = ACTION_RELAY
STEPS = ACTION_STEPS
METRICS = ACTION_METRICS

NAME = "workerserver-io"

cdef enum:
    MAX_TURN_CONNECTIONS = 256  # served in one turn of the loop; then other callbacks run


cdef bint _is_gone(Hub *hub) noexcept:
    """Whether something has closed the process's descriptors; it keeps the GIL, see inode_of()."""
    cdef bint gone = False
    if hub != NULL:
        hub_lock(hub)
        gone = hub_gone(hub)
        hub_unlock(hub)
    return gone


@cython.final
cdef class NativeHub:
    """One I/O thread and the loop that it works for.

    Made, attached and closed on the loop's thread. *watch*: every so many seconds the I/O thread
    asks the loop for a turn, to see how long the loop takes to get the GIL; 0 is never. *canary*
    tells whether something has closed the process's descriptors: then the hub touches none.
    """

    cdef Hub *_hub
    cdef readonly object loop  # asyncio.AbstractEventLoop
    cdef readonly object thread  # threading.Thread
    cdef set _listeners  # of NativeListener
    cdef object _canary  # canary.Canary | None
    cdef double _refreshed_at

    def __cinit__(self):
        self._hub = NULL

    def __init__(self, loop, double watch, canary=None):
        self.loop = loop
        self._listeners = set()
        self._canary = canary
        self._hub = hub_new(watch, -1 if canary is None else canary.fd)
        if self._hub == NULL:
            raise OSError(errno, os.strerror(errno))
        loop.add_reader(self._hub.turn, self._turn)
        self.thread = threading.Thread(target=self._run, name=NAME, daemon=True)

    def _run(self):
        name_this_thread(NAME)
        with nogil:
            hub_run(self._hub)
        if self._hub.gone:
            self._canary.report()

    def await_thread(self, double seconds):
        """Wait, without the GIL, until the started thread no longer needs the GIL: from then on it
        answers whatever the interpreter does. False if that takes longer than *seconds*."""
        cdef bint entered = False
        if self._hub != NULL:
            with nogil:
                entered = hub_await(self._hub, seconds)
        return entered

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

    @property
    def figures(self):
        """What is taken of the places for connections."""
        cdef Peer *peer
        cdef int i, unproven = 0, busiest = 0
        cdef uint64_t evicted = 0, refused = 0
        if self._hub != NULL:
            hub_lock(self._hub)
            unproven = self._hub.standing[<int>STANDING_UNPROVEN]
            evicted = self._hub.evicted
            refused = self._hub.refused
            for i in range(PEER_BUCKETS):
                peer = self._hub.peers[i]
                while peer != NULL:
                    busiest = max(busiest, peer.connections)
                    peer = peer.next
            hub_unlock(self._hub)
        return Figures(unproven, busiest, evicted, refused)

    def set_snapshots(self, double rate):
        """How many snapshots the I/O thread may take in a second; 0: any number."""
        if self._hub == NULL:
            return
        hub_lock(self._hub)
        self._hub.dump_rate = self._hub.dumps_left = rate
        self._hub.dumps_at = monotonic()
        hub_unlock(self._hub)

    def keep_box(self, double interval, bint signals):
        """Write this process's black box, with stacks every *interval* seconds. *signals*: also
        when a signal comes that ends the process. OSError if no handler can be installed."""
        cdef int failed = 0
        if self._hub == NULL:
            raise RuntimeError("the hub is closed")
        box_begin(self._hub, interval)
        if signals:
            failed = ends_begin(self._hub)
        if failed:
            raise OSError(failed, os.strerror(failed))

    def _turn(self):
        """The I/O thread has asked for a turn: serve the connections in the queue."""
        cdef unsigned char counter[8]
        cdef Connection *connection = NULL
        cdef int _i
        cdef double now
        cdef uint64_t number, before
        if self._hub == NULL:
            return
        if read(self._hub.turn, counter, 8) < 0:
            pass  # another turn has read it
        self._release(turn_begin(self._hub, &number))
        loop_turn.begin()
        try:
            for _i in range(MAX_TURN_CONNECTIONS):
                before = number
                connection = NULL if self._hub == NULL else turn_next(self._hub, &number)
                if connection == NULL:
                    break
                if number != before:  # its bytes came later: it shares nothing with the others
                    loop_turn.end()
                    loop_turn.begin()
                self._deliver(connection)
        finally:
            if connection != NULL and self._hub != NULL:  # the queue may not be empty
                hub_lock(self._hub)
                ask_turn(self._hub)
                hub_unlock(self._hub)
            loop_turn.end()
        now = monotonic()
        if self._canary is not None and _is_gone(self._hub):
            self._canary.hold()
        if now - self._refreshed_at > 1.0:
            self._refreshed_at = now
            for listener in tuple(self._listeners):
                (<NativeListener>listener)._refresh()

    cdef int _release(self, Chunk *chunk) except -1:
        """Drop the references to the bytes objects that are sent."""
        cdef Chunk *following
        while chunk != NULL:
            following = chunk.next
            Py_DECREF(<object>chunk.owner)
            free(chunk)
            chunk = following
        return 0

    cdef int _deliver(self, Connection *connection) except -1:
        """Tell the protocol of a connection what has happened; make it the first time."""
        cdef Link link
        if connection.transport != NULL:
            link = <Link>connection.transport
        elif connection.listener.owner == NULL:
            connection_close(connection, True)
            return 0
        else:
            link = Link()
            if not link.open(self.loop, (<NativeListener>connection.listener.owner).factory,
                             connection):
                return 0
        link.deliver()
        return 0

    def close(self):
        """End the I/O thread and every connection."""
        cdef Connection *connection
        cdef uint64_t number
        if self._hub == NULL:
            return
        if self._canary is not None and not self._canary.alive:
            return  # the I/O thread may sleep for ever; what it uses stays
        hub_stop(self._hub)
        if self.thread.ident is not None:
            self.thread.join(5.0)
            if self.thread.is_alive():
                return  # the thread may still use the hub's memory, so that stays
        else:
            with nogil:
                hub_run(self._hub)
        self.loop.remove_reader(self._hub.turn)
        self._release(turn_begin(self._hub, &number))
        while True:
            connection = turn_next(self._hub, &number)
            if connection == NULL:
                break
            self._deliver(connection)
        self._release(turn_begin(self._hub, &number))
        for listener in tuple(self._listeners):
            (<NativeListener>listener).close()
        with nogil:
            hub_run(self._hub)  # stopped already: frees what the transports have let go of
        if self._hub.connections == NULL:
            hub_free(self._hub)
        self._hub = NULL


@cython.final
cdef class NativeListener:
    """One listening socket of a hub, and what the I/O thread may answer on it.

    *factory* makes the protocol of a connection. *refresh* is called on the loop's thread after a
    turn, at most once in a second. *table* is in force from the first connection on; it names no
    answers, which only publish() brings.
    """

    cdef NativeHub _hub
    cdef Listener *_listener
    cdef readonly object factory
    cdef object _refresh_callback
    cdef tuple _keep  # the table and the answers, whose memory the C side uses
    cdef tuple _finals  # the same for the replies that end a connection
    cdef Answer _answers[ROUTES]
    cdef readonly Meter meter

    def __init__(
        self, NativeHub hub, int fd, factory, refresh, Table table not None, *, bint local, limits,
        double started, bytes too_many, bytes forbidden, bytes head_late, bint asks_secret=False,
        Meter meter=None,
    ):
        cdef Listener model
        if hub._hub == NULL:
            raise RuntimeError("the hub is closed")
        self._hub = hub
        self.factory = factory
        self._refresh_callback = refresh
        self.meter = Meter() if meter is None else meter
        self._keep = (table, ())
        self._finals = tuple(map(bytearray, (too_many, forbidden, head_late)))
        memset(&model, 0, sizeof(model))
        model.fd = fd
        model.local = local
        model.max_connections = limits.max_connections
        model.max_unproven = limits.max_unproven
        model.max_peer = limits.max_peer
        model.max_unsent = limits.max_unsent
        model.asks_secret = asks_secret
        model.head_timeout = limits.head_timeout
        model.idle_timeout = limits.idle_timeout
        model.gil_deadline = limits.gil_deadline
        model.gil_timeout = limits.gil_timeout
        model.started = started
        model.owner = <void *>self
        model.meter = self.meter.data
        model.table = &(<Table>self._keep[0]).data
        model.answers = self._answers
        _set_answer(&model.too_many, self._finals[0], self._finals[0])
        _set_answer(&model.forbidden, self._finals[1], self._finals[1])
        _set_answer(&model.head_late, self._finals[2], self._finals[2])
        self._listener = hub_listen(hub._hub, &model)
        if self._listener == NULL:
            raise OSError(errno, os.strerror(errno))
        # A reference for the C side. The interpreter may be taken apart while the I/O thread runs,
        # and must not free the answers of that thread.
        Py_INCREF(self)
        hub._listeners.add(self)

    def publish(self, Table table, tuple names, tuple answers):
        """Answer by *table* from now on.

        The bits above an action's lowest 8 are a number: the index in *names* of the handler that
        a reply counts for, which is the same in every table, and the index of the reply in
        *answers*. An answer is a pair of whole replies: keep-alive, and ``Connection: close``.
        """
        cdef int i
        cdef Answer[ROUTES] fresh
        cdef int[ROUTES] numbers
        if len(answers) > ROUTES or len(names) != len(answers):
            raise ValueError(f"{len(answers)} answers, {len(names)} names")
        if self._listener == NULL:
            return
        # The I/O thread writes the date into them.
        answers = tuple((bytearray(whole), bytearray(closing)) for whole, closing in answers)
        for i in range(len(answers)):
            _set_answer(&fresh[i], answers[i][0], answers[i][1])
            numbers[i] = self.meter.number(names[i])
        hub_lock(self._hub._hub)
        memcpy(self._answers, fresh, len(answers) * sizeof(Answer))
        memcpy(self._listener.numbers, numbers, len(answers) * sizeof(int))
        self._listener.table = &table.data
        self._listener.memo.size = 0
        hub_unlock(self._hub._hub)
        self._keep = (table, answers)  # only now: until here the old ones were in use

    cdef int _refresh(self) except -1:
        try:
            self._refresh_callback()
        except BaseException as error:
            self._hub.loop.call_exception_handler(
                {"message": "the server's refresh failed", "exception": error}
            )
        return 0

    @property
    def requests(self):
        """Replies that the I/O thread wrote by itself, by (handler name, status)."""
        return self.meter.replies(loop=False)

    def exposition(self, bint openmetrics):
        """The body of GET /metrics, as the I/O thread writes it; from any thread."""
        cdef Readings readings
        memset(&readings, 0, sizeof(readings))
        if self._listener != NULL:
            hub_lock(self._hub._hub)
            read_hub(self._hub._hub, self._listener, &readings)
            hub_unlock(self._hub._hub)
        return metrics_bytes(self.meter.data, &readings, openmetrics)

    @property
    def connections(self):
        """Connections that are open now."""
        cdef int number
        if self._listener == NULL:
            return 0
        hub_lock(self._hub._hub)
        number = self._listener.connections
        hub_unlock(self._hub._hub)
        return number

    @property
    def unsent(self):
        """Bytes of replies that their clients have not taken yet."""
        cdef size_t unsent
        if self._listener == NULL:
            return 0
        hub_lock(self._hub._hub)
        unsent = self._listener.unsent
        hub_unlock(self._hub._hub)
        return unsent

    def ignore(self, bint closing=False):
        """Accept no more connections. With *closing*, the caller closes the socket, and a forked
        child does not. From any thread."""
        if self._listener != NULL:
            hub_ignore(self._hub._hub, self._listener, closing)

    def drop(self, bint everything):
        """Close the idle connections, or *everything*; on the loop's thread."""
        if self._listener != NULL:
            hub_drop(self._hub._hub, self._listener, everything)

    def close(self):
        """Close the connections and give up the listener; on the loop's thread."""
        if self._listener == NULL:
            return
        self.ignore(True)
        self.drop(True)
        hub_forget(self._hub._hub, self._listener)
        self._listener = NULL
        self._hub._listeners.discard(self)
        Py_DECREF(self)


cdef int _set_answer(Answer *answer, bytearray whole, bytearray closing) except -1:
    """*whole* and *closing* live, at the same size, for as long as the answer is used."""
    answer.data = PyByteArray_AS_STRING(whole)
    answer.size = PyByteArray_GET_SIZE(whole)
    answer.closing = PyByteArray_AS_STRING(closing)
    answer.closing_size = PyByteArray_GET_SIZE(closing)
    answer.date = _date_in(whole)
    answer.closing_date = _date_in(closing)
    if answer.closing_date == NULL:
        answer.date = NULL
    answer.second = 0
    answer.head = max(whole.find(b"\r\n\r\n") + 2, 0)
    answer.closing_head = max(closing.find(b"\r\n\r\n") + 2, 0)
    answer.status = int(whole[9:12] or 0)  # of "HTTP/1.1 200 OK"
    return 0


cdef char *_date_in(bytearray reply) except? NULL:
    """Where the date of *reply* begins; NULL if it has no Date field."""
    cdef Py_ssize_t at = reply.find(b"\r\nDate: ", 0, max(0, reply.find(b"\r\n\r\n")))
    return NULL if at < 0 else &PyByteArray_AS_STRING(reply)[at + 2 + DATE_AT]
