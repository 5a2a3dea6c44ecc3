"""Connections of the engine that stay open for the later questions of one look.

A connection is kept if all that was asked on it has a plain answer. The descriptors of kept
connections are among those that the engine may have, and they are given up where a worker that has
not been asked needs one. A server may end such a connection at any time: then, as with all that is
unusual, the client of Python asks the worker, on a connection of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from workerserver.cluster.model import Worker

if TYPE_CHECKING:
    from workerserver.cluster import _ask

__all__ = ["Kept"]


class Kept:
    """One engine for several visits, one visit at a time. ``numbers``: of the workers whose
    connections are kept, each worker's number in the engine."""

    __slots__ = ("_used", "counter", "fan", "numbers")

    def __init__(self) -> None:
        self.fan: _ask.Fan | None = None
        self.numbers: dict[Worker, int] = {}
        self.counter = itertools.count(1)
        self._used = False

    @contextmanager
    def used(self) -> Iterator[Kept | None]:
        """Nothing else uses this until the end of the block. None if something does."""
        if self._used:
            yield None
            return
        self._used = True
        try:
            yield self
        except BaseException:
            self.close()  # the engine may be in the middle of something
            raise
        finally:
            self._used = False

    @property
    def count(self) -> int:
        """Open connections that are kept."""
        return 0 if self.fan is None else self.fan.kept

    def drop(self, worker: Worker) -> None:
        """The connection to *worker* is kept no more."""
        number = self.numbers.pop(worker, None)
        if number is not None and self.fan is not None:
            self.fan.drop(number)

    def close(self) -> None:
        self.numbers.clear()
        if self.fan is not None:
            self.fan.close()
            self.fan = None
