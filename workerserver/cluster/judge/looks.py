"""One round of answers, by rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from workerserver.cluster.failures import SILENT, unusable
from workerserver.cluster.judge.facts import NAMELESS, Gone
from workerserver.cluster.judge.flight import Group
from workerserver.cluster.model import RankState, RoundLike
from workerserver.cluster.read.flight_records import read
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
    def of(cls, round_: RoundLike) -> RoundByRank:
        result = cls(round_.started)
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
                    rank, failure.reason, failure.text, state.worker.address, state.worker.host
                )
        return result

    @cached_property
    def records(self) -> dict[int, RankRecord]:
        ranks = (rank for rank in self.states if rank < NAMELESS)
        return {rank: record for rank in ranks if (record := self.of_rank(rank)) is not None}

    def of_rank(self, rank: int) -> RankRecord | None:
        """What the rank's recorder says. It is read only once, and only if somebody asks."""
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
