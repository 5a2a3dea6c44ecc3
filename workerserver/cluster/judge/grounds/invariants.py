"""What must be true of every verdict, whatever the job answered.

Checked on each verdict where WORKERSERVER_CHECK is set in the environment, as the tests do it.
"""

from __future__ import annotations

import os

from workerserver.cluster.judge.facts import Accusation
from workerserver.cluster.judge.grounds.admission import RECORDED
from workerserver.cluster.judge.grounds.children import one_works
from workerserver.cluster.judge.grounds.status import Conclusion
from workerserver.cluster.judge.job import Job
from workerserver.cluster.judge.suspicions import Suspicions

__all__ = ["check", "wanted"]


def wanted() -> bool:
    return __debug__ and bool(os.environ.get("WORKERSERVER_CHECK"))


def check(job: Job, suspicions: Suspicions, conclusion: Conclusion) -> None:
    """AssertionError, with the facts, if the verdict isn't earned."""
    accused = suspicions.accused
    assert (conclusion.status == 1) == bool(accused), (conclusion, accused)
    assert (conclusion.status == 2) == bool(conclusion.doubts and not accused), conclusion
    if conclusion.status == 0:
        going = {rank for each in conclusion.progress for rank in each.ranks}
        assert job.ranks, conclusion
        assert not suspicions.hanging, (conclusion, suspicions.hanging)
        for part in conclusion.parts:
            assert not going.isdisjoint(part), (part, conclusion)
        assert {rank for part in conclusion.parts for rank in part} == {*job.ranks}, conclusion
    for accusation in accused.values():
        _check_accused(job, accusation)


def _check_accused(job: Job, accusation: Accusation) -> None:
    rank = accusation.rank
    facts = (accusation, job.blocked.get(rank))
    if accusation.reason == "deadlock":
        assert rank in job.now.states, facts
        assert job.now.states[rank].own is not None or accusation.process_group, facts
        return
    if accusation.reason in RECORDED:
        assert accusation.process_group is not None, facts
        return
    if rank in job.now.gone:
        assert accusation.reason == "unreachable", facts
        assert job.now.gone[rank].reason != "missing", facts
        return
    if accusation.reason == "swallowed" and accusation.evidence and accusation.collective:
        return  # what it issued is recorded
    assert not job.progressed(rank).went_on, facts
    if job.gil(rank) is not None:
        return
    assert job.same_stack(rank) is not False, facts
    blocked = job.blocked[rank]
    assert not blocked.on_ranks or accusation.reason == "p2p", facts
    assert not blocked.helped, facts
    assert not one_works(job, rank), facts
