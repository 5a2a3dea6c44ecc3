"""``dump_traceback``: what every Python thread of this process is doing.

The handler is inline: it runs on the server's loop, and costs the one GIL acquisition that brought
the request there. Requests of the same turn of the loop share one snapshot and its renderings, or
two: JSON also says what threads wait for, and to read that takes longer. So many requests at once
cost the trainer no more than one of each. Once a second has had all its snapshots, requests wait
for the next one, and share that. A snapshot is never older than its request.

The native I/O thread answers two kinds of request itself: ``mode=nogil``, and any that the loop
doesn't claim in time. On the other transports this handler answers them. ``render.h`` has the
formats.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from workerserver.http.limits import Limits
from workerserver.process import loop_turn
from workerserver.process._pulse import Pace
from workerserver.stacks import known
from workerserver.stacks._stacks import Snapshot, snapshot, snapshots_taken
from workerserver.types import NotImplementedHere, Response

if TYPE_CHECKING:
    from workerserver.http.registry import Registry

__all__ = [
    "Format",
    "Mode",
    "dump_traceback",
    "limit_snapshots",
    "register",
    "snapshots_taken",
]

Format = Literal["text", "json", "digest"]
Mode = Literal["auto", "gil", "nogil"]

_TYPES: dict[Format, str] = {
    "text": "text/plain",
    "json": "application/json",
    "digest": "application/json",
}


class _Shared:
    """A snapshot and its bodies. Each body is made at the first request for it."""

    __slots__ = ("bodies", "headers", "snapshot")

    def __init__(self, taken: Snapshot) -> None:
        self.snapshot = taken
        self.headers = taken.headers()
        self.bodies: dict[Format, bytes] = {}

    def body(self, format: Format) -> bytes:
        body = self.bodies.get(format)
        if body is None:
            body = self.bodies[format] = self.snapshot.render(format)
        return body

    def response(self, format: Format) -> Response:
        return Response(self.body(format), 200, _TYPES[format], self.headers)


def _with_gil(facts: bool) -> Snapshot:
    if facts:
        known.publish()
    return snapshot(facts=facts)


def _with_native(facts: bool) -> Snapshot:
    """Without the GIL, with native frames. Raises NotImplementedHere without /proc."""
    if facts:
        known.publish()
    try:
        return snapshot(mode="nogil", facts=facts, native=True)
    except RuntimeError as error:
        raise NotImplementedHere(f"native=1 is not available: {error}") from None


def _without_gil(facts: bool) -> Snapshot:
    """If the reading failed this time, what the kernel knows. Raises NotImplementedHere where no
    stacks can be read without the GIL."""
    if facts:
        known.publish()
    try:
        return snapshot(mode="nogil", facts=facts)
    except NotImplementedError as error:
        raise NotImplementedHere(
            f"mode=nogil is not available: {error}; ask with mode=auto or mode=gil"
        ) from None
    except RuntimeError:
        return snapshot(mode="kernel")


#: Of all snapshots that requests cause on loops of this process.
_pace = Pace(Limits.max_snapshots, shown=True)
#: How a snapshot is taken, with facts or without them.
Take = Callable[[bool], Snapshot]


def limit_snapshots(rate: float) -> None:
    """From now on requests cause at most *rate* snapshots a second in this process, and 1 at
    least."""
    global _pace
    _pace = Pace(rate, shown=True)


class _Next:
    """The requests of one loop that wait for the next snapshot of one kind."""

    def __init__(self, loop: asyncio.AbstractEventLoop, take: Take, wait: float) -> None:
        self._loop = loop
        self._take = take
        self._waiting: list[tuple[asyncio.Future[Response], Format]] = []
        loop.call_later(wait, self._come)

    def join(self, format: Format) -> asyncio.Future[Response]:
        future: asyncio.Future[Response] = self._loop.create_future()
        self._waiting.append((future, format))
        return future

    def _come(self) -> None:
        del _next[self._loop, self._take]  # who asks from now on wants a later one
        _pace.take()
        try:
            facts = any(format == "json" for _, format in self._waiting)
            shared = _Shared(self._take(facts))
            answers = [shared.response(format) for _, format in self._waiting]
        except Exception as error:
            for future, _ in self._waiting:
                future.set_exception(error)
            return
        for (future, _), answer in zip(self._waiting, answers, strict=True):
            future.set_result(answer)


#: Who waits, for each loop and kind of snapshot. Only the loop's own thread touches its entries.
_next: dict[tuple[asyncio.AbstractEventLoop, Take], _Next] = {}
os.register_at_fork(after_in_child=_next.clear)


def _to_wait_for(take: Take) -> _Next | None:
    """The next snapshot, if it may not be taken now."""
    if not _next:
        wait = _pace.wait()
        if wait == 0.0:
            return None
    else:
        wait = 0.0
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None  # somebody who calls the handler by himself
    coming = _next.get((loop, take))
    if coming is None:
        coming = _next[loop, take] = _Next(loop, take, wait or 1.0 / _pace.rate)
    return coming


def dump_traceback(
    format: Format = "text", mode: Mode = "auto", native: Literal["0", "1"] = "0"
) -> Any:
    """The stacks of all Python threads.

    *format*: ``text`` in faulthandler's form, ``json`` with each thread's name and kernel state,
    and with what it waits for and which locks it holds, as far as that is known, ``digest`` for
    grouping many ranks cheaply.

    *mode*: ``gil`` and ``auto`` take the stacks under the GIL, which this function has. ``nogil``
    reads them without the GIL, and raises NotImplementedHere (501) where that is impossible.

    *native*: ``1`` adds native frames to text and JSON, and the threads that Python doesn't know.
    They are read without the GIL, so mode ``auto`` is ``nogil`` then, and ``gil`` is refused (400).
    Where Python's stacks can't be read without the GIL, the native frames stand alone.

    Headers of the reply: ``X-Traceback-Mode`` says how the stacks were taken. In mode ``nogil``,
    ``X-GIL-Holder`` names the thread that held the GIL, and ``X-Traceback-Unstable`` counts the
    stacks that never held still.

    The result is a Response, or a future of one where the snapshots of this second are used up.
    """
    if native == "1" and mode == "gil":
        return Response("Invalid value for mode with native=1 valid values are auto or nogil", 400)
    take = _with_gil
    if native == "1" and format != "digest":
        take = _with_native
    elif native == "1" or mode == "nogil":
        take = _without_gil
    facts = format == "json"
    turn = loop_turn.shared()
    shared: _Shared | None = turn.get((take, True)) or (None if facts else turn.get((take, False)))
    if shared is None:
        coming = _to_wait_for(take)
        if coming is not None:
            return coming.join(format)
        shared = turn[take, facts] = _Shared(take(facts))
    return shared.response(format)


def register(registry: Registry) -> None:
    """Serve ``dump_traceback`` from *registry*, in place of torch's handler of that name."""
    registry.register("dump_traceback", dump_traceback, inline=True, permission="read", shadow=True)
