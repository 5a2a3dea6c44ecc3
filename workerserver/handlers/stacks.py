"""``dump_traceback``: what every Python thread of this process is doing.

Inline: it runs on the server's loop, so it costs the one GIL acquisition that brought the request
there. Requests that came in with the same turn of the loop share one snapshot and its renderings,
so a crowd of askers costs the trainer no more than one.

Where the native I/O thread runs, it answers ``mode=nogil``, and what the loop doesn't claim in
time, by itself; this handler does the same for the other transports. ``render.h`` has the formats.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal
from weakref import WeakKeyDictionary

from workerserver.process.loop_turn import call_at_turn_end
from workerserver.stacks._stacks import Snapshot, snapshot, snapshots_taken
from workerserver.types import NotImplementedHere, Response

if TYPE_CHECKING:
    from workerserver.http.registry import Registry

__all__ = ["Format", "Mode", "dump_traceback", "register", "snapshots_taken"]

Format = Literal["text", "json", "digest"]
Mode = Literal["auto", "gil", "nogil"]

_TYPES: dict[Format, str] = {
    "text": "text/plain",
    "json": "application/json",
    "digest": "application/json",
}


class _Shared:
    """A snapshot and its bodies; each body is made when first asked for."""

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


def _with_gil() -> Snapshot:
    return snapshot()


def _without_gil() -> Snapshot:
    """Raises NotImplementedHere where no stacks can be read without the GIL. If it only failed this
    time, what the kernel knows."""
    try:
        return snapshot(mode="nogil")
    except NotImplementedError as error:
        raise NotImplementedHere(
            f"mode=nogil is not available: {error}; ask with mode=auto or mode=gil"
        ) from None
    except RuntimeError:
        return snapshot(mode="kernel")


_Take = Callable[[], Snapshot]

# What the requests of a loop's turn share. Weak: a loop that ends within the turn never runs the
# callback that would drop its entry.
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_Take, _Shared]] = WeakKeyDictionary()


def _shared(take: _Take) -> _Shared:
    """That of the running loop's turn; without a running loop a new one, shared with nobody."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return _Shared(take())
    turn = _turns.get(loop)
    if turn is None:
        turn = _turns[loop] = {}
        drop = partial(_turns.pop, loop, None)
        if not call_at_turn_end(drop):
            # Runs after everything that the loop has read by now, and before it reads again.
            loop.call_soon(drop)
    shared = turn.get(take)
    if shared is None:
        shared = turn[take] = _Shared(take())
    return shared


def dump_traceback(format: Format = "text", mode: Mode = "auto") -> Response:
    """The stacks of all Python threads.

    *format*: ``text`` in faulthandler's form, ``json`` with each thread's name and kernel state,
    ``digest`` for grouping many ranks cheaply. *mode*: ``gil`` and ``auto`` take them under the
    GIL, which this function has; ``nogil`` reads them without it, and raises NotImplementedHere
    (501) where that is impossible. The reply's ``X-Traceback-Mode`` says how they were taken, for
    ``nogil`` ``X-GIL-Holder`` which thread held the GIL, and ``X-Traceback-Unstable`` how many
    stacks never held still.
    """
    shared = _shared(_without_gil if mode == "nogil" else _with_gil)
    return Response(shared.body(format), 200, _TYPES[format], shared.headers)


def register(registry: Registry) -> None:
    """Serve ``dump_traceback`` from *registry*, in place of torch's handler of that name."""
    registry.register("dump_traceback", dump_traceback, inline=True, shadow=True)
