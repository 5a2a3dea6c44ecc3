"""The history of each rank: its whole flight recorder, and the times of its last steps.

A stock torch worker has the first of the two. Each rank sends up to a megabyte, so this is only
asked for where it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from workerserver.cluster.ask import bodies
from workerserver.cluster.ask.client import Client, Visit
from workerserver.cluster.ask.collectors import first_answers
from workerserver.cluster.ask.exchange import Question
from workerserver.cluster.ask.questions import Memory
from workerserver.cluster.ask.recorders import ask_for_traces
from workerserver.cluster.ask.rounds import Part, settle_ranks
from workerserver.cluster.failures import Failed, unusable
from workerserver.cluster.model import Failure, RankState, Worker
from workerserver.cluster.read.flight_records import read
from workerserver.cluster.read.recorder import RankRecord, Shared
from workerserver.cluster.read.steps import Pace, read_steps
from workerserver.cluster.read.summary import GLOO, recorders

__all__ = ["STEPS", "History", "histories"]

STEPS = Question.handler(
    "steps", limit=1 << 18, parse=lambda answer: read_steps(bodies.json_object(answer.body))
)


@dataclass(slots=True)
class History:
    """Of one worker. *record* and *pace* are None if it gave none."""

    state: RankState
    record: RankRecord | None = None
    pace: Pace | None = None
    failures: dict[str, Failure] = field(default_factory=dict)


async def histories(
    workers: Sequence[Worker],
    client: Client,
    last: int,
    on_done: Callable[[], None] = lambda: None,
    most: int = 1 << 20,
) -> list[History]:
    """The history of every worker, in the order of their ranks. Of each group, the *last*
    operations are kept. Of more than *most* ranks, only the first ones are asked."""
    want: tuple[Part, ...] = ("health", "flight")
    states = await first_answers(workers, client, want, Memory(), lambda state: on_done())
    settle_ranks(states)
    found = {state.worker: History(state) for state in states}
    shared = Shared()

    async def talk(visit: Visit) -> None:
        history = found[visit.worker]
        state = history.state
        try:
            await _ask(visit, history, shared, last)
        finally:
            state.bytes_received += visit.received
            if state.flight is not None:
                state.flight = {}  # those of a large job would be gigabytes
            state.more_flights = {}

    usable = sorted((each for each in found.values() if unusable(each.state) is None), key=_order)
    for history in usable[most:]:
        history.failures["history"] = Failure("too large", f"only {most} ranks are asked")
    asked = [history.state.worker for history in usable[:most]]
    for worker, outcome in (await client.visit(asked, talk)).items():
        if isinstance(outcome, Failure):
            found[worker].failures.setdefault("history", outcome)
    return sorted(found.values(), key=_order)


def _order(history: History) -> tuple[bool, int, str]:
    rank = history.state.rank
    return rank is None, rank or 0, history.state.worker.address


async def _ask(visit: Visit, history: History, shared: Shared, last: int) -> None:
    state = history.state
    if state.kind == "workerserver":  # a stock worker has given its whole trace already
        try:
            history.pace = await visit.ask(STEPS)
        except Failed as failed:
            history.failures["steps"] = failed.failure
        state.flight, state.more_flights = None, {}
        state.failures.pop("flight", None)
        await ask_for_traces(visit, state, sorted(recorders(state.flight_summary)) or [GLOO])
    if "flight" in state.failures:
        history.failures["flight"] = state.failures["flight"]
    if state.flight is not None:
        history.record = _last(
            read(state.flight, state.flight_summary, shared, state.more_flights), last
        )


def _last(record: RankRecord, last: int) -> RankRecord:
    """*record* with the *last* operations of each group."""
    for group in record.groups.values():
        kept = sorted(group.collectives)[-last:]
        group.collectives = {seq: group.collectives[seq] for seq in kept}
    return record
