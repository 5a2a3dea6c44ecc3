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
from workerserver.cluster.judge.order.streams import Head, heads, is_queued, may_queue
from workerserver.cluster.judge.waits import Need, resolve
from workerserver.cluster.read.columns.rows import (
    Members,
    Part,
    Records,
    Row,
    parts_of,
    rows_of,
)
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
    """By rank. Where only what ranks say alike is needed, :attr:`parts` cost less."""
    one_of: bool = False
    """Its ranks use several backends in the group; this is the part of one of them."""
    lossy: bool = False
    """Nobody tells the members of the group, and a rank may be one that has no recorder, or whose
    short ring has lost all of the group's operations."""

    @property
    def label(self) -> str:
        return f"{self.key.label} ({self.key.backend})" if self.one_of else self.key.label

    @property
    def parts(self) -> Sequence[Part]:
        """*records*, those of ranks that say the same together."""
        return parts_of(self.records)


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


def combine(
    records: Mapping[int, RankRecord], world_size: int | None = None, workers: int = 0
) -> Analysis:
    """As :func:`analyse`, from records that have been read. *workers*: how many the job has, where
    the ranks of some are unknown."""
    told = rows_of(records)
    problems = {
        rank: list(row.record.problems)
        for row in told.rows
        if row.record.problems
        for rank in row.ranks
    }
    short = any(row.record.short for row in told.rows)
    recorded = frozenset(rank for row in told.rows if not row.record.empty for rank in row.ranks)
    unseen = len(recorded) < max(len(records), world_size or 0, workers)
    groups = [
        replace(group, lossy=True) if (short or unseen) and not group.complete else group
        for group in _groups(told.rows, world_size, problems)
    ]
    first = heads(told.rows)
    waits = [wait for group in groups for wait in _waits(group, told, first, short)]
    waits += [wait for group in groups for wait in _peer_waits(group, problems, first)]
    mismatches = [found for group in groups if (found := _mismatch(group)) is not None]
    blame = resolve([need(wait) for wait in waits])
    return Analysis(
        groups=tuple(groups),
        waits=tuple(waits),
        mismatches=tuple(mismatches),
        cycles=tuple(ranks for ranks, _ in blame.rings),
        recorded=recorded,
        problems={rank: tuple(each) for rank, each in sorted(problems.items()) if each},
    )


# --- groups -------------------------------------------------------------------------------------


def _groups(
    rows: Iterable[Row], world_size: int | None, problems: dict[int, list[str]]
) -> list[Group]:
    by_key: dict[Key, list[Part]] = {}
    for row in rows:
        for key, group in row.record.groups.items():
            by_key.setdefault(key, []).append(Part(group, row.ranks, row))
    backends: dict[Key, list[Key]] = {}
    for key in by_key:
        if key.backend:
            backends.setdefault(key._replace(backend=""), []).append(key)
    for nameless, keys in backends.items():  # who has issued nothing belongs to each of them
        for part in by_key.pop(nameless, ()):
            for key in keys:
                by_key[key].append(Part(GroupRecord(key, part.record.ranks), part.ranks, part.row))
    groups: list[Group] = []
    for key, parts in sorted(by_key.items(), key=lambda each: each[0]):
        one_of = len(backends.get(key._replace(backend=""), ())) > 1
        found = _split(key, _newest(key, parts), world_size, problems)
        groups += (replace(each, one_of=True) for each in found) if one_of else found
    return groups


def _newest(key: Key, parts: Sequence[Part]) -> Sequence[Part]:
    """*parts*, of the group that was made last under this name. A rank that is still in one that
    others have destroyed has not come to this one."""
    most = max(len(part.record.earlier) for part in parts)
    if not most:
        return parts
    gone = frozenset().union(*(part.record.earlier for part in parts))
    return [
        part._replace(record=GroupRecord(key, part.record.ranks))
        if len(part.record.earlier) < most and part.record.number in gone
        else part
        for part in parts
    ]


def _split(
    key: Key, parts: Sequence[Part], world_size: int | None, problems: dict[int, list[str]]
) -> list[Group]:
    """The groups that share the name *key*. Groups made by splitting may share a name, but no rank.
    If two claims contradict each other, the claim of more ranks counts."""
    # Equal lists are one object: to compare them for each rank would be quadratic in a large job.
    claimed = {id(part.record.ranks): part.record.ranks for part in parts if part.record.ranks}
    sets = {source: frozenset(ranks) for source, ranks in claimed.items()}
    claims: Counter[tuple[int, ...]] = Counter()
    for part in parts:
        ranks = part.record.ranks
        count = len(sets[id(ranks)].intersection(part.ranks)) if ranks else 0
        if ranks and count:
            claims[ranks] += count
    accepted: list[tuple[int, ...]] = []
    taken: set[int] = set()
    for ranks, _ in sorted(claims.items(), key=lambda each: (-each[1], -len(each[0]), each[0])):
        if taken.isdisjoint(ranks):
            accepted.append(ranks)
            taken.update(ranks)
    if not accepted:
        if key.desc == "default_pg" and world_size is not None:
            members = {rank for part in parts for rank in part.ranks}
            ranks = tuple(sorted({*range(world_size), *members}))
            return [Group(key, ranks, True, Members(parts))]
        active = [part for part in parts if part.record.collectives or part.record.p2p]
        ranks = tuple(sorted(rank for part in active for rank in part.ranks))
        return [Group(key, ranks, False, Members(active))] if active else []
    believed = {source for source, ranks in claimed.items() if ranks in accepted}
    accepted.sort()
    groups = [
        Group(key, ranks, True, Members(own))
        for ranks, own in zip(accepted, _divided(parts, accepted), strict=True)
    ]
    for part in parts:
        outside = [rank for rank in part.ranks if rank not in taken]
        for rank in outside:
            problems.setdefault(rank, []).append(sentences.not_a_member(key.label))
        if part.record.ranks is not None and id(part.record.ranks) not in believed:
            other = sentences.other_members(key.label, part.record.ranks)
            for rank in set(part.ranks).difference(outside):
                problems.setdefault(rank, []).append(other)
    return groups


def _divided(
    parts: Sequence[Part], accepted: Sequence[tuple[int, ...]]
) -> Sequence[Sequence[Part]]:
    """What the ranks of each of the *accepted* lists say."""
    if len(accepted) == 1:
        (ranks,) = accepted
        inside = set(ranks)
        if all(inside.issuperset(part.ranks) for part in parts):
            return [parts]
    owner = {rank: number for number, ranks in enumerate(accepted) for rank in ranks}
    found: list[list[Part]] = [[] for _ in accepted]
    for part in parts:
        its: dict[int, list[int]] = {}
        for rank in part.ranks:
            number = owner.get(rank)
            if number is not None:
                its.setdefault(number, []).append(rank)
        for number, some in its.items():
            found[number].append(part._replace(ranks=some))
    return found


# --- waits --------------------------------------------------------------------------------------


def _waits(group: Group, records: Records, first_of: Mapping[int, Head], short: bool) -> list[Wait]:
    """*short*: some ring is so short that it may have lost operations that go on. A full trace
    tells that: a rank's own, or, as the rings of a job have one size, another rank's."""
    parts = group.parts
    pending: dict[int, list[Part]] = {}
    queued: dict[int, list[int]] = {}
    for part in parts:
        first = part.record.first_pending
        if first is None:
            continue
        later: list[int] = []
        if first_of and may_queue(first):
            later = [
                rank
                for rank in part.ranks
                if is_queued(first_of.get(rank), group.key, first, part.created(first, rank))
            ]
        if later:
            queued.setdefault(first.seq, []).extend(later)
            behind = set(later)
            part = part._replace(ranks=[rank for rank in part.ranks if rank not in behind])
        if part.ranks:
            pending.setdefault(first.seq, []).append(part)
    last = [(max(part.record.collectives, default=-1), part.ranks) for part in parts]
    # If an operation has ended, all ranks have issued it: an empty record then tells nothing.
    begun = any(part.record.last_retired is not None for part in parts)
    # So it does where rings are short.
    silent = []
    issued = {rank for part in parts if part.record.collectives for rank in part.ranks}
    for rank in group.ranks:
        if rank in issued:
            continue
        whole = records.alike(rank)
        lost = whole is None or (short if whole.short is None else whole.short)
        if whole is None or begun or lost or (whole.empty and whole.enqueued > 0):
            silent.append(rank)
    unknown = set(silent)
    waits = list(_inferred(group, pending, silent))
    for seq in sorted(pending)[:MAX_WAITS]:
        some = pending[seq]
        names: Counter[str] = Counter()
        for part in some:
            names[part.record.collectives[seq][-1].op] += len(part.ranks)
        come = {rank for newest, ranks in last if newest >= seq for rank in ranks}
        absent = [rank for rank in group.ranks if rank not in unknown and rank not in come]
        behind = {rank for each, ranks in queued.items() if each <= seq for rank in ranks}
        waits.append(
            Wait(
                group=group,
                seq=seq,
                op=min(names, key=lambda name: (-names[name], name)),
                waiting=tuple(sorted(rank for part in some for rank in part.ranks)),
                absent=tuple(absent),
                silent=tuple(silent),
                queued=tuple(sorted(behind.difference(absent, unknown))),
                since_ns=_middle(
                    created
                    for part in some
                    for created in part.moments(part.record.collectives[seq][-1])
                ),
            )
        )
    return waits


def _inferred(
    group: Group, pending: Mapping[int, Sequence[Part]], silent: Sequence[int]
) -> Iterator[Wait]:
    """The wait for the members that are the furthest behind, where the recorder tells no end: no
    rank can have ended an operation of all ranks that one of them has not entered."""
    endless = any(
        op.unknown for part in group.parts for ops in part.record.collectives.values() for op in ops
    )
    if not group.complete or pending or not endless:
        return
    last = {
        rank: max(part.record.collectives, default=-1)
        for part in group.parts
        for rank in part.ranks
    }
    known = [rank for rank in group.ranks if rank not in set(silent)]
    least = min((last.get(rank, -1) for rank in known), default=-1)
    waiting: list[tuple[Operation, Part]] = []
    for part in group.parts:
        later = (
            op
            for seq in sorted(part.record.collectives)
            if seq > least
            for op in part.record.collectives[seq]
            if op.unknown
        )
        first = next(later, None)
        if first is not None:
            waiting.append((first, part))
    if not waiting:
        return
    first, _ = min(waiting, key=lambda each: (each[0].seq, min(each[1].ranks)))
    absent = [rank for rank in known if last.get(rank, -1) < first.seq]
    if absent and first.op.startswith(TOGETHER):
        yield Wait(
            group=group,
            seq=first.seq,
            op=first.op,
            waiting=tuple(sorted(rank for _, part in waiting for rank in part.ranks)),
            absent=tuple(absent),
            silent=tuple(silent),
            since_ns=_middle(created for op, part in waiting for created in part.moments(op)),
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
    some = [part for part in group.parts if any(op.pending for op in part.record.p2p)]
    for rank in sorted(rank for part in some for rank in part.ranks):
        pending = [op for op in group.records[rank].p2p if op.pending]
        for op in pending:
            if op.source is None or op.target is None:
                continue  # "coalesced" closes a batch
            if not group.complete or max(op.source, op.target) >= len(group.ranks):
                problem = sentences.no_such_ranks(op.op, group.label)
                problems.setdefault(rank, []).append(problem)
                continue
            source, target = group.ranks[op.source], group.ranks[op.target]
            word = "recv" if op.op.startswith("recv") else "send"
            later = is_queued(first_of.get(rank), group.key, op, op.created_ns)
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
    known: dict[int, list[Part]] = {}
    for part in group.parts:
        for seq in part.record.collectives:
            known.setdefault(seq, []).append(part)
    for seq in sorted(known):
        if sum(len(part.ranks) for part in known[seq]) < 2:
            continue
        some = _comparable(seq, known[seq])
        for kind, facts in ASPECTS:
            parties: dict[Hashable, list[int]] = {}
            for part in some:
                value = tuple(map(facts, part.record.collectives[seq]))
                if None not in value:
                    parties.setdefault(value, []).extend(part.ranks)
            if len(parties) > 1:
                return _disagreement(group, seq, kind, [sorted(each) for each in parties.values()])
    return None


def _comparable(seq: int, parts: Sequence[Part]) -> Sequence[Part]:
    """If operations were coalesced, a rank that may not know all of them is left out."""
    found = [part.record.collectives[seq] for part in parts]
    if any(len(ops) > 1 or "coalesced" in ops[0].op for ops in found):
        return [part for part in parts if seq not in part.record.partial]
    return parts


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
) -> Mismatch:
    ordered = sorted(parties, key=lambda ranks: (-len(ranks), ranks))
    equal = len(ordered[0]) == len(ordered[1])
    suspects = sorted(rank for ranks in (ordered if equal else ordered[1:]) for rank in ranks)
    if kind == "operation" and any(
        _reordered(group, seq, ordered[0][0], ranks[0]) for ranks in ordered[1:]
    ):
        kind = "order"
    described = tuple(
        (tuple(ranks), _describe(group.records[ranks[0]].collectives[seq], kind))
        for ranks in ordered
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
