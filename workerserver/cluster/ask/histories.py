"""The history of each rank: its whole flight recorder, and the times of its last steps.

A stock torch worker has the first of the two. Each rank sends up to a megabyte, so this is only
asked for where it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workerserver.cluster.ask import bodies
from workerserver.cluster.ask.client import Client, Visit
from workerserver.cluster.ask.collectors import first_answers
from workerserver.cluster.ask.exchange import Question
from workerserver.cluster.ask.questions import MAX_TRACE_BYTES, TRACES, Memory
from workerserver.cluster.ask.rounds import Part, settle_ranks
from workerserver.cluster.failures import Failed, unusable
from workerserver.cluster.model import Failure, RankState, Worker
from workerserver.cluster.read.flight_records import read
from workerserver.cluster.read.recorder import RankRecord, Shared
from workerserver.cluster.read.steps import Pace, read_steps
from workerserver.cluster.read.summary import recorders

__all__ = ["STEPS", "History", "histories"]

STEPS = Question.handler(
    "steps", limit=1 << 18, parse=lambda answer: read_steps(bodies.json_object(answer.body))
)
#: NCCL's recorder with the operations that have ended, too.
WHOLE_NCCL = Question.handler(
    "dump_nccl_trace_json",
    "includecollectives=true&onlyactive=false",
    limit=MAX_TRACE_BYTES,
    parse=lambda answer: bodies.json_object(answer.body),
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
    traces: list[Mapping[str, Any]] = []
    names = recorders(state.flight_summary) if state.kind == "workerserver" else {"nccl"}
    if state.kind == "workerserver":
        try:
            history.pace = await visit.ask(STEPS)
        except Failed as failed:
            history.failures["steps"] = failed.failure
    elif state.flight is not None:
        traces.append(state.flight)
    questions = [TRACES["fr"]] if state.kind == "workerserver" and names != {"nccl"} else []
    questions += [WHOLE_NCCL] if "nccl" in names else []
    for question in questions:
        try:
            traces.append(await visit.ask(question))
        except Failed as failed:
            if state.kind == "workerserver":  # a stock worker need not have NCCL
                history.failures["flight"] = failed.failure
    records = [read(trace, None, shared) for trace in traces]
    if records:
        history.record = _merged(records, last)
    if history.record is not None and state.flight_summary is not None:
        for key, group in read(None, state.flight_summary, shared).groups.items():
            if key in history.record.groups:
                known = history.record.groups[key]
                known.ranks = known.ranks or group.ranks  # gloo's trace has no ranks


def _merged(records: Iterable[RankRecord], last: int) -> RankRecord:
    """All groups of a worker's recorders, each with its *last* operations."""
    whole = RankRecord()
    for record in records:
        for key, group in record.groups.items():
            known = whole.groups.get(key)
            if known is None or len(known.collectives) < len(group.collectives):
                kept = sorted(group.collectives)[-last:]
                group.collectives = {seq: group.collectives[seq] for seq in kept}
                whole.groups[key] = group
        whole.problems += record.problems
    return whole
