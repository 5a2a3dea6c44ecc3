"""The verdict on a job: who is suspected of what, as data. ``show.report`` makes JSON of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from workerserver.cluster.judge.chains.facts import Circle
from workerserver.cluster.judge.facts import GoesOn, Gone
from workerserver.cluster.judge.flight import Group, Mismatch, Wait
from workerserver.cluster.judge.grounds.status import Status
from workerserver.cluster.judge.reasons import Reason
from workerserver.cluster.model import Frame
from workerserver.cluster.read import groups

__all__ = ["GroupState", "Status", "Straggler", "Suspect", "Verdict", "over"]


@dataclass(frozen=True, slots=True)
class Suspect:
    """*rank* None: nobody knows it. *collective* and *seq*: what it has not entered, or entered
    differently; None if that isn't known. *location*: its newest frame in user code. *call*: the
    library function called there, which it is in. *evidence*: short lines. *waits_for*: what its
    acting thread waits for. *deadlock*: its threads that wait for each other."""

    rank: int | None
    reason: Reason
    address: str
    host: str | None = None
    process_group: str | None = None
    collective: str | None = None
    seq: int | None = None
    location: Frame | None = None
    call: str | None = None
    gil_holder: bool = False
    step: int | None = None
    step_age_s: float | None = None
    evidence: tuple[str, ...] = ()
    waits_for: str | None = None
    deadlock: Sequence[Circle] = ()


class Straggler(NamedTuple):
    """A rank that slows the job down: it came last on *share* of the occasions with *operations*
    operations, *late_s* seconds after the others (the median)."""

    rank: int
    process_group: str
    late_s: float
    operations: int
    share: float
    text: str


class GroupState(NamedTuple):
    """A process group, who waits in it, which of these waits hang, and what differs."""

    group: Group
    waits: Sequence[Wait]
    hanging: Sequence[Wait]
    mismatch: Mismatch | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """*ranks*: how many the job has; *responded*: how many gave a usable answer. *stragglers*: the
    job goes on, but more slowly because of them; that is no fault. *groups*: ranks that do the
    same. *process_groups*: those in trouble first."""

    sentence: str
    status: Status
    ranks: int
    responded: int
    unreachable: tuple[Gone, ...] = ()
    suspects: tuple[Suspect, ...] = ()
    stragglers: tuple[Straggler, ...] = ()
    groups: tuple[groups.Group, ...] = ()
    process_groups: tuple[GroupState, ...] = ()
    problems: tuple[str, ...] = ()
    """What was wrong with single answers, one line each."""
    progress: tuple[GoesOn, ...] = ()
    """What shows that the job goes on, of a verdict without suspects."""
    again_s: float | None = None
    """Another look after so many seconds may tell more."""
    sure: bool = False
    """It rests on one round, and another round would change nothing."""
    not_looked_at: tuple[str, ...] = ()
    """What it does not rest on, one line for each kind."""


def over(sentence: str) -> Verdict:
    """On a job that has ended, which nobody can be asked about."""
    return Verdict(sentence, 3, 0, 0)
