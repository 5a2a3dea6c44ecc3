"""A handler's call: at once on the loop, as a coroutine, or in a thread of the pool."""

cimport cython

import select

from workerserver.http.responses import to_response
from workerserver.types import Response


cdef object _run_inline(handler, dict values):
    """What an inline handler answers: a Response, or a future of it."""
    try:
        response = handler.function(**values)
        if type(response) is Response:
            return response.checked()
        return response if isinstance(response, Future) else to_response(handler.name, response)
    except BaseException as error:
        # SystemExit and KeyboardInterrupt too: a handler can't end the server.
        return failure(handler.name, error)


cdef object _response_of(handler, future):
    """The Response that a future has, which is done."""
    try:
        return to_response(handler.name, future.result())
    except BaseException as error:
        return failure(handler.name, error)


cdef object _peer_of(transport):
    """``host:port`` of the client; None on a Unix socket."""
    peer = transport.get_extra_info("peername")
    return f"{peer[0]}:{peer[1]}" if peer and isinstance(peer, tuple) else None


cdef bint _hung_up(int fd) except -1:
    """Whether the other end of a Unix socket is closed, and not only its writing half."""
    poll = select.poll()
    poll.register(fd, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


async def _run_async(WorkerProtocol protocol, long turn, handler, dict values):
    """Run a coroutine handler to its response. Whatever it raises ends here: asyncio lets
    SystemExit and KeyboardInterrupt of a task through to the loop, and that would stop it."""
    try:
        response = to_response(handler.name, await handler.function(**values))
    except BaseException as error:
        response = failure(handler.name, error)
    finally:
        protocol._state.leave(handler)
    protocol._on_result(turn, response)


@cython.final
@cython.internal
cdef class _ThreadJob:
    """A plain handler's call, run by a thread of the pool."""

    cdef WorkerProtocol _protocol
    cdef long _turn
    cdef object _handler
    cdef dict _values

    def __init__(self, WorkerProtocol protocol, long turn, handler, dict values):
        self._protocol = protocol
        self._turn = turn
        self._handler = handler
        self._values = values

    def __call__(self):
        name = self._handler.name
        try:
            response = to_response(name, self._handler.function(**self._values))
        except BaseException as error:
            response = failure(name, error)
        finally:
            self._protocol._state.leave(self._handler)
        try:
            self._protocol._state.call_soon(self._protocol._on_result, self._turn, response)
        except RuntimeError:
            _logger.debug("the loop closed before handler %s answered", name)
