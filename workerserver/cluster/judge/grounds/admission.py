"""Which accusations are admitted: the one gate between a suspicion and a suspect.

A reason that says "it has not come" needs a rank that stands still, and that doesn't only wait
itself. What rests on recorded operations (mismatch, order, p2p cycle) needs neither.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from workerserver.cluster.judge.facts import Hindrance
from workerserver.cluster.judge.flight import Wait
from workerserver.cluster.judge.grounds.children import (
    is_unclear,
    may_work,
    one_works,
    waits_for_child,
)
from workerserver.cluster.judge.grounds.helpers import one_helps
from workerserver.cluster.judge.grounds.lateness import (
    LATE_MOST_SECONDS,
    late_for,
    patience,
    usual_step,
)
from workerserver.cluster.judge.job import Job
from workerserver.cluster.judge.reasons import Reason
from workerserver.cluster.read.acting import root
from workerserver.cluster.read.blocked_on import (
    FILE_LOCK,
    POLL,
    SOCKET,
    STORE,
    Kind,
    blocked_on,
)
from workerserver.cluster.read.roles import main_thread
from workerserver.cluster.read.waits_for import by_id, follow

__all__ = ["RECORDED", "firm", "hindrance", "is_elsewhere", "is_late", "may_serve"]

#: Reasons that rest on recorded operations.
RECORDED: frozenset[Reason] = frozenset({"mismatch", "order", "p2p cycle"})
#: Reasons that a rank need not stand still for, or that are no guess at what it waits for.
PROVEN: frozenset[Reason] = RECORDED | {"deadlock"}
#: Calls that wait for another process: a barrier, an event, a semaphore, a queue, a pipe.
SHARED = ("multiprocessing.synchronize.", "multiprocessing.queues.", "multiprocessing.connection.")
#: Calls in which a thread waits for another one's end, or for its result.
JOINS = ("threading.join", "concurrent.futures.result")
#: What ends only if somebody does something about it.
ENDLESS: frozenset[Kind] = frozenset({"debugger", "stopped", "shutdown"})
#: A rank that computes or writes where it is may only be slow, for this long, and for so many usual
#: pauses.
WORKING_SECONDS = 30.0
WORKING_PAUSES = 30.0
#: In a library's call it may be slow for longer: such a call gets through its work, as a parser
#: gets through its file. A loop of the user's own at one line may have no end.
WORKING_IN_CALL_SECONDS = 300.0


def hindrance(
    job: Job, rank: int, reason: Reason, absent: Collection[int], wait: Wait | None
) -> Hindrance | None:
    """Why *rank* can't be accused for *reason*; None if it can. *absent*: all who have not come to
    where others wait. *wait*: where that is, if a recorder tells."""
    if reason in PROVEN or rank in job.now.gone:
        return None
    if rank not in job.blocked:
        return "unseen"
    if job.now.states[rank].kind == "dump":
        return _of_dump(job, rank, absent, wait)
    if job.progressed(rank).went_on:
        return "moves"
    if job.gil(rank) is not None:
        return None
    if job.came_elsewhere(rank) or job.same_stack(rank) is False:
        return "changes"
    if job.too_early(rank):
        return "early"
    blocked = job.blocked[rank]
    if wait is None and blocked.kind == "sleep" and not _surely_acts(job, rank):
        return "waits"
    if wait is None and may_serve(job, rank):
        return "waits"
    if job.before is not None and job.same_stack(rank) is None and _readable(job, rank):
        return "unseen"
    if blocked.on_ranks:
        few = 2 * len(absent) < len(job.expected) and set(absent) == {rank}
        if blocked.kind != "p2p" or wait is None or wait.silent or not few:
            return "waits"
        if _others_in_p2p(job, rank) or _peer_waits(job, rank):
            return "waits"
        if rank not in job.chains.edges and not _sends_nothing(job, absent):
            return "waits"  # one that is where the others are may have sent too few
        return is_late(job, rank, wait)
    if blocked.helped or blocked.kind == "device" or job.victims_at(rank):
        return "waits"
    if blocked.bound and (wait is None or not _keeps_all(job, rank, absent)):
        return "waits"
    if one_works(job, rank) or may_work(job, rank):
        return "child"
    if is_unclear(job, rank) and _may_be_slow(job, rank, wait):
        return "child"
    if one_helps(job, rank):
        return "threads"
    if rank in job.chains.edges or (_in_shared(job, rank) and not _alone(job, rank, absent)):
        return "waits"
    together = wait is not None and wait.seq is not None
    if blocked.on_others and not (together and blocked.call == STORE and _alone(job, rank, absent)):
        return "waits"
    record = job.now.alike(rank)
    unknown = record is None or record.empty or _waits_unseen(job, rank)
    if blocked.kind == "computing" and unknown and len(job.expected) > 1:
        return "waits"  # who waits for a GPU spins, and no recorder tells what for
    unseen = blocked.thread is not None and blocked.thread.state is None
    unseen = unseen and (blocked.works or blocked.kind in ("io", "backward"))
    if (blocked.writes or blocked.runs or unseen or job.computes(rank)) and _may_be_slow(
        job, rank, wait
    ):
        return "computes"
    if blocked.unsure:
        guess = _of_guess(job, rank, absent)
        if guess is not None:
            return guess
    if blocked.kind == "sleep" and _others_sleep(job, rank, absent):
        if not job.slept_alike(rank):
            return "waits"  # nothing tells a sleep from a loop that sleeps and looks
        if not usual_step(job, rank, wait) and late_for(job, rank, wait) < LATE_MOST_SECONDS:
            return "asleep"
    return is_late(job, rank, wait)


def _others_sleep(job: Job, rank: int, absent: Collection[int]) -> bool:
    """Another one that others may wait for sleeps, too. So each of them may be on its way to what
    the other one has."""
    return any(
        job.blocked[each].kind == "sleep" for each in absent if each != rank and each in job.blocked
    )


def _of_dump(job: Job, rank: int, absent: Collection[int], wait: Wait | None) -> Hindrance | None:
    """Of a rank of which only the recorder is known. It is accused if it has issued nothing more,
    also nothing that is only counted, and if all others wait: whomever it waits for itself, nobody
    goes on before it comes."""
    record = job.now.alike(rank)
    if wait is None or record is None or record.empty:
        return "unseen"
    others = [each for each in job.expected if each != rank]
    if job.unrecorded(rank) or set(absent) != {rank} or not all(map(job.pending, others)):
        return "waits"
    if job.told_age(wait) is None:
        return "undated"
    return is_late(job, rank, wait)


def is_late(job: Job, rank: int, wait: Wait | None) -> Hindrance | None:
    """ "late" if it may only pause."""
    if rank in job.blocked and job.blocked[rank].kind in ENDLESS:
        return None
    return "late" if late_for(job, rank, wait) < patience(job, rank, wait) else None


def is_elsewhere(job: Job, rank: int) -> bool:
    """It surely waits for no rank, and does nothing else either."""
    blocked = job.blocked.get(rank)
    if blocked is None or blocked.on_ranks or blocked.helped or blocked.runs or blocked.writes:
        return False
    if blocked.on_others or rank in job.chains.edges or _in_shared(job, rank):
        return False
    if blocked.kind == "sleep" and not _surely_acts(job, rank):
        return False
    if one_works(job, rank) or may_work(job, rank) or is_unclear(job, rank):
        return False
    if blocked.kind == "device" or (blocked.guessed and not _in_own_lock(job, rank)):
        return False
    if job.computes(rank) or job.victims_at(rank) or job.same_stack(rank) is False:
        return False
    if blocked.kind == "unknown":
        return _in_own_lock(job, rank)
    return blocked.on_no_rank or blocked.kind in ("io", "library", "wait")


def firm(job: Job, ranks: Iterable[int]) -> list[int]:
    """Of *ranks* that wait for nobody, those of which that is not only guessed; all, if it is of
    all. What a line in C code waits for may be a message of gloo's, which no recorder holds."""
    ranks = list(ranks)
    sure = [rank for rank in ranks if rank not in job.blocked or not job.blocked[rank].unsure]
    return sure or ranks


def _surely_acts(job: Job, rank: int) -> bool:
    """The thread that stands for it is no other one that happens to be in user code, as one that
    looks around each few seconds."""
    thread, threads = job.blocked[rank].thread, job.now.states[rank].threads
    if thread is None or thread.main or thread.beats or root(thread) in job.roots:
        return True
    if len(job.expected) == 1 and job.step_age(rank) is not None:
        return True  # its heartbeat tells that it stands still, and it has nobody to wait for
    main = main_thread(threads)
    if main is None or blocked_on(threads, main).call in JOINS:
        return True
    return thread in follow(main, by_id(threads))


def may_serve(job: Job, rank: int) -> bool:
    """In a socket, in a poll, or in a library that is not known to wait for something else; and not
    all others surely wait for ranks. So it may wait for a message of another one, in words of the
    user's own."""
    blocked = job.blocked[rank]
    if blocked.kind == "wait":
        if blocked.call in JOINS or waits_for_child(job, rank):
            return False
        if not blocked.inside and blocked.call != POLL:
            return False
    elif blocked.kind != "library" and blocked.call != SOCKET:
        return False
    return not all(_has_to_wait(job, each) for each in job.ranks if each != rank)


def _has_to_wait(job: Job, rank: int) -> bool:
    """It has an operation under way, or waits for ranks by its stack."""
    return job.blocked[rank].on_ranks or job.pending(rank)


def _in_shared(job: Job, rank: int) -> bool:
    """In a wait for what processes share (:mod:`multiprocessing`), and it has none of its own, as
    far as its worker tells. So it may wait for another rank that the same process has started."""
    own = job.now.states[rank].own
    return job.blocked[rank].call.startswith(SHARED) and not (own is not None and own.children)


def _in_own_lock(job: Job, rank: int) -> bool:
    """At a line of the user's in C code that waits, and all that it has ever issued is recorded and
    has ended: so it waits for a lock of its process."""
    blocked, record = job.blocked[rank], job.now.alike(rank)
    if blocked.call in (FILE_LOCK, POLL, STORE) or record is None or record.empty:
        return False
    return not job.unrecorded(rank) and not job.pending(rank)


def _readable(job: Job, rank: int) -> bool:
    return bool(job.now.states[rank].threads)


def _may_be_slow(job: Job, rank: int, wait: Wait | None) -> bool:
    """It works at one place. That is a fault only if it has lasted for very long, and if it is
    known how long pauses usually are."""
    if job.moves:
        return True
    ages = [job.still_for(rank), job.step_age(rank) or 0.0]
    usual = [job.usual_step(rank) or 0.0]
    if wait is not None:
        age = job.age(wait)
        ages.append(math.inf if age is None else age)
        usual.append(job.pace(wait))
    most = max(usual)
    least = WORKING_IN_CALL_SECONDS if job.blocked[rank].inside else WORKING_SECONDS
    return most <= 0 or max(ages) < max(least, WORKING_PAUSES * most)


def _alone(job: Job, rank: int, absent: Collection[int]) -> bool:
    """All other ranks answer, and wait in an operation that only *rank* has not come to."""
    others = (each for each in job.expected if each != rank)
    return set(absent) == {rank} and all(
        each in job.blocked and job.blocked[each].on_ranks for each in others
    )


def _keeps_all(job: Job, rank: int, absent: Collection[int]) -> bool:
    """All other ranks answer, and have an operation under way, or wait by their stacks. Only *rank*
    has not come. So whomever it waits for itself, nobody goes on before it comes."""
    others = (each for each in job.expected if each != rank)
    return set(absent) == {rank} and all(
        each in job.blocked and _has_to_wait(job, each) for each in others
    )


def _is_only_guess(job: Job, rank: int, absent: Collection[int]) -> bool:
    """All others are seen, and of none is it only guessed, too, what it waits for: members of one
    operation that no ring holds any more would all stand so."""
    return (
        set(absent) == {rank}
        and not job.now.gone
        and all(
            each == rank or job.pending(each) or not its.unsure for each, its in job.blocked.items()
        )
    )


def _waits_unseen(job: Job, rank: int) -> bool:
    """It has an operation under way on its device, and its ring has lost which ranks that takes."""
    known = any(rank in wait.waiting for wait in job.analysis.waits)
    return job.on_device(rank) and job.pending(rank) and not known


def _others_in_p2p(job: Job, rank: int) -> bool:
    """Another rank is in a send or a receive, too, and nobody tells the other side of *rank*'s: so
    *rank* may wait for that one, whomever that one waits for."""
    known = job.chains.edges
    return rank not in known and any(
        blocked.kind == "p2p" and each != rank for each, blocked in job.blocked.items()
    )


def _sends_nothing(job: Job, absent: Collection[int]) -> bool:
    """None of those that have come has ever made a send or a receive, by torch's own counters."""
    return all(job.has_only_recorded(each) for each in job.expected if each not in absent)


def _peer_waits(job: Job, rank: int) -> bool:
    """The other side of its send or receive waits for ranks, too: then *rank* is a victim, or one
    of a ring."""
    edge = job.chains.edges.get(rank)
    if edge is None:
        return False
    return any(
        peer in job.chains.edges or (peer in job.blocked and job.blocked[peer].on_ranks)
        for peer in edge.peers
    )


def _of_guess(job: Job, rank: int, absent: Collection[int]) -> Hindrance | None:
    """At a line of the user's in C code, which may wait for other ranks: in a point-to-point
    operation of gloo's, for a key of the store, for a lock that another process has."""
    blocked = job.blocked[rank]
    record = job.now.alike(rank)
    if len(job.expected) == 1:
        return None
    if blocked.kind == "unknown":  # nothing is told of the kernel
        if job.pending(rank):
            return "waits"  # perhaps for that operation: work.wait() leaves no frame
        if len(job.expected) == 2 or job.now.gone or not _keeps_all(job, rank, absent):
            return "waits"  # perhaps for one that waits for nobody, or that can't be seen
    if blocked.call == POLL and any(
        each != rank and is_elsewhere(job, each) for each in job.blocked
    ):
        return "waits"  # perhaps for a key of that one's, which waits for nobody
    if blocked.call in (FILE_LOCK, STORE) and _alone(job, rank, absent):
        return None  # whoever ends that wait, no other rank can go on before this one comes
    if blocked.call in (FILE_LOCK, STORE) or (record is not None and record.unrecorded):
        return "waits"
    if job.unrecorded(rank) and not _is_only_guess(job, rank, absent):
        return "waits"  # in what its ring has lost
    if (record is None or record.empty) and blocked.call != "waiting":
        return "waits"
    here = sum(each.location == blocked.location for each in job.blocked.values())
    many = 2 * (max(len(absent), here) + len(job.now.gone))  # who can't be seen may stand there
    if many > len(job.expected):
        return "majority"
    if blocked.call == POLL and many >= len(job.expected):
        return "waits"
    return None
