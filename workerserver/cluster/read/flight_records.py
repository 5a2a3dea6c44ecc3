"""Reads what one rank's flight recorder says (``fr_trace_json``, ``fr_summary``) into plain data.

Nothing that a worker sends is trusted: every field has its type and its bound, what doesn't fit is
left out and named in :attr:`RankRecord.problems`, and no JSON makes :func:`read` raise.

Seen on torch 2.13 (docs/torch.md): with gloo a finished operation keeps ``"state": "scheduled"``
and shows it by ``"retired": true``, send and recv are not recorded, and ``pg_config`` has no name,
so it can't be told whose ranks it lists; ``entries`` is absent when there are none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from workerserver.ranks import unpack

__all__ = ["GroupRecord", "Key", "Operation", "RankRecord", "Shared", "Tensors", "read"]

#: Bounds of what is kept of one rank. torch's ring holds 2,000 operations by default.
MAX_ENTRIES = 20_000
MAX_GROUPS = 4096
MAX_NAME = 200
MAX_TENSORS = 64
MAX_DIMENSIONS = 16
MAX_RANKS = 1 << 20
MAX_INTEGER = 1 << 63
MAX_PROBLEMS = 8

#: Backends with a watchdog that also retires what has timed out: only "completed" is done.
WATCHED = frozenset({"nccl", "ncclx", "rccl", "rcclx", "xccl", "hccl", "mccl"})

#: torch's names of the backends' point-to-point operations: "nccl:send 0->1", "nccl:recv 1<-0".
PEERS = re.compile(r"(?:send (\d{1,9})->(\d{1,9})|recv (\d{1,9})<-(\d{1,9}))\Z")

Shape = tuple[int, ...]


class Key(NamedTuple):
    """What torch calls a group; "0" and "default_pg" for the default one."""

    name: str
    desc: str

    @property
    def label(self) -> str:
        """What people call it."""
        return self.desc if self.desc not in ("", "undefined") else self.name or "unnamed group"


class Tensors(NamedTuple):
    """The tensors on one side of an operation; None where the record doesn't say."""

    shapes: tuple[Shape, ...] | None
    dtypes: tuple[str, ...] | None

    @property
    def sizes(self) -> tuple[int, ...] | None:
        """How many elements each tensor has: what has to agree, whatever the shapes."""
        if self.shapes is None:
            return None
        sizes = []
        for shape in self.shapes:
            size = 1
            for length in shape:
                size *= length
            sizes.append(size)
        return tuple(sizes)


NO_TENSORS = Tensors(None, None)


@dataclass(frozen=True, slots=True)
class Operation:
    """One recorded operation. *seq* counts the group's collectives, the same on each rank."""

    seq: int
    op: str
    """Without the backend: ``all_reduce``, ``send 0->1``."""
    backend: str
    done: bool
    p2p: bool = False
    p2p_seq: int = 0
    source: int | None = None
    """*source* and *target*: ranks within the group, of a point-to-point operation."""
    target: int | None = None
    inputs: Tensors = NO_TENSORS
    outputs: Tensors = NO_TENSORS
    state: str = ""
    created_ns: int | None = None
    record: int = -1
    """Its place in the recorder; -1 from a summary, which has only a few of the operations."""

    @property
    def name(self) -> str:
        return f"{self.op} #{self.seq}"


@dataclass(slots=True)
class GroupRecord:
    """What one rank knows of one group."""

    key: Key
    ranks: tuple[int, ...] | None = None
    """Global ranks, sorted; None if this rank doesn't say."""
    collectives: dict[int, tuple[Operation, ...]] = field(default_factory=dict)
    """By sequence number; more than one if they were coalesced."""
    p2p: tuple[Operation, ...] = ()
    """In the order in which they were issued."""
    partial: frozenset[int] = frozenset()
    """Sequence numbers of which not all operations may be known."""

    @property
    def last_issued(self) -> Operation | None:
        return self.collectives[max(self.collectives)][-1] if self.collectives else None

    @property
    def last_retired(self) -> Operation | None:
        done = [seq for seq, ops in self.collectives.items() if all(op.done for op in ops)]
        return self.collectives[max(done)][-1] if done else None

    @property
    def first_pending(self) -> Operation | None:
        """The collective that has not ended though all before it may have."""
        pending = [seq for seq, ops in self.collectives.items() if not all(op.done for op in ops)]
        if not pending:
            return None
        return next(op for op in self.collectives[min(pending)] if not op.done)


@dataclass(slots=True)
class RankRecord:
    """What one rank's recorder holds; without groups if it has none or sent nonsense."""

    groups: dict[Key, GroupRecord] = field(default_factory=dict)
    enqueued: int = 0
    """The most that torch's own counters say of any group: 0 if it keeps none."""
    problems: list[str] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Not one operation: nothing was issued, or torch doesn't record (a buffer size of 0)."""
        return not any(group.collectives or group.p2p for group in self.groups.values())

    def complain(self, problem: str) -> None:
        if problem not in self.problems and len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)


#: What tells operations apart, and its place in the recorder.
Known = dict[tuple[bool, int, int, str, int], Operation]


class Shared:
    """Lists of ranks, each read once: every rank of a large job sends the same ones.

    A list is known by its identity, so it has to live as long as this.
    """

    def __init__(self) -> None:
        self.by_source: dict[int | str, tuple[int, ...] | None] = {}
        self.alike: dict[tuple[int, ...], tuple[int, ...]] = {}

    def ranks(self, value: Any) -> tuple[int, ...] | None:
        """Sorted; equal ones are the same object. None for none."""
        if not isinstance(value, (list, str)):
            return None
        source = value if isinstance(value, str) else id(value)
        if source not in self.by_source:
            found = _ranks(value)
            self.by_source[source] = None if found is None else self.alike.setdefault(found, found)
        return self.by_source[source]

    def packed(self, text: str, most: int) -> tuple[int, ...] | None:
        """As :meth:`ranks`, of the text of a summary (``"0-4095"``), which a few characters make
        long: None if it stands for more than *most*."""
        found = self.by_source.get(text)
        if found is None:
            try:
                found = tuple(sorted(set(unpack(text, most))))
            except ValueError:
                return None
            found = self.by_source[text] = self.alike.setdefault(found, found)
        return found if 0 < len(found) <= most else None


def read(flight: Any, summary: Any = None, shared: Shared | None = None) -> RankRecord:
    """One rank's parsed ``fr_trace_json`` (or ``dump_nccl_trace_json``) and ``fr_summary``.

    Either may be None. Of an operation that stands in both, the trace's word counts.
    """
    shared = shared or Shared()
    record = RankRecord()
    found: dict[Key, Known] = {}
    cut: dict[Key, int] = {}
    if summary is not None:
        for key, ranks, operations in _summary_groups(summary, record, shared):
            group = _group(record, key)
            if group is not None:
                group.ranks = group.ranks or ranks
                for operation in operations:
                    found.setdefault(key, {})[_identity(operation, -1)] = operation
    if flight is not None:
        _read_trace(flight, record, shared, found, cut)
    for key, known in found.items():
        _fill(record.groups[key], known.values(), cut.get(key))
    return record


def _group(record: RankRecord, key: Key) -> GroupRecord | None:
    group = record.groups.get(key)
    if group is None:
        if len(record.groups) >= MAX_GROUPS:
            record.complain(f"more than {MAX_GROUPS} process groups")
            return None
        group = record.groups[key] = GroupRecord(key)
    return group


def _identity(operation: Operation, record: int) -> tuple[bool, int, int, str, int]:
    return (operation.p2p, operation.seq, operation.p2p_seq, operation.op, record)


def _fill(group: GroupRecord, operations: Iterable[Operation], cut: int | None) -> None:
    """Sort *operations* into *group*. *cut*: the recorder may have lost some at this number."""
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


# --- fr_trace_json ------------------------------------------------------------------------------


def _read_trace(
    flight: Any,
    record: RankRecord,
    shared: Shared,
    found: dict[Key, Known],
    cut: dict[Key, int],
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
    status = flight.get("pg_status")
    if isinstance(status, Mapping):
        record.enqueued = max(map(_enqueued, list(status.values())[:MAX_GROUPS]), default=0)
    config = flight.get("pg_config")
    if not isinstance(config, Mapping):
        config = {}
    first: dict[Key, Operation] = {}
    by_trace: dict[Key, list[Operation]] = {}
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
        by_trace.setdefault(key, []).append(operation)
        if key not in first or operation.record < first[key].record:
            first[key] = operation
    # A rank may belong to groups in which it has issued nothing; NCCL's configuration says so.
    for name, described in list(config.items())[:MAX_GROUPS]:
        if isinstance(described, Mapping) and _is_name(name) and name:
            ranks, desc = shared.ranks(described.get("ranks")), described.get("desc")
            if ranks and isinstance(desc, str) and _is_name(desc):
                group = _group(record, Key(name, desc))
                if group is not None:
                    group.ranks = group.ranks or ranks
    oldest = min((each.record for each in first.values()), default=0)
    for key, operations in by_trace.items():
        known = found.setdefault(key, {})
        for operation in operations:
            known.pop(_identity(operation, -1), None)
        known.update({_identity(each, each.record): each for each in operations})
        if oldest > 0:  # the ring has begun to overwrite, perhaps in the middle of a coalesced one
            cut[key] = first[key].seq


def _entry(entry: Any, record: RankRecord) -> tuple[Key, Operation] | None:
    if not isinstance(entry, Mapping):
        record.complain("an entry is no object")
        return None
    key = _key(entry.get("process_group"))
    if key is None:
        record.complain("an entry without a process group")
        return None
    operation = _operation(
        entry,
        seq=entry.get("collective_seq_id"),
        name=entry.get("profiling_name"),
        p2p=entry.get("is_p2p"),
        created=entry.get("time_created_ns"),
        number=_integer(entry.get("record_id")),
    )
    if operation is None:
        record.complain("an entry without a sequence number or a name")
        return None
    return key, operation


# --- fr_summary ---------------------------------------------------------------------------------


def _summary_groups(
    summary: Any, record: RankRecord, shared: Shared
) -> Iterator[tuple[Key, tuple[int, ...] | None, list[Operation]]]:
    groups = summary.get("groups") if isinstance(summary, Mapping) else None
    if not isinstance(groups, list):
        record.complain("the summary has no list of groups")
        return
    if len(groups) > MAX_GROUPS:
        record.complain(f"more than {MAX_GROUPS} process groups")
    left = MAX_RANKS
    for group in groups[:MAX_GROUPS]:
        key = _key([group.get("name"), group.get("desc")]) if isinstance(group, Mapping) else None
        if key is None:
            record.complain("a group of the summary without a name")
            continue
        operations: list[Operation] = []
        seen: list[Any] = []
        for word in ("last_retired", "first_pending", "last_issued"):
            facts = group.get(word)
            if facts is None or facts in seen:
                continue
            seen.append(facts)
            operation = None
            if isinstance(facts, Mapping):
                operation = _operation(
                    facts,
                    seq=facts.get("seq"),
                    name=facts.get("op"),
                    p2p=facts.get("p2p"),
                    created=facts.get("created_ns"),
                    number=-1,
                )
            if operation is None:
                record.complain(f"{word} of a group is no operation")
            else:
                operations.append(operation)
        members = group.get("ranks")
        if isinstance(members, str):
            ranks = shared.packed(members, left)
            if ranks is None:
                record.complain("the ranks of a group can't be read, or are too many")
            else:
                left -= len(ranks)
        else:
            ranks = shared.ranks(members)
        yield key, ranks, operations


# --- fields -------------------------------------------------------------------------------------


def _operation(
    facts: Mapping[Any, Any], seq: Any, name: Any, p2p: Any, created: Any, number: int | None
) -> Operation | None:
    seq = _integer(seq)
    if seq is None or not _is_name(name) or not name:
        return None
    backend, colon, op = name.partition(":")
    if not colon:
        backend, op = "", name
    state = facts.get("state")
    if not isinstance(state, str) or not _is_name(state):
        state = ""
    retired = facts.get("retired") is True
    # gloo never says completed.
    done = state == "completed" or (retired and backend not in WATCHED)
    source = target = None
    if p2p is True and (match := PEERS.match(op)) is not None:
        ends = [int(each) for each in match.groups() if each is not None]
        source, target = ends if op.startswith("send") else reversed(ends)
    p2p_seq = _integer(facts.get("p2p_seq_id", facts.get("p2p_seq")))
    return Operation(
        seq=seq,
        op=op,
        backend=backend,
        done=done,
        p2p=p2p is True,
        p2p_seq=p2p_seq or 0,
        source=source,
        target=target,
        inputs=Tensors(_shapes(facts.get("input_sizes")), _names(facts.get("input_dtypes"))),
        outputs=Tensors(_shapes(facts.get("output_sizes")), _names(facts.get("output_dtypes"))),
        state=state,
        created_ns=_integer(created) or None,
        record=-1 if number is None else number,
    )


def _enqueued(counters: Any) -> int:
    text = counters.get("last_enqueued_collective") if isinstance(counters, Mapping) else None
    if isinstance(text, str) and len(text) < 20 and text.isascii() and text.isdigit():
        return int(text)
    return 0


def _key(value: Any) -> Key | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    name, desc = value
    return Key(name, desc) if _is_name(name) and _is_name(desc) else None


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_NAME


def _integer(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value < MAX_INTEGER else None


def _shapes(value: Any) -> tuple[Shape, ...] | None:
    if not isinstance(value, list):
        return None
    shapes = []
    for shape in value[:MAX_TENSORS]:
        if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
            return None
        lengths = [_integer(length) for length in shape]
        if None in lengths:
            return None
        shapes.append(tuple(length for length in lengths if length is not None))
    return tuple(shapes)


def _names(value: Any) -> tuple[str, ...] | None:
    if not isinstance(value, list) or not all(_is_name(each) for each in value[:MAX_TENSORS]):
        return None
    return tuple(value[:MAX_TENSORS])


def _ranks(value: list[Any] | str) -> tuple[int, ...] | None:
    """A list of ranks, or its text as torch writes it: ``"[0, 1]"``. None for none."""
    if isinstance(value, str):
        if len(value) > 8 * MAX_RANKS:
            return None
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, list) or not 0 < len(value) <= MAX_RANKS:
        return None
    if not all(type(rank) is int and 0 <= rank < MAX_RANKS for rank in value):
        return None
    return tuple(sorted(set(value)))
