"""What is found where threads, processes and ranks wait for each other, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workerserver.cluster.model import Frame

__all__ = ["Circle", "Deadlock", "Knot", "Told"]


@dataclass(frozen=True, slots=True)
class Circle:
    """One *thread* of a deadlock, by its name or its native id. It waits for *waits_for*, which the
    next thread holds; None if it has *joined* that one. *held*: what the thread before waits for.
    *took*: where it has taken that. *stands*: where it waits."""

    thread: str | int
    waits_for: str | None
    held: str | None = None
    took: Frame | None = None
    stands: Frame | None = None
    joined: bool = False


@dataclass(frozen=True, slots=True)
class Deadlock:
    """Threads of one process wait for each other, each for the next one, the last for the first.
    *sure*: one snapshot under the GIL shows only locks of Python. Else two rounds show the same,
    and no thread has run in between."""

    threads: Sequence[Circle]
    sure: bool = True


@dataclass(frozen=True, slots=True)
class Knot:
    """Ranks wait for each other, and one of them at least for a file lock. *steps*: which ranks
    wait in what operation of what group, and for which ranks."""

    steps: Sequence[tuple[Sequence[int], str, str, Sequence[int]]]


@dataclass(frozen=True, slots=True)
class Told:
    """What the acting thread waits for, as its worker tells it."""

    text: str
