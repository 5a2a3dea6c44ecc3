"""Turns of a loop: what the requests that came in together share, and for how long.

The native transport hands the loop everything that has come in, in one go. It says when such a
turn begins and ends, so what is shared is dropped at once. On other transports a turn ends before
the loop reads again: a callback drops what is shared. The native transport needs no such callback:
the loop would run once more for it, and get the GIL once more.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any
from weakref import WeakKeyDictionary

__all__ = ["begin", "end", "shared"]

#: What each loop's turn shares. Only the loop's own thread touches its entry. Weak: a loop that
#: stops within a turn never runs the callback that would drop the entry.
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Any, Any]] = WeakKeyDictionary()


def begin() -> None:
    """A turn of the running loop begins. Not nested; its end() must follow, whatever happens."""
    _turns[asyncio.get_running_loop()] = {}


def end() -> None:
    """The turn of the running loop is over. Nothing, if it is in none."""
    _drop(asyncio.get_running_loop())


def shared() -> dict[Any, Any]:
    """What the requests of this turn share; without a running loop a new dictionary, which is
    shared with nobody."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return {}
    turn = _turns.get(loop)
    if turn is None:
        turn = _turns[loop] = {}
        # Runs after everything that the loop has read by now, and before it reads again.
        loop.call_soon(_drop, loop)
    return turn


def _drop(loop: asyncio.AbstractEventLoop) -> None:
    _turns.pop(loop, None)


# A turn in which somebody forks has no end in the child.
os.register_at_fork(after_in_child=_turns.clear)
