"""Ranks that stand in different calls, each of which takes all of them: so none of the calls ends.
Stacks tell that where no recorder does.

No rank leaves an ``all_reduce``, or another operation in which each rank waits for all, before
every rank of the group has entered it. So if most ranks stand in one, who stands in another
operation of the same ranks has left something out, or has made something that the others have not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from workerserver.cluster.judge.chains.together import MEETINGS, Call, calls_of
from workerserver.cluster.judge.facts import (
    Accusation,
    Differs,
    Entered,
    Evidence,
    NoMajority,
    StacksAlone,
)
from workerserver.cluster.judge.grounds.crowd import is_stuck

if TYPE_CHECKING:
    from workerserver.cluster.judge.suspicions import Suspicions

__all__ = ["from_calls"]


def from_calls(suspicions: Suspicions) -> None:
    job = suspicions.job
    if job.before is None or suspicions.accused or job.moves:
        return
    calls = calls_of(job)
    # Equal lists are mostly one object: to compare them for each rank would be quadratic.
    lists = {id(call.ranks): call.ranks for call in calls.values()}
    for ranks in sorted(set(lists.values())):
        inside = {rank: calls[rank] for rank in ranks if rank in calls}
        if len(inside) == len(ranks) and all(call.ranks == ranks for call in inside.values()):
            _weigh(suspicions, inside)


def _weigh(suspicions: Suspicions, inside: dict[int, Call]) -> None:
    job = suspicions.job
    parties: dict[Call, list[int]] = {}
    for rank, call in inside.items():
        parties.setdefault(call, []).append(rank)
    if len(parties) != 2 or not all(is_stuck(job, rank) and job.slept(rank) for rank in inside):
        return  # a loop may be met in one call twice
    (some, many), (other, few) = sorted(parties.items(), key=lambda each: (-len(each[1]), each[1]))
    if not some.name.startswith(MEETINGS) or any(map(job.has_recorded, inside)):
        return
    if len(many) == len(few) and not other.name.startswith(MEETINGS):
        return
    sides = [(other, few, some, many)]
    evidence: list[Evidence] = [StacksAlone()]
    if len(many) == len(few):
        sides.append((some, many, other, few))
        evidence.append(NoMajority())
    for own, ranks, theirs, others in sides:
        claim = Differs(_entered(own, ranks), _entered(theirs, others))
        for rank in ranks:
            accusation = Accusation(rank, "mismatch", claim, own.group, own.name)
            accusation.evidence += evidence
            suspicions.accuse(accusation)


def _entered(call: Call, ranks: Sequence[int]) -> Entered:
    return Entered(call.name, call.group, ranks)
