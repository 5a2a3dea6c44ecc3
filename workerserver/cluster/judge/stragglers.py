"""Ranks that keep the others waiting and yet go on: slow, not stuck."""

from __future__ import annotations

from collections.abc import Iterator

from workerserver.cluster.judge.facts import Slow
from workerserver.cluster.judge.flight import Group
from workerserver.cluster.judge.job import Job

__all__ = ["stragglers"]

#: The last operations that are looked at; fewer than MIN_OPERATIONS tell nothing.
MAX_OPERATIONS = 20
MIN_OPERATIONS = 3
#: A rank is slow if it is the last one in most operations, by a good part of the pause between two.
MIN_SHARE = 0.8
MIN_PART = 0.5
MIN_LATE_SECONDS = 0.05


def stragglers(job: Job) -> Iterator[Slow]:
    """At most one rank of each group."""
    for group in job.analysis.groups:
        found = _slowest(job, group)
        if found is None:
            continue
        rank, late, count = found
        if not _same_clock(job, group) and not _always_behind(job, group, rank):
            continue
        yield Slow(rank, group.label, late, count)


def _slowest(job: Job, group: Group) -> tuple[int, float, int] | None:
    entered: dict[int, dict[int, int]] = {}  # by sequence number, then rank: when, in nanoseconds
    for look in job.rounds:
        for rank in group.records:
            record = look.record(rank, group)
            for seq, operations in record.collectives.items() if record is not None else ():
                created = operations[0].created_ns
                if created is not None:
                    entered.setdefault(seq, {})[rank] = created
    full = sorted(seq for seq, when in entered.items() if len(when) == len(group.records) > 1)
    late: dict[int, list[float]] = {}
    count = 0
    for before, seq in zip(full[-MAX_OPERATIONS - 1 :], full[-MAX_OPERATIONS:], strict=False):
        when = entered[seq]
        order = sorted(when, key=lambda rank: (when[rank], rank))
        last, usual = order[-1], when[order[(len(order) - 1) // 2]]
        lateness = (when[last] - usual) / 1e9
        pause = (when[last] - entered[before][last]) / 1e9 / (seq - before) if seq > before else 0.0
        count += 1
        if lateness >= max(MIN_LATE_SECONDS, MIN_PART * pause):
            late.setdefault(last, []).append(lateness)
    if count < MIN_OPERATIONS or not late:
        return None
    rank = min(late, key=lambda each: (-len(late[each]), each))
    times = sorted(late[rank])
    return (rank, times[len(times) // 2], count) if len(times) >= MIN_SHARE * count else None


def _same_clock(job: Job, group: Group) -> bool:
    return len({job.host(rank) for rank in group.records}) == 1


def _always_behind(job: Job, group: Group, rank: int) -> bool:
    """In each round others had entered an operation that it had not."""
    if len(job.rounds) < 2:
        return False
    for look in job.rounds:
        own = look.record(rank, group)
        last = own.last_issued if own is not None else None
        others = [
            record.last_issued
            for other in group.records
            if other != rank and (record := look.record(other, group)) is not None
        ]
        if last is None or not any(each is not None and each.seq > last.seq for each in others):
            return False
    return True
