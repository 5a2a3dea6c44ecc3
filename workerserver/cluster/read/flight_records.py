"""Reads what one rank's flight recorders say (``fr_trace_json``, ``fr_summary``) into plain data.

No JSON makes :func:`read` raise: what does not fit is left out and named in
:attr:`RankRecord.problems`.

Seen on torch 2.13 (docs/torch.md): with gloo a finished operation keeps ``"state": "scheduled"``
and shows its end by ``"retired": true``. send and recv are not recorded. ``pg_config`` has no
names, so the owner of a list of ranks is unknown. ``entries`` is absent when there are none.

A process may have several recorders: NCCL's, gloo's, and in torch 2.15 one for each other backend.
Each counts the operations of its backend, and numbers the groups in its own way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from workerserver.cluster.read.columns.rows import own_record
from workerserver.cluster.read.columns.summaries import Shape, Summary
from workerserver.cluster.read.recorder import (
    MAX_GROUPS,
    MAX_IN_FLIGHT,
    GroupRecord,
    Key,
    Operation,
    RankRecord,
    Shared,
    counters_of,
    integer,
    is_name,
    key_of,
    operation_of,
)
from workerserver.cluster.read.summary import read_groups

__all__ = ["read", "read_shape"]

#: What closes a batch of operations.
COALESCED = "coalesced"
#: Of one trace. torch's ring holds 2,000 operations by default.
MAX_ENTRIES = 20_000

#: What tells operations apart, and its place in the recorder.
Known = dict[tuple[bool, int, int, str, int], Operation]
Incarnation = tuple[Key, int | None]
"""A group's name and torch's number of it: a group may be destroyed and made again."""


def read(
    flight: Any,
    summary: Any = None,
    shared: Shared | None = None,
    more: Mapping[str, Any] | None = None,
) -> RankRecord:
    """One rank's parsed ``fr_trace_json`` (or ``dump_nccl_trace_json``) and ``fr_summary``. *more*:
    the traces of the process's other recorders, by backend.

    Each may be None. If a trace and the summary have an operation, the trace's entry counts.
    """
    shared = shared or Shared()
    if isinstance(summary, Summary):
        if flight is None and not more:
            return own_record(read_shape(summary.shape, shared), summary.times)
        summary = summary.fields()
    record = RankRecord()
    found: dict[Incarnation, Known] = {}
    cut: dict[Incarnation, int] = {}
    if summary is not None:
        for key, number, ranks, operations in read_groups(summary, record, shared):
            group = _group(record, key)
            if group is not None:
                group.ranks = group.ranks or ranks
                for operation in operations:
                    found.setdefault((key, number), {})[_identity(operation, -1)] = operation
    if flight is not None:
        _read_trace(flight, "", record, shared, found, cut)
    for backend, trace in (more or {}).items():
        _read_trace(trace, backend, record, shared, found, cut)
    _drop_nameless(record)
    numbers: dict[Key, list[int | None]] = {}
    for key, number in found:
        numbers.setdefault(key, []).append(number)
    for key, each in numbers.items():
        group = record.groups.get(key)
        if group is None:
            continue
        known = sorted(number for number in each if number is not None)
        group.number = known[-1] if known else None
        group.earlier = frozenset(known[:-1])
        merged = dict(found[key, group.number])
        if known and None in each:  # its number is not told everywhere
            merged = {**found[key, None], **merged}
        _fill(group, merged.values(), cut.get((key, group.number)))
    return record


def read_shape(shape: Shape, shared: Shared) -> RankRecord:
    """What all summaries of *shape* say, with FIRST_TIME and so on in place of times. Summaries of
    one shape give one object."""
    known = shared.by_shape.get(shape)
    if known is None:
        known = shared.by_shape[shape] = read(None, shape.fields(), shared)
    return known


def _group(record: RankRecord, key: Key) -> GroupRecord | None:
    group = record.groups.get(key)
    if group is None:
        if len(record.groups) >= MAX_GROUPS:
            record.complain(f"more than {MAX_GROUPS} process groups")
            return None
        group = record.groups[key] = GroupRecord(key)
    return group


def _drop_nameless(record: RankRecord) -> None:
    """A group in which the rank has issued something is there once for each backend. What is said
    of the group without a backend holds for all of them."""
    named: dict[Key, list[GroupRecord]] = {}
    for key, group in record.groups.items():
        if key.backend:
            named.setdefault(key._replace(backend=""), []).append(group)
    for key, groups in named.items():
        nameless = record.groups.pop(key, None)
        ranks = [each.ranks for each in (nameless, *groups) if each is not None and each.ranks]
        for group in groups:
            group.ranks = group.ranks or next(iter(ranks), None)


def _identity(operation: Operation, record: int) -> tuple[bool, int, int, str, int]:
    return (operation.p2p, operation.seq, operation.p2p_seq, operation.op, record)


def _fill(group: GroupRecord, operations: Iterable[Operation], cut: int | None) -> None:
    """Sort *operations* into *group*. *cut*: the sequence number at which the recorder may have
    lost some of them."""
    operations = _closed(list(operations))
    ordered = sorted(operations, key=lambda each: (each.seq, each.record, each.p2p_seq, each.op))
    collectives: dict[int, list[Operation]] = {}
    for operation in ordered:
        if not operation.p2p:
            collectives.setdefault(operation.seq, []).append(operation)
    group.collectives = {seq: tuple(each) for seq, each in collectives.items()}
    group.p2p = tuple(
        sorted((each for each in ordered if each.p2p), key=lambda each: (each.p2p_seq, each.record))
    )
    partial = {seq for seq, each in collectives.items() if any(one.record < 0 for one in each)}
    if cut is not None:
        partial.add(cut)
    group.partial = frozenset(partial)


def _closed(operations: list[Operation]) -> list[Operation]:
    """NCCL's recorder never hears that a part of a batch has ended: what closes the batch tells."""
    ended = {
        (each.p2p, each.seq, each.p2p_seq)
        for each in operations
        if each.done and each.op == COALESCED
    }
    if not ended:
        return operations
    return [
        replace(each, done=True) if (each.p2p, each.seq, each.p2p_seq) in ended else each
        for each in operations
    ]


# --- fr_trace_json ------------------------------------------------------------------------------


def _read_trace(
    flight: Any,
    backend: str,
    record: RankRecord,
    shared: Shared,
    found: dict[Incarnation, Known],
    cut: dict[Incarnation, int],
) -> None:
    if not isinstance(flight, Mapping):
        record.complain("the trace is no object")
        return
    entries = flight.get("entries")
    if entries is None:
        entries = []
    elif not isinstance(entries, list):
        record.complain("the trace's entries are no list")
        entries = []
    if len(entries) > MAX_ENTRIES:
        record.complain(f"more than {MAX_ENTRIES} entries: the first ones were left out")
        entries = entries[-MAX_ENTRIES:]
    config = flight.get("pg_config")
    if not isinstance(config, Mapping):
        config = {}
    first: dict[Incarnation, Operation] = {}
    by_trace: dict[Incarnation, list[Operation]] = {}
    for entry in entries:
        parsed = _entry(entry, record)
        if parsed is None:
            continue
        key, operation = parsed
        group = _group(record, key)
        if group is None:
            continue
        if group.ranks is None and isinstance(described := config.get(key.name), Mapping):
            group.ranks = shared.ranks(described.get("ranks"))
        its = (key, integer(entry.get("pg_id")))
        by_trace.setdefault(its, []).append(operation)
        if its not in first or operation.record < first[its].record:
            first[its] = operation
    backends = {str(number): key.backend for key, number in by_trace}
    status = flight.get("pg_status")
    if isinstance(status, Mapping):
        for number, told in list(status.items())[:MAX_GROUPS]:
            counters = counters_of(told, "last_{}_collective")
            if counters is not None and is_name(number):
                record.counters[backends.get(number, backend), number] = counters
                record.enqueued = max(record.enqueued, counters[0])
    # A rank may belong to groups in which it has issued nothing; NCCL's configuration says so.
    for name, described in list(config.items())[:MAX_GROUPS]:
        if isinstance(described, Mapping) and is_name(name) and name:
            ranks, desc = shared.ranks(described.get("ranks")), described.get("desc")
            if ranks and isinstance(desc, str) and is_name(desc):
                group = _group(record, Key(name, desc))
                if group is not None:
                    group.ranks = group.ranks or ranks
    oldest = min((each.record for each in first.values()), default=0)
    record.short = bool(record.short) or (0 < len(entries) < MAX_IN_FLIGHT and oldest > 0)
    for (key, number), operations in by_trace.items():
        counters = record.counters.get((key.backend, str(number)), (-1,))
        if key.backend == "gloo":
            record.unrecorded |= max(each.seq for each in operations) < counters[0]
    for its, operations in by_trace.items():
        known = found.setdefault(its, {})
        for operation in operations:
            known.pop(_identity(operation, -1), None)
        known.update({_identity(each, each.record): each for each in operations})
        if oldest > 0:  # the ring has begun to overwrite, perhaps in the middle of a coalesced one
            cut[its] = first[its].seq


def _entry(entry: Any, record: RankRecord) -> tuple[Key, Operation] | None:
    if not isinstance(entry, Mapping):
        record.complain("an entry is no object")
        return None
    key = key_of(entry.get("process_group"))
    if key is None:
        record.complain("an entry without a process group")
        return None
    operation = operation_of(
        entry,
        seq=entry.get("collective_seq_id"),
        p2p_seq=entry.get("p2p_seq_id"),
        name=entry.get("profiling_name"),
        p2p=entry.get("is_p2p"),
        created=entry.get("time_created_ns"),
        number=integer(entry.get("record_id")),
    )
    if operation is None:
        record.complain("an entry without a sequence number or a name")
        return None
    return key._replace(backend=operation.backend), operation
