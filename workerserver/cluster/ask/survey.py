"""The small questions to each rank: its health, the digest of its stacks, the summary of its
flight recorder. torch's own servers have no short form: a digest is made from their text, and their
trace takes the place of the summary.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from hashlib import blake2b

from workerserver.cluster.ask.client import Client, Visit
from workerserver.cluster.ask.exchange import Question
from workerserver.cluster.ask.questions import (
    DIGEST,
    HEALTH_AND_CLOCK,
    SUMMARY,
    TEXT,
    Memory,
)
from workerserver.cluster.ask.recorders import ask_without_summary, gil_is_held
from workerserver.cluster.failures import Failed, short
from workerserver.cluster.model import EVERYTHING, Failure, Part, RankState, Thread, Worker
from workerserver.cluster.read import stacks
from workerserver.cluster.read.columns.summaries import Summary

__all__ = ["EVERYTHING", "Part", "ask_each", "text_digest"]

#: Connections that are kept for the second phase, of all ranks, and of those that say the same.
MAX_KEPT = 2048
ALIKE = 16


async def ask_each(
    workers: Sequence[Worker],
    client: Client,
    want: Collection[Part],
    memory: Memory,
    on_done: Callable[[RankState], None] | None,
    stock: bool,
) -> list[RankState]:
    states = {worker: RankState(worker, worker.rank) for worker in workers}
    alike: Counter[object] = Counter()

    async def talk(visit: Visit) -> RankState:
        return await _first_questions(visit, states[visit.worker], want, memory, stock)

    def noted(worker: Worker, outcome: RankState | Failure) -> None:
        state = states[worker]
        if isinstance(outcome, Failure):
            state.failures.setdefault("healthz", outcome)
        if not _may_be_asked_more(state, alike) or client.kept > MAX_KEPT:
            client.hang_up(worker)
        if on_done is not None:
            on_done(state)

    def first(worker: Worker) -> list[Question]:
        """The questions that a worker of ours answers, as far as the last look tells."""
        questions = [HEALTH_AND_CLOCK] if _wants_health(worker, want) else []
        torchs = bool(memory.stock) and worker in memory.stock
        if "stacks" in want and (not torchs or not questions):
            questions.append(DIGEST)
        if "flight" in want and not torchs and not (memory.held and worker in memory.held):
            questions.append(SUMMARY)
        return questions

    for worker, outcome in (await client.visit(workers, talk, noted, first)).items():
        if isinstance(outcome, Failure):
            states[worker].failures.setdefault("healthz", outcome)
    return list(states.values())


def _may_be_asked_more(state: RankState, alike: Counter[object]) -> bool:
    """Whether the second phase may ask this rank. *alike* counts those that have said the same: of
    many, only some speak for all."""
    summary = state.flight_summary
    shape = id(summary.shape) if isinstance(summary, Summary) else None
    said = (state.digest, state.mode, shape)
    alike[said] += 1
    return alike[said] <= ALIKE


def _wants_health(worker: Worker, want: Collection[Part]) -> bool:
    """The question for health is not needed if the rank is known and nobody wants health."""
    return "health" in want or "stacks" not in want or worker.rank is None or worker.assumed


async def _first_questions(
    visit: Visit, state: RankState, want: Collection[Part], memory: Memory, stock: bool
) -> RankState:
    worker = state.worker
    try:
        if _wants_health(worker, want):
            await _ask_health(visit, state)
        else:
            await _ask_digest(visit, state, memory)
        if state.kind == "torch" and not stock:
            return state
        if "stacks" in want and state.digest is None and not state.failures:
            await (_text if state.kind == "torch" else _ask_digest)(visit, state, memory)
        if "flight" in want and state.responded and "healthz" not in state.failures:
            if state.kind == "torch" or gil_is_held(state):
                await ask_without_summary(visit, state, memory)
            else:
                await _summary(visit, state, memory)
    finally:
        _note(memory.stock, worker, state.kind == "torch")
        _note(memory.held, worker, gil_is_held(state))
        state.bytes_received = visit.received
        state.peer_pid = visit.peer_pid
    if state.kind == "torch" and state.failures and not state.digest and not state.flight:
        state.kind = "unknown"
    return state


def _note(workers: set[Worker], worker: Worker, among: bool) -> None:
    if among:
        workers.add(worker)
    elif workers:
        workers.discard(worker)


async def _ask_health(visit: Visit, state: RankState) -> None:
    try:
        state.health, state.clock_ahead_s = await visit.ask(HEALTH_AND_CLOCK)
    except Failed as failed:
        state.responded = failed.failure.reason not in ("unreachable", "timeout")
        if failed.failure.reason == "missing":  # the server speaks HTTP, but isn't ours
            state.kind = "torch"
        else:
            state.failures["healthz"] = failed.failure
        return
    state.responded = True
    state.kind = "workerserver"
    _check_rank(state)


def _check_rank(state: RankState) -> None:
    """Compare the rank that the worker reports with the rank under which it was found. If they
    differ, the worker gets a failure, and no further question."""
    said, worker = state.health.rank if state.health else None, state.worker
    if said is None or worker.rank is None or worker.assumed or said == worker.rank:
        state.rank = worker.rank if said is None else said
        return
    text = f"found as rank {worker.rank}, says that it is rank {said}"
    state.failures["healthz"] = Failure("lied", text)


async def _ask_digest(visit: Visit, state: RankState, memory: Memory) -> None:
    """Ask for the digest. A stock worker has no digest and answers with its stacks."""
    try:
        answer = await visit.ask(DIGEST)
        if not isinstance(answer, str):
            (state.digest, state.main_digest), state.mode = answer
            state.kind = "workerserver"
    except Failed as failed:
        state.failures["digest"] = failed.failure
        state.responded |= failed.failure.reason not in ("unreachable", "timeout")
        return
    state.responded = True
    if isinstance(answer, str):
        state.kind = "torch"
        _keep_text(state, memory, answer)


async def _summary(visit: Visit, state: RankState, memory: Memory) -> None:
    try:
        state.flight_summary = memory.kept(state.worker, await visit.ask(SUMMARY))
    except Failed as failed:
        state.failures["fr_summary"] = failed.failure


async def _text(visit: Visit, state: RankState, memory: Memory) -> None:
    try:
        text = await visit.ask(TEXT)
    except Failed as failed:
        state.failures["stacks"] = failed.failure
    else:
        _keep_text(state, memory, text)


def _keep_text(state: RankState, memory: Memory, text: str) -> None:
    """Keep a stock worker's stacks. Workers with equal texts share one copy."""
    digest = text_digest(text)
    key = (digest, "torch")
    try:
        threads = memory.threads.get(key) or _parsed(stacks.parse_text, text)
    except Failed as failed:
        state.failures["stacks"] = failed.failure
        return
    state.digest = digest
    state.threads = memory.threads[key] = threads
    mains = [thread.frames for thread in threads if thread.main]
    if mains:
        state.main_digest = _hash(repr(mains))


def _parsed(parse: Callable[[str], Iterable[Thread]], text: str) -> tuple[Thread, ...]:
    try:
        return tuple(parse(text))
    except ValueError as error:
        raise Failed("malformed", short(error)) from None


_THREAD = re.compile(r"^(?:Current thread|Thread) 0x[0-9a-f]+.*$", re.MULTILINE)


def text_digest(text: str) -> str:
    """A digest like our workers' digests: equal for the same stacks, with any idents, order and
    number. It can't be compared with our workers' digests, because a text has no thread names."""
    return _hash("\0".join(sorted({stack.strip() for stack in _THREAD.split(text)})))


def _hash(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
