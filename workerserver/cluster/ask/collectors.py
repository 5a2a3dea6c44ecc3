"""The small questions to a job whose hosts have collectors: one answer for each such host."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence

from workerserver.cluster.ask.client import Client, Visit
from workerserver.cluster.ask.collector_format import collect_question
from workerserver.cluster.ask.exchange import Answer
from workerserver.cluster.ask.folded.decode import decode
from workerserver.cluster.ask.questions import Memory
from workerserver.cluster.ask.survey import Part, ask_each
from workerserver.cluster.failures import Failed, short
from workerserver.cluster.model import Failure, RankState, Worker
from workerserver.cluster.read.columns.summaries import Summary

__all__ = ["behind_collectors", "first_answers"]

#: The time that a collector gets to list the workers that it knows.
WHO_IS_THERE_SECONDS = 2.0
#: What a collector says that does not know a parameter.
REFUSED = "HTTP 400"


async def first_answers(
    workers: Sequence[Worker],
    client: Client,
    want: Collection[Part],
    memory: Memory,
    on_done: Callable[[RankState], None] | None = None,
    *,
    stock: bool = True,
) -> list[RankState]:
    """The answers of all *workers* to the small questions. A collector answers for its host.

    *stock*: also ask stock torch workers, for the long answers that they have instead.
    """
    collectors = [worker for worker in workers if worker.collector]
    if not collectors:
        return await ask_each(workers, client, want, memory, on_done, stock)
    found = await _ask_collectors(collectors, client, want, memory, on_done, stock)
    kept, direct = _without_doubles(workers, found, client.asks_proof)
    return kept + await ask_each(direct, client, want, memory, on_done, stock)


async def behind_collectors(workers: Sequence[Worker], client: Client) -> list[Worker]:
    """*workers*, with each collector replaced by its workers."""
    collectors = [worker for worker in workers if worker.collector]
    want: tuple[Part, ...] = ("health",)
    found = await _ask_collectors(
        collectors, client, want, Memory(), None, stock=False, seconds=WHO_IS_THERE_SECONDS
    )
    kept, direct = _without_doubles(workers, found, client.asks_proof)
    return [state.worker for state in kept] + direct


def _without_doubles(
    workers: Iterable[Worker], found: Iterable[RankState], proven: bool
) -> tuple[list[RankState], list[Worker]]:
    """The states from collectors that count, and the *workers* that have to be asked directly.

    A worker that *workers* name is asked directly if its collector has no answer from it, or if
    nothing but the job's store vouches for the collector. *proven*: collectors that answer have
    proven that they know the token.
    """
    by_rank: dict[int | None, list[RankState]] = {}
    for state in found:
        by_rank.setdefault(state.rank, []).append(state)
    kept = by_rank.pop(None, [])
    answers = {rank: _believed(states) for rank, states in by_rank.items()}
    direct = []
    for worker in workers:
        if worker.collector:
            continue
        known = [] if worker.rank is None or worker.assumed else answers.get(worker.rank, [])
        if not known:
            direct.append(worker)
        elif worker.address and not (known[0].responded and _vouched_for(known[0], proven)):
            direct.append(worker)
            del answers[worker.rank]
    return kept + [state for states in answers.values() for state in states], direct


def _vouched_for(state: RankState, proven: bool) -> bool:
    """Whether more than an entry in the job's store says that the collector of *state* is one."""
    return proven or state.worker.via is None or not state.worker.via.from_store


def _believed(states: Sequence[RankState]) -> Sequence[RankState]:
    """From several states of one rank, those with answers, each process once: several collectors
    may know the same process. If no state has an answer, the first state."""
    answered = {
        (state.worker.address, state.health.pid if state.health is not None else None): state
        for state in states
        if state.responded
    }
    return list(answered.values()) or states[:1]


async def _ask_collectors(
    collectors: Sequence[Worker],
    client: Client,
    want: Collection[Part],
    memory: Memory,
    on_done: Callable[[RankState], None] | None,
    stock: bool,
    seconds: float = math.inf,
) -> list[RankState]:
    """The states of all workers of *collectors*, within *seconds* and the client's deadline.

    If a collector doesn't answer, the state of each of its ranks says so. If its ranks aren't
    known, the collector itself gets a state that says so.
    """

    async def talk(visit: Visit) -> list[RankState]:
        collector = visit.worker
        answer = await _ask_for_all(visit, want, seconds, memory)
        try:
            states = decode(answer, collector)
        except ValueError as error:
            raise Failed("malformed", short(error)) from None
        for state in states:
            summary = state.flight_summary
            if summary is not None and not isinstance(summary, Summary):
                state.flight_summary = memory.kept(state.worker, summary)
        return states

    def noted(worker: Worker, outcome: list[RankState] | Failure) -> None:
        if on_done is not None:
            on_done(RankState(worker))

    states: list[RankState] = []
    for collector, outcome in (await client.visit(collectors, talk, noted)).items():
        states += _without(collector, outcome) if isinstance(outcome, Failure) else outcome
    if stock:
        asked = [state.worker for state in states if state.kind == "torch"]
        states = [state for state in states if state.kind != "torch"]
        states += await ask_each(asked, client, want, memory, None, stock)
    return states


async def _ask_for_all(
    visit: Visit, want: Collection[Part], seconds: float, memory: Memory
) -> Answer:
    """The answer of the collector, by groups. If it is one from before groups, for each worker."""
    collector = visit.worker
    if collector not in memory.older:
        left = min(visit.left, seconds)
        try:
            grouped: Answer = await visit.ask(collect_question(want, left, collector, 2))
        except Failed as failed:
            if not failed.failure.text.startswith(REFUSED):
                raise
            memory.older.add(collector)
        else:
            return grouped
    answer: Answer = await visit.ask(collect_question(want, min(visit.left, seconds), collector))
    return answer


def _without(collector: Worker, failure: Failure) -> list[RankState]:
    """The states where *collector* gave no answer."""
    if not collector.ranks:
        return [RankState(collector, failures={"healthz": failure})]
    text = f"the collector of its host ({collector.address}): {failure.text}"
    own = Failure(failure.reason, text)
    workers = (
        Worker("", False, rank, collector.host, collector.source, via=collector)
        for rank in collector.ranks
    )
    return [RankState(worker, worker.rank, failures={"healthz": own}) for worker in workers]
