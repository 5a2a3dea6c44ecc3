"""One verdict on a job, from what its ranks answered: deterministic, with its evidence.

What speaks against which rank is weighed by :mod:`suspicions`. An accusation has to pass
:mod:`admission`. :mod:`status` decides the status, and :mod:`invariants` says what must be true of
every verdict.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from workerserver.cluster.judge.chains.facts import Deadlock
from workerserver.cluster.judge.evidence import evidence
from workerserver.cluster.judge.facts import (
    Accusation,
    AtSteps,
    Remark,
    Slow,
    UsualWait,
    known_rank,
)
from workerserver.cluster.judge.grounds import invariants
from workerserver.cluster.judge.grounds.status import conclude
from workerserver.cluster.judge.grounds.unseen import unseen
from workerserver.cluster.judge.job import STUCK_AFTER_SECONDS, Job
from workerserver.cluster.judge.reasons import STRENGTH
from workerserver.cluster.judge.sentences import Narrator, with_native
from workerserver.cluster.judge.slow.stragglers import stragglers
from workerserver.cluster.judge.suspicions import Suspicions
from workerserver.cluster.judge.verdict import GroupState, Straggler, Suspect, Verdict
from workerserver.cluster.model import EVERYTHING, Part, RoundLike
from workerserver.cluster.read.blocked_on import Blocked
from workerserver.cluster.read.groups import groups

__all__ = ["diagnose"]

#: So many waits that are no hang are looked at for the sentence.
MAX_REMARKS = 8
#: A large job has as many process groups as ranks.
MAX_PROCESS_GROUPS = 100


def diagnose(
    rounds: Sequence[RoundLike],
    world_size: int | None = None,
    elsewhere: Collection[int] = (),
    asked: Collection[Part] = EVERYTHING,
    slow: Sequence[Slow] | None = None,
) -> Verdict:
    """The verdict on the last of *rounds*; the rounds before tell what moves. *elsewhere*: ranks
    that nobody looked for, so nothing accuses them. *asked*: what the ranks were asked for. *slow*:
    what the histories of all ranks show, if they were asked for; else the traces at hand have to
    do."""
    return _Diagnosis(Job(rounds, world_size, elsewhere), asked, slow).verdict()


class _Diagnosis:
    def __init__(self, job: Job, asked: Collection[Part], slow: Sequence[Slow] | None) -> None:
        self.job = job
        self.asked = asked
        self.slow = slow
        self.narrator = Narrator(job.address, job.pid_if_alone)
        suspicions = Suspicions(job)
        suspicions.weigh()
        self.accused = suspicions.accused
        self.hanging = suspicions.hanging
        self.conclusion = conclude(job, suspicions)
        if invariants.wanted():
            invariants.check(job, suspicions, self.conclusion)

    def verdict(self) -> Verdict:
        job, narrator, conclusion = self.job, self.narrator, self.conclusion
        slow: list[Slow] = []
        if job.ranks and not self.accused:
            slow = list(stragglers(job) if self.slow is None else self.slow)
        found = sorted(self.accused.values(), key=lambda each: (STRENGTH[each.reason], each.rank))
        if conclusion.status == 1:
            sentence = narrator.accused(found, job.blocked)
        elif conclusion.status == 2:
            sentence = narrator.unsure(conclusion.doubts)
        else:
            sentence = narrator.healthy([*slow, *self._remarks()])
        return Verdict(
            sentence=sentence,
            status=conclusion.status,
            ranks=len(job.expected),
            responded=len(job.ranks),
            unreachable=tuple(job.now.gone[rank] for rank in sorted(job.now.gone)),
            suspects=tuple(map(self._suspect, found)),
            stragglers=tuple(Straggler(*self._known(each), narrator.line(each)) for each in slow),
            groups=tuple(groups(job.now.states.values())),
            process_groups=tuple(self._process_groups()),
            problems=tuple(
                narrator.problem(rank, problem)
                for rank, problems in job.analysis.problems.items()
                for problem in problems
            ),
            progress=conclusion.progress,
            again_s=conclusion.again_s,
            sure=conclusion.sure,
            not_looked_at=tuple(map(narrator.unseen, unseen(job, self.asked))),
        )

    def _suspect(self, accusation: Accusation) -> Suspect:
        job, rank = self.job, accusation.rank
        blocked = job.blocked.get(rank)
        location = blocked.location if blocked is not None else None
        state = job.now.states.get(rank)
        health = state.health if state is not None else None
        lines = dict.fromkeys(map(self.narrator.shared_line, accusation.evidence))
        return Suspect(
            rank=known_rank(rank),
            reason=accusation.reason,
            address=job.address(rank),
            host=job.host(rank),
            process_group=accusation.process_group,
            collective=accusation.collective,
            seq=accusation.seq,
            location=location,
            call=_call(blocked) if blocked is not None and location is not None else None,
            gil_holder=job.gil(rank) is not None,
            step=health.step if health is not None else None,
            step_age_s=health.step_age_s if health is not None else None,
            evidence=(*lines, *map(self.narrator.line, evidence(job, rank))),
            waits_for=(blocked.told or None) if blocked is not None else None,
            deadlock=accusation.claim.threads if isinstance(accusation.claim, Deadlock) else (),
        )

    @staticmethod
    def _known(slow: Slow) -> tuple[int, str, float, int, float]:
        late, share = round(slow.late, 3), round(slow.share, 3)
        return slow.rank, slow.group, late, slow.operations, share

    def _process_groups(self) -> Iterator[GroupState]:
        """Those in trouble first."""
        analysis = self.job.analysis
        mismatches = {id(each.group): each for each in analysis.mismatches}
        trouble = {id(wait.group) for wait in self.hanging} | set(mismatches)
        ordered = sorted(analysis.groups, key=lambda group: id(group) not in trouble)
        for group in ordered[:MAX_PROCESS_GROUPS]:
            yield GroupState(
                group,
                [wait for wait in analysis.waits if wait.group is group],
                [wait for wait in self.hanging if wait.group is group],
                mismatches.get(id(group)),
            )

    def _remarks(self) -> Iterator[Remark]:
        """What is to be said of a job in which nobody is accused."""
        job = self.job
        if job.step_range is not None:
            yield AtSteps(*job.step_range)
        for wait in job.analysis.waits[:MAX_REMARKS]:
            age = job.age(wait)
            if wait in self.hanging or age is None or age < STUCK_AFTER_SECONDS or not wait.absent:
                continue
            yield UsualWait(job.entered(wait), age)


def _call(blocked: Blocked) -> str | None:
    return with_native(blocked.native, blocked.call) or None
