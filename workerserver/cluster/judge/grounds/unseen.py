"""What a verdict does not rest on: what could not be looked at, and for which ranks."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from workerserver.cluster.judge.facts import NAMELESS, Unseen
from workerserver.cluster.judge.job import Job
from workerserver.cluster.model import Part, RankState
from workerserver.cluster.read.columns.rows import Row, moment

__all__ = ["unseen"]

#: Clocks that differ by less are as good as equal.
MIN_CLOCK_SECONDS = 1.0


def unseen(job: Job, asked: Collection[Part]) -> Iterator[Unseen]:
    """One fact for each kind, with its ranks. *asked*: what the ranks were asked for."""
    states = {rank: job.now.states[rank] for rank in job.ranks}
    stock = [rank for rank, state in states.items() if state.kind == "torch"]
    elsewhere = [rank for rank in sorted(job.elsewhere) if rank in job.now.gone]
    inferred = [rank for rank, state in states.items() if state.inferred]
    if elsewhere:
        yield Unseen("undumped" if job.of_dumps else "elsewhere", elsewhere)
    if inferred:
        yield Unseen("inferred", inferred)
    if stock:
        yield Unseen("stock", stock)
    if "flight" in asked:
        yield from _recorders(job, states)
    stacks = [rank for rank, state in states.items() if not state.threads]
    if stacks and "stacks" in asked:
        yield Unseen("stacks", stacks)
    beats = [rank for rank in job.ranks if rank not in stock and job.step_age(rank) is None]
    if beats and "stacks" in asked:
        yield Unseen("heartbeat", beats)
    yield from _clocks(job, states)


def _recorders(job: Job, states: dict[int, RankState]) -> Iterator[Unseen]:
    found: dict[str, list[int]] = {}
    for rank, state in states.items():
        record = job.now.alike(rank)
        if record is not None and record.unrecorded:
            found.setdefault("operations", []).append(rank)
        if state.kind == "torch" and "fr_dump_file" in (state.recorders or ()):
            found.setdefault("backends", []).append(rank)
        if record is not None and not record.empty:
            if "flight" in state.failures:
                found.setdefault("more", []).append(rank)
        elif state.recorders is not None and not state.recorders:
            found.setdefault("handlers", []).append(rank)
        elif {"flight", "fr_summary"} & state.failures.keys():
            found.setdefault("unread", []).append(rank)
        else:
            found.setdefault("records", []).append(rank)
    for kind in ("handlers", "unread", "records", "more", "operations", "backends"):
        if kind in found:
            yield Unseen(kind, found[kind])


# --- clocks


def _clocks(job: Job, states: dict[int, RankState]) -> Iterator[Unseen]:
    """A worker's Date tells its clock; an operation that was issued in the future does, too."""
    ahead: dict[int, float] = {}
    behind: dict[int, float] = {}
    unknown: list[int] = []
    newest = _early(job)
    for rank, state in states.items():
        record = job.now.alike(rank)
        early = newest.get(rank, 0.0)
        told = state.clock_ahead_s
        if told is not None and abs(told) < MIN_CLOCK_SECONDS:
            told = 0.0
        if (told or early) > 0:
            ahead[rank] = max(told or 0.0, early)
        elif told:
            behind[rank] = -told
        elif told is None and record is not None and not record.empty and _is_far(state):
            unknown.append(rank)
    if ahead:
        yield Unseen("clock", sorted(ahead), max(ahead.values()))
    if behind:
        yield Unseen("clock_behind", sorted(behind), max(behind.values()))
    if unknown:
        yield Unseen("clock_unknown", unknown)


def _early(job: Job) -> dict[int, float]:
    """Ranks that have issued operations in the future by this machine's clock, and by how much."""
    found: dict[int, float] = {}
    if job.now.time <= 0:
        return found
    nameless = [rank for rank in job.ranks if rank >= NAMELESS]
    rows = [
        Row(record, (rank,)) for rank in nameless if (record := job.now.of_rank(rank)) is not None
    ]
    for row in (*job.now.records.rows, *rows):
        issued = [
            last.created_ns or 0
            for group in row.record.groups.values()
            if (last := group.last_issued) is not None
        ]
        for rank in row.ranks if issued else ():
            times = row.times[rank] if row.times is not None else None
            early = max(moment(each, times) or 0 for each in issued) / 1e9 - job.now.time
            if MIN_CLOCK_SECONDS < early < 3.2e7:
                found[rank] = early
    return found


def _is_far(state: RankState) -> bool:
    """It may be on another machine. A collector's worker is where the collector is."""
    door = state.worker.via or state.worker
    name = door.address.rpartition(":")[0]
    return not door.unix and name not in ("localhost", "127.0.0.1", "[::1]")
