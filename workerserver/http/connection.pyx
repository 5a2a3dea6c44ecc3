"""One HTTP connection: parse, dispatch, respond.

``WorkerProtocol`` is an ordinary asyncio protocol: it uses nothing of its transport that asyncio
doesn't define, so it runs on any loop and on any transport.
"""

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE

from workerserver.http.bounds cimport MAX_DRAINED_BYTES, MAX_REFUSED
from workerserver.process.clock cimport monotonic, monotonic_ns
from workerserver._parser cimport ParsedRequest, QueryValidator, RequestParser

import logging
from asyncio import CancelledError, Future
from functools import partial

from workerserver.http.responses import error_response, failure
from workerserver.http.ui import UI as _PAGE
from workerserver.types import (
    Forbidden, HandlerBusy, ProtocolError, RequestTimeout, ServerBusy, WorkerServerError,
)

# For responses.failure(): a frame of this module is no news to whoever wrote the handler.
_passes_calls_on = True

cdef object _logger = logging.getLogger("workerserver")

cdef Py_ssize_t MAX_READ_AHEAD_BYTES = 64 * 1024  # bytes kept for requests whose turn has not come
cdef Py_ssize_t MAX_JOINED_BYTES = 16 * 1024  # bodies up to this are copied behind their head
cdef bytes _UI = _PAGE.encode()
cdef str _SHARE = "its loop has used its share of the processor; this request was not run"
cdef str _UNSENT = "replies that their clients don't read fill the memory set aside for them"


cdef enum Stage:
    STAGE_IDLE  # between messages
    STAGE_HEAD  # inside a head
    STAGE_BODY  # inside a body
    STAGE_BUSY  # a handler runs, or its reply waits for the client to read
    STAGE_DRAIN  # the last reply is out: throw away what still comes, so that no reset eats it
    STAGE_LOST  # the transport is closed


@cython.final
cdef class WorkerProtocol:
    """One connection: at most one request is being handled, the next ones wait in the parser.

    Used by the loop's thread only. ``_handler`` is not None exactly while a handler runs that
    will answer later (async or thread), and then ``_stage`` is STAGE_BUSY.
    """

    # --- process
    cdef ServerState _state
    # --- connection
    cdef object _transport  # asyncio.Transport | None
    cdef object _want_bytes  # the transport's want_bytes(), None if it has none
    cdef RequestParser _parser
    cdef public object place  # acceptor.Place | None: the transport's own, if it has none itself
    cdef object _trust  # to be called once, when the client has shown the token; else None
    cdef Session _session  # None: the rules ask for no secret
    cdef double _owes_since  # monotonic seconds
    cdef readonly int fileno  # -1 if the transport has none; for the child of a fork
    cdef Stage _stage
    cdef bint _reading_paused, _writing_paused
    cdef bint _eof  # the client sends no more
    cdef bint _advancing
    cdef bint _rests  # the deadline is that of an idle connection: empty lines don't move it
    cdef object _timer  # asyncio.TimerHandle | None
    cdef double _timer_at
    cdef double _deadline  # monotonic seconds; 0: none
    cdef Py_ssize_t _unsent  # bytes in the transport's buffer at the last look
    cdef Py_ssize_t _drained
    cdef Unsent _out  # replies on their way
    cdef Py_ssize_t _body_bytes  # our share of _state.body_bytes
    # --- request
    cdef ParsedRequest _request
    cdef long long _began_ns  # when it was complete; 0: it was not
    cdef object _handler  # registry.Handler | None
    cdef object _task  # asyncio.Task | None
    cdef bint _waits  # for the loop's share of the processor; then STAGE_BUSY
    cdef long _turn  # which request: a late result of an earlier one is dropped
    cdef object __weakref__

    def __init__(self, ServerState state):
        limits = state.limits
        self._state = state
        self._parser = RequestParser(
            max_head=limits.max_head, max_headers=limits.max_headers, max_body=limits.max_body,
            judge=state._check_head,
        )
        self._out = Unsent(state)
        self.fileno = -1
        self._stage = STAGE_IDLE

    # --- asyncio.Protocol

    def connection_made(self, transport):
        cdef ServerState state = self._state
        self._transport = transport
        state.connections.add(self)
        self._want_bytes = getattr(transport, "want_bytes", None)
        if self.place is not None:
            self.place.owes_since = self._owes
            self.place.close = transport.abort
        if state.policy.asks_secret:
            self._session = self._parser.session = getattr(transport, "session", Session)()
        if state.policy.asks_secret and not state.is_unix:
            self._trust = getattr(transport if self.place is None else self.place, "trust", None)
        if self._want_bytes is not None:
            # The native I/O thread counts connections and keeps the time between messages. It has
            # admitted this one if it knows every rule; to ask again would cost a descriptor.
            if state.closing:
                transport.close()
            elif state.policy.native is None:
                self._admit(transport.get_extra_info("socket"))
            return
        self._out.counts = True
        self._out.blind = transport.get_extra_info("sslcontext") is not None
        sock = transport.get_extra_info("socket")
        if sock is not None:
            self.fileno = sock.fileno()
        most = state.limits.max_connections
        if state.closing:
            transport.close()
        elif len(state.connections) > most + MAX_REFUSED:
            transport.abort()
        elif len(state.connections) > most:
            self._fail(ServerBusy(f"{most} connections"))
        elif self._admit(sock):
            self._set_deadline(state.limits.head_timeout)
            self._rests = True

    cdef bint _admit(self, sock) except -1:
        """Whether the policy takes the connection; if not, it is told so and ended."""
        try:
            self._state.policy.admit(sock)
        except WorkerServerError as error:
            self._fail(error)
            return False
        except Exception as error:  # a rule's own mistake: a connection that it can't judge
            _logger.warning("a rule failed, so a connection was refused", exc_info=True)
            self._fail(Forbidden("this connection can't be judged"))
            return False
        return True

    def connection_lost(self, exc):
        self._stage = STAGE_LOST
        self._state.connections.discard(self)
        self._hold(0)
        self._out.end()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is not None:
            self._task.cancel()
        if self.place is not None:
            self.place.leave()
        self.place = self._trust = self._transport = self._want_bytes = None

    def _owes(self):
        """Since when the client owes us bytes; None if it doesn't, or if we owe it something."""
        if self._stage == STAGE_BUSY or self._stage == STAGE_LOST or self._transport is None:
            return None
        return None if self._transport.get_write_buffer_size() else self._owes_since

    def data_received(self, bytes data):
        if self._stage == STAGE_DRAIN:
            self._drained += len(data)
            if self._drained > MAX_DRAINED_BYTES:
                self._transport.abort()
            return
        if self._stage == STAGE_LOST:
            return
        self._parser.receive_data(data)
        if self._stage == STAGE_BUSY:
            self._limit_reading()
        else:
            self._advance()

    def eof_received(self):
        """A half-closed client still gets what it asked for."""
        self._eof = True
        if self._stage == STAGE_BUSY:
            return not (self._state.is_unix and self.fileno >= 0 and _hung_up(self.fileno))
        if self._stage != STAGE_LOST and self._transport.get_write_buffer_size() > 0:
            # What was answered still has to go out; nothing more can come.
            self._stage = STAGE_DRAIN
            self._set_deadline(self._state.stall_seconds)
        return False  # closes the transport, after what is in its buffer

    def pause_writing(self):
        self._writing_paused = True
        if self._stage != STAGE_DRAIN:
            self._stage = STAGE_BUSY
        self._unsent = self._transport.get_write_buffer_size()
        self._set_deadline(self._state.stall_seconds)

    def resume_writing(self):
        self._writing_paused = False
        self._out.went_out(self._transport)
        if self._stage == STAGE_BUSY and self._handler is None:
            self._stage = STAGE_IDLE
            self._advance()
        elif self._stage == STAGE_DRAIN:
            self._set_deadline(self._state.drain_seconds)

    # --- requests in

    cdef int _advance(self) except -1:
        """Answer what is complete, until the parser wants bytes or a handler takes its time."""
        cdef ParsedRequest request
        if self._advancing:  # resume_writing() inside a write(): the loop below goes on by itself
            return 0
        self._advancing = True
        try:
            while True:
                try:
                    request = self._parser.next_request()
                except WorkerServerError as error:
                    self._fail(error)
                    return 0
                if request is None:
                    self._await_bytes()
                    return 0
                self._rests = False
                self._began_ns = monotonic_ns()
                if not self._hold(PyBytes_GET_SIZE(request.body)):
                    return 0
                if self._state._share is not None and not self._state._share.open():
                    self._request = request
                    self._stage = STAGE_BUSY
                    self._deadline = 0.0
                    self._waits = True
                    self._state._share.wait(self._go_on, self._state.limits.gil_timeout)
                    self._limit_reading()
                    return 0
                self._handle(request)
                if self._stage != STAGE_IDLE:
                    self._limit_reading()
                    return 0
        finally:
            self._advancing = False

    def _go_on(self, bint open):
        """The loop has time for the request that waits; or, if not *open*, it has waited for too
        long."""
        cdef ParsedRequest request = self._request
        if not self._waits or self._stage != STAGE_BUSY:
            return  # the connection is closed, or about to be
        self._waits = False
        self._stage = STAGE_IDLE
        if not open:
            self._respond("", error_response(ServerBusy(_SHARE)))
        else:
            self._handle(request)
        if self._stage == STAGE_IDLE:
            self._advance()
        else:
            self._limit_reading()  # which looks at the stage itself

    cdef int _await_bytes(self) except -1:
        cdef ServerState state = self._state
        if self._eof:
            # A client that is gone in the middle of a request wants no answer.
            self._finish()
            return 0
        if self._parser.reading_body():
            if self._stage != STAGE_BODY:
                self._stage = STAGE_BODY
                self._set_deadline(state.limits.body_timeout)
                if self._parser.take_continue():
                    self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if not self._hold(self._parser.held):
                return 0
        elif self._parser.between_messages():
            self._stage = STAGE_IDLE
            if self._want_bytes is not None:
                self._deadline = 0.0
            elif not self._rests:
                self._set_deadline(state.limits.idle_timeout)
                self._rests = True
        elif self._stage != STAGE_HEAD:
            self._stage = STAGE_HEAD
            self._set_deadline(state.limits.head_timeout)
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
        if self._want_bytes is not None:
            self._want_bytes(self._stage == STAGE_IDLE)
        return 0

    cdef int _limit_reading(self) except -1:
        if not self._reading_paused and self._stage == STAGE_BUSY:
            if self._parser.buffered > MAX_READ_AHEAD_BYTES:
                self._reading_paused = True
                self._transport.pause_reading()
        return 0

    cdef bint _hold(self, Py_ssize_t size) except -1:
        """Note that this connection's request holds *size* bytes of body until its reply is
        written; False, and the connection fails, if all together hold too many."""
        self._state.hold(size - self._body_bytes)
        self._body_bytes = size
        if size == 0 or self._state.body_bytes <= self._state.limits.max_bodies:
            return True
        self._fail(ServerBusy("request bodies fill the memory set aside for them"))
        return False

    # --- dispatch

    cdef int _handle(self, ParsedRequest request) except -1:
        """Find the handler and run it, or have it run; afterwards STAGE_IDLE or STAGE_BUSY."""
        cdef ServerState state = self._state
        cdef QueryValidator validator
        cdef dict values
        self._request = request
        self._stage = STAGE_IDLE
        self._out.asked_again(self._transport)
        if self._session is not None:
            self._session.begin()
        handler = None
        try:
            # As policy.check() does, without the time for another call.
            for check in state._checks if request.cross_site else state._plain_checks:
                check(request)
            if self._trust is not None and request.path != _UI:  # that needs no token
                self._trust()
                self._trust = None
            handler, path = state.router.resolve(request.method, request.path)
            validator = handler.validator
            if request.query or request.body:
                query, form = request.parameters()
                values = validator.validate(query, form)
            elif validator.asks_nothing:
                values = {}
            else:
                values = validator.validate(())
            if validator.request_name is not None:
                values[validator.request_name] = request.to_request(path, _peer_of(self._transport))
            kind = handler.kind
            if kind != "inline" and not self._out.takes(MAX_SMALL_BYTES + 1):
                raise ServerBusy(_UNSENT)
            if kind != "inline" and not state.enter(handler):
                raise HandlerBusy(handler.name, handler.limit)
            if handler.audited:
                state.audit.served(handler.permission, handler.name, self._transport)
        except WorkerServerError as error:
            if isinstance(error, ProtocolError):
                self._fail(error)
            else:
                state.audit.failed(error, self._transport, request)
                self._respond("" if handler is None else handler.name, error_response(error))
            return 0
        except Exception as error:  # a mistake of ours, or of torch's registry
            name = "" if handler is None else handler.name
            self._respond(name, failure(name or "look-up", error))
            return 0
        if kind == "inline":  # one at a time by nature: no place to take
            response = _run_inline(handler, values)
            if isinstance(response, Future):
                self._await(handler, response)
                return 0
            self._respond(handler.name, response)
            return 0
        self._stage = STAGE_BUSY
        self._handler = handler
        self._turn += 1
        self._deadline = 0.0
        if kind == "async":
            self._task = state.loop.create_task(_run_async(self, self._turn, handler, values))
            self._task.add_done_callback(partial(self._on_task_done, self._turn, handler))
        elif not state.pool.submit(_ThreadJob(self, self._turn, handler, values)):
            state.leave(handler)
            self._handler = None
            self._stage = STAGE_IDLE
            self._respond(handler.name, error_response(ServerBusy("no thread for the handler")))
        return 0

    cdef int _await(self, handler, future) except? -1:
        """An inline handler has its answer later: *future*."""
        self._stage = STAGE_BUSY
        self._handler = handler
        self._turn += 1
        self._deadline = 0.0
        future.add_done_callback(partial(self._on_future, self._turn, handler))

    def _on_future(self, long turn, handler, future):
        self._on_result(turn, _response_of(handler, future))

    def _on_task_done(self, long turn, handler, task):
        """A task that was cancelled before its first step never came to _run_async's own end."""
        if task.cancelled():
            self._state.leave(handler)
            self._on_result(turn, failure(handler.name, CancelledError()))

    def _on_result(self, long turn, response):
        """On the loop's thread: the handler of request number *turn* gave *response*."""
        if turn != self._turn or self._handler is None:
            return
        name = self._handler.name
        self._handler = None
        self._task = None
        if self._stage == STAGE_LOST:
            self._out.begin(response.sent)
            self._out.end()
            return
        self._stage = STAGE_IDLE
        self._respond(name, response)
        if self._stage == STAGE_IDLE:
            self._advance()

    # --- replies out

    cdef int _respond(self, str name, response) except -1:
        """Write the reply to ``_request``, and close behind the connection's last one."""
        cdef ParsedRequest request = self._request
        cdef bint close = not request.keep_alive or self._state.closing
        self._request = None
        self._hold(0)
        try:
            self._write_response(name, response, close, request.method == b"HEAD",
                                 request.http_version == "1.0", self._session)
        except BaseException:  # out of memory, say; a part of it may be written already
            _logger.debug("reply of %s not written", name, exc_info=True)
            self._transport.abort()
            self._out.begin(response.sent)
            self._out.end()
            return 0
        if close:
            self._finish()
        return 0

    cdef int _fail(self, error) except -1:
        """Answer with *error*, whatever was asked, and close."""
        self._state.audit.failed(error, self._transport)
        self._hold(0)
        self._write_response("", error_response(error), True, False, False, None)
        self._finish()
        return 0

    cdef int _write_response(
        self, str name, response, bint close, bint head_only, bint http_1_0, Session session
    ) except -1:
        """*session*: where the reply is to be proven, if its request was; None: it has none."""
        cdef int status
        cdef bytes body, head, proof = b""
        self._out.begin(response.sent)
        if not self._out.takes(PyBytes_GET_SIZE(response.body)):
            self._out.went_out(self._transport)
            response = error_response(ServerBusy(_UNSENT))
        status = response.status
        body = response.body
        self._state.meter.reply(name, status, self._began_ns)
        self._began_ns = 0
        if status == 204 or status == 304:
            body = b""
        if session is not None:
            proof = session.answer(status, b"" if head_only else body)
        head = reply_head(response, len(body), close, http_1_0, proof)
        if head_only or not body:
            self._transport.write(head)
        elif len(body) <= MAX_JOINED_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)
            self._out.wrote(len(body), self._transport)
        if not self._writing_paused:
            self._out.went_out(self._transport)
        return 0

    cdef int _finish(self) except -1:
        """No more replies: end our side, read on until the client has ended its own.

        Closing at once with bytes unread would make the kernel send a reset, and a reset can
        destroy the reply on its way to the client (RFC 9112, 9.6).
        """
        if self._stage == STAGE_LOST or self._transport is None or self._transport.is_closing():
            return 0
        self._stage = STAGE_DRAIN
        if self._eof or not self._transport.can_write_eof():
            self._transport.close()
        else:
            self._transport.write_eof()
            if self._reading_paused:
                self._reading_paused = False
                self._transport.resume_reading()
        self._unsent = self._transport.get_write_buffer_size()
        self._set_deadline(
            self._state.stall_seconds if self._unsent else self._state.drain_seconds
        )
        return 0

    # --- time

    cdef int _set_deadline(self, double seconds) except -1:
        """Call ``_on_timer`` in *seconds*. One timer serves all deadlines of a connection: it
        is set anew only for an earlier one, so a request costs no timer."""
        cdef double now = monotonic()
        self._owes_since = now
        self._deadline = now + seconds
        self._rests = False
        if self._timer is not None:
            if self._timer_at <= self._deadline:
                return 0
            self._timer.cancel()
        self._timer_at = self._deadline
        self._timer = self._state.loop.call_later(seconds, self._on_timer)
        return 0

    def _on_timer(self):
        cdef double left = self._deadline - monotonic()
        cdef Py_ssize_t unsent
        self._timer = None
        if self._stage == STAGE_LOST or self._deadline == 0.0:
            return
        if left > 0.001:
            self._timer_at = self._deadline
            self._timer = self._state.loop.call_later(left, self._on_timer)
            return
        unsent = self._transport.get_write_buffer_size()
        if self._writing_paused or (self._stage == STAGE_DRAIN and unsent):
            if unsent < self._unsent:
                self._unsent = unsent
                self._set_deadline(self._state.stall_seconds)
            else:
                self._transport.abort()
        elif self._stage == STAGE_DRAIN:
            self._transport.close()
        elif self._stage == STAGE_BODY:
            self._fail(RequestTimeout("body", self._state.limits.body_timeout))
        elif self._stage == STAGE_HEAD:
            self._fail(RequestTimeout("head", self._state.limits.head_timeout))
        elif self._stage == STAGE_IDLE:
            self._finish()

    # --- shutdown

    def shutdown(self):
        """Answer what is being handled if that comes soon, close everything else now."""
        if self._stage == STAGE_LOST or self._transport is None:
            return
        if self._task is not None:
            self._task.cancel()
        elif self._stage == STAGE_IDLE and not self._transport.get_write_buffer_size():
            self._transport.close()
        elif self._handler is None and self._stage != STAGE_DRAIN:
            self._finish()

    def abort(self):
        if self._transport is not None:
            self._transport.abort()
