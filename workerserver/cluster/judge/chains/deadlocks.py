"""Who waits for each other for ever: threads of one rank, and ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from workerserver.cluster.judge.chains.facts import Circle, Deadlock, Knot
from workerserver.cluster.judge.chains.peers import have_not_run, same_places
from workerserver.cluster.judge.chains.words import FILE_LOCK
from workerserver.cluster.judge.facts import Absent, Accusation, Owed, Tangled, WaitsIn
from workerserver.cluster.judge.flight import Wait
from workerserver.cluster.judge.job import Job
from workerserver.cluster.model import Frame, Thread
from workerserver.cluster.read.owners import code_file
from workerserver.cluster.read.waits_for import LOCKS, circles

if TYPE_CHECKING:
    from workerserver.cluster.judge.suspicions import Suspicions

__all__ = ["from_threads", "weigh_ring"]


# --- in one rank


def from_threads(suspicions: Suspicions) -> None:
    """Threads of one rank that wait for each other."""
    job = suspicions.job
    for rank in job.ranks:
        state = job.now.states[rank]
        if state.own is None:
            continue
        for circle in circles(state.threads):
            certain = state.own.mode == "gil" and all(map(_waits_for_python_lock, circle))
            if certain or _stood_before(job, rank, circle):
                claim = Deadlock(_threads(circle), certain)
                suspicions.accuse(_accusation(job, rank, claim))
                break


def _accusation(job: Job, rank: int, claim: Deadlock) -> Accusation:
    """With the operation to which the rank has not come, whether or not that is a hang yet."""
    for wait in job.recorded.waits:
        if rank in wait.absent:
            label = wait.group.label
            return Accusation(rank, "deadlock", claim, label, wait.op, wait.seq)
    return Accusation(rank, "deadlock", claim)


def _waits_for_python_lock(thread: Thread) -> bool:
    """Under the GIL these stand still; a join may have a limit, and a mutex is read later."""
    return thread.waits is not None and thread.waits.kind in ("lock", "rlock")


def _stood_before(job: Job, rank: int, circle: Sequence[Thread]) -> bool:
    """The round before has seen the same, and none of the threads has run since."""
    before = job.before.states.get(rank) if job.before is not None else None
    then, now = before.own if before is not None else None, job.now.states[rank].own
    if before is None or then is None or now is None or then.pid != now.pid:
        return False
    return any(
        same_places(each, circle) and have_not_run(each, circle) for each in circles(before.threads)
    )


def _threads(circle: Sequence[Thread]) -> tuple[Circle, ...]:
    """Each with what it waits for, and where it has taken what the one before waits for."""
    found = []
    for before, thread in zip((circle[-1], *circle[:-1]), circle, strict=True):
        wanted, waits = before.waits, thread.waits
        assert wanted is not None
        assert waits is not None
        held = wanted.item if wanted.kind in LOCKS else None
        took = next((each.frame for each in thread.holds if each.item == held), None)
        found.append(
            Circle(
                _name(thread),
                waits.item if waits.kind in LOCKS else None,
                held if wanted.kind in LOCKS else None,
                _users(thread, took) if took is not None else None,
                _users(thread, 0),
                waits.kind == "thread",
            )
        )
    return tuple(found)


def _name(thread: Thread) -> str | int:
    return "main" if thread.main else thread.name or thread.native_id or 0


def _users(thread: Thread, number: int) -> Frame | None:
    """Frame *number*, or of those that called it the newest one of the user's."""
    if not 0 <= number < len(thread.frames):
        return None
    older = thread.frames[number:]
    return next((each for each in older if code_file(each.file).owner == "user"), older[0])


# --- between ranks


def weigh_ring(suspicions: Suspicions, ranks: Sequence[int], waits: Sequence[Wait]) -> bool:
    """Ranks that wait for each other, some of them in what only stacks tell. False: no stack is
    needed for it, or only operations between two ranks are in it."""
    if not any(wait.by_stack for wait in waits):
        return False
    if any(wait.op == FILE_LOCK for wait in waits):
        _knot(suspicions, ranks, waits)
        return True
    if all(wait.seq is None for wait in waits):
        return False
    _one_left_out(suspicions, ranks, waits)
    return True


def _knot(suspicions: Suspicions, ranks: Sequence[int], waits: Sequence[Wait]) -> None:
    """A file lock closes the ring: whoever holds it waits for whoever wants it. The kernel names a
    process: if another thread of it may have the lock, that one may give it back."""
    members = set(ranks)
    job = suspicions.job
    unsure = False
    for wait in waits:
        if wait.op != FILE_LOCK:
            continue
        for holder in members.intersection(wait.absent):
            if job.chains.may_be_held_elsewhere(holder):
                suspicions.refused.setdefault(holder, ("holder", wait))
                unsure = True
    if unsure:
        return
    alike: dict[tuple[str, str, tuple[int, ...]], list[int]] = {}
    for wait in sorted(waits, key=lambda wait: (wait.op != FILE_LOCK, wait.waiting)):
        absent = tuple(rank for rank in wait.absent if rank in members)
        waiting = alike.setdefault((wait.name, wait.group.label, absent), [])
        waiting += [rank for rank in wait.waiting if rank in members]
    claim = Knot([(tuple(some), *which) for which, some in alike.items() if some])
    for rank in ranks:
        wait = next(wait for wait in waits if rank in wait.waiting)
        suspicions.accuse_in(wait, rank, "deadlock", claim, ())


def _one_left_out(suspicions: Suspicions, ranks: Sequence[int], waits: Sequence[Wait]) -> None:
    """Some wait point-to-point, and some in a collective. Where one waits for a rank that is in the
    collective, one of these two has left something out, or has made something that is too much.

    If the one that waits is a step ahead, it has left out the collective. If others wait for it in
    turn, they count as many operations as it does, and the other one has made too few. If all that
    the other one has ever issued is recorded, that was no send and no receive: nobody but the one
    that waits takes part in any. Else it is one's word against the other's, however many are in the
    collective: they tell nothing of what these two owe each other.
    """
    job, members = suspicions.job, set(ranks)
    pairs = [wait for wait in suspicions.hanging if wait.seq is None]
    paired = {rank for wait in pairs for rank in wait.waiting}
    together = {
        rank for wait in suspicions.hanging if wait.seq is not None for rank in wait.waiting
    } - paired
    evidence = [WaitsIn(job.entered(wait), wait.absent) for wait in waits]
    awaited = {rank for wait in pairs for rank in wait.absent}
    unclear = True
    for wait, other in _crossings(pairs, waits, together, members):
        rank, peer = wait.waiting[0], wait.absent[0]
        ahead = suspicions.steps_if_ahead(rank, other.waiting)
        if ahead is not None:
            claim = Absent(job.entered(other), steps=ahead)
            suspicions.accuse_in(other, rank, "swallowed", claim, evidence)
        elif rank in awaited:
            owed = Owed(job.entered(wait), job.entered(other))
            suspicions.accuse_in(other, peer, "order", owed, evidence)
        elif job.has_only_recorded(peer):
            suspicions.accuse_in(other, rank, "p2p", Absent(job.entered(other)), evidence)
        else:
            continue
        unclear = False
    if unclear:
        suspicions.doubts.append(Tangled([job.entered(wait) for wait in waits]))


def _crossings(
    pairs: Sequence[Wait], waits: Sequence[Wait], together: set[int], members: set[int]
) -> Iterator[tuple[Wait, Wait]]:
    """Where a rank of the ring waits point-to-point for one that is in a collective."""
    for wait in pairs:
        rank, peer = wait.waiting[0], wait.absent[0] if wait.absent else None
        if peer not in together or not {rank, peer}.issubset(members):
            continue
        others = (each for each in waits if peer in each.waiting and each.seq is not None)
        other = next(others, None)
        if other is not None:
            yield wait, other
