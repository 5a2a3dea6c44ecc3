"""Which dumps of recorders tell of one moment of one run: only those may be compared.

A file that an earlier run has left under the same name looks like a rank that has stayed behind.
So does a file that was written before the others began to wait. Files that were copied have the
time of the copying, so what the recorders themselves hold is compared, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from workerserver.cluster.judge.flight import TOGETHER
from workerserver.cluster.read.recorder import (
    RETIRING,
    GroupRecord,
    Key,
    Operation,
    RankRecord,
)

__all__ = ["Apart", "Seqs", "apart", "are_dated", "given_up"]

#: One operation is issued by all ranks of a run within this time.
RUN_SECONDS = 3600.0
#: By so much clocks may differ without a sign of that.
CLOCK_SECONDS = 1.0
#: torch ends an operation, and dumps, at most so many seconds after the operation's time-out.
AFTER_TIMEOUT_SECONDS = 900.0
#: A rank issues at most so many operations after one that has failed.
MAX_GIVEN_UP = 8

Seqs = dict[tuple[int, Key], frozenset[int]]
"""By rank and group: sequence numbers."""


@dataclass(frozen=True, slots=True)
class Apart:
    """Why a dump can't be compared with that of rank *other*.

    ``run``: both have issued *operation* (None: their operations), *seconds* apart. ``ended``: the
    other rank has ended *operation* of *group*, which this rank has not issued. ``early``: the dump
    was written *seconds* before the other rank issued it.
    """

    kind: Literal["run", "ended", "early"]
    other: int
    operation: str | None
    seconds: float = 0.0
    group: str = ""


def apart(records: Mapping[int, RankRecord], times: Mapping[int, float]) -> dict[int, Apart]:
    """Ranks whose dump can't be compared with the others', and why. *times*: when each dump was
    written, in seconds since the epoch."""
    found: dict[int, Apart] = {}
    for key, members in sorted(_by_key(records).items()):
        for rank, why in _of_other_runs(members, times).items():
            found.setdefault(rank, why)
        members = {rank: group for rank, group in members.items() if rank not in found}
        for rank, group in members.items():
            early = _too_early(rank, group, members, times)
            if early is not None:
                found.setdefault(rank, replace(early, group=key.label))
    return found


def given_up(records: Mapping[int, RankRecord]) -> Seqs:
    """Operations that a recorder calls ended, though they need a rank that has not issued them: so
    they failed. gloo retires an operation at its time-out as at its end. *records*: without
    those of ranks that are :func:`apart`."""
    found: Seqs = {}
    for key, members in _by_key(records).items():
        least = min(max(group.collectives) for group in members.values())
        for rank, group in members.items():
            failed = {
                seq
                for seq, operations in group.collectives.items()
                if seq > least and all(_may_fail(each) for each in operations)
            }
            if failed:
                found[rank, key] = frozenset(failed)
    return found


def are_dated(records: Mapping[int, RankRecord], times: Mapping[int, float], failed: Seqs) -> bool:
    """The files' *times* can be those of the dumps. A copy has the time of the copying: then
    operations seem to have waited for longer than they can. *failed*: as of :func:`given_up`."""
    for rank, record in records.items():
        for key, group in record.groups.items():
            numbers = failed.get((rank, key), frozenset())
            lost = [each for seq in numbers for each in group.collectives[seq]]
            waits = [each for each in (group.first_pending, *lost, *group.p2p) if each is not None]
            for each in waits:
                ends = _times_out(each)
                if ends is None or not (each in lost or each.pending):
                    continue
                if times[rank] > ends + AFTER_TIMEOUT_SECONDS:
                    return False
    return True


def _times_out(operation: Operation) -> float | None:
    """When torch ends it at the latest, in seconds since the epoch."""
    began = _created(operation)
    if began is None or operation.timeout_ms is None:
        return None
    return began + operation.timeout_ms / 1e3


def _by_key(records: Mapping[int, RankRecord]) -> dict[Key, dict[int, GroupRecord]]:
    """The ranks that have issued something in each group that was made only once."""
    by_key: dict[Key, dict[int, GroupRecord]] = {}
    for rank, record in sorted(records.items()):
        for key, group in record.groups.items():
            if group.collectives and not group.earlier:
                by_key.setdefault(key, {})[rank] = group
    return by_key


def _may_fail(operation: Operation) -> bool:
    """Its end may be a failure, and it takes all ranks."""
    return operation.done and operation.backend in RETIRING and operation.op.startswith(TOGETHER)


def _of_other_runs(
    members: Mapping[int, GroupRecord], times: Mapping[int, float]
) -> dict[int, Apart]:
    """By when the ranks issued the newest operation that each two of them have. The run of most
    ranks counts; of equally many, the one that issued it last."""
    by_run: list[list[int]] = []
    for rank, group in members.items():
        for run in by_run:
            if _seconds_apart(group, members[run[0]]) <= RUN_SECONDS:
                run.append(rank)
                break
        else:
            by_run.append([rank])
    if len(by_run) < 2:
        return {}

    def newest(run: list[int]) -> float:
        issued = [_created(members[rank].last_issued) or times[rank] for rank in run]
        return sorted(issued)[len(issued) // 2]

    main = max(by_run, key=lambda run: (len(run), newest(run)))
    return {
        rank: Apart(
            "run",
            main[0],
            _common_name(members[rank], members[main[0]]),
            _seconds_apart(members[rank], members[main[0]]),
        )
        for run in by_run
        if run is not main
        for rank in run
    }


def _common(one: GroupRecord, other: GroupRecord) -> int | None:
    return max(one.collectives.keys() & other.collectives.keys(), default=None)


def _common_name(one: GroupRecord, other: GroupRecord) -> str | None:
    seq = _common(one, other)
    return None if seq is None else one.collectives[seq][-1].name


def _seconds_apart(one: GroupRecord, other: GroupRecord) -> float:
    """0 if nothing can be compared."""
    seq = _common(one, other)
    if seq is None:
        return 0.0
    times = [_created(each.collectives[seq][-1]) for each in (one, other)]
    first, second = times
    return 0.0 if first is None or second is None else abs(first - second)


def _created(operation: Operation | None) -> float | None:
    if operation is None or operation.created_ns is None:
        return None
    return operation.created_ns / 1e9


def _too_early(
    rank: int,
    group: GroupRecord,
    members: Mapping[int, GroupRecord],
    times: Mapping[int, float],
) -> Apart | None:
    """Why it tells nothing of operations that others have issued and *rank* has not."""
    last, written = max(group.collectives), times[rank]
    for other, its in members.items():
        ended, first = its.last_retired, its.first_pending
        if other == rank:
            continue
        if ended is not None and ended.seq > last and ended.op.startswith(TOGETHER):
            ends = _times_out(its.collectives[min(seq for seq in its.collectives if seq > last)][0])
            timed_out = ends is not None and written >= ends - CLOCK_SECONDS
            if not (timed_out and _may_fail(ended) and ended.seq <= last + MAX_GIVEN_UP):
                return Apart("ended", other, ended.name)
            first = first or ended
        began = _created(first)
        if first is None or first.seq <= last or began is None:
            continue
        if written < began - CLOCK_SECONDS:
            return Apart("early", other, first.name, began - written)
    return None
