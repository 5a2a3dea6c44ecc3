"""Learn what every rank does, at a cost that grows with the number of different answers.

In the first phase every rank answers the small questions: its health, the digest of its stacks, the
summary of its flight recorder. In the second phase one member of each group with equal digests
sends its full stacks, and one member of each different state in a process group sends its full
trace. torch's own servers have no short form: a digest is made from their text, and their trace
takes the place of the summary. If a host has a collector, the collector asks the small questions
and answers for all ranks of the host at once.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workerserver.cluster.ask.client import DEADLINE_SECONDS, Client
from workerserver.cluster.ask.collectors import first_answers
from workerserver.cluster.ask.fetch_full import full_answers
from workerserver.cluster.ask.questions import Memory
from workerserver.cluster.ask.survey import EVERYTHING, Part
from workerserver.cluster.model import Failure, RankState, Worker
from workerserver.cluster.read.summary import rank_of

__all__ = ["EVERYTHING", "Part", "Round", "collect", "collect_round"]

#: A worker that did not answer within its deadline gets the deadline divided by this in later
#: rounds, but at least the time between two rounds.
SILENT_SHARE = 4
#: Rounds that are taken until they are enough begin within so many seconds.
LONGEST_SECONDS = 10.0


@dataclass(slots=True)
class Round:
    """One look at all ranks. *states* are in the order of the workers. *started* is in seconds
    since the epoch. *questions* and *bytes_received* are the cost of the round."""

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
    deadline: float = DEADLINE_SECONDS,
    want: Collection[Part] = EVERYTHING,
    rounds: int = 1,
    interval: float = 2.0,
    on_done: Callable[[RankState], None] | None = None,
    client: Client | None = None,
    enough: Callable[[Sequence[Round]], bool] | None = None,
    longest: float = LONGEST_SECONDS,
    backends: Sequence[str] = (),
    memory: Memory | None = None,
) -> list[Round]:
    """*rounds* rounds over all *workers*, with *interval* or more seconds from start to start.
    With *enough*, as many as it wants that begin within *longest* seconds. *backends*: recorders to
    ask torch's own servers for, beside those that torch itself brings. *memory*: what earlier calls
    have learned.

    Every worker has a RankState in each round, even a worker that did not answer. *on_done* gets
    each state as soon as it has its small answers. If the client is stopped, the result is the
    rounds that have begun. The deadline is the *client*'s, or without a client *deadline*. It holds
    for the small questions to one worker, and again for the full answers of that worker. A worker
    that did not answer within its deadline gets a shorter deadline in later rounds.
    """
    if client is None:
        async with Client(deadline=deadline) as client:
            return await collect(
                workers,
                want=want,
                rounds=rounds,
                interval=interval,
                on_done=on_done,
                client=client,
                enough=enough,
                longest=longest,
                backends=backends,
                memory=memory,
            )
    everybody = list(dict.fromkeys(workers))
    if memory is None:
        memory = Memory(backends=backends)
    done: list[Round] = []
    loop = asyncio.get_running_loop()
    first = loop.time()
    while True:
        if done:
            await _pause(client, loop.time() - done[-1].duration_s + interval)
        if client.stopped and done:
            break
        done.append(await collect_round(everybody, client, want, memory, on_done))
        _note_the_silent(client, done[-1].states, interval)
        if enough is None:
            if len(done) >= rounds:
                break
        elif enough(done) or (len(done) > 1 and loop.time() + interval > first + longest):
            break
    return done


def _note_the_silent(client: Client, states: Iterable[RankState], interval: float) -> None:
    for state in states:
        asked = state.worker.via or state.worker
        reasons = {failure.reason for failure in state.failures.values()}
        if state.responded or "timeout" not in reasons or client.stopped:
            client.patience.pop(asked, None)
        elif asked is state.worker or not state.worker.address:  # otherwise the collector answered
            least = max(interval, client.deadline / SILENT_SHARE)
            client.patience[asked] = min(least, client.deadline)


async def collect_round(
    workers: Sequence[Worker],
    client: Client,
    want: Collection[Part],
    memory: Memory,
    on_done: Callable[[RankState], None] | None = None,
) -> Round:
    """One round. *memory* holds the stacks from earlier rounds."""
    result = Round([], time.time())
    clock = asyncio.get_running_loop().time()
    questions, received = client.questions, client.bytes_received
    with client.one_look():
        result.states = await first_answers(workers, client, want, memory, on_done)
        settle_ranks(result.states)
        counts = await full_answers(client, result.states, want, memory)
    result.stacks_fetched, result.traces_fetched = counts
    result.questions = client.questions - questions
    result.bytes_received = client.bytes_received - received
    result.duration_s = asyncio.get_running_loop().time() - clock
    return result


# ---- who is who


def settle_ranks(states: Sequence[RankState]) -> None:
    """Replace counted ranks by the ranks that the workers report. If several workers of one job
    report the same rank, each of them gets a failure that names another one."""
    for rank, claimants in _claims(states):
        for state in claimants:
            others = [other.worker.address for other in claimants if other is not state]
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            two = f"and so does {min(others)}{more}: workers of two jobs? Name one job"
            text = f"says that it is rank {rank}, {two}"
            state.failures.setdefault("healthz", Failure("lied", text))
    # If the count is wrong for one worker, it is wrong for the other workers too.
    counted = [state for state in states if state.worker.assumed]
    if any(state.rank != state.worker.rank for state in counted):
        for state in counted:
            if state.health is None or state.health.rank is None:
                state.rank = None
    for state in states:
        if state.rank is None and isinstance(state.flight_summary, Mapping):
            state.rank = rank_of(state.flight_summary)  # torch.distributed knows it
    _infer_ranks(states)


def _claims(states: Sequence[RankState]) -> Iterator[tuple[int, list[RankState]]]:
    """The ranks that more than one worker of a job says it is. Older workers don't tell their job:
    theirs may be any."""
    claims: dict[int, list[RankState]] = {}
    for state in states:
        if state.health is not None and state.health.rank is not None:
            claims.setdefault(state.health.rank, []).append(state)
    for rank, claimants in claims.items():
        if len(claimants) < 2:
            continue
        jobs: dict[tuple[object, ...], list[RankState]] = {}
        for state in claimants:
            job = (getattr(state.health, name) for name in ("job", "host", "agent", "restart"))
            jobs.setdefault(tuple(job), []).append(state)
        if any(state.health is None or state.health.job is None for state in claimants):
            jobs = {(): claimants}
        yield from ((rank, each) for each in jobs.values() if len(each) > 1)


# ---- stock workers don't tell their rank

_NAMED = re.compile(r"(?:\A|[^a-z])rank[_-]?([0-9]{1,7})[^/0-9]*\Z")
_NUMBERED = re.compile(r"([0-9]{1,7})[^/0-9]*\Z")
#: In a recorder's entry of a send or a receive: from, or at, whose side.
_SIDE = re.compile(r"(?:send|recv) ([0-9]{1,7})(?:->|<-)[0-9]{1,7}\Z")


def _infer_ranks(states: Sequence[RankState]) -> None:
    """The ranks of stock workers: from the recorder's sends and receives, or from the name of the
    socket."""
    stock = [state for state in states if state.rank is None and state.kind == "torch"]
    for state in stock:
        state.rank = _rank_in_trace(state.flight)
        if state.rank is not None:
            state.inferred = "its sends and receives"
            continue
        match = _NAMED.search(state.worker.address) if state.worker.unix else None
        if match is not None:
            state.rank, state.inferred = int(match[1]), "the number in its path"
    rest = [state for state in stock if state.rank is None and state.worker.unix]
    numbers = [_NUMBERED.search(state.worker.address) for state in rest]
    ranks = [int(match[1]) for match in numbers if match is not None]
    taken = {state.rank for state in states}
    # Numbers count ranks only if they are as few as these: a pid or a date is none.
    if (
        len(set(ranks)) == len(rest)
        and taken.isdisjoint(ranks)
        and max(ranks, default=0) < len(states)
    ):
        for state, rank in zip(rest, ranks, strict=True):
            state.rank, state.inferred = rank, "the number in its path"


def _rank_in_trace(trace: Mapping[str, Any] | None) -> int | None:
    """The rank in the world's sends and receives; None if the trace holds none, or contradicts
    itself."""
    entries = trace.get("entries") if trace is not None else None
    found = set()
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, Mapping) and entry.get("process_group") in (
            ["0", "default_pg"],
            ("0", "default_pg"),
        ):
            match = _SIDE.search(str(entry.get("profiling_name"))[:200])
            if match is not None:
                found.add(int(match[1]))
    return found.pop() if len(found) == 1 else None


async def _pause(client: Client, until: float) -> None:
    """Sleep until the loop's time *until*, or until the client is stopped."""
    loop = asyncio.get_running_loop()
    while not client.stopped and (left := until - loop.time()) > 0:
        await asyncio.sleep(min(left, 0.1))
