"""Plays a job to its two looks and on, and tells the truth about it.

The truth is known from both sides: the plan says what was planted, the machine says who still
moves. :mod:`replay` finds the deadlocked threads a second time, in another way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any

from .machine import MAX_EVENTS, Machine, Meeting, Thread
from .program import Job, Op, RankPlan

__all__ = ["REASONS", "Played", "Truth", "play"]

#: What a verdict may give as the reason of a suspect, by the class of its fault.
REASONS: dict[str, frozenset[str]] = {
    "behind": frozenset({"behind", "stalled"}),
    "dataloader": frozenset({"dataloader", "stalled"}),
    "lock": frozenset({"lock", "deadlock", "stalled"}),
    "joined": frozenset({"lock", "behind", "stalled"}),
    "gil held": frozenset({"gil held"}),
    "unreachable": frozenset({"unreachable"}),
    "deviates": frozenset({"mismatch", "order", "swallowed", "p2p cycle", "behind", "p2p"}),
}


@dataclass(slots=True)
class Truth:
    """*deadlocked*: some of the job's threads will never go on, and *stuck* are their ranks.
    *settled*: that began longer before the first look than any pause lasts. *guilty*: the root
    cause. *allowed*: whom an accusation may name; more than the guilty only where what can be seen
    is the same from both sides. *opposed*: those on the other side of one that deviates, where
    nothing tells which side is right. *moving*: ranks of which some acting thread goes on after
    all. *still*: late ranks that stand still meanwhile, as if for good. *victims*: stuck, and only
    waiting. *recorded*: recorders hold operations of all kinds by which its ranks may wait for each
    other."""

    deadlocked: bool
    settled: bool = False
    guilty: frozenset[int] = frozenset()
    allowed: frozenset[int] = frozenset()
    opposed: frozenset[int] = frozenset()
    stuck: frozenset[int] = frozenset()
    moving: frozenset[int] = frozenset()
    still: frozenset[int] = frozenset()
    reasons: dict[int, str] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()
    recorded: bool = True

    @property
    def victims(self) -> frozenset[int]:
        return self.stuck - self.guilty


@dataclass(slots=True)
class Played:
    """*looks*: when each look was, and what was told then."""

    job: Job
    machine: Machine
    truth: Truth
    looks: list[tuple[float, Any]]


Tell = Callable[[Machine, float], Any]
More = Callable[[Job, list[tuple[float, Any]]], bool]

#: A command that looks again by itself does so for at most so many seconds in all.
LOOKS_S = 10.0
INTERVAL_S = 2.0


def play(
    job: Job, tell: Tell | None = None, most: int = MAX_EVENTS, more: More | None = None
) -> Played:
    """Run *job* to its looks, have *tell* give the answers at each, and see how it ends. *most*:
    events after which the job makes no sense (ValueError). *more*: whether to look again."""
    machine = Machine(job, most)
    lasting = [plant for plant in job.plants if not plant.late]
    horizon = _horizon(job)
    if job.look == "running":
        first = job.after
        machine.run(first)
    else:
        machine.run_to_fault(10 * horizon)
        begun = machine.planted_at if machine.planted_at < inf else machine.now
        if job.look == "settled":
            machine.run(begun + horizon)
            first = max(machine.now, _stopped(machine) + job.after)
        else:
            first = begun + job.after
        machine.run(first)
    looks = [(first, tell(machine, first) if tell else None)]
    second = first + job.gap
    machine.run(second)
    looks.append((second, tell(machine, second) if tell else None))
    last = first + LOOKS_S
    while more is not None and more(job, looks):
        second += INTERVAL_S
        if second > last:
            break
        machine.run(second)
        looks.append((second, tell(machine, second) if tell else None))
    if not lasting:
        return Played(job, machine, Truth(False, still=_still(job, machine, first)), looks)
    if machine.events:
        machine.run(machine.now + (2 if job.look == "fresh" else 1) * horizon)
    return Played(job, machine, _truth(job, machine, first, machine.now - horizon / 2), looks)


def _horizon(job: Job) -> float:
    """Longer than anything lasts that ends: a step, an epoch, a pause."""
    longest = 0.0
    for plan in job.ranks:
        for strand in plan.strands:
            for op in strand.ops:
                if op.seconds < inf:
                    longest = max(longest, op.seconds)
    return 12 * job.usual + 3 * longest


def _acting(machine: Machine) -> list[Thread]:
    return [
        thread
        for rank in machine.ranks
        for thread in rank.threads
        if thread.strand.acting or thread.strand.name == "saver"
    ]


def _stopped(machine: Machine) -> float:
    """When the last of the threads that now stand still began to."""
    threads = [thread for thread in _acting(machine) if thread.state != "on"]
    return max((thread.moved for thread in threads), default=machine.now)


def _still(job: Job, machine: Machine, first: float) -> frozenset[int]:
    return frozenset(
        plant.rank
        for plant in job.plants
        if plant.kind.rpartition(" ")[2] in ("sleep", "data", "child", "still")
    )


def _truth(job: Job, machine: Machine, first: float, recent: float) -> Truth:
    stuck: dict[int, list[Thread]] = {}
    moving: set[int] = set()
    last = 0.0
    for thread in _acting(machine):
        if thread.strand.name == "saver" and thread.op is not None and thread.op.kind == "get":
            continue  # idle, or not: the trainer tells
        if thread.state in ("on", "ended"):
            moving.add(thread.rank.number)
        elif machine.events and thread.moved > recent:
            moving.add(thread.rank.number)  # it may only just have come here
        else:
            stuck.setdefault(thread.rank.number, []).append(thread)
            last = max(last, thread.moved)
    if not stuck:
        return Truth(False, moving=frozenset(moving))
    plants = [plant for plant in job.plants if not plant.late]
    guilty = frozenset(plant.rank for plant in plants)
    classes = {rank: _class(threads) for rank, threads in stuck.items()}
    edges = {rank: _waits_for(machine, threads) for rank, threads in stuck.items()}
    allowed = set(guilty)
    opposed: set[int] = set()
    for plant in plants:
        rank = plant.rank
        named = _issued_alike(machine, rank)
        if rank in stuck:
            named |= _tied(rank, edges, classes, job.ranks)
        else:
            named |= _parties(machine, rank)
        allowed |= named
        if plant.reason == "deviates":
            opposed |= (named - {rank}) | _crossed(machine, rank)
    return Truth(
        deadlocked=True,
        settled=job.look == "settled" and last <= first,
        guilty=guilty,
        allowed=frozenset(allowed),
        opposed=frozenset(opposed),
        stuck=frozenset(stuck),
        moving=frozenset(moving - stuck.keys()),
        reasons={plant.rank: plant.reason for plant in plants},
        kinds=tuple(plant.kind for plant in plants),
        recorded=all(_recorded(thread) for threads in stuck.values() for thread in threads)
        and not (job.backend == "gloo" and job.layout in ("pipeline", "ring")),
    )


def _recorded(thread: Thread) -> bool:
    """gloo's recorder holds no point-to-point operation, and none holds what goes by the store."""
    if thread.op is not None and thread.op.kind in ("store_wait", "flock"):
        return False
    for meeting in thread.wants:
        gloo = any(entry.group.backend == "gloo" for entry in meeting.entries)
        if meeting.what[0] in "mn" or (meeting.what[0] == "p" and gloo):
            return False
    return True


# --- who waits for whom


def _head(thread: Thread) -> list[Meeting]:
    """The meetings that a blocked thread waits for."""
    op = thread.op
    if op is None or thread.state != "blocked":
        return []
    if thread.in_stream:
        stream = thread.rank.stream
        return [entry.meeting for entry in stream[0] if entry.meeting] if stream else []
    wanted = [meeting for meeting in thread.wants if meeting.done == inf]
    if any(thread.rank.number not in meeting.came for meeting in wanted):
        # NCCL's stream has not come to what it waits for.
        return [entry.meeting for entry in thread.rank.stream[0] if entry.meeting]
    return wanted


def _class(threads: list[Thread]) -> Any:
    """What a rank stands in, and with what: equal where ranks are in the same situation."""
    found = []
    for thread in threads:
        heads = _head(thread)
        if heads:
            me = thread.rank.number
            found += [(meeting.what, meeting.came.get(me)) for meeting in heads]
        else:
            op: Op | None = thread.op
            found.append(((op.kind, op.key) if op is not None else (), None))
    return tuple(sorted(found, key=repr))


def _waits_for(machine: Machine, threads: list[Thread]) -> set[int]:
    """The ranks without which they don't go on; of locks and the like, the rank itself."""
    found: set[int] = set()
    for thread in threads:
        me = thread.rank.number
        for meeting in _head(thread):
            if meeting.clash:
                mine = meeting.came[me]
                found.update(rank for rank, sign in meeting.came.items() if sign != mine)
            else:
                found.update(meeting.missing())
        op = thread.op
        if op is not None and op.kind == "flock":
            owner = machine.files.get((thread.rank.plan.host, op.key))
            if owner is not None:
                found.add(owner[0].rank.number)
    return found


def _reach(start: int, edges: dict[int, set[int]]) -> set[int]:
    found: set[int] = set()
    left = [start]
    while left:
        for rank in edges.get(left.pop(), ()):
            if rank not in found:
                found.add(rank)
                left.append(rank)
    return found


def _tied(
    rank: int, edges: dict[int, set[int]], classes: dict[int, Any], plans: list[RankPlan]
) -> set[int]:
    """Who waits for each other with *rank*, as far as nothing that can be seen tells who of them is
    wrong: all of them, if *rank* is in no minority there, or in none among those that have a
    recorder; the other side, if no more ranks speak against *rank* than for it."""
    ring = {other for other in _reach(rank, edges) if rank in _reach(other, edges)}
    if not ring:
        return {rank}
    for other in edges[rank] & ring:
        if rank in edges[other]:
            mine = [each for each in edges[other] if classes.get(each) == classes[rank]]
            theirs = {each for each in edges[rank] if classes.get(each) == classes[other]}
            if len(theirs) <= len(mine):  # word against word
                return _sides(rank, ring, edges, classes)
    recorded = {other for other in ring if plans[other].ring and plans[other].served}
    for seen in (ring, recorded | {rank}):
        sizes: dict[Any, int] = {}
        for other in seen:
            sizes[classes[other]] = sizes.get(classes[other], 0) + 1
        if sizes[classes[rank]] == max(sizes.values()):
            return ring
    return {rank}


def _sides(
    rank: int, ring: set[int], edges: dict[int, set[int]], classes: dict[int, Any]
) -> set[int]:
    """*rank*, those that stand where it does, and those of *ring* with which it waits in turn."""
    same = {other for other in ring if classes[other] == classes[rank]}
    return same | {other for each in same for other in edges[each] & ring if edges[other] & same}


def _issued_alike(machine: Machine, rank: int) -> set[int]:
    """Who has put something else on its stream where *rank* has put something, if *rank* is in no
    minority there."""
    signs: dict[Any, dict[int, Any]] = {}
    for each in machine.ranks:
        for entry in (entry for item in each.stream for entry in item):
            op, meeting = entry.op, entry.meeting
            if meeting is not None and op.peer < 0:
                signs.setdefault(meeting.what, {})[each.number] = (op.name, op.shape, op.dtype)
    found: set[int] = set()
    for came in signs.values():
        same = [other for other, sign in came.items() if sign == came.get(rank)]
        if rank in came and 2 * len(same) >= len(came) > len(same):
            found.update(came)
    return found


def _crossed(machine: Machine, rank: int) -> set[int]:
    """Whose stream waits for *rank* while that rank's stream waits for theirs: recorders show that
    these took operations in different orders, wherever their threads stand."""
    missing = {
        each.number: {
            other
            for entry in (each.stream[0] if each.stream else ())
            if entry.meeting is not None
            for other in entry.meeting.missing()
        }
        for each in machine.ranks
    }
    return {other for other in missing[rank] if rank in missing.get(other, ())} - {rank}


def _parties(machine: Machine, rank: int) -> set[int]:
    """The guilty rank goes on: it did not wait. Who took part with it in what never ended."""
    found = {rank}
    for meeting in machine.meetings.values():
        if meeting.clash and rank in meeting.came:
            mine = meeting.came[rank]
            same = [other for other, sign in meeting.came.items() if sign == mine]
            if 2 * len(same) >= len(meeting.came):
                found.update(meeting.came)
    return found
