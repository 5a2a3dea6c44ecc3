"""Turns of the native transport: what lasts until a drain of its queue is over.

The hub hands the loop everything that has come in, in one go. Whatever those requests share is
dropped at the end, by a callback from here: ``loop.call_soon`` would have the loop run once more,
with another acquisition of the GIL.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import get_ident

__all__ = ["begin", "call_at_turn_end", "end"]

#: By thread; there may be several loops. Only a turn's own thread touches its entry.
_turns: dict[int, list[Callable[[], object]]] = {}


def begin() -> None:
    """A turn begins in this thread. Not nested; its end() must follow, whatever happens."""
    _turns[get_ident()] = []


def end() -> None:
    """The turn of this thread is over: run its callbacks. All of them run; then the first exception
    is raised, if there was one."""
    failure: BaseException | None = None
    for callback in _turns.pop(get_ident(), ()):
        try:
            callback()
        except BaseException as error:
            failure = failure or error
    if failure is not None:
        raise failure


def call_at_turn_end(callback: Callable[[], object]) -> bool:
    """Call *callback* when this thread's turn ends; False, and nothing, if it is in none."""
    callbacks = _turns.get(get_ident())
    if callbacks is None:
        return False
    callbacks.append(callback)
    return True


# A turn in which somebody forks has no end in the child, where its thread's ident may come again.
os.register_at_fork(after_in_child=_turns.clear)
