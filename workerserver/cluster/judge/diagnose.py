"""One verdict on a job, from what its ranks answered: deterministic, with its evidence.

What counts, in this order: operations that differ though they have the same number; ranks that
wait for each other in a ring; ranks that others wait for and that wait for nobody; ranks without
an answer; and, without a flight recorder, ranks that stand elsewhere than the crowd. A rank that
waits for another is a victim and never a suspect. What goes on is not stuck: a wait counts once it
has lasted longer than usual and is the same in two rounds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workerserver.cluster.judge.job import NAMELESS, STUCK_AFTER_S, Job, RoundLike
from workerserver.cluster.judge.stragglers import stragglers
from workerserver.cluster.judge.suspicions import STRENGTH, Accusation, Suspicions
from workerserver.cluster.judge.verdict import Reason, Suspect, Verdict, listing, place
from workerserver.cluster.show.evidence import evidence, group_dicts, location, process_group_dicts

__all__ = ["diagnose"]

#: So many waits that are no hang are looked at for the sentence.
REMARKS = 8

#: How the sentence says where the suspect is: for one, for several.
STANDS: dict[Reason, tuple[str, str]] = {
    "gil held": ("it holds the GIL in", "they hold the GIL in"),
    "dataloader": ("it waits for its DataLoader in", "they wait for their DataLoaders in"),
    "lock": ("it waits for a lock or a condition in", "they wait for locks or conditions in"),
    "shutdown": ("it is on its way out in", "they are on their way out in"),
}


def diagnose(rounds: Sequence[RoundLike], world_size: int | None = None) -> Verdict:
    """The verdict on the last of *rounds*; those before it tell what moves."""
    return _Diagnosis(Job(rounds, world_size)).verdict()


class _Diagnosis:
    def __init__(self, job: Job) -> None:
        self.job = job
        suspicions = Suspicions(job)
        suspicions.weigh()
        self.accused = suspicions.accused
        self.unsure = suspicions.unsure
        self.hanging = suspicions.hanging
        self.remarks: list[str] = []

    def verdict(self) -> Verdict:
        job = self.job
        slow: tuple[Mapping[str, Any], ...] = ()
        if job.ranks and not self.accused:
            slow = tuple(stragglers(job))
            self._check_doubts()
        found = sorted(self.accused.values(), key=lambda each: (STRENGTH[each.reason], each.rank))
        status = 1 if found else 2 if self.unsure else 0
        if found:
            sentence = listing(self._clauses(found))
        elif self.unsure:
            sentence = "could not tell: " + "; ".join(self.unsure)
        else:
            texts = (str(each["text"]) for each in slow)
            sentence = "; ".join(["no rank is stuck", *texts, *self.remarks])
        return Verdict(
            sentence=sentence,
            status=1 if status == 1 else 2 if status == 2 else 0,
            ranks=len(job.expected),
            responded=len(job.ranks),
            unreachable=tuple(job.now.gone[rank] for rank in sorted(job.now.gone)),
            suspects=tuple(self._suspect(each) for each in found),
            stragglers=slow,
            groups=tuple(group_dicts(job)),
            process_groups=tuple(process_group_dicts(job, self.hanging)),
            problems=tuple(self._problems()),
        )

    def _clauses(self, found: Sequence[Accusation]) -> list[str]:
        """Suspects of which the same is to be said are named together."""
        alike: dict[tuple[str, str, str], list[Accusation]] = {}
        for each in found:
            stands = self.job.standing.get(each.rank)
            at = place(stands.location) if stands is not None and stands.location else ""
            alike.setdefault((each.reason, each.claim[1], at), []).append(each)
        clauses = []
        for (_, _, at), group in alike.items():
            several = len(group) > 1
            text = f"{self.job.names(each.rank for each in group)} {group[0].claim[several]}"
            if at:
                words = STANDS.get(group[0].reason, ("it stands in", "they stand in"))[several]
                call = self.job.standing[group[0].rank].call
                inside = self.job.standing[group[0].rank].place != "user"
                if call is not None and inside and group[0].reason not in STANDS:
                    at = f"{call}, from {at}"
                text += f"; {words} {at}"
            clauses.append(text)
        return clauses

    def _suspect(self, accusation: Accusation) -> Suspect:
        job, rank = self.job, accusation.rank
        stands = job.standing.get(rank)
        state = job.now.states.get(rank)
        health = state.health if state is not None else None
        return Suspect(
            rank=rank if rank < NAMELESS else None,
            reason=accusation.reason,
            address=job.address(rank),
            host=job.host(rank),
            process_group=accusation.process_group,
            collective=accusation.collective,
            seq=accusation.seq,
            location=location(stands),
            call=stands.call if stands is not None else None,
            gil_holder=job.gil(rank) is not None,
            step=health.step if health is not None else None,
            step_age_s=health.step_age_s if health is not None else None,
            evidence=(*dict.fromkeys(accusation.lines), *evidence(job, rank)),
        )

    def _problems(self) -> Iterable[str]:
        for rank, problems in self.job.analysis.problems.items():
            for problem in problems:
                yield f"{self.job.names([rank])}: {problem}"

    def _check_doubts(self) -> None:
        """Nobody is accused: is that because all is well?"""
        job = self.job
        if job.step_range is not None:
            low, high = job.step_range
            self.remarks.append(f"at step {low}" if low == high else f"at steps {low} to {high}")
        for wait in job.analysis.waits[:REMARKS]:
            age = job.age(wait)
            if wait in self.hanging or age is None or age < STUCK_AFTER_S or not wait.absent:
                continue
            self.remarks.append(
                f"{job.names(wait.waiting)} wait{'s' * (len(wait.waiting) == 1)} in {wait.name} of"
                f" {wait.group.label} for"
                f" {age:.1f} s, no longer than usual"
            )
        if self.unsure or job.moves or job.analysis.recorded:
            return
        if job.moves is None and any(job.same_stack(rank) is False for rank in job.ranks):
            return  # no heartbeat, no recorder, but stacks that change
        self.unsure.append(
            "no flight recorder, no heartbeat and no stack tells whether the job goes on"
            if job.before is not None
            else "one round of stacks alone does not tell whether the job goes on"
        )
