"""Learn what every rank does, at a cost that grows with the number of different answers.

First every rank is asked what is small: its health, the digest of its stacks, the summary of its
flight recorder. Then one member of each group of equal digests gives its full stacks, and one
member of each state that stands out in a process group its full trace. Stock torch workers have
nothing small: their text stands for the digest, and their trace for the summary. Where a host has a
collector, that asks the small questions, and all of its ranks are one answer.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

from workerserver.cluster import stacks, wire
from workerserver.cluster.client import DEADLINE, Client, Failed, Visit
from workerserver.cluster.full import full_stacks, full_traces
from workerserver.cluster.host_answers import collect_question, decode
from workerserver.cluster.model import Failure, RankState, Thread, Worker
from workerserver.cluster.questions import DIGEST, HEALTH, SUMMARY, TEXT, TRACES, Memory

__all__ = ["Part", "Round", "behind_collectors", "collect", "collect_round", "first_answers"]

Part = Literal["health", "stacks", "flight"]
#: Who was silent for a whole deadline gets this part of it in later rounds, or an interval.
SILENT_SHARE = 4
EVERYTHING: Collection[Part] = ("health", "stacks", "flight")


@dataclass(slots=True)
class Round:
    """One look at all ranks. *states* are in the order of the workers; *started* is seconds since
    the epoch; *questions* and *bytes_received* are what it cost."""

    states: list[RankState]
    started: float
    duration_s: float = 0.0
    questions: int = 0
    bytes_received: int = 0
    stacks_fetched: int = 0
    traces_fetched: int = 0


async def collect(
    workers: Iterable[Worker],
    *,
    deadline: float = DEADLINE,
    want: Collection[Part] = EVERYTHING,
    rounds: int = 1,
    interval: float = 2.0,
    on_done: Callable[[RankState], None] | None = None,
    client: Client | None = None,
) -> list[Round]:
    """*rounds* looks at all of *workers*, their starts *interval* seconds apart or more.

    Every worker has a RankState in each round, whatever became of it. *on_done* gets each once its
    first, small answers are in. A stopped client ends it with the rounds that have begun. With a
    *client* its deadline holds, else *deadline*; it is for each phase: for the small questions of
    one worker, and again for its full answers. Who let all of it pass in silence gets less of it in
    later rounds.
    """
    if client is None:
        async with Client(deadline=deadline) as client:
            return await collect(
                workers, want=want, rounds=rounds, interval=interval, on_done=on_done, client=client
            )
    everybody = list(dict.fromkeys(workers))
    memory = Memory()
    done: list[Round] = []
    for number in range(rounds):
        if number:
            began = asyncio.get_running_loop().time() - done[-1].duration_s
            await _pause(client, began + interval)
        if client.stopped and done:
            break
        done.append(await collect_round(everybody, client, want, memory, on_done))
        _note_the_silent(client, done[-1].states, interval)
    return done


def _note_the_silent(client: Client, states: Iterable[RankState], interval: float) -> None:
    for state in states:
        asked = state.worker.via or state.worker
        reasons = {failure.reason for failure in state.failures.values()}
        if state.responded or "timeout" not in reasons or client.stopped:
            client.patience.pop(asked, None)
        elif asked is state.worker or not state.worker.address:  # else its collector did answer
            least = max(interval, client.deadline / SILENT_SHARE)
            client.patience[asked] = min(least, client.deadline)


async def collect_round(
    workers: Sequence[Worker],
    client: Client,
    want: Collection[Part],
    memory: Memory,
    on_done: Callable[[RankState], None] | None = None,
) -> Round:
    """One look; *memory* has the stacks that earlier ones fetched."""
    result = Round([], time.time())
    clock = asyncio.get_running_loop().time()
    questions, received = client.questions, client.bytes_received
    result.states = await first_answers(workers, client, want, memory, on_done)
    settle_ranks(result.states)
    if "stacks" in want:
        result.stacks_fetched = await full_stacks(client, result.states, memory)
    if "flight" in want:
        result.traces_fetched = await full_traces(client, result.states)
    result.questions = client.questions - questions
    result.bytes_received = client.bytes_received - received
    result.duration_s = asyncio.get_running_loop().time() - clock
    return result


# ---- the small questions


async def first_answers(
    workers: Sequence[Worker],
    client: Client,
    want: Collection[Part],
    memory: Memory,
    on_done: Callable[[RankState], None] | None = None,
    *,
    stock: bool = True,
) -> list[RankState]:
    """What all of *workers* say to the small questions; a collector speaks for those of its host.

    *stock*: ask stock torch workers for what stands for such answers.
    """
    collectors = [worker for worker in workers if worker.collector]
    if not collectors:
        return await _ask_each(workers, client, want, memory, on_done, stock)
    found = await _ask_collectors(collectors, client, want, memory, on_done, stock)
    # Who is registered by itself too is only asked where its collector has no answer.
    answers = {state.rank: state for state in found if state.rank is not None}
    direct = []
    for worker in workers:
        if worker.collector:
            continue
        known = None
        if worker.rank is not None and not worker.assumed:
            known = answers.get(worker.rank)
        if known is None or (worker.address and not known.responded):
            direct.append(worker)
    instead = {worker.rank for worker in direct}
    kept = [state for state in found if state.responded or state.rank not in instead]
    return kept + await _ask_each(direct, client, want, memory, on_done, stock)


async def _ask_each(
    workers: Sequence[Worker],
    client: Client,
    want: Collection[Part],
    memory: Memory,
    on_done: Callable[[RankState], None] | None,
    stock: bool,
) -> list[RankState]:
    states = {worker: RankState(worker, worker.rank) for worker in workers}

    async def talk(visit: Visit) -> RankState:
        return await _first_questions(visit, states[visit.worker], want, memory, stock)

    def noted(worker: Worker, outcome: RankState | Failure) -> None:
        state = states[worker]
        if isinstance(outcome, Failure):
            state.failures.setdefault("healthz", outcome)
        if on_done is not None:
            on_done(state)

    for worker, outcome in (await client.visit(workers, talk, noted)).items():
        if isinstance(outcome, Failure):
            states[worker].failures.setdefault("healthz", outcome)
    return list(states.values())


async def _ask_collectors(
    collectors: Sequence[Worker],
    client: Client,
    want: Collection[Part],
    memory: Memory,
    on_done: Callable[[RankState], None] | None,
    stock: bool,
) -> list[RankState]:
    """The states of all their workers. Where one doesn't answer, those of its ranks say so, or if
    these aren't known, its own."""

    async def talk(visit: Visit) -> list[RankState]:
        collector = visit.worker
        answer = await visit.ask(collect_question(want, client.deadline, len(collector.ranks)))
        try:
            return decode(answer, collector)
        except ValueError as error:
            raise Failed("malformed", wire.short(error)) from None

    def noted(worker: Worker, outcome: list[RankState] | Failure) -> None:
        if on_done is not None:
            on_done(RankState(worker))

    states: list[RankState] = []
    for collector, outcome in (await client.visit(collectors, talk, noted)).items():
        states += _without(collector, outcome) if isinstance(outcome, Failure) else outcome
    if stock:
        asked = [state.worker for state in states if state.kind == "torch"]
        states = [state for state in states if state.kind != "torch"]
        states += await _ask_each(asked, client, want, memory, None, stock)
    return states


async def behind_collectors(workers: Sequence[Worker], client: Client) -> list[Worker]:
    """*workers*, but for each collector those that it answers for."""
    collectors = [worker for worker in workers if worker.collector]
    want: tuple[Part, ...] = ("health",)
    found = await _ask_collectors(collectors, client, want, Memory(), None, stock=False)
    ranks = {state.rank for state in found if state.responded}
    direct = [each for each in workers if not each.collector and each.rank not in ranks]
    instead = {worker.rank for worker in direct if worker.address}
    return [each.worker for each in found if each.rank not in instead] + direct


def _without(collector: Worker, failure: Failure) -> list[RankState]:
    """What is told where *collector* gives no answer."""
    if not collector.ranks:
        return [RankState(collector, failures={"healthz": failure})]
    text = f"the collector of its host ({collector.address}): {failure.text}"
    own = Failure(failure.reason, text)
    workers = (
        Worker("", False, rank, collector.host, collector.source, via=collector)
        for rank in collector.ranks
    )
    return [RankState(worker, worker.rank, failures={"healthz": own}) for worker in workers]


async def _first_questions(
    visit: Visit, state: RankState, want: Collection[Part], memory: Memory, stock: bool
) -> RankState:
    worker = state.worker
    try:
        # Whose rank is known and who isn't asked for health needs one question less.
        if "health" in want or "stacks" not in want or worker.rank is None or worker.assumed:
            await _ask_health(visit, state)
        else:
            await _ask_digest(visit, state, memory)
        if state.kind == "torch" and not stock:
            return state
        if "stacks" in want and state.digest is None and not state.failures:
            await (_text if state.kind == "torch" else _ask_digest)(visit, state, memory)
        if "flight" in want and state.responded and "healthz" not in state.failures:
            await (_stock_trace if state.kind == "torch" else _summary)(visit, state)
    finally:
        state.bytes_received = visit.received
    if state.kind == "torch" and state.failures and not state.digest and not state.flight:
        state.kind = "unknown"
    return state


async def _ask_health(visit: Visit, state: RankState) -> None:
    try:
        state.health = await visit.ask(HEALTH)
    except Failed as failed:
        state.responded = failed.failure.reason not in ("unreachable", "timeout")
        if failed.failure.reason == "missing":  # it speaks HTTP, and is not ours
            state.kind = "torch"
        else:
            state.failures["healthz"] = failed.failure
        return
    state.responded = True
    state.kind = "workerserver"
    _check_rank(state)


def _check_rank(state: RankState) -> None:
    """Whether the worker is the rank that it was found as; if not, it isn't asked any further."""
    said, worker = state.health.rank if state.health else None, state.worker
    if said is None or worker.rank is None or worker.assumed or said == worker.rank:
        state.rank = worker.rank if said is None else said
        return
    text = f"found as rank {worker.rank}, says that it is rank {said}"
    state.failures["healthz"] = Failure("lied", text)


async def _ask_digest(visit: Visit, state: RankState, memory: Memory) -> None:
    """A stock worker, which knows no digest, answers with its stacks."""
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


async def _summary(visit: Visit, state: RankState) -> None:
    try:
        state.flight_summary = await visit.ask(SUMMARY)
    except Failed as failed:
        state.failures["fr_summary"] = failed.failure


async def _stock_trace(visit: Visit, state: RankState) -> None:
    """What stock torch has to say of a recorder is only in full."""
    try:
        trace = state.flight = await visit.ask(TRACES["fr"])
        if not trace.get("entries"):
            nccl = await visit.ask(TRACES["nccl"])
            if nccl.get("entries"):
                state.flight = nccl
    except Failed as failed:
        if state.flight is None:
            state.failures["flight"] = failed.failure


async def _text(visit: Visit, state: RankState, memory: Memory) -> None:
    try:
        text = await visit.ask(TEXT)
    except Failed as failed:
        state.failures["stacks"] = failed.failure
    else:
        _keep_text(state, memory, text)


def _keep_text(state: RankState, memory: Memory, text: str) -> None:
    """A stock worker's stacks: the text itself, of which equal ones are kept once."""
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
        raise Failed("malformed", wire.short(error)) from None


_THREAD = re.compile(r"^(?:Current thread|Thread) 0x[0-9a-f]+.*$", re.MULTILINE)


def text_digest(text: str) -> str:
    """As the workers' own digests: equal where the same stacks are, whatever their idents, order
    and number. Not comparable with those, because a text has no thread names."""
    return _hash("\0".join(sorted({stack.strip() for stack in _THREAD.split(text)})))


def _hash(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


# ---- who is who


def settle_ranks(states: Sequence[RankState]) -> None:
    """Workers that claim one rank are both told of; a counted rank gives way to a claimed one."""
    claims: dict[int, list[RankState]] = {}
    for state in states:
        if state.health is not None and state.health.rank is not None:
            claims.setdefault(state.health.rank, []).append(state)
    for rank, claimants in claims.items():
        if len(claimants) == 1:
            continue
        for state in claimants:
            others = [other.worker.address for other in claimants if other is not state]
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            text = f"says that it is rank {rank}, and so does {min(others)}{more}"
            state.failures.setdefault("healthz", Failure("lied", text))
    # One worker that is not what it was counted as: the others' numbers are worth nothing either.
    counted = [state for state in states if state.worker.assumed]
    if any(state.rank != state.worker.rank for state in counted):
        for state in counted:
            if state.health is None or state.health.rank is None:
                state.rank = None
    for state in states:
        if state.rank is None and state.kind == "torch":
            state.rank = _rank_in_name(state.worker)


def _rank_in_name(worker: Worker) -> int | None:
    """``…/rank3.sock``: all that tells of a stock worker's rank on a Unix socket."""
    match = re.search(r"(?:\A|[^a-z])rank[_-]?([0-9]{1,7})[^/0-9]*\Z", worker.address)
    return int(match[1]) if match and worker.unix else None


async def _pause(client: Client, until: float) -> None:
    """Sleep until the loop's time *until*, or until the client is stopped."""
    loop = asyncio.get_running_loop()
    while not client.stopped and (left := until - loop.time()) > 0:
        await asyncio.sleep(min(left, 0.1))
