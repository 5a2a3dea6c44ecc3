"""What speaks against which rank, and what keeps it from being sure: the rules of the judge."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from workerserver.cluster.judge.chains.calls import from_calls
from workerserver.cluster.judge.chains.deadlocks import from_threads, weigh_ring
from workerserver.cluster.judge.chains.words import FILE_LOCK
from workerserver.cluster.judge.facts import (
    Absent,
    Accusation,
    Apart,
    Awaited,
    Claim,
    Crossed,
    Crowd,
    Doubt,
    Endless,
    Everywhere,
    Evidence,
    FailedQuestion,
    Gone,
    Hindrance,
    InCall,
    Issued,
    KeepsGil,
    LastOperation,
    Made,
    Meeting,
    NobodyAnswered,
    NoMajority,
    NoStep,
    NothingIssued,
    Outside,
    Process,
    Ring,
    Silent,
    SilentButMoving,
    StacksAlone,
    Tangled,
    Unproven,
    WaitsIn,
)
from workerserver.cluster.judge.flight import Wait
from workerserver.cluster.judge.grounds.admission import firm, hindrance, is_elsewhere
from workerserver.cluster.judge.grounds.children import one_works, waits_for_child, working
from workerserver.cluster.judge.grounds.crowd import (
    crowd_of,
    is_free,
    is_seen_to_stand,
    is_stuck,
    sleeps_alone,
    stands_with,
    surely_waits,
)
from workerserver.cluster.judge.grounds.lateness import patience
from workerserver.cluster.judge.job import Job
from workerserver.cluster.judge.order.conflicts import contrary
from workerserver.cluster.judge.order.mismatches import from_mismatches
from workerserver.cluster.judge.order.naming import from_names
from workerserver.cluster.judge.reasons import STRENGTH, Reason
from workerserver.cluster.judge.waits import Need, resolve
from workerserver.cluster.read.blocked_on import STOPPED, UNKNOWN, Kind
from workerserver.cluster.read.progress import MIN_STEPS

__all__ = ["RULES", "Rule", "Suspicions"]

#: A GIL that is held for so long is a fault though nobody waits for the rank yet.
GIL_ALONE_SECONDS = 10.0
#: No step for so long: stalled, whatever else is known; and if its stack doesn't change either.
STALLED_SECONDS = 300.0
STALLED_STILL_SECONDS = 30.0
#: How many times as often as another rank one may count steps, if both count alike.
MAX_RATES = 1.3
#: So few steps ahead says nothing of that.
MAX_AHEAD = 2
#: Calls that take all ranks, and that no recorder holds.
MEETINGS = frozenset({"rendezvous", "meeting"})
#: Of the waits that a rank keeps others in, as evidence.
MAX_AWAITED = 8

#: What keeps a rank from where the others wait for it, by what it is blocked on.
BLOCKED: Mapping[Kind, Reason] = {
    "dataloader": "dataloader",
    "shutdown": "shutdown",
    "p2p": "p2p",
    "lock": "lock",
}


class Suspicions:
    """*accused*: the strongest accusation of each rank. *doubts*: why there may be more than that,
    or nothing at all."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.accused: dict[int, Accusation] = {}
        self.doubts: list[Doubt] = []
        self.misnamed = False
        self.refused: dict[int, tuple[Hindrance, Wait | None]] = {}
        self.hanging = [wait for wait in job.analysis.waits if job.hangs(wait)]
        self._stepped: dict[int, tuple[Sequence[int], int | None, float | None]] = {}
        self._awaited: dict[int, Awaited] = {}

    def weigh(self) -> None:
        """Apply all rules, from the strongest evidence to the weakest."""
        if not self.job.ranks:
            self._from_stopped()
            return
        for rule in RULES:
            rule.weigh(self)
        self.doubts += self._unproven()

    def _unproven(self) -> Iterable[Unproven]:
        """Who has not come where others wait, and isn't accused of it."""
        job = self.job
        alike: dict[tuple[object, ...], list[int]] = {}
        for rank, (why, wait) in sorted(self.refused.items()):
            if rank not in self.accused:
                blocked = job.blocked.get(rank, UNKNOWN)
                alike.setdefault((why, id(wait), blocked.location, blocked.call), []).append(rank)
        for ranks in alike.values():
            why, wait = self.refused[ranks[0]]
            blocked = job.blocked.get(ranks[0], UNKNOWN)
            entered = job.entered(wait) if wait is not None else None
            child = working(job, ranks[0]) if why == "child" and len(ranks) == 1 else None
            yield Unproven(ranks, why, entered, blocked.location, blocked.call, child)

    def _admit(
        self, rank: int, reason: Reason, absent: Collection[int], wait: Wait | None = None
    ) -> bool:
        """Whether *rank* may be accused; if not, why not is kept."""
        why = hindrance(self.job, rank, reason, absent, wait)
        if why is not None:
            self.refused.setdefault(rank, (why, wait))
        return why is None

    def accuse(self, accusation: Accusation) -> None:
        """The strongest reason stays; the evidence of all of them is kept. One of two that issued
        different things may be right: what else is known of that rank is stronger."""
        known = self.accused.get(accusation.rank)
        if known is None:
            self.accused[accusation.rank] = accusation
        elif STRENGTH[accusation.reason] < STRENGTH[known.reason] or _is_undecided(known):
            accusation.evidence += known.evidence
            self.accused[accusation.rank] = accusation
        else:
            known.evidence += accusation.evidence
            if known.process_group is None:  # what others wait for is worth knowing all the same
                known.process_group, known.seq = accusation.process_group, accusation.seq
                known.collective = accusation.collective

    def accuse_in(
        self, wait: Wait, rank: int, reason: Reason, claim: Claim, evidence: Iterable[Evidence]
    ) -> None:
        """Accuse *rank* of something in the operation of *wait*."""
        if wait.op == FILE_LOCK:  # that is no operation of a process group
            self.accuse(Accusation(rank, reason, claim, evidence=[*evidence]))
            return
        label = wait.group.label
        self.accuse(Accusation(rank, reason, claim, label, wait.op, wait.seq, [*evidence]))

    def steps_if_ahead(self, rank: int, others: Sequence[int]) -> tuple[int, int] | None:
        """The rank's step and the others', if its own is the higher one. Ranks may count steps of
        their own: they are comparable only if the others are at one step, at the same rate."""
        if id(others) not in self._stepped:
            steps = {self.job.steps(each)[1] for each in others}
            one = steps.pop() if len(steps) == 1 else None
            rates = [rate for each in others if (rate := self.job.usual_step(each)) is not None]
            self._stepped[id(others)] = (others, one, max(rates, default=None))
        mine = self.job.steps(rank)[1]
        _, theirs, rate = self._stepped[id(others)]
        if mine is None or theirs is None or mine <= theirs:
            return None
        rest = [each for each in self.job.ranks if each != rank]
        told = [step for each in rest if (step := self.job.steps(each)[1]) is not None]
        if max(told) - min(told) > MAX_AHEAD - 1:
            return None
        own = self.job.usual_step(rank)
        if mine - theirs > MAX_AHEAD and theirs >= MIN_STEPS:
            if own is not None and rate is not None and rate > MAX_RATES * own:
                return None
        elif 2 * mine >= 3 * theirs:
            return None  # after a few steps: it may as well count two where the others count one
        return mine, theirs

    def _await(self, wait: Wait) -> Awaited:
        if id(wait) not in self._awaited:
            self._awaited[id(wait)] = Awaited(self.job.entered(wait))
        return self._awaited[id(wait)]

    def count_differently(self) -> bool:
        """Ranks have made different groups under one name: no rank meets the others in these."""
        return self.misnamed or any(isinstance(each.claim, Made) for each in self.accused.values())

    # --- somebody waits

    def from_waits(self) -> None:
        job = self.job
        if self.count_differently():
            return
        needs = [Need(wait.waiting, tuple(self._missing(wait))) for wait in self.hanging]
        held = {rank for rank in job.ranks if job.gil(rank) is not None}
        chained = job.chains.edges
        free = held | {rank for rank in job.ranks if is_free(job, rank) and rank not in chained}
        unsure = {rank for rank in job.ranks if not surely_waits(job, rank)} - chained.keys()
        blame = resolve(needs, free, unsure)
        if not blame.ends and not blame.rings:  # who sleeps with an operation under way polls
            blame = resolve(needs, held, unsure)
        # They may wait for what they have under way: work.wait() leaves no frame.
        doubtful = blame.doubtful.intersection(blame.ends)
        hidden = {rank for rank in doubtful if job.blocked[rank].unsure}
        if hidden:  # others may form a ring whatever these do
            rest = [Need(need.waiting, tuple({*need.absent} - hidden)) for need in needs]
            others = resolve(rest, free, unsure)
            blame = others if others.rings else blame
        for ranks, numbers in blame.rings:
            self._ring(ranks, [self.hanging[number] for number in numbers])
        # A rank in a wait that no recorder holds is a victim too, if there is anybody else.
        ends = {rank: numbers for rank, numbers in blame.ends.items() if not self._on_ranks(rank)}
        if not ends and (self._from_apart(blame.ends) or self._from_meetings(blame.ends)):
            return
        ends = ends or dict(blame.ends)
        certain = self._certain(ends)
        for rank, numbers in ends.items():
            waits = [self.hanging[number] for number in numbers]
            if all(rank in wait.queued for wait in waits):  # it has come to all of them
                self.refused.setdefault(rank, ("waits", waits[0]))
                continue
            if (certain and rank not in certain) or rank in hidden:  # it may well wait for those
                self.refused.setdefault(rank, ("waits", waits[0]))
            else:
                self._behind(rank, waits, ends)
        for number in blame.inside:
            wait = self.hanging[number]
            if needs[number].absent or wait.absent:
                continue
            self.doubts.append(Endless(job.entered(wait), wait.group.complete and not wait.silent))

    def _certain(self, ends: Collection[int]) -> set[int]:
        """Of *ends*, those that surely don't wait for another of them; none if nobody does."""
        certain = [rank for rank in ends if self._is_certain(rank)]
        if certain:
            return {*firm(self.job, certain)}
        idle = {rank for rank in ends if not self.job.pending(rank)}
        return idle if len(idle) < len(ends) else set()

    def _is_certain(self, rank: int) -> bool:
        """It surely doesn't wait for another rank."""
        gone = self.job.now.gone.get(rank)
        if gone is not None:
            return gone.reason != "missing"
        if rank not in self.job.blocked:
            return False
        if self.job.gil(rank) is not None:
            return True
        polls = self.job.blocked[rank].kind == "sleep" and self.job.pending(rank)
        if waits_for_child(self.job, rank) or one_works(self.job, rank):
            return True
        return not polls and is_elsewhere(self.job, rank)

    def _from_apart(self, ends: Mapping[int, Sequence[int]]) -> bool:
        """Handles the case where every awaited rank is itself in a wait that no recorder holds, and
        other ranks wait for nobody: the chain may end at those. False if there are none."""
        job = self.job
        others = [rank for rank in job.ranks if rank not in ends and not surely_waits(job, rank)]
        if not ends or not others:
            return False
        for rank, numbers in ends.items():
            self.refused.setdefault(rank, ("waits", self.hanging[numbers[0]]))
        rest = [rank for rank in job.ranks if rank not in others]
        calls = {job.blocked[rank].call for rank in rest}
        claim = Apart(Crowd(rest, calls.pop() if len(calls) == 1 else None))
        waits = [WaitsIn(job.entered(wait)) for wait in self.hanging[:MAX_AWAITED]]
        for rank in firm(job, others) if all(map(self._is_certain, others)) else ():
            reason = self._why(rank, None)
            if is_stuck(job, rank) and self._admit(rank, reason, others):
                self.accuse(Accusation(rank, reason, claim, evidence=[*waits, StacksAlone()]))
        return True

    def _from_meetings(self, ends: Mapping[int, Sequence[int]]) -> bool:
        """Handles the case where every awaited rank is itself inside new_group or the like, which
        needs all ranks and is not recorded. Suspects the awaited ranks, or those that wait for them
        outside, whoever are fewer. If they are equal: those on the side with fewer ranks, inside or
        outside, and both if these are equal, too. False if it is something else."""
        job = self.job
        among = {rank for rank, blocked in job.blocked.items() if blocked.kind in MEETINGS}
        if not ends or not among.issuperset(ends):
            return False
        numbers = {number for each in ends.values() for number in each}
        waits = [self.hanging[number] for number in sorted(numbers)]
        inside, awaited = sorted(among), sorted(ends)
        outside = sorted({rank for wait in self.hanging for rank in wait.waiting} - among)
        direct = sorted({rank for wait in waits for rank in wait.waiting} - among)
        if not direct:
            return False
        few = (len(awaited), len(inside)), (len(direct), len(outside))
        if few[0] == few[1] and len(awaited) > 1:
            return False
        main = waits[0]
        call = job.blocked[inside[0]].call or None
        evidence: list[Evidence] = [InCall(inside, call)]
        evidence += [WaitsIn(job.entered(wait)) for wait in waits]
        sides = [(direct, False)] if few[1] <= few[0] else []
        sides += [(awaited, True)] if few[0] <= few[1] else []
        for ranks, is_inside in sides:
            claim = Meeting(call, inside, direct, job.entered(main), is_inside)
            for rank in ranks:
                self.accuse_in(main, rank, "order", claim, evidence)
        return True

    def _on_ranks(self, rank: int) -> bool:
        blocked = self.job.blocked.get(rank)
        return blocked is not None and blocked.on_ranks

    def _missing(self, wait: Wait) -> Iterable[int]:
        """The ranks that the wait is for. Of ranks without a recorder, only the stack can tell."""
        job = self.job
        absent = [rank for rank in wait.absent if not job.issued_more(rank, wait.group)]
        gone = [rank for rank in wait.silent if rank in job.now.gone]
        yield from absent
        yield from wait.queued
        yield from gone
        for rank in wait.silent:
            blocked = job.blocked.get(rank)
            if blocked is not None and blocked.kind in MEETINGS:
                yield rank
            if blocked is None or blocked.on_ranks:
                continue
            if blocked.on_no_rank or job.gil(rank) is not None or not (absent or gone):
                yield rank

    def _ring(self, ranks: Sequence[int], waits: Sequence[Wait]) -> None:
        """Ranks that wait for each other."""
        if weigh_ring(self, ranks, waits):
            return
        entered = self.job.entered
        own = {rank: next(wait for wait in waits if rank in wait.waiting) for rank in ranks}
        ring = list(dict.fromkeys(own.values()))
        evidence = [WaitsIn(entered(wait), (*wait.absent, *wait.queued)) for wait in ring]
        guilty = contrary(waits, len(self.job.expected) - len(self.job.analysis.recorded))
        alike = all(len(wait.waiting) == len(ring[0].waiting) for wait in ring)
        seen = not any(wait.group.lossy or wait.silent for wait in waits)
        if not guilty and alike and seen:
            guilty = dict.fromkeys(ranks)
        if not guilty:
            self.doubts.append(Tangled([entered(wait) for wait in waits]))
        whole = Ring([entered(wait) for wait in ring])
        for rank, other in guilty.items():
            mine = own[rank]
            if mine.seq is not None and other is not None and other.seq is not None:
                crossed = Crossed(entered(mine), entered(other))
                self.accuse_in(mine, rank, "order", crossed, evidence)
            else:
                numbered = all(wait.seq is not None for wait in ring)
                self.accuse_in(mine, rank, "order" if numbered else "p2p cycle", whole, evidence)

    def _behind(self, rank: int, waits: Sequence[Wait], absent: Collection[int]) -> None:
        job = self.job
        evidence: list[Evidence] = [self._await(wait) for wait in waits[:MAX_AWAITED]]
        # A small group is the more specific: a rank that misses its collective misses the world's.
        main = min(waits, key=lambda wait: (len(wait.group.ranks), wait.group.key, wait.seq or 0))
        entered, label = job.entered(main), main.group.label
        gone = job.now.gone.get(rank)
        if gone is not None and gone.reason == "missing":  # it may only have no server
            self.refused.setdefault(rank, ("missing", main))
            return
        if gone is not None:
            evidence += _of_silence(gone)
            silent = Silent(gone.reason, entered, gone.state)
            self.accuse_in(main, rank, "unreachable", silent, evidence)
            return
        record = main.group.records.get(rank)
        last = record.last_issued if record is not None else None
        if last is not None:
            ended = None if last.unknown else last.done
            evidence.append(LastOperation(label, last.name, ended))
        elif rank not in main.silent and not main.by_stack:
            evidence.append(NothingIssued(label))
        if not self._admit(rank, "behind", absent, main):
            return
        why = self._why(rank, main)
        ahead = self.steps_if_ahead(rank, main.waiting) if main.seq is not None else None
        claim = Absent(entered, rank in main.silent, ahead)
        self.accuse_in(main, rank, why, claim, evidence)

    def _why(self, rank: int, wait: Wait | None) -> Reason:
        """What keeps a rank from where the others wait for it."""
        job = self.job
        if (
            wait is not None
            and wait.seq is not None
            and self.steps_if_ahead(rank, wait.waiting) is not None
        ):
            return "swallowed"
        if job.gil(rank) is not None:
            return "gil held"
        blocked = BLOCKED.get(job.blocked[rank].kind)
        if blocked is not None:
            return blocked
        return "lock" if self._in_futex(rank) else "behind"

    def _in_futex(self, rank: int) -> bool:
        """It waits in the kernel for another thread, in both rounds, and for no operation. A thread
        that computes does so too while somebody has the GIL for a look at it."""
        blocked = self.job.blocked[rank]
        if blocked.inside or blocked.thread is None or not self.job.same_stack(rank):
            return False
        if self.job.may_compute(rank) and not self.job.slept(rank):
            return False
        record = self.job.now.records.get(rank)
        pending = record is None or any(group.may_go_on for group in record.groups.values())
        return not pending and (blocked.thread.wchan or "").startswith("futex")

    # --- the rest

    def from_silence(self) -> None:
        """Ranks without an answer for which nobody waits, as far as can be seen."""
        job = self.job
        for rank, gone in job.now.gone.items():
            if rank in self.accused or rank in job.elsewhere:
                continue
            if job.moves:
                self.doubts.append(SilentButMoving(rank, gone.reason))
                continue
            if gone.reason == "missing":  # it may only have no server
                continue
            claim = Silent(gone.reason, state=gone.state)
            evidence = [*_of_silence(gone)]
            self.accuse(Accusation(rank, "unreachable", claim, evidence=evidence))

    def _from_stopped(self) -> None:
        """Nobody answers, but of some ranks the kernel tells that they were stopped."""
        for rank, gone in self.job.now.gone.items():
            if gone.state in STOPPED:
                claim = Silent(gone.reason, state=gone.state)
                evidence = [*_of_silence(gone)]
                self.accuse(Accusation(rank, "unreachable", claim, evidence=evidence))
        if not self.accused:
            self.doubts.append(NobodyAnswered())

    def from_gil(self) -> None:
        for rank in self.job.ranks:
            held = self.job.gil(rank)
            if held is None or rank in self.accused:
                continue
            if (held[1] or 0.0) >= GIL_ALONE_SECONDS:
                self.accuse(Accusation(rank, "gil held", KeepsGil(held[1] or 0.0)))

    def from_stacks(self) -> None:
        """Without a word of the flight recorders: ranks wait for others, and a few stand where they
        surely wait for none."""
        job = self.job
        if not all(each.reason == "unreachable" for each in self.accused.values()):
            return
        if job.moves or self.hanging:
            return
        if any(job.blocked[rank].on_ranks for wait in job.analysis.waits for rank in wait.waiting):
            return  # what they wait in is recorded, and is no hang yet
        crowd = crowd_of(job)
        if crowd.together and all(sleeps_alone(job, rank) for rank in crowd.ranks):
            return  # they wait for nobody; perhaps the others wait for them
        inside = set(crowd.ranks)
        others = [rank for rank in job.ranks if rank not in inside and job.blocked[rank].known]
        outside = [rank for rank in others if job.same_stack(rank) is not False]
        apart = all(is_elsewhere(job, rank) for rank in outside) and len(others) + len(
            inside
        ) == len(job.ranks)
        if not inside or (len(inside) <= len(others) and not apart):
            return
        if not all(is_stuck(job, rank) for rank in (*crowd.ranks, *outside)):
            if outside:
                self.doubts.append(Outside(outside, crowd))
            return
        claim = Apart(crowd)
        outside = [rank for rank in outside if not stands_with(job, rank, crowd.ranks)]
        certain = firm(job, (rank for rank in outside if is_elsewhere(job, rank)))
        stands = any(is_seen_to_stand(job, rank) for rank in crowd.ranks)
        for rank in certain or outside:
            reason = self._why(rank, None)
            if surely_waits(job, rank):
                self.refused.setdefault(rank, ("waits", None))
                continue
            if not stands and not job.slept(rank):  # each look may have met them there by chance
                self.refused.setdefault(rank, ("unseen", None))
                continue
            if self._admit(rank, reason, outside):
                self.accuse(Accusation(rank, reason, claim, evidence=[StacksAlone()]))
        if not others and not job.now.gone:
            self.doubts.append(Everywhere(crowd))

    def from_steps(self) -> None:
        job = self.job
        if self.accused or job.moves or self.hanging:
            return
        late = [rank for rank in job.ranks if not job.blocked[rank].on_ranks]
        if len(late) > 1 or (late and job.now.gone):
            return  # some of them may only wait for another
        for rank in late:
            health = job.now.states[rank].health
            age = health.step_age_s if health is not None else None
            if health is None or age is None or job.blocked[rank].on_ranks:
                continue
            still = job.same_stack(rank) and not job.too_early(rank)
            least = STALLED_SECONDS
            if still:
                known = job.usual_step(rank) is not None
                least = patience(job, rank, None) if known else STALLED_STILL_SECONDS
            if len(job.expected) > 1 and not is_elsewhere(job, rank):
                continue
            if one_works(job, rank):
                self.refused.setdefault(rank, ("child", None))
            elif age >= least and (not still or self._admit(rank, "stalled", [])):
                held = job.gil(rank)
                if held is not None and 2 * (held[1] or 0.0) >= age:
                    self.accuse(Accusation(rank, "gil held", KeepsGil(held[1] or 0.0)))
                else:
                    claim = NoStep(age, health.step, job.usual_step(rank))
                    self.accuse(Accusation(rank, "stalled", claim))


def _is_undecided(accusation: Accusation) -> bool:
    """Its word stands against another rank's."""
    if not isinstance(accusation.claim, Issued):
        return False
    return any(isinstance(each, NoMajority) for each in accusation.evidence)


def _of_silence(gone: Gone) -> Iterable[Evidence]:
    yield FailedQuestion(None, gone.reason, gone.text)
    if gone.pid is not None and gone.state is not None:
        yield Process(gone.pid, gone.state)


class Rule(NamedTuple):
    """*reasons*: those for which the rule may accuse a rank."""

    weigh: Callable[[Suspicions], None]
    reasons: tuple[Reason, ...]


#: In this order.
RULES: tuple[Rule, ...] = (
    Rule(from_threads, ("deadlock",)),
    Rule(from_names, ("order",)),
    Rule(from_mismatches, ("mismatch", "order", "swallowed")),
    Rule(from_calls, ("mismatch",)),
    Rule(
        Suspicions.from_waits,
        (
            "p2p cycle",
            "order",
            "swallowed",
            "deadlock",
            "gil held",
            *BLOCKED.values(),
            "behind",
            "unreachable",
        ),
    ),
    Rule(Suspicions.from_silence, ("unreachable",)),
    Rule(Suspicions.from_gil, ("gil held",)),
    Rule(Suspicions.from_stacks, ("gil held", *BLOCKED.values(), "behind")),
    Rule(Suspicions.from_steps, ("stalled",)),
)
