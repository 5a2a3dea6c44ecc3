"""Heartbeats for loops that no callback sees: by the batches, or by the optimizer's steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from workerserver.process.free_threaded.beats import heartbeat, last_heartbeat

__all__ = ["OptimizerBeats", "steps"]

T = TypeVar("T")


def steps(batches: Iterable[T], first: int | None = None) -> Iterator[T]:
    """The items of *batches*, with a heartbeat before each one::

        for batch in steps(loader): ...

    Counts from *first*. Without *first* the count goes on from the last heartbeat of this process,
    so that a second epoch does not begin at 0 again.
    """
    if first is None:
        first = _next_step()
    for step, batch in enumerate(batches, first):
        heartbeat(step)
        yield batch


def _next_step() -> int:
    last, _ = last_heartbeat()
    return 0 if last is None else last + 1


class OptimizerBeats:
    """A heartbeat after each step of any optimizer of this process, until ``stop()``.

    If the program calls ``heartbeat`` itself, the program's own count is the better one, and these
    heartbeats stop. Imports torch.
    """

    def __init__(self) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        self._last = last_heartbeat()[0]
        self._hook: Any = register_optimizer_step_post_hook(self._beat)

    def _beat(self, *_: object) -> None:
        last, _age = last_heartbeat()
        if last != self._last:
            self.stop()
            return
        self._last = 0 if last is None else last + 1
        heartbeat(self._last)

    def stop(self) -> None:
        """Beat no more. May be called more than once."""
        self._hook.remove()
