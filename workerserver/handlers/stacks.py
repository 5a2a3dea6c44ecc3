"""``dump_traceback``: what every Python thread of this process is doing.

The handler is inline: it runs on the server's loop, and costs the one GIL acquisition that brought
the request there. Requests of the same turn of the loop share one snapshot and its renderings, or
two: JSON also says what threads wait for, and to read that takes longer. So many requests at once
cost the trainer no more than one of each.

The native I/O thread answers two kinds of request itself: ``mode=nogil``, and any that the loop
doesn't claim in time. On the other transports this handler answers them. ``render.h`` has the
formats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from workerserver.process import loop_turn
from workerserver.stacks import known
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


def _with_gil(facts: bool) -> Snapshot:
    if facts:
        known.publish()
    return snapshot(facts=facts)


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


def _shared(take: Callable[[bool], Snapshot], facts: bool) -> _Shared:
    """What the requests of this turn of the loop share of the snapshot that *take* takes, with
    *facts* or perhaps without them."""
    turn = loop_turn.shared()
    shared: _Shared | None = turn.get((take, True)) or (None if facts else turn.get((take, False)))
    if shared is None:
        shared = turn[take, facts] = _Shared(take(facts))
    return shared


def dump_traceback(format: Format = "text", mode: Mode = "auto") -> Response:
    """The stacks of all Python threads.

    *format*: ``text`` in faulthandler's form, ``json`` with each thread's name and kernel state,
    and with what it waits for and which locks it holds, as far as that is known, ``digest`` for
    grouping many ranks cheaply.

    *mode*: ``gil`` and ``auto`` take the stacks under the GIL, which this function has. ``nogil``
    reads them without the GIL, and raises NotImplementedHere (501) where that is impossible.

    Headers of the reply: ``X-Traceback-Mode`` says how the stacks were taken. In mode ``nogil``,
    ``X-GIL-Holder`` names the thread that held the GIL, and ``X-Traceback-Unstable`` counts the
    stacks that never held still.
    """
    shared = _shared(_without_gil if mode == "nogil" else _with_gil, format == "json")
    return Response(shared.body(format), 200, _TYPES[format], shared.headers)


def register(registry: Registry) -> None:
    """Serve ``dump_traceback`` from *registry*, in place of torch's handler of that name."""
    registry.register("dump_traceback", dump_traceback, inline=True, shadow=True)
