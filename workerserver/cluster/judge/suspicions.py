"""What speaks against which rank, and what keeps it from being sure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from workerserver.cluster.judge.flight import Mismatch, Wait
from workerserver.cluster.judge.job import Job
from workerserver.cluster.judge.verdict import REASONS, Reason, place
from workerserver.cluster.judge.waits import Need, resolve

__all__ = ["STRENGTH", "Accusation", "Suspicions"]

#: A GIL that is held for so long is a fault though nobody waits for the rank yet.
GIL_ALONE_S = 10.0
#: No step for so long: stalled, whatever else is known; and if its stack doesn't change either.
STALLED_S = 300.0
STALLED_STILL_S = 30.0

#: Stacks alone tell slow from stuck only if nothing has changed for so long.
STACKS_ALONE_S = 5.0

STRENGTH = {reason: number for number, reason in enumerate(REASONS)}


@dataclass(slots=True)
class Accusation:
    """*claim*: what is said of the rank, in the singular and in the plural."""

    rank: int
    reason: Reason
    claim: tuple[str, str]
    process_group: str | None = None
    collective: str | None = None
    seq: int | None = None
    lines: list[str] = field(default_factory=list)


class Suspicions:
    """*accused*: the strongest accusation of each rank. *unsure*: why there may be more than that,
    or nothing at all."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.accused: dict[int, Accusation] = {}
        self.unsure: list[str] = []
        self.hanging = [wait for wait in job.analysis.waits if job.hangs(wait)]
        # What is said of many ranks is said of each suspect: made once, or it would be quadratic.
        self._named: dict[int, tuple[Sequence[int], str]] = {}
        self._stepped: dict[int, tuple[Sequence[int], int | None]] = {}
        self._awaited: dict[int, str] = {}

    def weigh(self) -> None:
        """All there is, from the strongest evidence to the weakest."""
        if not self.job.ranks:
            self.unsure.append("no rank gave a usable answer")
            return
        self._from_mismatches()
        self._from_waits()
        self._from_silence()
        self._from_gil()
        if all(each.reason == "unreachable" for each in self.accused.values()):
            self._from_stacks()
        if not self.accused:
            self._from_steps()

    def _accuse(self, accusation: Accusation) -> None:
        """The strongest reason stays; the evidence of all of them is kept."""
        known = self.accused.get(accusation.rank)
        if known is None:
            self.accused[accusation.rank] = accusation
        elif STRENGTH[accusation.reason] < STRENGTH[known.reason]:
            accusation.lines += known.lines
            self.accused[accusation.rank] = accusation
        else:
            known.lines += accusation.lines

    def _names(self, ranks: Sequence[int]) -> str:
        """As ``Job.names``; *ranks* are kept, so their identity stands for them."""
        if id(ranks) not in self._named:
            self._named[id(ranks)] = (ranks, self.job.names(ranks))
        return self._named[id(ranks)][1]

    def _step_ahead(self, rank: int, others: Sequence[int]) -> tuple[int, int] | None:
        """Its step and theirs, if its is the higher one."""
        if id(others) not in self._stepped:
            steps = [step for each in others if (step := self.job.steps(each)[1]) is not None]
            self._stepped[id(others)] = (others, max(steps, default=None))
        mine, theirs = self.job.steps(rank)[1], self._stepped[id(others)][1]
        return (mine, theirs) if mine is not None and theirs is not None and mine > theirs else None

    def _await(self, wait: Wait) -> str:
        """``ranks 0-1 wait for it in all_reduce #6 of default_pg, for 6.5 s``."""
        if id(wait) not in self._awaited:
            age = self.job.age(wait)
            since = f", for {age:.1f} s" if age is not None else ""
            self._awaited[id(wait)] = (
                f"{self._names(wait.waiting)} wait{'s' * (len(wait.waiting) == 1)} for it in"
                f" {wait.name} of {wait.group.label}{since}"
            )
        return self._awaited[id(wait)]

    # --- the flight recorders disagree

    def _from_mismatches(self) -> None:
        for mismatch in self.job.analysis.mismatches:
            label, seq = mismatch.group.label, mismatch.seq
            parties = [f"{self.job.names(ranks)} {text}" for ranks, text in mismatch.parties]
            lines = [f"#{seq} of {label}: {'; '.join(parties)}"]
            if len(mismatch.suspects) == sum(len(ranks) for ranks, _ in mismatch.parties):
                lines.append("no side has the majority")
            suspects = set(mismatch.suspects)
            for party in mismatch.parties:
                for rank in party[0]:
                    if rank in suspects:
                        self._accuse(self._mismatched(mismatch, rank, party, lines[:]))

    def _mismatched(
        self, mismatch: Mismatch, rank: int, own: tuple[tuple[int, ...], str], lines: list[str]
    ) -> Accusation:
        label, seq = mismatch.group.label, mismatch.seq
        there, what = next(party for party in mismatch.parties if party is not own)
        claim = f"issued {own[1]} as #{seq} of {label} where {self._names(there)} issued {what}"
        reason: Reason = "mismatch"
        if mismatch.kind == "order":
            reason = "order"
            claim += ", in another order"
        elif mismatch.kind == "operation" and (ahead := self._step_ahead(rank, there)) is not None:
            reason = "swallowed"
            claim += f", a step ahead ({ahead[0]}, not {ahead[1]}): it has left out a collective"
        operation = mismatch.group.records[rank].collectives[seq][0].op
        return Accusation(rank, reason, (claim, claim), label, operation, seq, lines)

    # --- somebody waits

    def _from_waits(self) -> None:
        job = self.job
        needs = [Need(wait.waiting, tuple(self._missing(wait))) for wait in self.hanging]
        held = {rank for rank in job.ranks if job.gil(rank) is not None}
        free = held | {rank for rank, stands in job.standing.items() if stands.elsewhere}
        unsure = {rank for rank in job.ranks if not job.standing[rank].waits}
        blame = resolve(needs, free, unsure)
        for ranks, numbers in blame.rings:
            self._ring(ranks, [self.hanging[number] for number in numbers])
        # Who stands in a wait that no recorder holds is a victim too, if there is anybody else.
        ends = {rank: numbers for rank, numbers in blame.ends.items() if not self._waits(rank)}
        if not ends and self._from_meetings(blame.ends):
            return
        for rank, numbers in (ends or blame.ends).items():
            self._behind(rank, [self.hanging[number] for number in numbers])
        for number in blame.inside:
            wait = self.hanging[number]
            if needs[number].absent or wait.absent:
                continue
            whole = wait.group.complete and not wait.silent
            known = "all its ranks" if whole else "its known ranks"
            self.unsure.append(
                f"{known} have entered {wait.name} of {wait.group.label}, which does not end"
                f" ({job.names(wait.waiting)} in it)"
            )

    def _from_meetings(self, ends: Mapping[int, Sequence[int]]) -> bool:
        """All for whom others wait are in new_group or the like, which takes all ranks and no
        recorder knows: these ranks wait for those, too. Who is in the minority is suspected, of two
        equal sides both; False if it is something else."""
        job = self.job
        inside = {rank for rank, stands in job.standing.items() if stands.place == "rendezvous"}
        if not ends or not inside.issuperset(ends):
            return False
        numbers = {number for each in ends.values() for number in each}
        waits = [self.hanging[number] for number in sorted(numbers)]
        outside = {rank for wait in waits for rank in wait.waiting} - inside
        if not outside:
            return False
        main = waits[0]
        call = job.standing[min(inside)].call or "a call that takes all ranks"
        lines = [
            f"{job.names(inside)} in {call}",
            *(f"{job.names(wait.waiting)} in {wait.name} of {wait.group.label}" for wait in waits),
        ]
        if len(outside) <= len(inside):
            tail = f"in {main.name} of {main.group.label} while {job.names(inside)} wait"
            tail += f"{'s' * (len(inside) == 1)} for all ranks in {call}"
            for rank in sorted(outside):
                self._meets(rank, main, tail, lines)
        if len(inside) <= len(outside):
            tail = f"for all ranks in {call} while {job.names(outside)} wait"
            tail += f"{'s' * (len(outside) == 1)} in {main.name} of {main.group.label}"
            for rank in sorted(inside):
                self._meets(rank, main, tail, lines)
        return True

    def _meets(self, rank: int, wait: Wait, tail: str, lines: list[str]) -> None:
        claim = (f"waits {tail}", f"wait {tail}")
        label = wait.group.label
        self._accuse(Accusation(rank, "order", claim, label, wait.op, wait.seq, lines[:]))

    def _waits(self, rank: int) -> bool:
        stands = self.job.standing.get(rank)
        return stands is not None and stands.waits

    def _missing(self, wait: Wait) -> Iterable[int]:
        """Whom the wait is for. Of ranks without a recorder, only the stack can tell."""
        job = self.job
        absent = [rank for rank in wait.absent if not job.issued_more(rank, wait.group)]
        gone = [rank for rank in wait.silent if rank in job.now.gone]
        yield from absent
        yield from gone
        for rank in wait.silent:
            stands = job.standing.get(rank)
            if stands is None or stands.waits:
                continue
            if stands.elsewhere or job.gil(rank) is not None or not (absent or gone):
                yield rank

    def _ring(self, ranks: Sequence[int], waits: Sequence[Wait]) -> None:
        job = self.job
        lines = [
            f"{job.names(wait.waiting)} in {wait.name} of {wait.group.label},"
            f" for {job.names(wait.absent)}"
            for wait in waits
        ]
        if any(wait.seq is None for wait in waits):
            steps = [f"{job.names(wait.waiting)} in {wait.name}" for wait in waits[:4]]
            more = f", and {len(waits) - 4} more" if len(waits) > 4 else ""
            claim = f"of a ring: {', '.join(steps)}{more}"
            for rank in ranks:
                own = next(wait for wait in waits if rank in wait.waiting)
                self._accuse(
                    Accusation(
                        rank,
                        "p2p cycle",
                        (f"is part {claim}", f"wait for each other: {', '.join(steps)}{more}"),
                        own.group.label,
                        own.op,
                        own.seq,
                        lines[:],
                    )
                )
            return
        ring = set(ranks)
        sides = sorted(
            ([rank for rank in wait.waiting if rank in ring] for wait in waits),
            key=lambda side: (-len(side), side),
        )
        majority = set(sides[0] if len(sides) < 2 or len(sides[0]) > len(sides[1]) else ())
        for rank in ranks:
            if rank in majority:
                continue
            own = next(wait for wait in waits if rank in wait.waiting)
            other = next(wait for wait in waits if wait is not own and rank in wait.absent)
            claim = (
                f"in {own.name} of {own.group.label} while {self._names(other.waiting)}"
                f" wait in {other.name} of {other.group.label}: the groups were taken in different"
                " orders"
            )
            self._accuse(
                Accusation(
                    rank,
                    "order",
                    (f"waits {claim}", f"wait {claim}"),
                    own.group.label,
                    own.op,
                    own.seq,
                    lines[:],
                )
            )

    def _behind(self, rank: int, waits: Sequence[Wait]) -> None:
        job = self.job
        lines = [self._await(wait) for wait in waits[:8]]
        # A small group is the more specific: who misses its collective misses the world's too.
        main = min(waits, key=lambda wait: (len(wait.group.ranks), wait.group.key, wait.seq or 0))
        label = main.group.label
        if rank in job.now.gone:
            gone = job.now.gone[rank]
            waiting = f"{self._names(main.waiting)} wait{'s' * (len(main.waiting) == 1)} for"
            reason = f"({gone.reason})"
            claim = (
                f"does not answer {reason}; {waiting} it in {main.name} of {label}",
                f"do not answer {reason}; {waiting} them in {main.name} of {label}",
            )
            why: Reason = "unreachable"
            lines.append(f"{gone.reason}: {gone.text}")
        else:
            record = main.group.records.get(rank)
            last = record.last_issued if record is not None else None
            if main.seq is None:
                tail = f"posted what {job.names(main.waiting)} waits for: {main.op}"
            elif rank in main.silent:
                tail = f"come to {main.name} of {label}, it seems (its recorder gave no answer)"
            else:
                tail = f"entered {main.name} of {label}"
            claim = (f"has not {tail}", f"have not {tail}")
            why = self._why(rank, main)
            if why == "swallowed":
                mine, theirs = self._step_ahead(rank, main.waiting) or (0, 0)
                ahead = f", and is at step {mine}, not {theirs}"
                claim = (claim[0] + ahead, claim[1] + ahead.replace("is at", "are at"))
            if last is not None:
                ended = "ended" if last.done else "not ended"
                lines.append(f"its last operation of {label}: {last.name}, {ended}")
            elif rank not in main.silent:
                lines.append(f"it has issued no operation of {label}")
        self._accuse(Accusation(rank, why, claim, label, main.op, main.seq, lines))

    def _why(self, rank: int, wait: Wait | None) -> Reason:
        """What keeps a rank from where the others wait for it."""
        job, stands = self.job, self.job.standing[rank]
        if wait is not None and self._step_ahead(rank, wait.waiting) is not None:
            return "swallowed"
        if job.gil(rank) is not None:
            return "gil held"
        if stands.place == "dataloader":
            return "dataloader"
        if stands.place == "shutdown":
            return "shutdown"
        if stands.place == "p2p":
            return "p2p"
        if stands.place == "lock" or self._in_futex(rank):
            return "lock"
        return "behind"

    def _in_futex(self, rank: int) -> bool:
        """It waits in the kernel for another thread, in both rounds, and for no operation. A thread
        that computes does so too while somebody has the GIL for a look at it."""
        stands = self.job.standing[rank]
        if stands.place != "user" or stands.thread is None or not self.job.same_stack(rank):
            return False
        if self.job.computes(rank):
            return False
        record = self.job.now.records.get(rank)
        pending = record is None or any(group.first_pending for group in record.groups.values())
        return not pending and (stands.thread.wchan or "").startswith("futex")

    # --- the rest

    def _from_silence(self) -> None:
        """Ranks without an answer for which nobody waits, as far as can be seen."""
        job = self.job
        for rank, gone in job.now.gone.items():
            if rank in self.accused:
                continue
            if job.moves:
                self.unsure.append(
                    f"{job.names([rank])} does not answer ({gone.reason}), but the job goes on"
                )
                continue
            claim = (f"does not answer ({gone.reason})", f"do not answer ({gone.reason})")
            self._accuse(
                Accusation(rank, "unreachable", claim, lines=[f"{gone.reason}: {gone.text}"])
            )

    def _from_gil(self) -> None:
        for rank in self.job.ranks:
            held = self.job.gil(rank)
            if held is not None and (held[1] or 0.0) >= GIL_ALONE_S and rank not in self.accused:
                seconds = f"{held[1]:.1f} s"
                claim = (f"keeps its GIL for {seconds}", f"keep their GIL for {seconds}")
                self._accuse(Accusation(rank, "gil held", claim))

    def _from_stacks(self) -> None:
        """Without a word of the flight recorders: most stand in a wait, a few elsewhere."""
        job = self.job
        if job.moves or self.hanging:
            return
        recorded = job.analysis.recorded
        if any(job.standing[rank].waits for wait in job.analysis.waits for rank in wait.waiting):
            return  # what they wait in is recorded, and is no hang yet
        crowd = {rank for rank, stands in job.standing.items() if stands.waits}
        call = ""
        if crowd:
            calls = sorted({job.standing[rank].call or "" for rank in crowd})
            call = f"in {calls[0]}" if len(calls) == 1 else "in collectives"
        elif job.before is not None and not recorded:
            crowd, call = self._largest_crowd()
        others = [rank for rank in job.ranks if rank not in crowd and job.standing[rank].known]
        if len(crowd) <= len(others):
            return
        outside = [rank for rank in others if job.same_stack(rank) is not False]
        if not all(map(self._stands_still, (*crowd, *outside))):
            if outside and not crowd <= recorded:
                self.unsure.append(
                    f"if the job is stuck, {job.names(outside)} keep{'s' * (len(outside) == 1)} the"
                    f" others waiting, which stand {call}; but stacks alone were not seen for long"
                    " enough to tell that from slow"
                )
            return
        tail = f"to keep the others waiting: {job.names(crowd)} stand {call}"
        for rank in outside:
            claim = (f"seems {tail}", f"seem {tail}")
            lines = ["from stacks alone: no flight recorder tells who waits"]
            self._accuse(Accusation(rank, self._why(rank, None), claim, lines=lines))
        if others or job.now.gone:
            return
        if all(job.standing[rank].place == "p2p" for rank in crowd):
            for rank in sorted(crowd):
                claim = (
                    "waits in a point-to-point operation that no recorder holds",
                    "wait in point-to-point operations that no recorder holds",
                )
                self._accuse(Accusation(rank, "p2p", claim))
        else:
            self.unsure.append(f"every rank stands {call}, none moves, and no recorder tells more")

    def _largest_crowd(self) -> tuple[set[int], str]:
        """Those that share the commonest main stack, if they are most of the job."""
        alike: dict[object, list[int]] = {}
        for rank, stands in self.job.standing.items():
            if stands.thread is not None and stands.known:
                alike.setdefault(stands.thread.frames, []).append(rank)
        crowd = max(alike.values(), key=lambda ranks: (len(ranks), -ranks[0]), default=[])
        if len(crowd) < 2:
            return set(), ""
        at = self.job.standing[crowd[0]].location
        return set(crowd), f"together in {place(at)}" if at is not None else "together"

    def _stands_still(self, rank: int) -> bool:
        """It has not moved for a while, by its stacks or by its heartbeat."""
        if self.job.before is not None and not self.job.same_stack(rank):
            return False
        health = self.job.now.states[rank].health
        age = health.step_age_s if health is not None else None
        return self.job.still_for(rank) >= STACKS_ALONE_S or (age or 0.0) >= STACKS_ALONE_S

    def _from_steps(self) -> None:
        job = self.job
        if job.moves or self.hanging:
            return
        for rank in job.ranks:
            health = job.now.states[rank].health
            age = health.step_age_s if health is not None else None
            if health is None or age is None:
                continue
            if age >= (STALLED_STILL_S if job.same_stack(rank) else STALLED_S):
                if job.standing[rank].waits:
                    continue
                claim = (
                    f"has made no step for {age:.0f} s, since step {health.step}",
                    f"have made no step for {age:.0f} s, since step {health.step}",
                )
                self._accuse(Accusation(rank, "stalled", claim))
