"""Where the time of every rank goes: recordings of all ranks at one time, merged as they come.

A long recording is asked for in parts, one after the other on one connection. So Ctrl-C keeps the
parts that have come, and no answer grows with the length. In a large job a part takes longer:
with short parts, the answers would come faster than they can be read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from workerserver.cluster.ask.client import Client, Visit
from workerserver.cluster.ask.collectors import behind_collectors
from workerserver.cluster.ask.exchange import Question
from workerserver.cluster.ask.questions import HEALTH
from workerserver.cluster.failures import Failed
from workerserver.cluster.model import Failure, Worker
from workerserver.stacks.profiles.job import Job, Member, Own
from workerserver.stacks.profiles.recorded import MAX_BYTES, parse

__all__ = ["Outcome", "parts_of", "recordings"]

#: Of one part. The server's own bound is 60.
LEAST_SECONDS, MOST_SECONDS = 2.0, 30.0
#: Ranks for which a part takes one second more.
RANKS_EACH_SECOND = 400
#: A collector lets only a few larger answers pass at a time, and all ranks have to record together.
MAX_RELAYED = 1 << 20


@dataclass(slots=True)
class Outcome:
    """Of one worker. *failure*: why it gave no recording, or only the first parts of one."""

    worker: Worker
    rank: int | None
    own: Own = field(default_factory=Own)
    failure: Failure | None = None

    @property
    def member(self) -> Member:
        known = self.rank is not None
        return Member(self.rank, f"rank {self.rank}" if known else self.worker.address)


def parts_of(seconds: float, ranks: int) -> list[float]:
    """The lengths of the parts: equal ones."""
    most = min(max(LEAST_SECONDS, ranks / RANKS_EACH_SECOND), MOST_SECONDS)
    count = max(math.ceil(seconds / most - 1e-9), 1)
    return [seconds / count] * count


async def recordings(
    workers: Sequence[Worker],
    client: Client,
    job: Job,
    seconds: float,
    on_done: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Record all *workers* for *seconds*, into *job*. *on_done* is called after each worker.

    The client's deadline has to hold the recording too.
    """
    everyone = await behind_collectors(workers, client)
    client.concurrency = max(client.concurrency, len(everyone))  # all at one time
    parts = parts_of(seconds, len(everyone))
    patience = client.deadline - seconds
    found = {worker: Outcome(worker, worker.rank) for worker in everyone}

    async def talk(visit: Visit) -> None:
        outcome = found[visit.worker]
        try:
            health = await visit.ask(HEALTH)
            outcome.rank = outcome.rank if health.rank is None else health.rank
        except Failed as failed:
            if failed.failure.reason != "missing":
                raise
        question = _question(parts[0], job, MAX_BYTES if visit.worker.via is None else MAX_RELAYED)
        for part in parts:
            outcome.own.add(await visit.ask(question, part + patience), job.stacks)

    def done(worker: Worker, result: Failure | None) -> None:
        outcome = found[worker]
        outcome.failure = result
        if outcome.own.samples:
            job.add(outcome.member, outcome.own)
            outcome.own = replace(outcome.own, times={})  # merged: the job has them
        on_done()

    for worker, result in (await client.visit(everyone, talk, done)).items():
        found[worker].failure = result  # those that were never visited, too
    return list(found.values())


def _question(seconds: float, job: Job, limit: int) -> Question:
    mode: Literal["wall", "cpu"] = "cpu" if job.mode == "cpu" else "wall"
    query = f"duration={seconds:.3f}&hz={job.hz:g}&mode={mode}"
    return Question.handler(
        "sample_stacks", query, limit=limit, parse=lambda answer: parse(answer.body)
    )
