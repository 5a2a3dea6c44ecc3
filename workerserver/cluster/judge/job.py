"""What was observed of a job, rank by rank, over the rounds: the facts that a verdict rests on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Protocol

from workerserver.cluster.failures import fatal
from workerserver.cluster.judge.flight import Analysis, Group, Wait, combine
from workerserver.cluster.model import Failure, RankState, Thread, cores_used
from workerserver.cluster.read.flight_records import GroupRecord, RankRecord, Shared, read
from workerserver.cluster.read.standing import UNKNOWN, Standing, stand
from workerserver.ranks import fold

__all__ = ["NAMELESS", "Gone", "Job", "RoundLike", "Snapshot"]

#: Workers whose rank nobody knows are numbered from here on.
NAMELESS = 1 << 20
MAX_WORLD = 1 << 20
#: Of a list of ranks in a sentence, characters.
MAX_NAMES = 60

#: A wait shorter than this is no hang.
STUCK_AFTER_S = 3.0
#: Nor is one that isn't this many times as long as pauses between operations have been.
PACES = 3.0
#: Of so many ranks the pace is taken.
PACE_RANKS = 32
#: A process that uses as much of a core computes.
BUSY_CORES = 0.5
#: A GIL that could not be had for so long is held.
GIL_HELD_S = 1.0


class RoundLike(Protocol):
    """What is needed of a round of answers."""

    @property
    def states(self) -> Sequence[RankState]: ...
    @property
    def started(self) -> float:
        """Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Gone:
    """A rank without a usable answer."""

    rank: int
    reason: str
    text: str
    address: str | None = None
    host: str | None = None


@dataclass
class Snapshot:
    """One round, by rank."""

    time: float
    states: dict[int, RankState] = field(default_factory=dict)
    gone: dict[int, Gone] = field(default_factory=dict)
    shared: Shared = field(default_factory=Shared)
    read: dict[int, RankRecord] = field(default_factory=dict)

    @classmethod
    def of(cls, round_: RoundLike) -> Snapshot:
        snapshot = cls(round_.started)
        nameless = NAMELESS
        for state in sorted(round_.states, key=_order):
            rank = state.rank if state.rank is not None else state.worker.rank
            if rank is None or not 0 <= rank < MAX_WORLD:
                rank = nameless
                nameless += 1
            failure = fatal(state)
            if failure is None and rank not in snapshot.states:
                snapshot.states[rank] = state
                snapshot.gone.pop(rank, None)
            elif rank not in snapshot.states and rank not in snapshot.gone:
                failure = failure or Failure("unreachable", "it did not answer")
                snapshot.gone[rank] = Gone(
                    rank, failure.reason, failure.text, state.worker.address, state.worker.host
                )
        return snapshot

    @cached_property
    def records(self) -> dict[int, RankRecord]:
        ranks = (rank for rank in self.states if rank < NAMELESS)
        return {rank: record for rank in ranks if (record := self.of_rank(rank)) is not None}

    def of_rank(self, rank: int) -> RankRecord | None:
        """What its recorder says, read once and only if asked for."""
        if rank not in self.read:
            state = self.states.get(rank)
            if state is None or (state.flight is None and state.flight_summary is None):
                return None
            self.read[rank] = read(state.flight, state.flight_summary, self.shared)
        return self.read[rank]

    def record(self, rank: int, group: Group) -> GroupRecord | None:
        record = self.of_rank(rank)
        return record.groups.get(group.key) if record is not None else None


def _order(state: RankState) -> tuple[bool, int, bool, str]:
    """Deterministic; of two that claim a rank, the one where discovery expected it comes first."""
    rank = state.rank if state.rank is not None else state.worker.rank
    surprising = state.worker.rank is not None and state.worker.rank != state.rank
    return (rank is None, rank or 0, surprising, state.worker.address)


class Job:
    """The last round, and what changed since the one before it."""

    def __init__(self, rounds: Sequence[RoundLike], world_size: int | None) -> None:
        snapshots = [Snapshot.of(each) for each in rounds]
        self.now = snapshots[-1] if snapshots else Snapshot(0.0)
        self.before = snapshots[-2] if len(snapshots) > 1 else None
        self.snapshots = snapshots
        known = {rank for rank in (*self.now.states, *self.now.gone) if rank < NAMELESS}
        members = {
            id(group.ranks): group.ranks  # equal ones are one object
            for record in self.now.records.values()
            for group in record.groups.values()
            if group.key.desc == "default_pg" and group.ranks
        }
        known.update(*members.values())
        self.world_size = world_size
        if world_size is not None:
            known.update(range(min(world_size, MAX_WORLD)))
        self.expected = sorted(
            {*known, *(rank for rank in self.now.states if rank >= NAMELESS)}
            | {rank for rank in self.now.gone if rank >= NAMELESS}
        )
        for rank in sorted(known):
            if rank not in self.now.states and rank not in self.now.gone:
                self.now.gone[rank] = Gone(rank, "missing", "no worker is known for it")
        self.ranks = sorted(self.now.states)
        self.standing: dict[int, Standing] = {
            rank: stand(state.threads) if state.threads else UNKNOWN
            for rank, state in sorted(self.now.states.items())
        }

    @cached_property
    def analysis(self) -> Analysis:
        size = self.world_size
        if size is None and self.expected and self.expected[-1] < NAMELESS:
            size = self.expected[-1] + 1
        return combine(self.now.records, size)

    # --- names

    def names(self, ranks: Iterable[int]) -> str:
        """ "rank 2", "ranks 0-1,3"; workers without a rank by their address."""
        each = sorted(set(ranks))
        numbered = [rank for rank in each if rank < NAMELESS]
        parts = []
        if numbered:
            text = fold(numbered)
            if len(text) > MAX_NAMES:
                parts.append(f"{len(numbered)} ranks ({text[:MAX_NAMES].rpartition(',')[0]},...)")
            else:
                parts.append(f"rank{'s' if len(numbered) > 1 else ''} {text}")
        parts += [f"worker {self.address(rank)}" for rank in each[len(numbered) :][:4]]
        if len(each) - len(numbered) > 4:
            parts.append(f"{len(each) - len(numbered) - 4} more")
        return ", ".join(parts)

    def address(self, rank: int) -> str:
        state = self.now.states.get(rank)
        if state is not None:
            return state.worker.address
        gone = self.now.gone.get(rank)
        return gone.address or "?" if gone is not None else "?"

    def host(self, rank: int) -> str | None:
        state = self.now.states.get(rank)
        if state is not None:
            return state.worker.host
        gone = self.now.gone.get(rank)
        return gone.host if gone is not None else None

    # --- movement

    @property
    def window(self) -> float:
        """Seconds between the last two rounds."""
        return self.now.time - self.before.time if self.before is not None else 0.0

    def steps(self, rank: int) -> tuple[int | None, int | None]:
        """The rank's heartbeat in the round before, and now."""
        return (
            _step(self.before.states.get(rank)) if self.before is not None else None,
            _step(self.now.states.get(rank)),
        )

    @cached_property
    def step_range(self) -> tuple[int, int] | None:
        """The lowest and the highest heartbeat."""
        steps = [step for rank in self.ranks if (step := self.steps(rank)[1]) is not None]
        return (min(steps), max(steps)) if steps else None

    def same_stack(self, rank: int) -> bool | None:
        """Its main thread stood at the same line in the round before; None if that isn't known."""
        return None if self.before is None else self._as_now(self.before, rank)

    def _as_now(self, snapshot: Snapshot, rank: int) -> bool | None:
        old, new = snapshot.states.get(rank), self.now.states.get(rank)
        if old is None or new is None:
            return None
        if old.main_digest is not None and old.main_digest == new.main_digest:
            return True
        then, now = stand(old.threads), self.standing[rank]
        if then.thread is None or now.thread is None:
            return None
        return then.thread.frames == now.thread.frames or (now.polls and then.alike == now.alike)

    def computes(self, rank: int) -> bool:
        """Its process kept a core busy, at least half of the time since the round before."""
        if self.before is None:
            return False
        then, now = self.before.states.get(rank), self.now.states.get(rank)
        used = cores_used(now.health, then.health) if now is not None and then is not None else None
        return used is not None and used >= BUSY_CORES

    def still_for(self, rank: int) -> float:
        """For how long, in seconds, each round has seen it at the same line."""
        since = self.now.time
        for snapshot in reversed(self.snapshots[:-1]):
            if not self._as_now(snapshot, rank):
                break
            since = snapshot.time
        return self.now.time - since

    def issued_more(self, rank: int, group: Group) -> bool | None:
        """It issued a collective of the group since the round before."""
        then, now = self._recorded_before(rank), self.now.of_rank(rank)
        if then is None or now is None:
            return None
        if then is now:
            return False
        return _last(then, group) != _last(now, group)

    def _recorded_before(self, rank: int) -> RankRecord | None:
        """What its recorder said in the round before: what it says now, if that is the same."""
        if self.before is None:
            return None
        old, new = self.before.states.get(rank), self.now.states.get(rank)
        if old is None or new is None or old.flight_summary is None:
            return self.before.of_rank(rank)
        same = old.flight_summary == new.flight_summary
        return self.now.of_rank(rank) if same else self.before.of_rank(rank)

    @cached_property
    def moves(self) -> bool | None:
        """Anything of the job goes on: a step, a collective. None if there is no way to know."""
        known = False
        for rank in self.ranks:
            then, now = self.steps(rank)
            if then is not None and now is not None:
                if then != now:
                    return True
                known = True
        for group in self.analysis.groups:
            for rank in group.records:
                more = self.issued_more(rank, group)
                if more:
                    return True
                known = known or more is False
        return False if known else None

    # --- ages

    def age(self, wait: Wait) -> float | None:
        """For how long the ranks have waited; clocks that can't be right count as unknown."""
        age = None
        if wait.since_ns is not None and self.now.time > 0:
            age = self.now.time - wait.since_ns / 1e9
            if not -1.0 <= age < 3.2e7:
                age = None
        if self.before is None:
            # Without a second look the collector's clock alone decides: ask the workers' own too.
            ages = sorted(
                age
                for rank in wait.waiting
                if (state := self.now.states.get(rank)) is not None
                and state.health is not None
                and (age := state.health.step_age_s) is not None
            )
            if ages:
                own = ages[len(ages) // 2]
                return own if age is None else min(age, own)
        return age

    def pace(self, wait: Wait) -> float:
        """The longest usual pause between two operations of the group, in seconds; 0 if unknown.

        By each rank's own clock, the longest but one: the very longest may be the job's start."""
        pauses = []
        for rank in wait.waiting[:PACE_RANKS]:
            record = wait.group.records.get(rank)
            if record is None:
                continue
            times = [
                ops[0].created_ns
                for seq, ops in sorted(record.collectives.items())
                if seq - 1 in record.collectives or seq + 1 in record.collectives
            ]
            gaps = sorted(
                (after - before) / 1e9
                for before, after in pairwise(times)
                if before is not None and after is not None and after >= before
            )
            if gaps:
                pauses.append(gaps[-2] if len(gaps) > 2 else gaps[-1])
        pauses.sort()
        return pauses[len(pauses) // 2] if pauses else 0.0

    def hangs(self, wait: Wait) -> bool:
        """The wait has lasted too long, and has not changed since the round before."""
        if self.before is not None and wait.seq is not None:
            old = [each for rank in wait.waiting if (each := self._recorded_before(rank))]
            if old and not any(_first(each, wait.group) == wait.seq for each in old):
                return False
        age = self.age(wait)
        return age is None or age >= max(STUCK_AFTER_S, PACES * self.pace(wait))

    def gil(self, rank: int) -> tuple[Thread | None, float | None] | None:
        """Who holds the GIL of *rank* and for how long, if it is held against everybody else."""
        state = self.now.states.get(rank)
        if state is None:
            return None
        owed = state.health.gil_unavailable_s if state.health is not None else None
        holder = None
        if state.mode != "gil":  # else it is the thread that took the snapshot
            holder = next((thread for thread in state.threads if thread.holds_gil), None)
        if owed is not None and owed >= GIL_HELD_S:
            return holder, owed
        if owed is None and holder is not None and state.mode == "nogil":
            return holder, None
        return None


def _last(record: RankRecord, group: Group) -> int | None:
    own = record.groups.get(group.key)
    last = own.last_issued if own is not None else None
    return last.seq if last is not None else None


def _first(record: RankRecord, group: Group) -> int | None:
    own = record.groups.get(group.key)
    first = own.first_pending if own is not None else None
    return first.seq if first is not None else None


def _step(state: RankState | None) -> int | None:
    return state.health.step if state is not None and state.health is not None else None
