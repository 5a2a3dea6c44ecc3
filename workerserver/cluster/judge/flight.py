"""What the flight recorders of all ranks say together, for each process group.

Only traces and summaries count here; :mod:`diagnose` adds the stacks. Sequence numbers can be
compared between ranks, because torch counts a group's collectives in the same way on each of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from workerserver.cluster.judge import sentences
from workerserver.cluster.judge.order.streams import Head, heads, is_queued
from workerserver.cluster.judge.waits import Need, resolve
from workerserver.cluster.read.flight_records import read
from workerserver.cluster.read.recorder import GroupRecord, Key, Operation, RankRecord, Shared

__all__ = ["Analysis", "Group", "Mismatch", "Wait", "analyse", "combine"]

#: Of one group. Each rank may wait in another operation; the oldest operations tell the most.
MAX_WAITS = 64
#: By how many numbers an operation may be off to count as issued in another order.
MAX_SHIFT = 64

#: How the operations begin that no rank can end before every rank has entered them.
TOGETHER = ("all", "_all", "barrier", "reduce_scatter", "_reduce_scatter")
#: Operations in which the ranks may have inputs, or outputs, of different sizes.
UNEVEN_INPUTS = ("all_to_all", "alltoall", "scatter", "all_gather_v", "reduce_scatter_v")
UNEVEN_OUTPUTS = ("all_to_all", "alltoall", "gather", "all_gather_v", "reduce_scatter_v")

Kind = Literal["operation", "order", "size", "dtype"]


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """A process group as its ranks together describe it. *complete*: *ranks* are all of its ranks,
    not only those that have issued something (torch doesn't record the ranks of gloo's groups)."""

    key: Key
    ranks: tuple[int, ...]
    complete: bool
    records: Mapping[int, GroupRecord]
    one_of: bool = False
    """Its ranks use several backends in the group; this is the part of one of them."""
    lossy: bool = False
    """Nobody tells the members of the group, and a rank may be one whose short ring has lost all of
    the group's operations."""

    @property
    def label(self) -> str:
        return f"{self.key.label} ({self.key.backend})" if self.one_of else self.key.label


@dataclass(frozen=True, slots=True, eq=False)
class Wait:
    """*waiting* have entered an operation that has not ended. *absent* have not entered it;
    *silent* are members whose recorder says nothing. *queued* have issued it behind another one
    that has not ended. Point-to-point: *seq* is None."""

    group: Group
    seq: int | None
    op: str
    waiting: tuple[int, ...]
    absent: tuple[int, ...]
    silent: tuple[int, ...] = ()
    since_ns: int | None = None
    """When the ranks that wait issued it, by their own clocks: the middle one."""
    queued: tuple[int, ...] = ()
    inferred: bool = False
    """The recorder tells no end: that it goes on follows from who has not entered it."""
    by_stack: bool = False
    """No recorder holds it: the stack of the rank that waits tells it (:mod:`chains.peers`)."""

    @property
    def name(self) -> str:
        return self.op if self.seq is None else f"{self.op} #{self.seq}"


@dataclass(frozen=True, slots=True, eq=False)
class Mismatch:
    """Ranks issued different operations with the same number. *parties*: which ranks issued what,
    the largest party first. *suspects*: all ranks outside of the largest party. If two parties are
    the largest, the ranks of all parties."""

    group: Group
    seq: int
    kind: Kind
    parties: tuple[tuple[tuple[int, ...], str], ...]
    suspects: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Analysis:
    groups: tuple[Group, ...]
    waits: tuple[Wait, ...]
    mismatches: tuple[Mismatch, ...]
    """The first one of each group: later numbers are shifted."""
    cycles: tuple[tuple[int, ...], ...]
    """Ranks that wait for each other: point-to-point, or in groups taken in different orders."""
    recorded: frozenset[int]
    """Ranks whose recorder holds something."""
    problems: Mapping[int, tuple[str, ...]]

    def behind(self) -> dict[int, tuple[Wait, ...]]:
        """Ranks that others wait for while they wait for nobody, as far as recorders can tell."""
        blame = resolve([need(wait) for wait in self.waits])
        return {
            rank: tuple(self.waits[number] for number in numbers)
            for rank, numbers in blame.ends.items()
        }


def need(wait: Wait) -> Need:
    return Need(wait.waiting, (*wait.absent, *wait.queued, *wait.silent))


def analyse(
    flights: Mapping[int, Any],
    world_size: int | None = None,
    summaries: Mapping[int, Any] | None = None,
) -> Analysis:
    """*flights* has parsed ``fr_trace_json`` by rank, *summaries* ``fr_summary``. A rank may have
    either, or both."""
    summaries = summaries or {}
    ranks = sorted({*flights, *summaries})
    shared = Shared()
    records = {rank: read(flights.get(rank), summaries.get(rank), shared) for rank in ranks}
    return combine(records, world_size)


def combine(records: Mapping[int, RankRecord], world_size: int | None = None) -> Analysis:
    """As :func:`analyse`, from records that have been read."""
    problems = {rank: list(record.problems) for rank, record in sorted(records.items())}
    short = any(record.short for record in records.values())
    groups = [
        replace(group, lossy=True) if short and not group.complete else group
        for group in _groups(records, world_size, problems)
    ]
    first = heads(records)
    waits = [wait for group in groups for wait in _waits(group, records, first)]
    waits += [wait for group in groups for wait in _peer_waits(group, problems, first)]
    mismatches = [found for group in groups if (found := _mismatch(group)) is not None]
    blame = resolve([need(wait) for wait in waits])
    return Analysis(
        groups=tuple(groups),
        waits=tuple(waits),
        mismatches=tuple(mismatches),
        cycles=tuple(ranks for ranks, _ in blame.rings),
        recorded=frozenset(rank for rank, record in records.items() if not record.empty),
        problems={rank: tuple(each) for rank, each in problems.items() if each},
    )


# --- groups -------------------------------------------------------------------------------------


def _groups(
    records: Mapping[int, RankRecord], world_size: int | None, problems: dict[int, list[str]]
) -> list[Group]:
    by_key: dict[Key, dict[int, GroupRecord]] = {}
    for rank, record in sorted(records.items()):
        for key, group in record.groups.items():
            by_key.setdefault(key, {})[rank] = group
    backends: dict[Key, list[Key]] = {}
    for key in by_key:
        if key.backend:
            backends.setdefault(key._replace(backend=""), []).append(key)
    for nameless, keys in backends.items():  # who has issued nothing belongs to each of them
        for rank, group in by_key.pop(nameless, {}).items():
            for key in keys:
                by_key[key].setdefault(rank, GroupRecord(key, group.ranks))
    groups: list[Group] = []
    for key, members in sorted(by_key.items()):
        one_of = len(backends.get(key._replace(backend=""), ())) > 1
        found = _split(key, _newest(key, members), world_size, problems)
        groups += (replace(each, one_of=True) for each in found) if one_of else found
    return groups


def _newest(key: Key, members: Mapping[int, GroupRecord]) -> dict[int, GroupRecord]:
    """*members*, of the group that was made last under this name. A rank that is still in one that
    others have destroyed has not come to this one."""
    most = max(len(record.earlier) for record in members.values())
    if not most:
        return dict(members)
    gone = frozenset().union(*(record.earlier for record in members.values()))
    return {
        rank: GroupRecord(key, record.ranks)
        if len(record.earlier) < most and record.number in gone
        else record
        for rank, record in members.items()
    }


def _split(
    key: Key,
    members: Mapping[int, GroupRecord],
    world_size: int | None,
    problems: dict[int, list[str]],
) -> list[Group]:
    """The groups that share the name *key*. Groups made by splitting may share a name, but no rank.
    If two claims contradict each other, the claim of more ranks counts."""
    # Equal lists are one object: to compare them for each rank would be quadratic in a large job.
    claimed = {id(record.ranks): record.ranks for record in members.values() if record.ranks}
    sets = {source: frozenset(ranks) for source, ranks in claimed.items()}
    claims: Counter[tuple[int, ...]] = Counter()
    counts = Counter(
        id(record.ranks)
        for rank, record in members.items()
        if record.ranks and rank in sets[id(record.ranks)]
    )
    for source, count in counts.items():
        claims[claimed[source]] += count
    accepted: list[tuple[int, ...]] = []
    taken: set[int] = set()
    for ranks, _ in sorted(claims.items(), key=lambda each: (-each[1], -len(each[0]), each[0])):
        if taken.isdisjoint(ranks):
            accepted.append(ranks)
            taken.update(ranks)
    if not accepted:
        if key.desc == "default_pg" and world_size is not None:
            ranks = tuple(sorted({*range(world_size), *members}))
            return [Group(key, ranks, True, dict(members))]
        active = {rank: each for rank, each in members.items() if each.collectives or each.p2p}
        return [Group(key, tuple(sorted(active)), False, active)] if active else []
    groups = []
    believed = {source for source, ranks in claimed.items() if ranks in accepted}
    for ranks in sorted(accepted):
        own = {rank: members[rank] for rank in ranks if rank in members}
        groups.append(Group(key, ranks, True, own))
    for rank, record in sorted(members.items()):
        if rank not in taken:
            problems.setdefault(rank, []).append(sentences.not_a_member(key.label))
        elif record.ranks is not None and id(record.ranks) not in believed:
            problems.setdefault(rank, []).append(sentences.other_members(key.label, record.ranks))
    return groups


# --- waits --------------------------------------------------------------------------------------


def _waits(
    group: Group, records: Mapping[int, RankRecord], first_of: Mapping[int, Head]
) -> list[Wait]:
    pending: dict[int, list[int]] = {}
    queued: dict[int, list[int]] = {}
    last: dict[int, int] = {}
    for rank, record in group.records.items():
        first = record.first_pending
        if first is not None:
            later = is_queued(first_of.get(rank), group.key, first)
            (queued if later else pending).setdefault(first.seq, []).append(rank)
        last[rank] = max(record.collectives, default=-1)
    # If an operation has ended, all ranks have issued it: an empty record then tells nothing.
    begun = any(record.last_retired is not None for record in group.records.values())
    # So it does where rings are short. A full trace tells that: its own, or, as the rings of a job
    # have one size, another rank's.
    short = any(record.short for record in records.values())
    silent = []
    for rank in group.ranks:
        whole, own = records.get(rank), group.records.get(rank)
        if whole is None:
            silent.append(rank)
        elif own is None or not own.collectives:
            lost = short if whole.short is None else whole.short
            if begun or lost or (whole.empty and whole.enqueued > 0):
                silent.append(rank)
    unknown = set(silent)
    waits = list(_inferred(group, last, pending, silent))
    for seq in sorted(pending)[:MAX_WAITS]:
        waiting = tuple(sorted(pending[seq]))
        names = Counter(group.records[rank].collectives[seq][-1].op for rank in waiting)
        absent = [rank for rank in group.ranks if rank not in unknown and last.get(rank, -1) < seq]
        behind = [rank for each, ranks in queued.items() if each <= seq for rank in ranks]
        waits.append(
            Wait(
                group=group,
                seq=seq,
                op=min(names, key=lambda name: (-names[name], name)),
                waiting=waiting,
                absent=tuple(absent),
                silent=tuple(silent),
                queued=tuple(sorted({*behind} - {*absent, *unknown})),
                since_ns=_middle(
                    created
                    for rank in waiting
                    if (created := group.records[rank].collectives[seq][-1].created_ns)
                ),
            )
        )
    return waits


def _inferred(
    group: Group, last: Mapping[int, int], pending: Mapping[int, Sequence[int]], silent: list[int]
) -> Iterator[Wait]:
    """The wait for the members that are the furthest behind, where the recorder tells no end: no
    rank can have ended an operation of all ranks that one of them has not entered."""
    known = [rank for rank in group.ranks if rank not in set(silent)]
    least = min((last.get(rank, -1) for rank in known), default=-1)
    waiting: dict[int, Operation] = {}
    for rank, record in group.records.items():
        later = (
            op
            for seq in sorted(record.collectives)
            if seq > least
            for op in record.collectives[seq]
            if op.unknown
        )
        first = next(later, None)
        if first is not None:
            waiting[rank] = first
    if not group.complete or not waiting or pending:
        return
    first = min(waiting.values(), key=lambda op: op.seq)
    absent = [rank for rank in known if last.get(rank, -1) < first.seq]
    if absent and first.op.startswith(TOGETHER):
        yield Wait(
            group=group,
            seq=first.seq,
            op=first.op,
            waiting=tuple(sorted(waiting)),
            absent=tuple(absent),
            silent=tuple(silent),
            since_ns=_middle(op.created_ns for op in waiting.values() if op.created_ns),
            inferred=True,
        )


def _middle(values: Iterable[int]) -> int | None:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else None


def _peer_waits(
    group: Group, problems: dict[int, list[str]], first_of: Mapping[int, Head]
) -> list[Wait]:
    """Sends and receives whose peer has not posted its part. Only backends with NCCL's recorder
    record them: "nccl:send 0->1", with ranks within the group."""
    posted: dict[tuple[str, int, int], bool] = {}  # whether it is behind another operation
    first: list[tuple[int, Operation, int, int]] = []
    for rank, record in sorted(group.records.items()):
        pending = [op for op in record.p2p if op.pending]
        for op in pending:
            if op.source is None or op.target is None:
                continue  # "coalesced" closes a batch
            if not group.complete or max(op.source, op.target) >= len(group.ranks):
                problem = sentences.no_such_ranks(op.op, group.label)
                problems.setdefault(rank, []).append(problem)
                continue
            source, target = group.ranks[op.source], group.ranks[op.target]
            word = "recv" if op.op.startswith("recv") else "send"
            later = is_queued(first_of.get(rank), group.key, op)
            posted.setdefault((word, source, target), later)
            if op.p2p_seq == pending[0].p2p_seq and not later:
                first.append((rank, op, source, target))
    waits = []
    for rank, op, source, target in first:
        receives = op.op.startswith("recv")
        peer, other = (source, "send") if receives else (target, "recv")
        behind = posted.get((other, source, target))
        if peer == rank or behind is False:
            continue
        name = sentences.send_or_receive(receives, peer)
        absent, queued = ((peer,), ()) if behind is None else ((), (peer,))
        waits.append(Wait(group, None, name, (rank,), absent, (), op.created_ns, queued))
    return waits


# --- mismatches ---------------------------------------------------------------------------------


def _mismatch(group: Group) -> Mismatch | None:
    """The first operation that the ranks don't agree about."""
    # A full trace has thousands of operations that no other rank has: these are skipped at once.
    known: dict[int, dict[int, tuple[Operation, ...]]] = {}
    for rank, record in sorted(group.records.items()):
        for seq, each in record.collectives.items():
            known.setdefault(seq, {})[rank] = each
    for seq in sorted(seq for seq, ranks in known.items() if len(ranks) > 1):
        operations = _comparable(group, seq, known[seq])
        for kind, facts in ASPECTS:
            parties: dict[Hashable, list[int]] = {}
            for rank, each in operations.items():
                value = tuple(map(facts, each))
                if None not in value:
                    parties.setdefault(value, []).append(rank)
            if len(parties) > 1:
                return _disagreement(group, seq, kind, list(parties.values()), operations)
    return None


def _comparable(
    group: Group, seq: int, found: dict[int, tuple[Operation, ...]]
) -> dict[int, tuple[Operation, ...]]:
    """By rank. If operations were coalesced, a rank that may not know all of them is left out."""
    if any(len(ops) > 1 or "coalesced" in ops[0].op for ops in found.values()):
        return {rank: ops for rank, ops in found.items() if seq not in group.records[rank].partial}
    return found


def _op(operation: Operation) -> Hashable:
    return operation.op


def _even(operation: Operation, names: Sequence[str]) -> bool:
    return not operation.op.lstrip("_").startswith(tuple(names))


def _sizes(operation: Operation) -> Hashable:
    if operation.inputs.sizes is None or operation.outputs.sizes is None:
        return None
    return (
        operation.inputs.sizes if _even(operation, UNEVEN_INPUTS) else (),
        operation.outputs.sizes if _even(operation, UNEVEN_OUTPUTS) else (),
    )


def _dtypes(operation: Operation) -> Hashable:
    if operation.inputs.dtypes is None:
        return None
    # A rank that only receives, as in scatter, has no input and so no type.
    return tuple(sorted(set(operation.inputs.dtypes))) or None


ASPECTS: tuple[tuple[Kind, Callable[[Operation], Hashable]], ...] = (
    ("operation", _op),
    ("size", _sizes),
    ("dtype", _dtypes),
)


def _disagreement(
    group: Group,
    seq: int,
    kind: Kind,
    parties: list[list[int]],
    operations: Mapping[int, tuple[Operation, ...]],
) -> Mismatch:
    ordered = sorted(parties, key=lambda ranks: (-len(ranks), ranks))
    equal = len(ordered[0]) == len(ordered[1])
    suspects = sorted(rank for ranks in (ordered if equal else ordered[1:]) for rank in ranks)
    if kind == "operation" and any(
        _reordered(group, seq, ordered[0][0], ranks[0]) for ranks in ordered[1:]
    ):
        kind = "order"
    described = tuple(
        (tuple(sorted(ranks)), _describe(operations[ranks[0]], kind)) for ranks in ordered
    )
    return Mismatch(group, seq, kind, described, tuple(suspects))


def _describe(operations: Sequence[Operation], kind: Kind) -> str:
    text = "+".join(operation.op for operation in operations[:4])
    if kind in ("operation", "order"):
        return text
    first = operations[0]
    tensors = first.inputs if first.inputs.shapes else first.outputs
    if kind == "dtype":
        return sentences.with_types(text, tensors.dtypes or ())
    return sentences.with_shapes(text, (tensors.shapes or ())[:4])


def _reordered(group: Group, seq: int, one: int, other: int) -> bool:
    """Whether each of the two ranks issued later what the other one issued as number *seq*."""

    def later(rank: int, operations: tuple[Operation, ...]) -> bool:
        mine = group.records[rank].collectives
        names = tuple(map(_op, operations))
        return any(
            tuple(map(_op, mine[number])) == names
            for number in range(seq + 1, seq + 1 + MAX_SHIFT)
            if number in mine
        )

    first = group.records[one].collectives[seq]
    second = group.records[other].collectives[seq]
    return later(one, second) and later(other, first)
