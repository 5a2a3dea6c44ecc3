"""What was observed of a job, rank by rank, over the rounds: the facts that a verdict rests on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property

from workerserver.cluster.failures import UNKNOWN_WORKER
from workerserver.cluster.judge import pauses
from workerserver.cluster.judge.chains.peers import Chains
from workerserver.cluster.judge.facts import NAMELESS, Entered, Gone
from workerserver.cluster.judge.flight import Analysis, Group, Wait, combine
from workerserver.cluster.judge.looks import MAX_WORLD, RoundByRank
from workerserver.cluster.judge.order.streams import issuer
from workerserver.cluster.model import Frame, RankState, RoundLike, Thread, cores_used
from workerserver.cluster.read import progress
from workerserver.cluster.read.acting import (
    Root,
    acting,
    root,
    roots_of_waits,
    roots_of_work,
    roots_seen_waiting,
)
from workerserver.cluster.read.blocked_on import UNKNOWN, Blocked, blocked_on
from workerserver.cluster.read.columns.summaries import Summary
from workerserver.cluster.read.recorder import WATCHED, RankRecord, Shared

__all__ = ["Job"]

#: A wait shorter than this is no hang.
STUCK_AFTER_SECONDS = 3.0
#: Nor is a wait that isn't this many times as long as the pauses between operations have been.
MIN_PAUSES = 3.0
#: Of so many ranks the pauses are measured.
MAX_PAUSE_RANKS = 32
#: A process that uses so much of a core computes.
MIN_BUSY_CORES = 0.5
#: A process that stands still and is asked takes 0.002 of a core.
MIN_CORES = 0.03
#: A GIL that could not be had for so long is held.
GIL_HELD_SECONDS = 1.0


class Job:
    """The last round, and what changed since the one before it."""

    def __init__(
        self,
        rounds: Sequence[RoundLike],
        world_size: int | None,
        elsewhere: Collection[int] = (),
    ) -> None:
        shared = Shared()
        self.rounds = [RoundByRank.of(each, shared) for each in rounds]
        self.now = self.rounds[-1] if self.rounds else RoundByRank(0.0)
        self.before = self.rounds[-2] if len(self.rounds) > 1 else None
        known = {rank for rank in (*self.now.states, *self.now.gone) if rank < NAMELESS}
        members = {
            id(group.ranks): group.ranks  # equal ones are one object
            for row in self.now.records.rows
            for group in row.record.groups.values()
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
        self.elsewhere = frozenset(elsewhere)
        missing = [each for each in sorted(known) if each not in self.now.states]
        missing = [each for each in missing if each not in self.now.gone]
        missing = self._without_nameless(missing)
        for rank in missing:
            self.now.gone[rank] = Gone(rank, UNKNOWN_WORKER.reason, UNKNOWN_WORKER.text)
        self.ranks = sorted(self.now.states)
        self._unended: dict[int, tuple[bool, bool]] = {}
        told: dict[int, Blocked] = {}  # by the identity of the threads, which ranks may share
        self.roots = self._roots()
        self.blocked: dict[int, Blocked] = {}
        for rank, state in sorted(self.now.states.items()):
            if state.threads and id(state.threads) not in told:
                thread = acting(state.threads, self.roots)
                told[id(state.threads)] = blocked_on(state.threads, thread)
            self.blocked[rank] = told.get(id(state.threads), UNKNOWN)
        self._progress: dict[int, progress.Progress] = {}
        self._still: dict[int, bool | None] = {}
        self._entered: dict[int, Entered] = {}

    def _roots(self) -> tuple[Root, ...]:
        """Where the threads began that act: as for :func:`acting`."""
        many = [state.threads for state in self.now.states.values()]
        found = roots_seen_waiting(many) or self._roots_of_operations() or roots_of_waits(many)
        if found:
            return found
        return roots_of_work(
            [state.threads for rank, state in self.now.states.items() if self.pending(rank)]
        )

    def _roots_of_operations(self) -> tuple[Root, ...]:
        """Where the threads began that issued the newest recorded operation of their rank, or the
        oldest one that has not ended: work.wait() and item() leave no frame."""
        found: Counter[Root] = Counter()
        for rank, state in self.now.states.items():
            record = self.now.of_rank(rank) if state.flight is not None else None
            ident = issuer(record) if record is not None else None
            thread = next((each for each in state.threads if each.ident == ident), None)
            if ident is not None and thread is not None and (its := root(thread)) is not None:
                found[its] += 1
        return tuple(sorted(found, key=lambda each: (-found[each], each)))

    def _without_nameless(self, missing: list[int]) -> list[int]:
        """*missing* ranks, without those that may be workers whose rank nobody knows.

        Those are they, and which one is which nobody knows. So of a few more missing ranks than
        such workers none is named: each may be one of the workers. They stay nameless too.
        """
        nameless = [rank for rank in (*self.now.states, *self.now.gone) if rank >= NAMELESS]
        if not nameless or not missing:
            return missing
        if len(nameless) == len(missing) == 1 and nameless[0] in self.now.gone:
            # A rank that is missing, and an address that does not answer, are one thing.
            gone = self.now.gone.pop(nameless[0])
            self.now.gone[missing[0]] = replace(gone, rank=missing[0])
            self.expected.remove(nameless[0])
            return []
        self.expected = [each for each in self.expected if each not in missing]
        more = len(missing) - len(nameless)
        first = max(nameless) + 1
        self.expected += range(first, first + max(more, 0))
        return list(range(first, first + max(more, 0)))

    @cached_property
    def of_dumps(self) -> bool:
        """Nobody was asked: all that is known is what torch's own dumps hold."""
        states = self.now.states.values()
        return bool(states) and all(state.kind == "dump" for state in states)

    @cached_property
    def recorded(self) -> Analysis:
        """What the recorders say together."""
        size = self.world_size
        if size is None and self.expected and self.expected[-1] < NAMELESS:
            size = self.expected[-1] + 1
        return combine(self.now.records, size, len(self.expected))

    @cached_property
    def analysis(self) -> Analysis:
        """The same, with the waits that only stacks tell."""
        found = self.recorded
        more = tuple(self.chains.waits(found.groups, found.waits))
        return replace(found, waits=(*found.waits, *more)) if more else found

    @cached_property
    def chains(self) -> Chains:
        """Who waits for whom by what stacks tell."""
        return Chains(self)

    # --- where a rank is asked

    def address(self, rank: int) -> str:
        state = self.now.states.get(rank)
        if state is not None:
            return state.worker.address
        gone = self.now.gone.get(rank)
        return gone.address or "?" if gone is not None else "?"

    def pid_if_alone(self, rank: int) -> int | None:
        """The process id of the only worker of a job without ranks; 0 if it is not known, None if
        the job has others."""
        state = self.now.states.get(rank)
        health = state.health if state is not None else None
        world = health.world_size if health is not None else None
        if len(self.expected) == 1 and not self.elsewhere and (world or 1) == 1:
            pid = health.pid if health is not None else None
            if state is not None:
                pid = pid or state.peer_pid
            return pid or 0
        return None

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

    def progressed(self, rank: int) -> progress.Progress:
        """Whether the rank has made progress since the round before."""
        if rank not in self._progress:
            then = self.before.states.get(rank) if self.before is not None else None
            now = self.now.states.get(rank)
            self._progress[rank] = progress.Progress(None)
            if then is not None and now is not None:
                self._progress[rank] = progress.progress(
                    then, now, lambda: (self._recorded_before(rank), self.now.alike(rank))
                )
        return self._progress[rank]

    def same_stack(self, rank: int) -> bool | None:
        """Its acting thread is in the same place as in the round before. None if not known."""
        if rank not in self._still:
            self._still[rank] = self._as_now(self.before, rank) if self.before is not None else None
        return self._still[rank]

    def _as_now(self, look: RoundByRank, rank: int) -> bool | None:
        then, now = look.states.get(rank), self.now.states.get(rank)
        if then is None or now is None:
            return None
        still = progress.still(then, now, self.blocked[rank], self.roots)
        return still and not self._is_loop(rank)

    def _is_loop(self, rank: int) -> bool:
        """It has not told itself whether its thread has run, but one with the same stack has run
        there and is in the same place again. Who waits for ranks may be in each step's wait."""
        blocked = self.blocked[rank]
        if blocked.thread is None or blocked.thread.switches is not None or blocked.on_ranks:
            return False
        return bool(self._ran and self._ran.get(blocked.thread.frames))

    def slept_alike(self, rank: int) -> bool:
        """Its thread has not run since the round before; or those with the same stack have not, if
        it has not told that itself."""
        thread = self.blocked[rank].thread
        return self.slept(rank) or (thread is not None and self._ran.get(thread.frames) is False)

    @cached_property
    def _ran(self) -> dict[tuple[Frame, ...], bool]:
        """By stack: whether a rank has run between the looks, and is in the same place again. Only
        of those that don't wait for ranks, and that tell it."""
        found: dict[tuple[Frame, ...], bool] = {}
        for rank in self.ranks:
            blocked = self.blocked[rank]
            now = blocked.thread
            then = self.before.states.get(rank) if self.before is not None else None
            if now is None or now.switches is None or then is None or blocked.on_ranks:
                continue
            before = acting(then.threads, self.roots)
            if before is None or before.frames != now.frames or before.switches is None:
                continue
            ran = progress.still(then, self.now.states[rank], blocked, self.roots) is False
            found[now.frames] = found.get(now.frames, False) or ran
        return found

    def slept(self, rank: int) -> bool:
        """Its acting thread is in the same place as in the round before, for the same wait, and has
        not run in between."""
        state = self.before.states.get(rank) if self.before is not None else None
        then = acting(state.threads, self.roots) if state is not None else None
        now = self.blocked[rank].thread
        if then is None or now is None or then.switches is None:
            return False
        places = [(each.native_id, each.frames, each.waits) for each in (then, now)]
        return places[0] == places[1] and then.switches == now.switches

    def came_elsewhere(self, rank: int) -> bool:
        """The acting thread is in another of the user's functions than in the round before."""
        if self.before is None or rank not in self.before.states or rank not in self.now.states:
            return False
        return progress.changed(self.before.states[rank], self.now.states[rank], self.roots)

    def motion(self, rank: int) -> progress.Motion:
        """How the rank has moved since the round before, as ``stacks`` has it."""
        states = [look.states.get(rank) for look in self.rounds[-2:]]
        return progress.observe_rank(states).motion

    def too_early(self, rank: int) -> bool:
        """Its last step is younger than two of its steps usually take."""
        state = self.now.states.get(rank)
        return state is not None and progress.too_early(state) is not None

    def computes(self, rank: int) -> bool:
        """The rank's process kept a core busy for half of the time since the round before."""
        used = self._cores(rank)
        return used is not None and used >= MIN_BUSY_CORES

    def may_compute(self, rank: int) -> bool:
        """The rank's process took more of a core since the round before than one that only answers
        questions. On a busy machine, a thread that computes may get no more."""
        used = self._cores(rank)
        return used is not None and used >= MIN_CORES

    def _cores(self, rank: int) -> float | None:
        if self.before is None:
            return None
        then, now = self.before.states.get(rank), self.now.states.get(rank)
        return cores_used(now.health, then.health) if now is not None and then is not None else None

    def still_for(self, rank: int) -> float:
        """For how long, in seconds, each round has seen it at the same line."""
        since = self.now.time
        for look in reversed(self.rounds[:-1]):
            if not self._as_now(look, rank):
                break
            since = look.time
        return self.now.time - since

    def issued_more(self, rank: int, group: Group) -> bool | None:
        """It issued a collective of the group since the round before."""
        then, now = self._recorded_before(rank), self.now.alike(rank)
        if then is None or now is None:
            return None
        if then is now:
            return False
        return _issued(then, group) != _issued(now, group)

    def _recorded_before(self, rank: int, *, times: bool = False) -> RankRecord | None:
        """What the rank's recorder said in the round before, with *times* or without them. If it
        says the same now, that is the record of now: it need not be read twice."""
        if self.before is None:
            return None
        old, new = self.before.states.get(rank), self.now.states.get(rank)
        look = self.before
        if old is not None and new is not None and old.flight_summary is not None:
            quick = old.flight is new.flight and isinstance(old.flight_summary, Summary)
            same = not quick and old.flight == new.flight
            same = same and old.flight_summary == new.flight_summary
            if same and old.more_flights == new.more_flights:
                look = self.now
        return look.of_rank(rank) if times else look.alike(rank)

    @cached_property
    def moves(self) -> bool | None:
        """Something of the job goes on: a step, an operation. None if there is no way to know."""
        known = False
        for rank in self.ranks:
            went_on = self.progressed(rank).went_on
            if went_on:
                return True
            known = known or went_on is False
        return False if known else None

    # --- ages

    def age(self, wait: Wait) -> float | None:
        """For how many seconds the ranks have waited. None if no clock tells that sensibly."""
        if wait.by_stack:
            return self.chains.age(wait)
        age = self.told_age(wait)
        seen = self.seen_for(wait)
        if seen > 0:  # by this machine's clock alone, whatever the workers' clocks say
            age = max(age or 0.0, seen)
        if self.before is None:
            # With one look only this machine's clock would decide, so ask the workers' clocks too.
            ages = sorted(
                told for rank in wait.waiting if (told := self.step_age(rank)) is not None
            )
            if ages:
                own = ages[len(ages) // 2]
                return own if age is None else min(age, own)
        return age

    def _ahead(self, wait: Wait) -> float:
        """By how much the clocks of the ranks that wait are ahead of this machine's: the middle."""
        states = (self.now.states.get(rank) for rank in wait.waiting[:MAX_PAUSE_RANKS])
        told = sorted(
            state.clock_ahead_s
            for state in states
            if state is not None and state.clock_ahead_s is not None
        )
        return told[len(told) // 2] if told else 0.0

    def told_age(self, wait: Wait) -> float | None:
        """The same by the clocks of the ranks that wait alone."""
        if wait.since_ns is None or self.now.time <= 0:
            return None
        ahead = self._ahead(wait)
        age = self.now.time - wait.since_ns / 1e9 + ahead
        # A clock that differs is known to whole seconds, and by an answer that took its time.
        return age if (-5.0 if ahead else -1.0) <= age < 3.2e7 else None

    def seen_for(self, wait: Wait) -> float:
        """For how many seconds each round has seen a rank in this wait, and no other one."""
        if wait.seq is None or not wait.waiting:
            return 0.0
        since = self.now.time
        for look in reversed(self.rounds[:-1]):
            old = [each for rank in wait.waiting[:MAX_PAUSE_RANKS] if (each := look.alike(rank))]
            if not old or not all(_is_in(each, wait) for each in old):
                break
            since = look.time
        return self.now.time - since

    def entered(self, wait: Wait) -> Entered:
        """*wait* as a fact: the same object each time."""
        known = self._entered.get(id(wait))
        if known is None:
            known = self._entered[id(wait)] = Entered(
                wait.name, wait.group.label, wait.waiting, self.age(wait), wait.seq is not None
            )
        return known

    def pace(self, wait: Wait) -> float:
        """The longest usual pause between two operations of the group, in seconds. 0 if unknown.

        It is the second-longest pause by each rank's own clock: the longest may be the job's start.
        Of the ranks' pauses, the middle one counts.
        """
        pauses = sorted(
            pause
            for rank in wait.waiting[:MAX_PAUSE_RANKS]
            if (pause := self.pause(rank, wait.group)) > 0
        )
        return pauses[len(pauses) // 2] if pauses else 0.0

    def pause(self, rank: int, group: Group) -> float:
        """The same by one rank's own clock."""
        return pauses.usual(group, rank)

    def usual_pauses(self, group: Group) -> dict[int, float]:
        """The same of each rank that tells something of the group."""
        return pauses.usual_of_ranks(group)

    @cached_property
    def longest_pause(self) -> float:
        return pauses.longest(self.analysis.groups)

    @cached_property
    def rhythm(self) -> float | None:
        return pauses.rhythm(self.analysis.groups)

    def hangs(self, wait: Wait) -> bool:
        """The wait has lasted too long, and has not changed since the round before."""
        if wait.by_stack:
            return self.chains.hangs(wait)
        if self.before is not None and wait.seq is not None:
            records = (self._recorded_before(rank) for rank in wait.waiting)
            old = {id(each): each for each in records if each is not None}
            if old and not any(_is_in(each, wait) for each in old.values()):
                return False
        elif self.before is not None:
            then = self._recorded_before(wait.waiting[0], times=True)
            if then is not None and not _has_pending(then, wait):
                return False
        age = self.age(wait)
        return age is None or age >= self.limit(wait)

    def limit(self, wait: Wait) -> float:
        """A wait of so many seconds is no usual one."""
        steps = [
            step
            for rank in wait.waiting[:MAX_PAUSE_RANKS]
            if (step := self.usual_step(rank)) is not None
        ]
        usual = sorted(steps)[len(steps) // 2] if steps else 0.0
        return max(STUCK_AFTER_SECONDS, MIN_PAUSES * self.pace(wait), progress.PATIENCE * usual)

    def gil(self, rank: int) -> tuple[Thread | None, float | None] | None:
        """If a thread of *rank* keeps the GIL: which thread, and for how many seconds, as far as
        that is known. Else None."""
        state = self.now.states.get(rank)
        if state is None:
            return None
        owed = state.health.gil_unavailable_s if state.health is not None else None
        holder = None
        if state.mode != "gil":  # else it is the thread that took the snapshot
            holder = next((thread for thread in state.threads if thread.holds_gil), None)
        if owed is not None and owed >= GIL_HELD_SECONDS:
            return holder, owed
        if owed is None and holder is not None and state.mode == "nogil":
            return holder, None
        return None

    def on_device(self, rank: int) -> bool:
        """It has issued an operation of NCCL's, or the like, that has not ended."""
        record = self.now.alike(rank)
        return record is not None and self._of_record(record)[0]

    def pending(self, rank: int) -> bool:
        """It has issued an operation that has not ended, of those that are recorded."""
        record = self.now.alike(rank)
        if record is None:
            return False
        return rank in self._inferred or self._of_record(record)[1]

    def _of_record(self, record: RankRecord) -> tuple[bool, bool]:
        """Whether an operation in *record* has not ended: one of NCCL's, and any one."""
        known = self._unended.get(id(record))
        if known is None:
            groups = record.groups.values()
            first = [op for each in groups if (op := each.first_pending) is not None]
            peers = [op for each in groups for op in each.p2p]
            watched = any(op.backend in WATCHED for op in first)
            watched = watched or any(not op.done and op.backend in WATCHED for op in peers)
            known = watched, bool(first) or any(op.pending for op in peers)
            self._unended[id(record)] = known
        return known

    def unrecorded(self, rank: int) -> bool:
        """It may be in an operation that no recorder holds: one of a kind that is not recorded, or
        one that a short ring has lost. Of a ring that wasn't read in full, the others tell."""
        record = self.now.alike(rank)
        if record is None:
            return False
        short = self._short if record.short is None else record.short
        return record.unrecorded or short

    def has_recorded(self, rank: int) -> bool:
        """Its recorder holds something: that tells more than its stack."""
        record = self.now.alike(rank)
        return record is not None and not record.empty

    def has_only_recorded(self, rank: int) -> bool:
        """All that it has ever issued is recorded, by torch's own counters: so on gloo, no send and
        no receive."""
        record = self.now.alike(rank)
        return record is not None and record.enqueued > 0 and not record.unrecorded

    @cached_property
    def _short(self) -> bool:
        return any(row.record.short for row in self.now.records.rows)

    @cached_property
    def _inferred(self) -> frozenset[int]:
        """Ranks whose recorder tells no end, and whose operation can't have ended."""
        waits = (wait.waiting for wait in self.recorded.waits if wait.inferred)
        return frozenset().union(*waits)

    @cached_property
    def _pending_at(self) -> dict[tuple[Frame, str], set[int]]:
        found: dict[tuple[Frame, str], set[int]] = {}
        for rank in self.ranks:
            blocked = self.blocked[rank]
            if blocked.location is not None and self.pending(rank):
                found.setdefault((blocked.location, blocked.call), set()).add(rank)
        return found

    def victims_at(self, rank: int) -> bool:
        """Another rank, with an operation under way, stands at the same line of the user's: so this
        one probably waits, too."""
        blocked = self.blocked[rank]
        if blocked.location is None:
            return False
        return bool(self._pending_at.get((blocked.location, blocked.call), set()) - {rank})

    def step_age(self, rank: int) -> float | None:
        """Seconds since its last heartbeat, by its own clock."""
        state = self.now.states.get(rank)
        return state.health.step_age_s if state is not None and state.health is not None else None

    def longest_step(self, rank: int) -> float:
        """How long its steps have been at most, on average: all that came before the last one."""
        state = self.now.states.get(rank)
        health = state.health if state is not None else None
        if health is None or health.uptime_s is None or health.step_age_s is None:
            return 0.0
        if health.step_median_s is not None:
            return health.step_median_s
        return max(health.uptime_s - health.step_age_s, 0.0) / max(health.step or 0, 1)

    def usual_step(self, rank: int) -> float | None:
        state = self.now.states.get(rank)
        return progress.usual_step(state.health) if state is not None else None


def _issued(record: RankRecord, group: Group) -> int:
    """How far the group's counter of collectives had come."""
    own = record.groups.get(group.key)
    return own.issued[0] if own is not None else -1


def _is_in(record: RankRecord, wait: Wait) -> bool:
    """The collective of *wait* was under way, and no earlier one of its group."""
    own = record.groups.get(wait.group.key)
    if own is None:
        return False
    if wait.inferred:  # the recorder tells no end
        return wait.seq is not None and own.issued[0] >= wait.seq
    return own.first_pending is not None and own.first_pending.seq == wait.seq


def _has_pending(record: RankRecord, wait: Wait) -> bool:
    """The send or receive of *wait* was under way."""
    own = record.groups.get(wait.group.key)
    operations = own.p2p if own is not None else ()
    return any(each.created_ns == wait.since_ns for each in operations if each.pending)


def _step(state: RankState | None) -> int | None:
    return state.health.step if state is not None and state.health is not None else None
