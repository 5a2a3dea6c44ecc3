"""Does a rank go on between two looks, or not? The one definition that all commands share.

Two kinds of evidence, each compared between two looks at one process:

progress   the step of its heartbeat, and what its flight recorder has issued and finished
           (:func:`progress`)
stillness  the thread that acts for it (:mod:`acting`) is in the same place: at the same lines, or
           at the same line of the user's in the same call that waits there. A wait with a timeout,
           looked at from Python, goes through a few lines of ``threading.py`` over and over
           (:func:`still`)

From these, how a rank moves:

stuck    no progress, and still in every look
busy     no progress, but the stack changes: it runs, and has not finished a step or an operation
         while it was looked at. A long step looks so. So does a loop that never ends
moving   progress; without any counter to go by, a stack in which the user's functions change
unknown  one look only, no readable stacks, another process than before, or too early to tell: the
         last step is younger than two of its steps usually take
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from workerserver.cluster.model import Frame, Health, RankState, RoundLike, Thread
from workerserver.cluster.read.acting import Root, acting
from workerserver.cluster.read.blocked_on import Blocked, blocked_on
from workerserver.cluster.read.flight_records import read
from workerserver.cluster.read.recorder import GroupRecord, Key, RankRecord

__all__ = [
    "MIN_STEPS",
    "Motion",
    "Observation",
    "Progress",
    "Sign",
    "changed",
    "compare",
    "observe",
    "observe_rank",
    "progress",
    "still",
    "too_early",
    "usual_step",
]

Motion = Literal["stuck", "busy", "moving", "unknown"]

#: Steps after which the duration of a step can be told from the uptime: the first ones compile.
MIN_STEPS = 3
#: Usual durations that a step may take before it counts as late.
PATIENCE = 2.0

#: What the record of a group that is not there counts as.
NOTHING = GroupRecord(Key("", ""))

Records = Callable[[], tuple[RankRecord | None, RankRecord | None]]
"""Reads what the flight recorders of two looks say; called only if it is needed."""


Sign = Literal["heartbeat", "operation", "stack", "recent_step", "recent_operation"]
"""What shows that a rank goes on. heartbeat and operation: one came between two looks. stack: the
user's functions changed, and nothing is counted. recent_...: the last one is younger than usual
pauses are long."""


class Progress(NamedTuple):
    """*went_on*: None if nothing is counted in both looks, or they can't be compared. *text*: what
    went on, or why they can't be compared. *sign*: what shows it."""

    went_on: bool | None
    text: str = ""
    sign: Sign | None = None


class Observation(NamedTuple):
    """*reason* is for people: what was seen."""

    motion: Motion
    reason: str


def compare(rounds: Sequence[RoundLike]) -> dict[int, Motion]:
    """How each rank of any round has moved, from the first round to the last."""
    return {rank: observation.motion for rank, observation in observe(rounds).items()}


def observe(rounds: Sequence[RoundLike]) -> dict[int, Observation]:
    """As :func:`compare`, with reasons."""
    seen: dict[int, list[RankState | None]] = {}
    twice: set[int] = set()
    for number, look in enumerate(rounds):
        for state in look.states:
            if state.rank is None:
                continue
            states = seen.setdefault(state.rank, [None] * len(rounds))
            if states[number] is not None:
                twice.add(state.rank)
            states[number] = state
    result: dict[int, Observation] = {}
    for rank in sorted(seen):
        if rank in twice:
            result[rank] = Observation("unknown", "more than one worker says that it is this rank")
        else:
            result[rank] = observe_rank(seen[rank])
    return result


def observe_rank(states: Sequence[RankState | None]) -> Observation:
    """How one rank has moved: *states* are what it answered in each look."""
    if len(states) < 2:
        return Observation("unknown", "looked at only once")
    present = [state for state in states if state is not None and state.responded]
    if len(present) < len(states):
        missing = next(
            number for number, state in enumerate(states, 1) if state is None or not state.responded
        )
        return Observation("unknown", f"no answer in look {missing} of {len(states)}")
    for before, after in pairwise(present):
        changed = _other_process(before, after)
        if changed is not None:
            return Observation("unknown", changed)
    pairs = [*pairwise(present)]
    if len(present) > 2:  # a counter may be missing in a look between
        pairs.append((present[0], present[-1]))
    found = [progress(before, after) for before, after in pairs]
    for each in found:
        if each.went_on:
            return Observation("moving", each.text)
    return _without_progress(present, any(each.went_on is False for each in found))


def _other_process(before: RankState, after: RankState) -> str | None:
    """Why two looks at a rank can't be compared; None if they can."""
    if before.worker != after.worker:
        return "the rank moved to another worker"
    then = before.health.pid if before.health is not None else None
    now = after.health.pid if after.health is not None else None
    if then is not None and now is not None and then != now:
        return "the process was restarted"
    return None


# ---- progress


def progress(before: RankState, after: RankState, records: Records | None = None) -> Progress:
    """Whether the rank has made progress from one look to a later one."""
    changed = _other_process(before, after)
    if changed is not None:
        return Progress(None, changed)
    counted = False
    then, now = before.health, after.health
    if then is not None and now is not None:
        if then.step is not None and now.step is not None:
            counted = True
            if then.step != now.step:
                return Progress(True, f"step {then.step} -> {now.step}", "heartbeat")
        if then.step_age_s is not None and now.step_age_s is not None:
            counted = True
            if now.step_age_s < then.step_age_s:
                at = f", step {now.step}" if now.step is not None else ""
                return Progress(True, f"a heartbeat came{at}", "heartbeat")
    earlier, later = records() if records is not None else _read(before, after)
    if earlier is not None and later is not None:
        went_on = _operations(earlier, later)
        if went_on is not None:
            return Progress(True, went_on, "operation")
        counted = counted or not earlier.empty or bool(earlier.counters)
    return Progress(False if counted else None)


def _read(before: RankState, after: RankState) -> tuple[RankRecord | None, RankRecord | None]:
    def record(state: RankState) -> RankRecord | None:
        if not state.recorded:
            return None
        return read(state.flight, state.flight_summary, more=state.more_flights)

    return record(before), record(after)


def _operations(before: RankRecord, after: RankRecord) -> str | None:
    """What went on between two records, in words.

    An operation counts as finished only if it is done: a watchdog also retires what has timed out.
    """
    if before is after:
        return None
    for key in sorted(before.groups.keys() | after.groups.keys()):
        then, now = before.groups.get(key, NOTHING), after.groups.get(key, NOTHING)
        finished = zip(then.finished, now.finished, strict=True)
        if then.issued != now.issued or any(late > early for early, late in finished):
            return f"process group {key.label}: operations went on"
    for its in sorted(before.counters.keys() & after.counters.keys()):
        counted = zip(before.counters[its], after.counters[its], strict=True)
        if any(late > early for early, late in counted):
            return f"process group number {its[1]}: operations went on"
    return None


# ---- stillness


def still(
    before: RankState,
    after: RankState,
    blocked: Blocked | None = None,
    roots: Sequence[Root] = (),
) -> bool | None:
    """Whether the thread that acts is in the same place as in the look before. None if that can't
    be told. *blocked*: what it is blocked on in the later look, where that is known already.
    *roots*: as for :func:`acting`."""
    if _other_process(before, after) is not None:
        return None
    then = acting(before.threads, roots)
    now = blocked.thread if blocked is not None else acting(after.threads, roots)
    if then is not None and now is not None and (then.unstable or now.unstable):
        return None
    if then is None or now is None or not then.frames or not now.frames:
        if before.main_digest is None or after.main_digest is None:
            return None
        return before.main_digest == after.main_digest
    blocked = blocked or blocked_on(after.threads, now)
    if then.frames == now.frames:
        # Who waits for a child sleeps in waitpid(): no polling. Nor does the user's own line poll:
        # if it has run there, it is a loop, which may want the GIL in this look.
        polls = blocked.polls and blocked.inside and not blocked.on_child
        return polls or not _ran(then, now)
    return blocked.polls and _same_wait(blocked_on(before.threads, then), blocked)


#: Of proc(5). D: in a disk or a network file system.
_ASLEEP = ("S", "D")


def _ran(before: Thread, after: Thread) -> bool:
    """It slept in one of the looks, and ran between them: a short loop is often met at the same
    line. Who is seen to run in both may spin, so that nothing is told by how often it was
    switched."""
    if before.switches is None or after.switches is None or before.native_id != after.native_id:
        return False
    asleep = before.state in _ASLEEP or after.state in _ASLEEP
    return asleep and before.switches != after.switches


def _same_wait(before: Blocked, after: Blocked) -> bool:
    """The same line of the user's, reached in the same way, waits in the same call."""
    same = before.kind == after.kind and before.call == after.call
    return same and _own_part(before) == _own_part(after)


def _own_part(blocked: Blocked) -> tuple[Frame, ...]:
    """The thread's frames from the oldest one to the newest of the user's own."""
    if blocked.thread is None or blocked.location is None:
        return ()
    frames = blocked.thread.frames
    return frames[frames.index(blocked.location) :]


def changed(before: RankState, after: RankState, roots: Sequence[Root] = ()) -> bool:
    """Whether the acting thread has come from one of the user's functions to another. Another line
    of one function is no proof: a loop that never ends has many lines."""
    if _other_process(before, after) is not None:
        return False
    then, now = acting(before.threads, roots), acting(after.threads, roots)
    if then is None or now is None or then.unstable or now.unstable:
        return False
    parts = [
        _functions(_own_part(blocked_on(state.threads, thread)))
        for state, thread in ((before, then), (after, now))
    ]
    return all(parts) and parts[0] != parts[1]


# ---- without progress


def _without_progress(states: Sequence[RankState], counted: bool) -> Observation:
    count = len(states)
    nothing = (
        "no step and no operation finished"
        if counted
        else "and it counts neither steps nor operations"
    )
    mains = [acting(state.threads) for state in states]
    if any(main is not None and main.unstable for main in mains):
        return Observation("unknown", "its stack changed while it was read")
    same = [still(states[0], later) for later in states[1:]]
    if None in same:
        return Observation("unknown", "its stacks could not be read in every look")
    if all(same):
        early = too_early(states[-1])
        if early is not None:
            return Observation("unknown", early)
        frames = {main.frames for main in mains if main is not None}
        if len(frames) > 1:
            where = f"waits in {blocked_on(states[-1].threads).call}"
        else:
            where = "the same line" if all(frames) and None not in mains else "the same stack"
        return Observation("stuck", f"{where} in {count} looks, {nothing}")
    parts = [_own_part(blocked_on(state.threads)) for state in states]
    if not counted and all(parts) and len(set(map(_functions, parts))) > 1:
        return Observation("moving", f"its functions change, {nothing}")
    return Observation("busy", f"its stack changes, {nothing}")


def _functions(stack: Sequence[Frame]) -> tuple[tuple[str, str], ...]:
    return tuple((frame.file, frame.function) for frame in stack)


def too_early(state: RankState) -> str | None:
    """Why it is too early to call the rank stuck, in words: its last step is younger than two of
    its steps usually take. None if it isn't, or if that can't be told."""
    usual = usual_step(state.health)
    age = state.health.step_age_s if state.health is not None else None
    if usual is None or age is None or age >= PATIENCE * usual:
        return None
    return f"the last step was {age:.1f} s ago, and one takes about {usual:.1f} s"


def usual_step(health: Health | None) -> float | None:
    """Seconds that a step of this rank usually takes. If the worker doesn't know: on average, with
    all that came before the first one. None where that can't be told."""
    if health is not None and health.step_median_s is not None:
        return health.step_median_s
    if health is None or health.uptime_s is None or health.step_age_s is None:
        return None
    if health.step is None or health.step < MIN_STEPS:
        return None
    return max(health.uptime_s - health.step_age_s, 0.0) / health.step
