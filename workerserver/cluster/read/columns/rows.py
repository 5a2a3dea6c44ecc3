"""What the recorders of many ranks say, as rows: ranks whose records are equal but for times.

A row's record is read once. Where it says when something happened, it has FIRST_TIME or a larger
integer in place of the time: the number of the time among those that each rank of the row has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from workerserver.cluster.read.columns.summaries import FIRST_TIME
from workerserver.cluster.read.recorder import GroupRecord, Key, Operation, RankRecord

__all__ = [
    "Members",
    "Part",
    "Records",
    "Row",
    "Times",
    "moment",
    "own_record",
    "parts_of",
    "rows_of",
]

Times = Sequence[int]
"""The different times of one rank's summary."""


class Row(NamedTuple):
    """*ranks* whose recorders say the same, in order. *times*: what each of them has in place of
    the numbers in *record*; None if the record has the times themselves."""

    record: RankRecord
    ranks: Sequence[int]
    times: Mapping[int, Times] | None = None


def moment(told: int | None, times: Times | None) -> int | None:
    """The time in nanoseconds that a row's record says for the rank with *times*."""
    if told is None or times is None or told < FIRST_TIME:
        return told
    return times[told - FIRST_TIME]


def own_record(record: RankRecord, times: Times | None) -> RankRecord:
    """A row's *record* with the times of one of its ranks."""
    if times is None:
        return record
    groups = {key: _own_group(group, times) for key, group in record.groups.items()}
    return replace(record, groups=groups, problems=list(record.problems))


def _own_group(group: GroupRecord, times: Times) -> GroupRecord:
    own = {
        seq: tuple([_own(each, times) for each in operations])
        for seq, operations in group.collectives.items()
    }
    return replace(group, collectives=own, p2p=tuple([_own(each, times) for each in group.p2p]))


def _own(operation: Operation, times: Times) -> Operation:
    created = operation.created_ns
    if created is None or created < FIRST_TIME:
        return operation
    return replace(operation, created_ns=times[created - FIRST_TIME])


class Part(NamedTuple):
    """What the *ranks* of a row say of one process group."""

    record: GroupRecord
    ranks: Sequence[int]
    row: Row

    def times(self, rank: int) -> Times | None:
        return self.row.times[rank] if self.row.times is not None else None

    def created(self, operation: Operation, rank: int) -> int | None:
        """When *rank* issued *operation* of the record, in nanoseconds."""
        return moment(operation.created_ns, self.times(rank))

    def moments(self, operation: Operation) -> list[int]:
        """When the ranks issued *operation* of the record, as far as they tell."""
        created = operation.created_ns
        if not created:
            return []
        times = self.row.times
        if times is None or created < FIRST_TIME:
            return [created] * len(self.ranks)
        place = created - FIRST_TIME
        return [times[rank][place] for rank in self.ranks]


class Members(Mapping[int, GroupRecord]):
    """What each rank says of one process group. *parts* have the same with equal ranks together."""

    __slots__ = ("_of", "_own", "parts")

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self._of: dict[int, Part] | None = None
        self._own: dict[int, GroupRecord] = {}

    def part(self, rank: int) -> Part | None:
        if self._of is None:
            self._of = {each: part for part in self.parts for each in part.ranks}
        return self._of.get(rank)

    def __getitem__(self, rank: int) -> GroupRecord:
        part = self.part(rank)
        if part is None:
            raise KeyError(rank)
        times = part.times(rank)
        if times is None:
            return part.record
        if rank not in self._own:
            self._own[rank] = _own_group(part.record, times)
        return self._own[rank]

    def __contains__(self, rank: object) -> bool:
        return isinstance(rank, int) and self.part(rank) is not None

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(rank for part in self.parts for rank in part.ranks))

    def __len__(self) -> int:
        return sum(len(part.ranks) for part in self.parts)


def parts_of(records: Mapping[int, GroupRecord]) -> Sequence[Part]:
    """The parts of one process group. Records that are no :class:`Members` are one part each."""
    if isinstance(records, Members):
        return records.parts
    found = []
    for rank, record in sorted(records.items()):
        groups: dict[Key, GroupRecord] = {record.key: record}
        found.append(Part(record, (rank,), Row(RankRecord(groups), (rank,))))
    return found


class Records(Mapping[int, RankRecord]):
    """What each rank says. *rows* have the same with equal ranks together, in the order of their
    lowest ranks."""

    __slots__ = ("_of", "_own", "rows")

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self._of = {rank: row for row in rows for rank in row.ranks}
        self._own: dict[int, RankRecord] = {}

    def alike(self, rank: int) -> RankRecord | None:
        """The record of the rank's row: all that *rank* says except for times."""
        row = self._of.get(rank)
        return row.record if row is not None else None

    def __getitem__(self, rank: int) -> RankRecord:
        row = self._of[rank]
        if row.times is None:
            return row.record
        if rank not in self._own:
            self._own[rank] = own_record(row.record, row.times[rank])
        return self._own[rank]

    def __contains__(self, rank: object) -> bool:
        return rank in self._of

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._of))

    def __len__(self) -> int:
        return len(self._of)


def rows_of(records: Mapping[int, RankRecord]) -> Records:
    """*records* with their rows. Records that have none are one row each."""
    if isinstance(records, Records):
        return records
    return Records([Row(record, (rank,)) for rank, record in sorted(records.items())])
