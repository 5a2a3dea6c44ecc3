"""One round of answers, by rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from workerserver.cluster.failures import SILENT, unusable
from workerserver.cluster.judge.facts import NAMELESS, Gone
from workerserver.cluster.judge.flight import Group
from workerserver.cluster.model import RankState, RoundLike
from workerserver.cluster.read.columns.rows import Records, Row, Times
from workerserver.cluster.read.columns.summaries import Summary
from workerserver.cluster.read.flight_records import read, read_shape
from workerserver.cluster.read.recorder import GroupRecord, RankRecord, Shared
from workerserver.cluster.read.summary import rank_of

__all__ = ["MAX_WORLD", "RoundByRank"]

MAX_WORLD = 1 << 20


@dataclass
class RoundByRank:
    """One round, by rank."""

    time: float
    states: dict[int, RankState] = field(default_factory=dict)
    gone: dict[int, Gone] = field(default_factory=dict)
    shared: Shared = field(default_factory=Shared)
    read: dict[int, RankRecord] = field(default_factory=dict)

    @classmethod
    def of(cls, round_: RoundLike, shared: Shared) -> RoundByRank:
        """*shared*: one for all looks at a job."""
        result = cls(round_.started, shared=shared)
        nameless = NAMELESS
        for state in sorted(round_.states, key=_order):
            rank = _rank(state)
            if rank is None or not 0 <= rank < MAX_WORLD:
                rank = nameless
                nameless += 1
            failure = unusable(state)
            if failure is None and rank not in result.states:
                result.states[rank] = state
                result.gone.pop(rank, None)
            elif rank not in result.states and rank not in result.gone:
                failure = failure or SILENT
                result.gone[rank] = Gone(
                    rank,
                    failure.reason,
                    failure.text,
                    state.worker.address,
                    state.worker.host,
                    state.peer_pid,
                    state.peer_state,
                )
        return result

    @cached_property
    def records(self) -> Records:
        """What the ranks' recorders say, ranks that say the same together."""
        rows: list[Row] = []
        alike: dict[int, tuple[list[int], dict[int, Times]]] = {}
        for rank, state in self.states.items():
            record = self.alike(rank) if rank < NAMELESS else None
            if record is None:
                continue
            summary = _row_of(state)
            if summary is None:
                rows.append(Row(record, (rank,)))
                continue
            if id(record) not in alike:
                alike[id(record)] = [], {}
                rows.append(Row(record, *alike[id(record)]))
            ranks, times = alike[id(record)]
            ranks.append(rank)
            times[rank] = summary.times
        return Records(rows)

    def alike(self, rank: int) -> RankRecord | None:
        """What the rank's recorder says except for times: one object for all ranks that say the
        same. It is read only once, and only if somebody asks."""
        state = self.states.get(rank)
        summary = _row_of(state) if state is not None else None
        if summary is not None:
            return read_shape(summary.shape, self.shared)
        return self.of_rank(rank)

    def of_rank(self, rank: int) -> RankRecord | None:
        """What the rank's recorder says."""
        if rank not in self.read:
            state = self.states.get(rank)
            if state is None or not state.recorded:
                return None
            self.read[rank] = read(
                state.flight, state.flight_summary, self.shared, state.more_flights
            )
        return self.read[rank]

    def record(self, rank: int, group: Group) -> GroupRecord | None:
        record = self.of_rank(rank)
        return record.groups.get(group.key) if record is not None else None


def _row_of(state: RankState) -> Summary | None:
    """Its summary, if that is all that it says and has a shape."""
    summary = state.flight_summary
    if not isinstance(summary, Summary) or state.flight is not None or state.more_flights:
        return None
    return summary


def _order(state: RankState) -> tuple[bool, int, bool, str]:
    """A fixed order. Of two workers that claim a rank, the one that was found as it comes first."""
    rank = _rank(state)
    surprising = state.worker.rank is not None and state.worker.rank != state.rank
    return (rank is None, rank or 0, surprising, state.worker.address)


def _rank(state: RankState) -> int | None:
    """Where neither discovery nor the environment tells the rank, torch's recorder does."""
    if state.rank is not None:
        return state.rank
    if state.worker.rank is not None:
        return state.worker.rank
    return rank_of(state.flight_summary if isinstance(state.flight_summary, Mapping) else None)
