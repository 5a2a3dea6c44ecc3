"""The second phase: full answers, one for each group of workers with the same small answer.

A worker of which both the stacks and the trace are wanted is asked for both in one go, if possible
on the connection of the first phase.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from workerserver.cluster.ask.client import Client, Visit
from workerserver.cluster.ask.exchange import Question
from workerserver.cluster.ask.questions import DIGEST, STACKS, Memory
from workerserver.cluster.ask.recorders import ask_for_traces, gil_is_held, question, unasked
from workerserver.cluster.failures import Failed
from workerserver.cluster.model import Failure, Own, Part, RankState, Worker
from workerserver.cluster.read.blocked_on import blocked_on
from workerserver.cluster.read.stacks import Stacks
from workerserver.cluster.read.summary import GLOO, NCCL, positions, recorders
from workerserver.cluster.read.waits_for import tells, with_beats, without_facts

#: A digest, and the mode in which the stacks were taken.
Key = tuple[str, str | None]

__all__ = ["Traces", "full_answers", "full_stacks", "take_own", "worth_tracing"]

#: Different stacks that are fetched in full. Of more, only the most and the least common ones are.
MAX_STACKS = 1024
#: Ranks that are asked for their own stacks in each look.
MAX_OWN = 256
#: So are the members of a group that stands apart, if they are at most so many.
MAX_APART = 16
#: Full flight-recorder traces that are fetched.
MAX_TRACES = 256
#: Questions for traces that are put in one go with others.
MAX_AT_ONCE = 6
#: Members of a group that are asked for the group's stacks, one after another.
MAX_TRIES = 3


async def full_stacks(
    client: Client, states: Sequence[RankState], memory: Memory, traces: Traces | None = None
) -> int:
    """Fill in ``threads`` by groups of equal digests; return how many were fetched.

    Where such stacks wait for what may have an owner, each member is asked for its own: equal
    stacks may wait for different ranks, and what has to be seen twice is read twice. So is each
    member of a few that stand apart and don't wait for ranks: only its own answer tells whether it
    has run since the last look. If such a process has children, however many there are, each member
    is asked: its children may work for it. Of each other group one member is asked, if these ranks
    don't wait for ranks or count no steps. A member of which *traces* has to be asked too is asked
    for its trace in the same go.
    """
    traces = traces or Traces((), ())
    groups: dict[Key, list[RankState]] = {}
    for state in states:
        if state.digest is not None and state.kind == "workerserver":
            # The mode says whether the GIL was held. Members with different modes share nothing.
            groups.setdefault((state.digest, state.mode), []).append(state)
    wanted = [key for key in groups if key not in memory.threads]
    chosen = _ends(sorted(wanted, key=lambda key: (-len(groups[key]), key[0])), MAX_STACKS)
    waiting = {key: iter(groups[key][:MAX_TRIES]) for key in chosen}
    own: dict[Worker, Stacks] = {}
    fetched = 0
    while waiting and not client.stopped:
        asked: dict[Worker, tuple[Key, RankState]] = {}
        for key, candidates in list(waiting.items()):
            candidate = next(candidates, None)
            if candidate is None:
                del waiting[key]
            else:
                asked[candidate.worker] = (key, candidate)
        talk = partial(_speak_for, asked, groups, own, traces)
        first = partial(_for_speakers, asked, groups, traces)
        for worker, outcome in (await client.visit(asked, talk, first=first)).items():
            key, state = asked[worker]
            if isinstance(outcome, Failure):
                state.failures["stacks"] = outcome
            else:
                beating = with_beats(outcome.threads, _step_thread(state))
                memory.threads[key] = without_facts(beating)
                blocked = blocked_on(outcome.threads)
                apart = not blocked.on_ranks
                if tells(outcome.threads) or (apart and outcome.children):
                    memory.telling.add(key)
                if apart:
                    memory.apart.add(key)
                own[worker] = outcome
                fetched += 1
                del waiting[key]
    fetched += await _ask_each(client, groups, memory, own, traces)
    for key, members in groups.items():
        for state in members:
            threads, told = memory.threads.get(key), own.get(state.worker)
            if told is not None:
                take_own(state, told)
            elif threads is not None:
                state.threads = threads
                state.failures.pop("stacks", None)
            elif "stacks" not in state.failures:
                state.failures["stacks"] = _no_stacks(key in chosen)
    return fetched


def _step_thread(state: RankState) -> int | None:
    return state.health.step_thread if state.health is not None else None


def take_own(state: RankState, told: Stacks) -> None:
    state.threads = with_beats(told.threads, _step_thread(state))
    state.own = Own(told.mode, told.pid, told.namespace, told.children)
    state.failures.pop("stacks", None)


async def _ask_each(
    client: Client,
    groups: Mapping[Key, Sequence[RankState]],
    memory: Memory,
    own: dict[Worker, Stacks],
    traces: Traces,
) -> int:
    """Ask each member of the groups whose stacks tell more, or that stand apart, the smallest
    groups first, and then the processes that they wait for; return how many have answered. A member
    that doesn't answer keeps the stacks of its group. One member of each group that stands
    apart is asked in each look: a loop of few lines is often met at one line, and only a rank's own
    answer tells that it has run. So is one member of those that wait for ranks and count no steps:
    they may be met in the wait of each step."""
    ranks = sum(map(len, groups.values()))
    chosen = [
        each
        for key, each in groups.items()
        if key in memory.telling or (key in memory.apart and _is_small(len(each), ranks))
    ]
    members = [state for each in sorted(chosen, key=len) for state in each]
    for key, each in groups.items():
        if key in memory.apart or not _counts_steps(each[0]):
            members += [] if any(state.worker in own for state in each) else each[:1]
    answered = await _ask_own(client, members, own, traces, MAX_OWN)
    holders = {
        each.waits.pid
        for stacks in own.values()
        for each in stacks.threads
        if each.waits is not None and each.waits.kind == "file_lock"
    } - {None}
    named = [
        state
        for members in groups.values()
        for state in members
        if holders and state.health is not None and state.health.pid in holders
    ]
    return answered + await _ask_own(client, named, own, traces, MAX_OWN - answered)


def _is_small(members: int, ranks: int) -> bool:
    """At most half of all: those who may be accused."""
    return members == 1 or (members <= MAX_APART and 2 * members <= ranks)


def _counts_steps(state: RankState) -> bool:
    return state.health is not None and state.health.step is not None


async def _ask_own(
    client: Client,
    states: Sequence[RankState],
    own: dict[Worker, Stacks],
    traces: Traces,
    most: int,
) -> int:
    """Ask each of *states*, at most *most*, for its stacks; return how many have answered."""
    asked = {state.worker: state for state in states if state.worker not in own}
    asked = dict(list(asked.items())[:most])
    if not asked or client.stopped:
        return 0

    async def talk(visit: Visit) -> Stacks:
        try:
            stacks: Stacks = await visit.ask(STACKS)
            await traces.ask(visit)
            return stacks
        finally:
            asked[visit.worker].bytes_received += visit.received

    def first(worker: Worker) -> list[Question]:
        return [STACKS, *traces.questions(worker)]

    answered = 0
    for worker, outcome in (await client.visit(asked, talk, first=first)).items():
        if not isinstance(outcome, Failure):
            own[worker] = outcome
            answered += 1
    return answered


async def _speak_for(
    asked: Mapping[Worker, tuple[Key, RankState]],
    groups: Mapping[Key, Sequence[RankState]],
    own: dict[Worker, Stacks],
    traces: Traces,
    visit: Visit,
) -> Stacks:
    """One member's stacks, for its whole group. Failed if the member's stacks have changed."""
    key, state = asked[visit.worker]
    try:
        stacks: Stacks = await visit.ask(STACKS)
        again = await visit.ask(DIGEST) if len(groups[key]) > 1 else None
        await traces.ask(visit)
        if again is not None and (isinstance(again, str) or (again[0].digest, again[1]) != key):
            own[visit.worker] = stacks
            raise Failed("timeout", "its stacks changed while they were fetched")
        return stacks
    finally:
        state.bytes_received += visit.received


def _for_speakers(
    asked: Mapping[Worker, tuple[Key, RankState]],
    groups: Mapping[Key, Sequence[RankState]],
    traces: Traces,
    worker: Worker,
) -> list[Question]:
    """The questions of :func:`_speak_for`."""
    again = [DIGEST] if len(groups[asked[worker][0]]) > 1 else []
    return [STACKS, *again, *traces.questions(worker)]


def _no_stacks(asked: bool) -> Failure:
    if asked:
        return Failure("timeout", "no rank with the same stacks gave them in full")
    return Failure("too large", f"more than {MAX_STACKS} different stacks: not fetched in full")


def _ends(ordered: Sequence[Any], most: int) -> list[Any]:
    """The first and the last entries of *ordered*, *most* in all: the crowd and the exceptions."""
    if len(ordered) <= most:
        return list(ordered)
    return [*ordered[: most // 2], *ordered[len(ordered) - (most - most // 2) :]]


class Traces:
    """The traces that are wanted: where the summaries differ, and those of recorders that only
    other ranks have named. Each worker is asked once."""

    def __init__(self, states: Sequence[RankState], backends: Sequence[str]) -> None:
        chosen = worth_tracing(states)[:MAX_TRACES]
        more = unasked(states, backends)
        chosen += [state for state in states if id(state) in more][:MAX_TRACES]
        self._states = {state.worker: state for state in chosen}
        self._left = {
            worker: more.get(id(state)) or _in_order(recorders(state.flight_summary))
            for worker, state in self._states.items()
        }

    def questions(self, worker: Worker) -> list[Question]:
        """What *worker* is still to be asked beside its stacks. Where the GIL is held, a trace is
        waited for less, so it is asked for later, by itself."""
        state = self._states.get(worker)
        if state is None or gil_is_held(state):
            return []
        return [question(name) for name in self._left.get(worker, ())[:MAX_AT_ONCE]]

    async def ask(self, visit: Visit) -> None:
        """Ask the visit's worker for the traces that :meth:`questions` names."""
        state = self._states.get(visit.worker)
        if state is not None and not gil_is_held(state):
            await self._ask(visit, state)

    async def _ask(self, visit: Visit, state: RankState) -> None:
        wanted = self._left.pop(visit.worker, None)
        if wanted is not None:
            try:
                await ask_for_traces(visit, state, wanted)
            except Failed as failed:
                state.failures["flight"] = failed.failure

    async def ask_rest(self, client: Client) -> int:
        """Ask the workers that were not asked beside their stacks. How many workers have given a
        trace, of all."""
        if client.stopped:
            return 0

        async def talk(visit: Visit) -> None:
            state = self._states[visit.worker]
            try:
                await self._ask(visit, state)
            finally:
                state.bytes_received += visit.received

        def first(worker: Worker) -> list[Question]:
            return [question(name) for name in self._left[worker][:MAX_AT_ONCE]]

        held = [worker for worker in self._left if gil_is_held(self._states[worker])]
        rest = [worker for worker in self._left if worker not in set(held)]
        for some, early in ((rest, first), (held, None)):
            for worker, outcome in (await client.visit(some, talk, first=early)).items():
                if outcome is not None:
                    self._states[worker].failures["flight"] = outcome
        return sum(state.flight is not None for state in self._states.values())


async def full_answers(
    client: Client,
    states: Sequence[RankState],
    want: Collection[Part],
    memory: Memory,
) -> tuple[int, int]:
    """Fill in ``threads`` and ``flight``, as far as they are wanted; return of how many ranks the
    stacks and the traces have come."""
    stacks = count = 0
    traces = Traces(states, memory.backends) if "flight" in want else None
    if "stacks" in want:
        stacks = await full_stacks(client, states, memory, traces)
    if traces is not None:
        count = await traces.ask_rest(client)
    return stacks, count


def _in_order(backends: set[str]) -> list[str]:
    """NCCL's first: it is what a hung job mostly waits in."""
    return sorted(backends, key=lambda name: (name != NCCL, name)) or [GLOO]


def worth_tracing(states: Sequence[RankState]) -> list[RankState]:
    """The ranks whose full traces are worth fetching, the rarest states first.

    If the members of a process group have different summaries: one member with each summary. If all
    summaries agree and an operation is pending: one member.
    """
    groups: dict[str, dict[str | None, dict[str, list[RankState]]]] = {}
    pending: list[RankState] = []
    for state in states:
        for name, recorder, position, waits in positions(state.flight_summary):
            of_group = groups.setdefault(name, {})
            of_group.setdefault(recorder, {}).setdefault(position, []).append(state)
            if waits:
                pending.append(state)
    found: list[tuple[int, int, RankState]] = []
    for of_group in groups.values():
        # Who has issued nothing in the group differs from those who have.
        nothing = of_group.pop(None, {}) if len(of_group) > 1 else {}
        for places in of_group.values():
            places = {**places, **nothing}
            if len(places) < 2:
                continue
            found += ((len(m), _order(m[0]), m[0]) for m in places.values())
    if not found and pending:
        found = [(0, _order(state), state) for state in pending[:1]]
    found.sort(key=lambda entry: entry[:2])
    return list({id(state): state for _, _, state in found}.values())


def _order(state: RankState) -> int:
    return -1 if state.rank is None else state.rank
