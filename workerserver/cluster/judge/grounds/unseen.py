"""What a verdict does not rest on: what could not be looked at, and for which ranks."""

from __future__ import annotations

from collections.abc import Iterator

from workerserver.cluster.judge.facts import Unseen
from workerserver.cluster.judge.job import Job

__all__ = ["unseen"]

#: Clocks that differ by less are as good as equal.
MIN_CLOCK_SECONDS = 1.0


def unseen(job: Job) -> Iterator[Unseen]:
    """One fact for each kind, with its ranks."""
    stock = [rank for rank in job.ranks if job.now.states[rank].kind == "torch"]
    records = {rank: job.now.of_rank(rank) for rank in job.ranks}
    none = [rank for rank, record in records.items() if record is None or record.empty]
    partly = [rank for rank, record in records.items() if record is not None and record.unrecorded]
    stacks = [rank for rank in job.ranks if not job.now.states[rank].threads]
    beats = [rank for rank in job.ranks if rank not in stock and job.step_age(rank) is None]
    elsewhere = [rank for rank in sorted(job.elsewhere) if rank in job.now.gone]
    inferred = [rank for rank in job.ranks if job.now.states[rank].inferred]
    if elsewhere:
        yield Unseen("elsewhere", elsewhere)
    if inferred:
        yield Unseen("inferred", inferred)
    if stock:
        yield Unseen("stock", stock)
    if none:
        yield Unseen("records", none)
    if partly:
        yield Unseen("operations", partly)
    if stacks:
        yield Unseen("stacks", stacks)
    if beats:
        yield Unseen("heartbeat", beats)
    ahead, most = _ahead(job)
    if ahead:
        yield Unseen("clock", ahead, most)


def _ahead(job: Job) -> tuple[list[int], float]:
    """Ranks that have issued operations in the future, by this machine's clock, and by how much."""
    found: dict[int, float] = {}
    for rank in job.ranks:
        record = job.now.of_rank(rank)
        if record is None or job.now.time <= 0:
            continue
        newest = max(
            (
                last.created_ns or 0
                for group in record.groups.values()
                if (last := group.last_issued) is not None
            ),
            default=0,
        )
        early = newest / 1e9 - job.now.time
        if MIN_CLOCK_SECONDS < early < 3.2e7:
            found[rank] = early
    return sorted(found), max(found.values(), default=0.0)
