"""What the judges have found, in English: the only module of this folder that has any.

Each reason has one entry in :data:`SENTENCES`. Everything else is said by one function for each
class of :mod:`facts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from workerserver.cluster.judge import facts
from workerserver.cluster.judge.chains.facts import Deadlock, Knot, Told
from workerserver.cluster.judge.chains.words import FILE_LOCK, at, deadlock, debt
from workerserver.cluster.judge.facts import NAMELESS, Accusation, Claim, Crowd, Entered
from workerserver.cluster.judge.reasons import Reason
from workerserver.cluster.model import Child, Frame
from workerserver.cluster.read.blocked_on import Blocked
from workerserver.ranks import fold

__all__ = ["SENTENCES", "Narrator", "Sentence", "at", "came_last", "duration"]

#: Of a list of ranks, characters; of workers without a rank, addresses.
MAX_NAMES = 60
MAX_ADDRESSES = 4
#: Of a ring, waits. Of a verdict, clauses.
MAX_STEPS = 4
MAX_CLAUSES = 5
#: More operations than so many on each occasion are told.
MANY = 1.25
#: So many usual steps without a step are told as such.
MIN_TIMES = 2.0

Names = Callable[[Sequence[int]], str]
"""Ranks in words: "rank 2", "ranks 0-1,3"."""


def _in(wait: Entered) -> str:
    return f"{wait.operation} of {wait.group}"


def _wait(ranks: Sequence[int]) -> str:
    return "waits" if len(ranks) == 1 else "wait"


def _stand(ranks: Sequence[int]) -> str:
    return "stands" if len(ranks) == 1 else "stand"


# --- one sentence a reason ----------------------------------------------------------------------


class Sentence(NamedTuple):
    """*rests_on*: the reason in general, as the documentation has it. *claim*: what is said of one
    rank or of several ("has not entered ..."). *place*: what comes before the place where one
    suspect is, or several are; None if they just stand there."""

    rests_on: str
    claim: Callable[[Any, bool, Names], str]
    place: tuple[str, str] | None = None


def _mismatch(claim: facts.Issued | facts.Differs, many: bool, names: Names) -> str:
    if isinstance(claim, facts.Differs):
        verb, waiting = "wait" if many else "waits", claim.other.ranks
        theirs = f"{names(waiting)} {_wait(waiting)} in {_in(claim.other)}"
        return f"{verb} in {_in(claim.own)} while {theirs}: each takes all of these ranks"
    others = names(claim.others)
    return (
        f"issued {claim.own} as #{claim.seq} of {claim.group} where {others} issued {claim.theirs}"
    )


def _order(
    claim: facts.Issued | facts.Crossed | facts.Made | facts.Meeting | facts.Owed | facts.Ring,
    many: bool,
    names: Names,
) -> str:
    if isinstance(claim, facts.Owed):
        return f"{_debt(claim.wait, many, names)}, while it waits in {_in(claim.own)}"
    if isinstance(claim, facts.Ring):
        return _p2p_cycle(claim, many, names)
    if isinstance(claim, facts.Made):
        own, others, theirs = names(claim.own), names(claim.others), names(claim.theirs)
        return (
            f"made process group {claim.name} of {own} where {others} made it of {theirs}: every"
            " rank has to call new_group for each group, in the same order"
        )
    if isinstance(claim, facts.Issued):
        return f"{_mismatch(claim, many, names)}, in another order"
    verb = "wait" if many else "waits"
    if isinstance(claim, facts.Crossed):
        return (
            f"{verb} in {_in(claim.own)} while {names(claim.other.ranks)} wait in"
            f" {_in(claim.other)}: the groups were taken in different orders"
        )
    call = _meeting(claim.call)
    if claim.is_inside:
        others = f"{names(claim.outside)} {_wait(claim.outside)}"
        return f"{verb} for all ranks in {call} while {others} in {_in(claim.operation)}"
    others = f"{names(claim.inside)} {_wait(claim.inside)}"
    return f"{verb} in {_in(claim.operation)} while {others} for all ranks in {call}"


def _meeting(call: str | None) -> str:
    return call or "a call that takes all ranks"


def _p2p_cycle(claim: facts.Ring, many: bool, names: Names) -> str:
    steps = [f"{names(wait.ranks)} in {wait.operation}" for wait in claim.waits[:MAX_STEPS]]
    left = len(claim.waits) - MAX_STEPS
    more = f", and {left} more" if left > 0 else ""
    start = "wait for each other:" if many else "is part of a ring:"
    return f"{start} {', '.join(steps)}{more}"


def _swallowed(claim: facts.Issued | facts.Absent, many: bool, names: Names) -> str:
    mine, theirs = claim.steps or (0, 0)
    if isinstance(claim, facts.Issued):
        ahead = f"a step ahead ({mine}, not {theirs})"
        return f"{_mismatch(claim, many, names)}, {ahead}: it has left out a collective"
    verb = "are" if many else "is"
    return f"{_behind(claim, many, names)}, and {verb} at step {mine}, not {theirs}"


def _behind(claim: facts.Absent | facts.Apart, many: bool, names: Names) -> str:
    if isinstance(claim, facts.Apart):
        ranks = claim.crowd.ranks
        crowd = f"{names(ranks)} {_stand(ranks)} {_whereabouts(claim.crowd)}"
        return f"{'seem' if many else 'seems'} to keep the others waiting: {crowd}"
    wait = claim.wait
    if not wait.numbered:
        return _debt(wait, many, names)
    if claim.silent:
        what = f"come to {_in(wait)}, it seems (its recorder gave no answer)"
    else:
        what = f"entered {_in(wait)}"
    return f"{'have' if many else 'has'} not {what}"


def _debt(wait: Entered, many: bool, names: Names) -> str:
    return debt(wait.operation, wait.group, wait.ranks, many, names)


def _deadlock(claim: Deadlock | Knot, many: bool, names: Names) -> str:
    return deadlock(claim, names)


def _whereabouts(crowd: Crowd) -> str:
    if crowd.together:
        return "together" if crowd.location is None else f"together in {at(crowd.location)}"
    return "in calls that need other ranks" if crowd.call is None else f"in {crowd.call}"


def _gil_held(claim: facts.Absent | facts.Apart | facts.KeepsGil, many: bool, names: Names) -> str:
    if not isinstance(claim, facts.KeepsGil):
        return _behind(claim, many, names)
    return f"{'have' if many else 'has'} not released the GIL for {claim.seconds:.1f} s"


def _dataloader(claim: facts.Absent | facts.Apart, many: bool, names: Names) -> str:
    return _behind(claim, many, names)


def _lock(claim: facts.Absent | facts.Apart, many: bool, names: Names) -> str:
    return _behind(claim, many, names)


def _shutdown(claim: facts.Absent | facts.Apart, many: bool, names: Names) -> str:
    return _behind(claim, many, names)


def _unreachable(claim: facts.Silent, many: bool, names: Names) -> str:
    text = f"{'do' if many else 'does'} not answer ({claim.failure})"
    if claim.state in STILL:
        whose = "their processes are" if many else "its process is"
        text = f"{'do' if many else 'does'} not answer: {whose} {STILL[claim.state]}"
    if claim.wait is None:
        return text
    others = f"{names(claim.wait.ranks)} {_wait(claim.wait.ranks)}"
    return f"{text}; {others} for {'them' if many else 'it'} in {_in(claim.wait)}"


#: By the kernel's letter: what keeps a whole process from going on.
STILL: Mapping[str | None, str] = {
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
}


def _p2p(claim: facts.Absent | facts.Apart, many: bool, names: Names) -> str:
    return _behind(claim, many, names)


def _stalled(claim: facts.NoStep, many: bool, names: Names) -> str:
    verb = "have" if many else "has"
    times = claim.age / claim.usual if claim.usual else 0.0
    usual = ""
    if claim.usual is not None and times >= MIN_TIMES:
        usual = f", {times:.0f} times the usual {duration(claim.usual)}"
    return f"{verb} made no step for {claim.age:.0f} s{usual}, since step {claim.step}"


SENTENCES: Mapping[Reason, Sentence] = {
    "mismatch": Sentence(
        "it issued another operation, size or dtype than the other ranks, as one number", _mismatch
    ),
    "order": Sentence(
        "it issued what the others issued in another order, or left something out", _order
    ),
    "p2p cycle": Sentence("it waits for a rank that waits for it, point-to-point", _p2p_cycle),
    "swallowed": Sentence(
        "it has left out a collective and gone on: its step is ahead of the others'", _swallowed
    ),
    "deadlock": Sentence(
        "threads of this rank, or this rank and others, wait for each other's locks", _deadlock
    ),
    "gil held": Sentence(
        "others wait for it, and one of its threads keeps the GIL",
        _gil_held,
        ("it holds the GIL in", "they hold the GIL in"),
    ),
    "dataloader": Sentence(
        "others wait for it, and it waits for its DataLoader",
        _dataloader,
        ("it waits for its DataLoader in", "they wait for their DataLoaders in"),
    ),
    "lock": Sentence(
        "others wait for it, and it waits for a lock or a condition",
        _lock,
        ("it waits for a lock or a condition in", "they wait for locks or conditions in"),
    ),
    "shutdown": Sentence(
        "others wait for it, and it is on its way out",
        _shutdown,
        ("it is on its way out in", "they are on their way out in"),
    ),
    "behind": Sentence(
        "others wait for it: in a collective that it has not entered, for a send or recv that it"
        " owes, for a file lock that it holds",
        _behind,
    ),
    "unreachable": Sentence("it gives no usable answer, and the job does not go on", _unreachable),
    "p2p": Sentence(
        "it is blocked in a send, recv or remote call that no recorder has (gloo records none), and"
        " the job has stopped",
        _p2p,
    ),
    "stalled": Sentence("its step is too old, though no rank waits for it", _stalled),
}
STANDS = ("it stands in", "they stand in")


# --- what the flight recorders say --------------------------------------------------------------


def send_or_receive(receives: bool, peer: int) -> str:
    """What a point-to-point operation is called: ``recv from rank 1``."""
    return f"recv from rank {peer}" if receives else f"send to rank {peer}"


def with_types(operations: str, dtypes: Sequence[str]) -> str:
    return f"{operations} of {', '.join(dtypes)}"


def with_shapes(operations: str, shapes: Iterable[Sequence[int]]) -> str:
    texts = [f"[{', '.join(map(str, shape))}]" for shape in shapes]
    return f"{operations} of {', '.join(texts) or 'nothing'}"


def not_a_member(group: str) -> str:
    return f"it has operations of {group}, to which it does not belong by the other ranks"


def other_members(group: str, ranks: Iterable[int]) -> str:
    return f"it says that {group} has ranks {fold(ranks)}; others say otherwise"


def no_such_ranks(operation: str, group: str) -> str:
    return f"{operation}: no such ranks in {group}"


# --- one line a fact ----------------------------------------------------------------------------


def _parties(fact: facts.Parties, names: Names) -> str:
    parties = [f"{names(ranks)} {text}" for ranks, text in fact.parties]
    return f"#{fact.seq} of {fact.group}: {'; '.join(parties)}"


def _awaited(fact: facts.Awaited, names: Names) -> str:
    wait = fact.wait
    since = f", for {wait.age:.1f} s" if wait.age is not None else ""
    return f"{names(wait.ranks)} {_wait(wait.ranks)} for it in {_in(wait)}{since}"


def _waits_in(fact: facts.WaitsIn, names: Names) -> str:
    text = f"{names(fact.wait.ranks)} in {_in(fact.wait)}"
    return f"{text}, for {names(fact.absent)}" if fact.absent else text


def _acting_thread(fact: facts.ActingThread, names: Names) -> str:
    if fact.own:
        text = " < ".join(map(at, fact.own)) + (f" < {fact.more} more" if fact.more else "")
    else:
        text = f"{at(fact.newest)}, in library code" if fact.newest is not None else "no frames"
    return f"{'main thread' if fact.name is None else f'thread {fact.name}'}: {text}"


def _moved(fact: facts.Moved, names: Names) -> str:
    words = "at the same line" if fact.still else "moving: at another line"
    return f"{words} in two rounds, {fact.seconds:.1f} s apart"


def _gil(fact: facts.GilHeld, names: Names) -> str:
    text = "the GIL is held"
    if fact.seconds is not None:
        text += f", for {fact.seconds:.1f} s"
    if fact.holds:
        text += f", by {fact.thread or 'a thread'}"
        if fact.location is not None:
            text += f" in {at(fact.location)}"
    return text


def _heartbeat(fact: facts.LastHeartbeat, names: Names) -> str:
    age = f", {fact.age:.1f} s ago" if fact.age is not None else ""
    job = f"; the job is at steps {fact.job[0]} to {fact.job[1]}" if fact.job is not None else ""
    return f"last heartbeat: step {fact.step}{age}{job}"


def _failed(fact: facts.FailedQuestion, names: Names) -> str:
    question = f"{fact.question}: " if fact.question is not None else ""
    return f"{question}{fact.reason}: {fact.text}"


def _process(fact: facts.Process, names: Names) -> str:
    if fact.state in STILL:
        more = f"; kill -CONT {fact.pid} lets it go on" if fact.state == "T" else ""
        return f"process {fact.pid} is {STILL[fact.state]}{more}"
    if fact.state == "D":
        return f"process {fact.pid} is in the kernel, where no signal reaches it: a disk, perhaps"
    return f"process {fact.pid} exists; the kernel has it in state {fact.state}"


def _endless(fact: facts.Endless, names: Names) -> str:
    known = "all its ranks" if fact.whole else "its known ranks"
    inside = names(fact.operation.ranks)
    if fact.absent:
        have = "has" if len(fact.absent) == 1 else "have"
        return (
            f"{_in(fact.operation)} does not end: {inside} in it, and {names(fact.absent)} {have}"
            " not entered it"
        )
    return f"{known} have entered {_in(fact.operation)}, which does not end ({inside} in it)"


def _outside(fact: facts.Outside, names: Names) -> str:
    keep = "keeps" if len(fact.ranks) == 1 else "keep"
    return (
        f"if the job is stuck, {names(fact.ranks)} {keep} the others waiting, which stand"
        f" {_whereabouts(fact.crowd)}; but stacks alone were not seen for long enough to tell that"
        " from slow"
    )


def _no_evidence(fact: facts.NoEvidence, names: Names) -> str:
    if fact.rounds > 1:
        return "flight recorders, heartbeats and stacks do not show whether the job goes on"
    if fact.rounds == 0:
        return "no operation hangs in these dumps, and they do not tell whether the job went on"
    return "one round of stacks alone does not tell whether the job goes on"


def _unproven(fact: facts.Unproven, names: Names) -> str:
    many = len(fact.ranks) > 1
    have = "have" if many else "has"
    subject = "they" if many else "it"
    if fact.wait is None:
        start = f"{names(fact.ranks)} {_stand(fact.ranks)} apart from the others"
    elif not fact.wait.numbered:
        who, subject = fact.wait.ranks, names(fact.ranks)
        start = f"{names(who)} {_wait(who)} in {_in(fact.wait)}{_for(fact.wait)}"
        if fact.wait.operation == FILE_LOCK:
            hold = "hold" if many else "holds"
            lock = f"the file lock on {fact.wait.group}, which {subject} {hold}"
            start = f"{names(who)} {_wait(who)}{_for(fact.wait)} for {lock}"
    else:
        start = (
            f"{names(fact.ranks)} {have} not entered {_in(fact.wait)}, in which"
            f" {names(fact.wait.ranks)} {_wait(fact.wait.ranks)}{_for(fact.wait)}"
        )
    why = HINDRANCES[fact.why][many]
    if fact.child is not None:
        why = f"waits for its child {_child(fact.child)}, which works, and may only be slow"
    if fact.place is None:
        return f"{start}; {subject} {why}"
    if fact.why in ("waits", "holder"):
        return f"{start}; {subject} {_stand(fact.ranks)} in {at(fact.place)}, and {why}"
    return f"{start}; {subject} {why} in {at(fact.place)}"


def _child(child: Child) -> str:
    return f"{child.name} (process {child.pid})"


def _idle_child(fact: facts.IdleChild, names: Names) -> str:
    child, seconds = fact.child, fact.seconds
    words = CHILD_STATES.get(child.state, "")
    if not words and seconds is not None:
        words = f"it has neither computed nor read nor written in {seconds:.1f} s"
    more = f", with {child.processes - 1} of its own" if child.processes > 1 else ""
    return f"its child {_child(child)}{more}: {words or 'it was looked at only once'}"


#: By the kernel's letter: of a process that can't work.
CHILD_STATES = {
    "T": "it is stopped by a signal",
    "t": "it is stopped by a debugger",
    "Z": "it has ended, and nobody has taken note of that",
}


def _for(wait: Entered) -> str:
    return f" for {wait.age:.0f} s" if wait.age is not None else ""


#: Why a rank that others wait for isn't accused: of one rank, of many.
HINDRANCES: Mapping[facts.Hindrance, tuple[str, str]] = {
    "moves": ("goes on, and may only be slow", "go on, and may only be slow"),
    "changes": ("moves, and may only be slow", "move, and may only be slow"),
    "computes": ("computes or writes, and may only be slow", "compute or write, and may be slow"),
    "child": (
        "waits for a child process, which works or may work, and may only be slow",
        "wait for child processes, which work or may work, and may only be slow",
    ),
    "threads": (
        "waits for threads of its own, which work or may work, and may only be slow",
        "wait for threads of their own, which work or may work, and may only be slow",
    ),
    "early": ("takes no longer than usual so far", "take no longer than usual so far"),
    "late": ("pauses, and may only be late", "pause, and may only be late"),
    "asleep": (
        "sleeps, as another rank does, and may only be late",
        "sleep, and may only be late",
    ),
    "waits": (
        "may itself wait for another rank, in what no recorder holds",
        "may themselves wait for other ranks, in what no recorder holds",
    ),
    "holder": (
        "has a thread that may hold the lock and may only be slow",
        "have threads that may hold the lock and may only be slow",
    ),
    "majority": ("is where most ranks are", "are where most ranks are"),
    "undated": (
        "may only have been late: nothing tells when the dumps were written",
        "may only have been late: nothing tells when the dumps were written",
    ),
    "unseen": ("can't be seen well enough", "can't be seen well enough"),
    "missing": (
        "can't be seen, because no worker of it is known: it may have ended, hang or work",
        "can't be seen, because no workers of them are known: they may have ended, hang or work",
    ),
}


def _standing(fact: facts.Standing, names: Names) -> str:
    places = "; ".join(
        f"{names(ranks)} {_stand(ranks)} {_spot(call, frame)}" for ranks, call, frame in fact.places
    )
    return f"nothing has moved for {fact.seconds:.0f} s: {places}"


def _spot(call: str, frame: Frame | None) -> str:
    if frame is None:
        return f"in {call}" if call else "where no stack tells"
    call = NO_FRAMES.get(call, call)
    return f"in {call}, from {at(frame)}" if call else f"in {at(frame)}"


#: What the kernel says of a thread, with what it may mean.
NO_FRAMES = {
    "a lock": "a lock, or an operation that no recorder holds",
    "a lock, or the GIL": "a lock, or the GIL, or an operation that no recorder holds",
    "poll": "a poll, perhaps of the store",
}


def _overdue(fact: facts.Overdue, names: Names) -> str:
    have = "have" if len(fact.ranks) > 1 else "has"
    usual = f" (one takes about {fact.usual:.1f} s)" if fact.usual is not None else ""
    return f"{names(fact.ranks)} {have} made no step for {fact.age:.0f} s{usual}; other ranks go on"


def _tangled(fact: facts.Tangled, names: Names) -> str:
    waits = [f"{names(wait.ranks)} in {_in(wait)}" for wait in fact.waits[:MAX_STEPS]]
    return f"ranks wait for each other: {'; '.join(waits)}"


def _slow(fact: facts.Slow, names: Names) -> str:
    return f"{names([fact.rank])} is slow: it {came_last(fact)}"


def came_last(fact: facts.Slow) -> str:
    """``came last in 61 % of the last 500 all_reduces, by 0.4 s (median)``"""
    kind = f"{fact.operation or 'operation'}s"
    if fact.group not in ("", "default_pg"):
        kind = f"{kind} of {fact.group}"
    which = kind
    if fact.operations > MANY * fact.occasions:
        which = f"occasions ({fact.operations} {kind})"
    if fact.waits:
        which += " that kept ranks waiting"
    last = f"{fact.share * 100:.0f} % of the last {fact.occasions} {which}"
    by = f"by {duration(fact.late)} (median)"
    if fact.basis == "steps":
        last = f"{fact.share * 100:.0f} % of its last {fact.operations} steps"
        return f"took longest of all ranks for {last}, {by}"
    if fact.basis == "heartbeat":
        return f"took longest from heartbeat() to the operation in {last}, {by}"
    if fact.basis == "queue":
        return f"was the last to issue {last}, {by}"
    return f"came last in {last}, {by}"


def duration(seconds: float) -> str:
    """To two digits: ``0.41 s``, ``12 ms``."""
    if seconds >= 9.95:
        return f"{seconds:.0f} s"
    if seconds >= 0.0995:
        return f"{seconds:.2g} s"
    return f"{seconds * 1e3:.2g} ms"


def _at_steps(fact: facts.AtSteps, names: Names) -> str:
    if fact.low == fact.high:
        return f"at step {fact.low}"
    return f"at steps {fact.low} to {fact.high}"


def _usual_wait(fact: facts.UsualWait, names: Names) -> str:
    wait = fact.wait
    who = f"{names(wait.ranks)} {_wait(wait.ranks)}"
    return f"{who} in {_in(wait)} for {fact.age:.1f} s, no longer than usual"


LINES: Mapping[type, Callable[[Any, Names], str]] = {
    facts.Parties: _parties,
    facts.NoMajority: lambda fact, names: "no side has the majority",
    facts.Awaited: _awaited,
    facts.WaitsIn: _waits_in,
    facts.InCall: lambda fact, names: f"{names(fact.ranks)} in {_meeting(fact.call)}",
    facts.LastOperation: lambda fact, names: (
        f"its last operation of {fact.group}: {fact.operation}, {ENDED[fact.ended]}"
    ),
    facts.NothingIssued: lambda fact, names: f"it has issued no operation of {fact.group}",
    facts.FailedQuestion: _failed,
    facts.Process: _process,
    facts.StacksAlone: lambda fact, names: "from stacks alone: no flight recorder tells who waits",
    facts.ActingThread: _acting_thread,
    facts.InKernel: lambda fact, names: f"in the kernel: {fact.wchan}",
    facts.IdleChild: _idle_child,
    facts.Moved: _moved,
    facts.GilHeld: _gil,
    facts.LastHeartbeat: _heartbeat,
    Told: lambda fact, names: f"it waits for {fact.text}",
    facts.NobodyAnswered: lambda fact, names: "no rank gave a usable answer",
    facts.Endless: _endless,
    facts.SilentButMoving: lambda fact, names: (
        f"{names([fact.rank])} does not answer ({fact.failure}), but the job goes on"
    ),
    facts.Outside: _outside,
    facts.Unproven: _unproven,
    facts.Undecided: lambda fact, names: (
        f"{_parties(fact.parties, names)}; what the other ranks issued is not recorded any more"
    ),
    facts.Tangled: _tangled,
    facts.Standing: _standing,
    facts.Overdue: _overdue,
    facts.NoSign: lambda fact, names: (
        f"nothing shows that {names(fact.ranks)} {'go' if len(fact.ranks) > 1 else 'goes'} on"
    ),
    facts.Everywhere: lambda fact, names: (
        f"every rank stands {_whereabouts(fact.crowd)}, none moves, and no recorder tells more"
    ),
    facts.NoEvidence: _no_evidence,
    facts.Slow: _slow,
    facts.AtSteps: _at_steps,
    facts.UsualWait: _usual_wait,
}


#: What is said of an operation's end.
ENDED: Mapping[bool | None, str] = {
    True: "ended",
    False: "not ended",
    None: "whose end no recorder tells",
}
#: What ranks don't tell.
UNSEEN: Mapping[str, str] = {
    "elsewhere": "nobody looked for them here: name their hosts too (--store, --hosts, ...)",
    "undumped": "no dump that counts: it may lie on another host",
    "inferred": "the rank is inferred: the worker does not tell it",
    "stock": "torch's own server: no heartbeat, no holder of the GIL, nothing of the kernel",
    "handlers": "this torch has no handler for flight recorders (torch has one from 2.10 on)",
    "unread": "the flight recorders could not be read",
    "records": (
        "no flight recorder holds anything: nothing was issued, or TORCH_FR_BUFFER_SIZE is 0"
        " (before torch 2.13 gloo is recorded only if it is set)"
    ),
    "more": "not every flight recorder could be read",
    "backends": (
        "recorders of backends other than gloo, nccl and nccl2, whose names torch's own server"
        " doesn't tell: --backend NAME asks for one"
    ),
    "operations": "operations that no recorder holds, as gloo's send and recv",
    "stacks": "no stacks",
    "heartbeat": "no heartbeat",
    "clock": "a clock that is ahead of this machine's; ages are by each worker's own clock",
    "clock_behind": "a clock that is behind this machine's; ages are by each worker's own clock",
    "clock_unknown": "a clock that tells no time: ages of operations may be wrong by as much as the"
    " clocks differ",
}


# --- a job's sentences --------------------------------------------------------------------------


def with_native(native: str, call: str) -> str:
    """``ncclCommAbort() from destroy_process_group()``; either may be unknown."""
    return " from ".join(filter(None, (native, call)))


class Narrator:
    """Says what was found of one job. *address*: that of a worker whose rank nobody knows.
    *alone*: the process id of such a worker that is the only one; 0: not known.

    What is said of many ranks is said of each suspect. Each list of ranks and each fact is put into
    words once, or the time would be quadratic in the number of ranks.
    """

    def __init__(self, address: Callable[[int], str], alone: Callable[[int], int | None]) -> None:
        self._address = address
        self._alone = alone
        # By identity, each with the object, which has to live as long as its entry.
        self._named: dict[int, tuple[object, str]] = {}
        self._told: dict[int, tuple[object, str]] = {}

    def names(self, ranks: Sequence[int]) -> str:
        """ "rank 2", "ranks 0-1,3"; workers without a rank by what they are called."""
        known = self._named.get(id(ranks))
        if known is None:
            known = self._named[id(ranks)] = (ranks, self._names(ranks))
        return known[1]

    def _names(self, ranks: Sequence[int]) -> str:
        each = sorted(set(ranks))
        numbered = [rank for rank in each if rank < NAMELESS]
        parts = []
        if numbered:
            text = fold(numbered)
            if len(text) > MAX_NAMES:
                parts.append(f"{len(numbered)} ranks ({text[:MAX_NAMES].rpartition(',')[0]},...)")
            else:
                parts.append(f"rank{'s' if len(numbered) > 1 else ''} {text}")
        nameless = each[len(numbered) :]
        parts += [self._called(number) for number in nameless[:MAX_ADDRESSES]]
        if len(nameless) > MAX_ADDRESSES:
            parts.append(f"{len(nameless) - MAX_ADDRESSES} more")
        return ", ".join(parts)

    def _called(self, number: int) -> str:
        """A worker whose rank nobody knows."""
        pid = self._alone(number)
        if pid is None:
            return f"worker {self._address(number)}"
        return f"the process (pid {pid})" if pid else "the process"

    def line(self, fact: facts.Evidence | facts.Doubt | facts.Remark) -> str:
        return LINES[type(fact)](fact, self.names)

    def shared_line(self, fact: facts.Evidence) -> str:
        """As :meth:`line`, of a fact that counts for many suspects."""
        known = self._told.get(id(fact))
        if known is None:
            known = self._told[id(fact)] = (fact, self.line(fact))
        return known[1]

    def claim(self, reason: Reason, claim: Claim, many: bool) -> str:
        """What is said of a rank, or of several ranks."""
        return SENTENCES[reason].claim(claim, many, self.names)

    def accused(self, accusations: Sequence[Accusation], places: Mapping[int, Blocked]) -> str:
        """The sentences on all suspects. Those of which the same is to be said are named together.
        *places*: by rank, where each of them is."""
        alike: dict[tuple[str, str, str, str], list[Accusation]] = {}
        for each in accusations:
            place = places.get(each.rank)
            where = at(place.location) if place is not None and place.location else ""
            if each.reason == "deadlock":  # the claim says where
                where = ""
            plural = self.claim(each.reason, each.claim, True)
            native = place.native if place is not None and where else ""
            alike.setdefault((each.reason, plural, where, native), []).append(each)
        clauses = [
            self._clause(group, where, places.get(group[0].rank))
            for (_, _, where, _), group in alike.items()
        ]
        shown = clauses[:MAX_CLAUSES]
        if len(clauses) > MAX_CLAUSES:
            shown.append(f"{len(clauses) - MAX_CLAUSES} more of the kind")
        return ". ".join([shown[0], *(each[:1].upper() + each[1:] for each in shown[1:])])

    def _clause(self, group: Sequence[Accusation], where: str, place: Blocked | None) -> str:
        many, reason = len(group) > 1, group[0].reason
        who = self._names([each.rank for each in group])
        claim = self.claim(reason, group[0].claim, many)
        if reason == "deadlock":
            return f"deadlock in {who}: {claim}"
        text = f"{who} {claim}"
        if not where or place is None:
            return text
        words = SENTENCES[reason].place
        call = place.call if place.inside else ""
        told = "" if many else place.told  # each of many may wait for another one
        call = told or call
        if place.native and not told:
            where = f"{with_native(place.native, '' if words else call)}, from {where}"
        elif words is None and call:
            where = f"{call}, from {where}"
        return f"{text}; {(words or STANDS)[many]} {where}"

    def unsure(self, doubts: Iterable[facts.Doubt]) -> str:
        return "could not tell: " + "; ".join(map(self.line, doubts))

    def healthy(self, remarks: Iterable[facts.Remark]) -> str:
        return "; ".join(["no rank is stuck", *map(self.line, remarks)])

    def unseen(self, fact: facts.Unseen) -> str:
        """What was not looked at."""
        by = f" (by {fact.seconds:.0f} s)" if fact.seconds else ""
        return f"{self._names(fact.ranks)}: {UNSEEN[fact.kind]}{by}"

    def problem(self, rank: int, text: str) -> str:
        """What was wrong with a rank's answers."""
        return f"{self._names([rank])}: {text}"
