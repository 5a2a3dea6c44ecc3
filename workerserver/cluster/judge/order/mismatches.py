"""Ranks that have issued different operations under one number of a process group, by the flight
recorders: the smaller side is to blame.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from workerserver.cluster.judge.facts import (
    Accusation,
    Evidence,
    Issued,
    NoMajority,
    Parties,
    Undecided,
)
from workerserver.cluster.judge.flight import Mismatch
from workerserver.cluster.judge.job import Job
from workerserver.cluster.judge.reasons import Reason

if TYPE_CHECKING:
    from workerserver.cluster.judge.suspicions import Suspicions

__all__ = ["from_mismatches"]


def from_mismatches(suspicions: Suspicions) -> None:
    """All sides are accused if none is the larger one, and nobody if a member that tells nothing
    may be the one that would tell which side is right."""
    if suspicions.count_differently():  # equal names are not equal groups then
        return
    job = suspicions.job
    for mismatch in job.analysis.mismatches:
        parties = Parties(mismatch.group.label, mismatch.seq, mismatch.parties)
        evidence: list[Evidence] = [parties]
        known = sum(len(ranks) for ranks, _ in mismatch.parties)
        if not _outvoted(job, mismatch, known):
            suspicions.doubts.append(Undecided(parties))
            continue
        if len(mismatch.suspects) == known:
            unseen = bool(job.now.gone) and not mismatch.group.complete
            if known < len(mismatch.group.ranks) or unseen:
                suspicions.doubts.append(Undecided(parties))
                continue
            evidence.append(NoMajority())
        suspects = set(mismatch.suspects)
        for party in mismatch.parties:
            for rank in party[0]:
                if rank in suspects:
                    suspicions.accuse(_accusation(suspicions, mismatch, rank, party, evidence))


def _outvoted(job: Job, mismatch: Mismatch, known: int) -> bool:
    """Whichever side the ranks have taken that have recorded nothing, or whose rings have lost the
    operation or perhaps all of the group, the largest party stays the largest."""
    group, recorded = mismatch.group, job.analysis.recorded
    if group.lossy:
        unseen = len(job.expected) - known
    else:
        unseen = sum(rank not in recorded for rank in group.ranks)
        if not unseen:
            return True
    sizes = [len(ranks) for ranks, _ in mismatch.parties]
    return sizes[0] > sizes[1] + unseen


def _accusation(
    suspicions: Suspicions,
    mismatch: Mismatch,
    rank: int,
    own: tuple[tuple[int, ...], str],
    evidence: Iterable[Evidence],
) -> Accusation:
    label, seq = mismatch.group.label, mismatch.seq
    others, theirs = next(party for party in mismatch.parties if party is not own)
    ahead = suspicions.steps_if_ahead(rank, others)
    reason: Reason = "mismatch"
    if mismatch.kind == "order":
        reason = "order"
    elif mismatch.kind == "operation" and ahead is not None:
        reason = "swallowed"
    claim = Issued(label, seq, own[1], others, theirs, ahead)
    operation = mismatch.group.records[rank].collectives[seq][0].op
    return Accusation(rank, reason, claim, label, operation, seq, [*evidence])
