"""The verdict on a job: who is suspected of what, as data, as one sentence, as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from workerserver.cluster.judge.job import NAMELESS, Gone
from workerserver.cluster.model import Frame

__all__ = ["REASONS", "Reason", "Status", "Suspect", "Verdict", "place"]

Reason = Literal[
    "mismatch",
    "order",
    "p2p cycle",
    "swallowed",
    "gil held",
    "dataloader",
    "lock",
    "shutdown",
    "behind",
    "unreachable",
    "p2p",
    "stalled",
]

#: Every reason there is, from the strongest evidence to the weakest; what it rests on.
REASONS: Mapping[Reason, str] = {
    "mismatch": "it issued another operation, size or dtype than the other ranks, as one number",
    "order": "it issued what the others issued in another order, or left something out",
    "p2p cycle": "it waits for a rank that waits for it, point-to-point",
    "swallowed": "it has left out a collective and gone on: its step is ahead of the others'",
    "gil held": "others wait for it, and one of its threads keeps the GIL",
    "dataloader": "others wait for it, and it waits for its DataLoader",
    "lock": "others wait for it, and it waits for a lock or a condition",
    "shutdown": "others wait for it, and it is on its way out",
    "behind": "others wait for it in a collective that it has not entered",
    "unreachable": "it gives no usable answer, and the job does not go on",
    "p2p": "it waits in a send or recv that its recorder doesn't hold, and the job does not go on",
    "stalled": "its step is too old, though no rank waits for it",
}

Status = Literal[0, 1, 2]
"""0: healthy. 1: suspects. 2: could not tell; the sentence says why."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """*collective* and *seq*: what it has not entered, or entered differently; None if that isn't
    known. *location*: ``file:line function`` of its newest frame in user code. *call*: the library
    function called there, in which it stands. *evidence*: short lines."""

    rank: int | None
    reason: Reason
    address: str
    host: str | None = None
    process_group: str | None = None
    collective: str | None = None
    seq: int | None = None
    location: str | None = None
    call: str | None = None
    gil_holder: bool = False
    step: int | None = None
    step_age_s: float | None = None
    evidence: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "rank": self.rank,
            "host": self.host,
            "address": self.address,
            "reason": self.reason,
            "process_group": self.process_group,
            "collective": self.collective,
            "seq": self.seq,
            "location": self.location,
            "call": self.call,
            "gil_holder": self.gil_holder,
            "step": self.step,
            "step_age_s": self.step_age_s,
            "evidence": list(self.evidence),
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """*ranks*: how many the job has; *responded*: how many gave a usable answer. *stragglers*: the
    job goes on, but slower for them; the same form as suspects, and no fault."""

    sentence: str
    status: Status
    ranks: int
    responded: int
    unreachable: tuple[Gone, ...] = ()
    suspects: tuple[Suspect, ...] = ()
    stragglers: tuple[Mapping[str, Any], ...] = ()
    groups: tuple[Mapping[str, Any], ...] = ()
    process_groups: tuple[Mapping[str, Any], ...] = ()
    problems: tuple[str, ...] = ()
    """What was wrong with single answers, one line each."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "verdict": self.sentence,
            "status": self.status,
            "ranks": self.ranks,
            "responded": self.responded,
            "unreachable": [
                {
                    "rank": each.rank if each.rank < NAMELESS else None,
                    "host": each.host,
                    "address": each.address,
                    "reason": each.reason,
                    "text": each.text,
                }
                for each in self.unreachable
            ],
            "suspects": [each.as_dict() for each in self.suspects],
            "stragglers": [dict(each) for each in self.stragglers],
            "groups": [dict(each) for each in self.groups],
            "process_groups": [dict(each) for each in self.process_groups],
            "problems": list(self.problems),
        }


def place(frame: Frame) -> str:
    """``compute(), hang.py:12``, as a sentence has it."""
    name = frame.file.replace("\\", "/").rpartition("/")[2] or frame.file
    function = frame.function if frame.function.startswith("<") else f"{frame.function}()"
    return f"{function}, {name}:{'?' if frame.line is None else frame.line}"


def where(frame: Frame) -> str:
    """``/home/user/hang.py:12 compute``, as JSON has it."""
    return f"{frame.file}:{'?' if frame.line is None else frame.line} {frame.function}"


def listing(clauses: Sequence[str], most: int = 5) -> str:
    """The clauses of one verdict as sentences."""
    shown = [*clauses[:most]]
    if len(clauses) > most:
        shown.append(f"{len(clauses) - most} more of the kind")
    return ". ".join([shown[0], *(each[:1].upper() + each[1:] for each in shown[1:])])
