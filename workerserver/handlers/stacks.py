"""``dump_traceback``: what every Python thread of this process is doing.

Inline: it runs on the server's loop, so it costs the one GIL acquisition that brought the request
there. Requests that came in with the same turn of the loop share one snapshot and its renderings,
so a crowd of askers costs the trainer no more than one.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from workerserver._stacks import Frame, Snapshot, kernel_state, snapshot, snapshots_taken
from workerserver.types import NotImplementedHere, Response

if TYPE_CHECKING:
    from workerserver.registry import Registry

__all__ = ["Format", "Mode", "digest", "dump_traceback", "register", "snapshots_taken", "to_json"]

Format = Literal["text", "json", "digest"]
Mode = Literal["auto", "gil", "nogil"]

#: Threads of this package are called so, and are no part of what the process does.
OWN_THREADS = "workerserver"

#: Below the size at which hashlib gives up the GIL, which may take a switch interval to get back.
HASH_PIECE = 2000


def to_json(taken: Snapshot) -> dict[str, Any]:
    """*taken* as a dict that JSON can hold.

    ``version`` 1, ``pid``, ``mode`` ("gil"), ``time`` (seconds since the epoch), ``gil_holder``
    (ident; the thread that took the snapshot), ``truncated`` (threads were left out) and
    ``threads``, most recently created first: ``ident``, ``native_id``, ``name`` and ``daemon``
    (null for a thread that threading doesn't know), ``current``, ``state`` (the kernel's letter)
    and ``wchan`` (where it waits in the kernel), both read now and null where unreadable,
    ``truncated`` (frames were left out) and ``frames``, newest first: ``file``, ``line`` (null if
    unknown), ``function``, ``qualname`` (null before CPython 3.11).
    """
    threads = []
    for thread in taken.threads:
        state, wchan = (None, None)
        if thread.native_id is not None:
            state, wchan = kernel_state(thread.native_id)
        threads.append(
            {
                "ident": thread.ident,
                "native_id": thread.native_id,
                "name": thread.name,
                "daemon": thread.daemon,
                "current": thread.current,
                "state": state,
                "wchan": wchan,
                "truncated": thread.truncated,
                "frames": [
                    {"file": file, "line": line, "function": function, "qualname": qualname}
                    for file, line, function, qualname in thread.frames
                ],
            }
        )
    return {
        "version": 1,
        "pid": taken.pid,
        "mode": "gil",
        "time": taken.time,
        "gil_holder": taken.current,
        "truncated": taken.truncated,
        "threads": threads,
    }


def digest(taken: Snapshot) -> dict[str, Any]:
    """A summary of *taken*, 100 to 200 bytes of JSON, equal where processes do the same.

    ``version`` 1; ``main``, the hash of the main thread's stack (null if it has none); ``top``,
    its newest frame as ``file:line function``, without the folder; ``digest``, a hash over
    ``main`` and the set of the other threads' hashes; ``threads``, how many threads went in.

    A hash is BLAKE2b, 8 bytes in hex, of a stack's lines in the text form. So files, lines and
    functions count; idents, names, order, and how many threads share a stack don't (thread pools
    start their workers by chance). Left out are threads whose name begins with ``workerserver``,
    and the thread that took the snapshot unless it is the main thread.
    """
    main_ident = threading.main_thread().ident
    main = top = None
    others = set()
    counted = 0
    for index, thread in enumerate(taken.threads):
        if thread.ident == main_ident:
            main = _hash(taken.stack_text(index))
            top = _top(thread.frames)
        elif thread.current or (thread.name or "").startswith(OWN_THREADS):
            continue
        else:
            others.add(_hash(taken.stack_text(index)))
        counted += 1
    whole = _hash("\n".join([main or "-", *sorted(others)]))
    return {"version": 1, "digest": whole, "main": main, "top": top, "threads": counted}


def _top(frames: tuple[Frame, ...]) -> str | None:
    if not frames:
        return None
    file, line, function, _ = frames[0]
    return f"{file.rpartition('/')[2][:60]}:{'???' if line is None else line} {function[:60]}"


def _hash(text: str) -> str:
    data = text.encode("ascii")
    state = blake2b(digest_size=8)
    for start in range(0, len(data), HASH_PIECE):
        state.update(data[start : start + HASH_PIECE])
    return state.hexdigest()


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


_RENDER: dict[Format, tuple[Callable[[Snapshot], str], str]] = {
    "text": (Snapshot.text, "text/plain"),
    "json": (lambda taken: _compact(to_json(taken)), "application/json"),
    "digest": (lambda taken: _compact(digest(taken)), "application/json"),
}


class _Turn:
    """What the requests of one turn of a loop share; each body is made when first asked for."""

    __slots__ = ("bodies", "snapshot")

    def __init__(self, taken: Snapshot) -> None:
        self.snapshot = taken
        self.bodies: dict[Format, bytes] = {}

    def body(self, format: Format) -> bytes:
        body = self.bodies.get(format)
        if body is None:
            body = self.bodies[format] = _RENDER[format][0](self.snapshot).encode("ascii")
        return body


# Weak: a loop that ends within the turn never runs the callback that would drop its entry.
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, _Turn] = WeakKeyDictionary()


def _turn() -> _Turn:
    """The running loop's turn; without a running loop a new one, shared with nobody."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return _Turn(snapshot())
    turn = _turns.get(loop)
    if turn is None:
        turn = _turns[loop] = _Turn(snapshot())
        # Runs after everything that the loop has read by now, and before it reads again.
        loop.call_soon(_turns.pop, loop, None)
    return turn


def dump_traceback(format: Format = "text", mode: Mode = "auto") -> Response:
    """The stacks of all Python threads.

    *format*: ``text`` in faulthandler's form, ``json`` with each thread's name and kernel state,
    ``digest`` for grouping many ranks cheaply. *mode*: ``gil``, or ``auto``, which means the same
    in this build; ``nogil`` raises NotImplementedHere (501).
    """
    if mode == "nogil":
        raise NotImplementedHere(
            "mode=nogil is not available: this build takes snapshots only with the GIL; "
            "ask with mode=auto or mode=gil"
        )
    body = _turn().body(format)
    return Response(body, 200, _RENDER[format][1], (("X-Traceback-Mode", "gil"),))


def register(registry: Registry) -> None:
    """Serve ``dump_traceback`` from *registry*, in place of torch's handler of that name."""
    registry.register("dump_traceback", dump_traceback, inline=True, shadow=True)
