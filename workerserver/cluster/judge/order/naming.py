"""Ranks that have made different process groups as one and the same of the job: one of them has
left out a new_group, or has called it in another order.

torch names a group by a number, which each rank counts for itself. All ranks have to call new_group
for every group, so equal names are equal groups. Two overlapping groups under one name are a proof
that the ranks count differently. From then on, no rank meets the others in any group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workerserver.cluster.judge.facts import (
    Accusation,
    Evidence,
    Made,
    NoMajority,
    Tangled,
    WaitsIn,
)
from workerserver.cluster.judge.grounds.crowd import is_stuck
from workerserver.cluster.judge.job import Job

if TYPE_CHECKING:
    from workerserver.cluster.judge.suspicions import Suspicions

__all__ = ["from_names"]

Members = tuple[int, ...]

#: A part of a group that torch's split_group has made. Only the members of the group count it.
SPLIT = ":split:"
#: Longer names of digits are hashes of the members.
MAX_DIGITS = 8


def from_names(suspicions: Suspicions) -> None:
    """The first name that overlapping groups have. The makers of the group with the most makers
    are right. All are accused if two groups have as many, and nobody if a member tells of none."""
    job = suspicions.job
    if job.moves or not _stands(suspicions):
        return
    for name, made in sorted(_made(job).items()):
        ordered = sorted(made.items(), key=lambda each: (-len(each[1]), each[1]))
        (most, makers), *rest = ordered
        others = [each for each in rest if not set(most).isdisjoint(each[0])]
        if not others:
            continue
        evidence: list[Evidence] = [WaitsIn(job.entered(each)) for each in suspicions.hanging[:2]]
        sides = [(*each, most, makers) for each in others]
        if len(others[0][1]) == len(makers):
            known = {rank for ranks in made.values() for rank in ranks}
            if not known.issuperset((*most, *others[0][0])):  # the others would tell who is right
                suspicions.misnamed = True
                suspicions.doubts.append(
                    Tangled([job.entered(each) for each in suspicions.hanging])
                )
                return
            evidence.append(NoMajority())
            sides.append((most, makers, *others[0]))
        for own, ranks, theirs, right in sides:
            claim = Made(str(name), own, tuple(right), theirs)
            for rank in ranks:
                accusation = Accusation(rank, "order", claim, str(name), evidence=[*evidence])
                suspicions.accuse(accusation)
        return


def _made(job: Job) -> dict[int, dict[Members, list[int]]]:
    """By the number of a group: its members, and which of them say so."""
    found: dict[int, dict[Members, list[int]]] = {}
    sets: dict[int, frozenset[int]] = {}
    for row in job.now.records.rows:
        for key, group in row.record.groups.items():
            if group.earlier or SPLIT in key.desc:
                return {}  # then ranks may count differently, and be right
            members, name = group.ranks, key.name
            if not members or key.desc == "default_pg" or not name.isdigit():
                continue
            if len(name) > MAX_DIGITS:
                continue
            own = sets.setdefault(id(members), frozenset(members))
            makers = [rank for rank in row.ranks if rank in own]
            if makers:
                found.setdefault(int(name), {}).setdefault(members, []).extend(makers)
    return {
        name: {members: sorted({*ranks}) for members, ranks in made.items()}
        for name, made in found.items()
        if len(made) > 1
    }


def _stands(suspicions: Suspicions) -> bool:
    """Somebody waits for other ranks, and that is a hang."""
    job = suspicions.job
    return bool(suspicions.hanging) or any(
        blocked.on_ranks and is_stuck(job, rank) for rank, blocked in job.blocked.items()
    )
