"""Turns of a loop: requests that came in together share a dictionary until their turn ends.

The native transport gives the loop all received requests at once: that is a turn. The transport
calls begin() and end(), and end() drops the dictionary. On other transports a turn ends before the
loop reads again: a callback drops the dictionary. The native transport does without a callback,
because the loop would run once more for the callback, and take the GIL once more.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any
from weakref import WeakKeyDictionary

__all__ = ["begin", "end", "shared"]

#: The dictionary of each loop's turn. Only the loop's own thread touches the loop's entry. The keys
#: are weak: a loop that stops within a turn never runs the callback that would drop the entry.
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Any, Any]] = WeakKeyDictionary()


def begin() -> None:
    """A turn of the running loop begins. end() must always follow; turns can't be nested."""
    _turns[asyncio.get_running_loop()] = {}


def end() -> None:
    """The turn of the running loop is over. Does nothing outside a turn."""
    _drop(asyncio.get_running_loop())


def shared() -> dict[Any, Any]:
    """The dictionary that the requests of this turn share. Without a running loop: a new dictionary
    that nothing else shares."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return {}
    turn = _turns.get(loop)
    if turn is None:
        turn = _turns[loop] = {}
        # The callback runs after all requests that the loop has read, and before the next read.
        loop.call_soon(_drop, loop)
    return turn


def _drop(loop: asyncio.AbstractEventLoop) -> None:
    _turns.pop(loop, None)


# If the process forks within a turn, the turn never ends in the child.
os.register_at_fork(after_in_child=_turns.clear)
