"""What a verdict must never say of a job whose truth is known; and how often it says anything."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from .job.truth import REASONS, Played

__all__ = ["Tally", "VerdictLike", "Violation", "violations"]


class SuspectLike(Protocol):
    @property
    def rank(self) -> int | None: ...
    @property
    def reason(self) -> str: ...
    @property
    def address(self) -> str: ...
    @property
    def location(self) -> object: ...
    @property
    def evidence(self) -> Iterable[str]: ...


class VerdictLike(Protocol):
    @property
    def status(self) -> int: ...
    @property
    def sentence(self) -> str: ...
    @property
    def suspects(self) -> Iterable[SuspectLike]: ...


@dataclass(frozen=True, slots=True)
class Violation:
    """*kind*: the property that is violated. *case*: the job's fault. *seed*: the job."""

    kind: str
    case: str
    seed: int
    text: str = ""


def rank_of(suspect: SuspectLike) -> int:
    """A worker that doesn't know its rank is told by its address."""
    if suspect.rank is not None:
        return suspect.rank
    return int(suspect.address.rpartition("/")[2].strip("abcdefghijklmnopqrstuvwxyz."))


def case_of(played: Played) -> str:
    """The fault in words; of several the first one."""
    job, truth = played.job, played.truth
    if not job.ranks[0].named:
        return "workers that don't know their rank"
    if not truth.deadlocked:
        return job.plants[0].kind if job.plants else "healthy"
    return truth.kinds[0] if len(truth.kinds) == 1 else "several"


def _reasons(played: Played, rank: int) -> frozenset[str]:
    """What may be said of a guilty rank. A stock worker tells nothing of its kernel and its GIL.
    Who has another fault may be the other side of a disagreement, too."""
    found = REASONS[played.truth.reasons[rank]]
    if rank in played.truth.opposed:
        found |= REASONS["deviates"]
    if not played.job.ranks[rank].served:
        return found | {"unreachable"}
    return found | {"behind", "unreachable"} if played.job.ranks[rank].stock else found


def _evidence(played: Played) -> str:
    """What can be seen of the job. A full recorder without the hang counts as none."""
    told = played.job.evidence
    if played.job.world == 1:
        return f"one process, {told}"
    if not played.truth.deadlocked and _few_beats(played):
        told = told.replace(" heartbeats", " first heartbeats")
    if not {"compute", "busy child"}.isdisjoint(played.truth.kinds):
        return f"a rank computes, {told}"
    if ", no recorder," in told and played.truth.deadlocked and not _shown(played):
        return told.replace("no recorder", "stacks that don't tell")
    return told if played.truth.recorded else told.replace(", recorders", ", recorders without it")


#: In these a rank surely waits for no other one, as its frames tell...
SHOWN = frozenset(
    {"data", "child", "open", "write", "get", "await", "condition", "join", "result", "stop", "die"}
)
#: ... or what the kernel says, of which a stock worker's answer has nothing.
BY_KERNEL = frozenset({"sleep", "gil"})
#: In these a rank is seen to wait for others.
SEEN = frozenset({"call", "monitored", "new_group", "send", "recv"})


def _shown(played: Played) -> bool:
    """Stacks tell the guilty ranks from the others, of which some are seen to wait for ranks."""
    guilty, others = played.truth.guilty, []
    for rank in played.machine.ranks:
        ops = [each.op for each in rank.threads if each.strand.acting and each.op is not None]
        shown = SHOWN if rank.plan.stock else SHOWN | BY_KERNEL
        if rank.number not in guilty:
            others += ops[:1]
        elif not ops or ops[0].kind not in shown:
            return False
    return any(op.kind in SEEN or (op.kind == "sync" and op.name != "item") for op in others)


def _few_beats(played: Played) -> bool:
    """Too few to tell how long a step takes."""
    told = [each.healthz for each in played.looks[-1][1] if each.healthz is not None]
    plans = played.job.ranks
    return any((each["step"] or 0) < 3 * plans[each["pid"] % 1000].stride for each in told)


def violations(played: Played, verdict: VerdictLike) -> Iterator[Violation]:
    """What the truth clears, or forbids."""
    job, truth = played.job, played.truth
    case, seed = case_of(played), job.seed
    if truth.deadlocked and truth.settled and verdict.status == 0:
        yield Violation("hung, and called healthy", case, seed)
    for suspect in verdict.suspects:
        rank = rank_of(suspect)
        said = f"rank {rank}: {suspect.reason}"
        if not truth.deadlocked:
            if rank in truth.still:
                yield Violation("late and standing still, accused", case, seed, said)
            else:
                yield Violation("healthy, and accused", case, seed, said)
        elif not job.ranks[rank].served and suspect.reason == "unreachable":
            continue  # it could as well have ended: test_twins
        elif rank not in truth.allowed:
            kind = "a victim accused" if rank in truth.stuck else "one that goes on accused"
            yield Violation(kind, case, seed, said)
        elif rank in truth.guilty and suspect.reason not in _reasons(played, rank):
            yield Violation("right rank, wrong reason", case, seed, said)
    if verdict.status == 1 and not list(verdict.suspects):
        yield Violation("status 1 without a suspect", case, seed)
    if verdict.status != 1 and list(verdict.suspects):
        yield Violation("a suspect without status 1", case, seed)


@dataclass(slots=True)
class Tally:
    """Counts over many jobs: *shares* by (what is true, kind of evidence), *kinds* of violations
    with some of their seeds."""

    jobs: int = 0
    shares: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    cases: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    kinds: dict[tuple[str, str], list[Violation]] = field(default_factory=dict)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    keep: int = 5

    def add(self, played: Played, verdict: VerdictLike) -> None:
        self.jobs += 1
        found = list(violations(played, verdict))
        for violation in found:
            key = (violation.kind, violation.case)
            self.counts[key] += 1
            seen = self.kinds.setdefault(key, [])
            if len(seen) < self.keep:
                seen.append(violation)
        outcome = self.outcome(played, verdict, found)
        true = self._true(played)
        self.shares.setdefault((true, _evidence(played)), Counter())[outcome] += 1
        self.cases.setdefault((true, case_of(played)), Counter())[outcome] += 1

    def merge(self, other: Tally) -> None:
        self.jobs += other.jobs
        self.counts += other.counts
        for mine, theirs in ((self.shares, other.shares), (self.cases, other.cases)):
            for key, counted in theirs.items():
                mine.setdefault(key, Counter()).update(counted)
        for kind, found in other.kinds.items():
            known = self.kinds.setdefault(kind, [])
            known += found[: self.keep - len(known)]

    @staticmethod
    def _true(played: Played) -> str:
        truth = played.truth
        if truth.deadlocked:
            return "hung" if truth.settled else "just hung"
        return "late" if played.job.plants else "healthy"

    @staticmethod
    def outcome(played: Played, verdict: VerdictLike, found: list[Violation]) -> str:
        if found:
            return "wrong"
        if verdict.status != 1:
            return str(verdict.status)
        named = {rank_of(suspect) for suspect in verdict.suspects}
        return "right" if named & played.truth.guilty else "tied"

    def tables(self) -> Iterator[str]:
        yield from _table("by kind of evidence", self.shares)
        yield from _table("by fault", self.cases)
        yield f"violations in {self.jobs} jobs"
        order = sorted(self.counts, key=lambda key: (key[0], -self.counts[key]))
        for key in order:
            seeds = ", ".join(
                f"{each.seed} ({each.text})" if each.text else str(each.seed)
                for each in self.kinds[key]
            )
            yield f"{self.counts[key]:7}  {key[0]}: {key[1]}   e.g. seed {seeds}"


def _table(title: str, counted: dict[tuple[str, str], Counter[str]]) -> Iterator[str]:
    """Shares of the outcomes, in percent."""
    columns = ("right", "tied", "wrong", "2", "0")
    yield f"{'what is true':12} {title:42} {'jobs':>8}" + "".join(f"{each:>8}" for each in columns)
    for (true, what), outcomes in sorted(counted.items()):
        total = sum(outcomes.values())
        shares = "".join(f"{100 * outcomes[each] / total:8.1f}" for each in columns)
        yield f"{true:12} {what:42} {total:8}{shares}"
    yield ""
