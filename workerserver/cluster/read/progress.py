"""Several looks at a rank: does it stand still, or is it only slow?

Two kinds of evidence. Progress: the step of its heartbeat, and the operations that its flight
recorder has issued and retired. Activity: what its main thread's stack does between the looks.

stuck    no progress, and the main thread in the same place in every look: the same lines, or the
         same line of the user's with a library call below it that waits (a wait with a timeout,
         looked at from Python, goes through a few lines of ``threading.py`` over and over)
busy     no progress, but the stack changes: it runs, and has not finished a step or an operation
         while it was looked at. A long step looks so, and a loop that never ends does too
moving   progress; without any counter to go by, a stack in which the user's functions change
unknown  one look only, no readable stacks, another process than before, or too early to tell: the
         last step is younger than two of its steps usually take
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Protocol

from workerserver.cluster.model import Frame, Health, RankState
from workerserver.cluster.read.calls import Kind, location, main_thread, stand

__all__ = ["Look", "Motion", "Observation", "compare", "observe"]

Motion = Literal["stuck", "busy", "moving", "unknown"]

#: Calls that wait, whatever lines of the library they go through meanwhile.
_WAITING: frozenset[Kind] = frozenset({"collective", "data", "io", "sleep", "wait"})
#: Steps after which the duration of a step can be told from the uptime: the first ones compile.
_STEPS = 3
#: Usual durations that a step may take before it counts as late.
_PATIENCE = 2.0


class Look(Protocol):
    """A round; ``collect.Round`` is one."""

    @property
    def states(self) -> Sequence[RankState]: ...


class Observation(NamedTuple):
    """*reason* is for people: what was seen."""

    motion: Motion
    reason: str


def compare(rounds: Sequence[Look]) -> dict[int, Motion]:
    """How each rank of any round has moved, from the first round to the last."""
    return {rank: observation.motion for rank, observation in observe(rounds).items()}


def observe(rounds: Sequence[Look]) -> dict[int, Observation]:
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
            result[rank] = _observe(seen[rank])
    return result


def _observe(states: Sequence[RankState | None]) -> Observation:
    if len(states) < 2:
        return Observation("unknown", "looked at only once")
    present = [state for state in states if state is not None and state.responded]
    if len(present) < len(states):
        missing = next(
            number for number, state in enumerate(states, 1) if state is None or not state.responded
        )
        return Observation("unknown", f"no answer in look {missing} of {len(states)}")
    if len({state.worker for state in present}) > 1:
        return Observation("unknown", "the rank moved to another worker")
    pids = {state.health.pid for state in present if state.health and state.health.pid is not None}
    if len(pids) > 1:
        return Observation("unknown", "the process was restarted")
    progress = _progress(present)
    if progress is not None:
        return Observation("moving", progress)
    return _without_progress(present)


# ---- progress


def _progress(states: Sequence[RankState]) -> str | None:
    """What has moved on, in words; None if nothing did, or nothing is counted."""
    health = [state.health for state in states if state.health is not None]
    steps = [each.step for each in health if each.step is not None]
    if len(set(steps)) > 1:
        return f"step {steps[0]} -> {steps[-1]}"
    ages = [each.step_age_s for each in health if each.step_age_s is not None]
    if any(later < earlier for earlier, later in pairwise(ages)):
        return f"a heartbeat came, step {steps[-1]}" if steps else "a heartbeat came"
    for counters in (_summary, _trace):
        counted = [each for each in map(counters, states) if each is not None]
        for before, after in pairwise(counted):
            for name in sorted(before.keys() | after.keys()):
                if before.get(name) != after.get(name):
                    return f"process group {name}: operations went on"
    return None


def _has_counters(states: Sequence[RankState]) -> bool:
    steps = [state for state in states if state.health and state.health.step is not None]
    if len(steps) > 1:
        return True
    for counters in (_summary, _trace):
        counted = [each for each in map(counters, states) if each is not None]
        if len(counted) > 1 and any(counted):
            return True
    return False


Counters = dict[str, tuple[Any, ...]]


def _summary(state: RankState) -> Counters | None:
    """What ``fr_summary`` counts, per process group; None if it wasn't asked for."""
    summary = state.flight_summary
    if summary is None:
        return None
    counters: Counters = {}
    for group in _list(summary.get("groups")):
        if not isinstance(group, Mapping):
            continue
        issued, retired = _mapping(group.get("last_issued")), _mapping(group.get("last_retired"))
        status = _mapping(group.get("status"))
        numbers = (
            *(_number(each.get(name)) for each in (issued, retired) for name in ("seq", "p2p_seq")),
            *(_number(status.get(word)) for word in ("enqueued", "started", "completed")),
            _number(group.get("pending")),
        )
        if issued or status:
            counters[f"{group.get('name')} ({group.get('recorder')})"] = numbers
    return counters


def _trace(state: RankState) -> Counters | None:
    """The same from a full trace; it may hold only what is active."""
    trace = state.flight
    if trace is None:
        return None
    counters: Counters = {}
    for entry in _list(trace.get("entries")):
        if isinstance(entry, Mapping):
            name = _list(entry.get("process_group"))
            key = str(name[0]) if name else "?"
            before = counters.get(key, (-1, -1, -1))
            counters[key] = (
                max(before[0], _number(entry.get("collective_seq_id"))),
                max(before[1], _number(entry.get("p2p_seq_id"))),
                before[2] + (entry.get("retired") is True),
            )
    for key, status in _mapping(trace.get("pg_status")).items():
        counters[f"status {key}"] = tuple(
            str(_mapping(status).get(f"last_{word}_collective"))
            for word in ("enqueued", "started", "completed")
        )
    return counters


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> int:
    return value if type(value) is int else -1


# ---- without progress


def _without_progress(states: Sequence[RankState]) -> Observation:
    count = len(states)
    counted = _has_counters(states)
    nothing = (
        "no step and no operation finished"
        if counted
        else "and it counts neither steps nor operations"
    )
    mains = [main_thread(state.threads) for state in states]
    stacks = [main.frames for main in mains if main and main.frames and not main.unstable]
    if len(stacks) == count:
        if len(set(stacks)) == 1:
            return _still(states, f"the same line in {count} looks, {nothing}")
        if _waits(states):
            text = stand(states[-1].threads).text
            return _still(states, f"waits in {text} in {count} looks, {nothing}")
        if not counted and len({_functions(_own_part(state)) for state in states}) > 1:
            return Observation("moving", f"its functions change, {nothing}")
        return Observation("busy", f"its stack changes, {nothing}")
    digests = [state.main_digest for state in states if state.main_digest is not None]
    if len(digests) == count and not any(main and main.unstable for main in mains):
        if len(set(digests)) == 1:
            return _still(states, f"the same stack in {count} looks, {nothing}")
        return Observation("busy", f"its stack changes, {nothing}")
    if any(main and main.unstable for main in mains):
        return Observation("unknown", "its stack changed while it was read")
    return Observation("unknown", "its stacks could not be read in every look")


def _still(states: Sequence[RankState], reason: str) -> Observation:
    health = states[-1].health
    usual = _usual(health)
    if health is not None and usual is not None and (health.step_age_s or 0.0) < _PATIENCE * usual:
        age = health.step_age_s or 0.0
        early = f"the last step was {age:.1f} s ago, and one takes about {usual:.1f} s"
        return Observation("unknown", early)
    return Observation("stuck", reason)


def _usual(health: Health | None) -> float | None:
    """Seconds that a step of this rank has taken on average, with all that came before the first
    one; None where that can't be told."""
    if health is None or health.uptime_s is None or health.step_age_s is None:
        return None
    if health.step is None or health.step < _STEPS:
        return None
    return max(health.uptime_s - health.step_age_s, 0.0) / health.step


def _waits(states: Sequence[RankState]) -> bool:
    """Whether the same line of the user's waits in the same call each time."""
    calls = {stand(state.threads) for state in states}
    if len(calls) > 1 or calls.pop().kind not in _WAITING:
        return False
    return len({_own_part(state) for state in states}) == 1


def _own_part(state: RankState) -> tuple[Frame, ...]:
    """The main thread's frames from the oldest one to the newest of the user's own."""
    main, here = main_thread(state.threads), location(state.threads)
    if main is None or here is None:
        return ()
    return main.frames[main.frames.index(here) :]


def _functions(stack: Sequence[Frame]) -> tuple[tuple[str, str], ...]:
    return tuple((frame.file, frame.function) for frame in stack)
