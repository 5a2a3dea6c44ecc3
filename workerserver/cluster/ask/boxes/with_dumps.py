"""Black boxes beside torch's own dumps: of each rank counts what tells of a later moment.

Nothing but the two recorders' own records says which one that is. The times of files don't: files
are copied, and clocks of hosts and file servers differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from workerserver.blackbox.read import Box
from workerserver.cluster.ask.boxes.samples import recorder_of
from workerserver.cluster.ask.rounds import Round
from workerserver.cluster.model import RankState
from workerserver.cluster.read.flight_records import read
from workerserver.cluster.read.recorder import Key, RankRecord, Shared
from workerserver.ranks import named

__all__ = ["Beside", "beside", "lines", "with_dumps"]

#: When a process began is known to a second. After the last record of its box it lived for less.
LIFE_SECONDS = 2.0

Which = Literal["dump", "box", "stranger", "no box"]


class Beside(NamedTuple):
    """Which one counts of *rank*: ``dump``, as its recorder went on after the box's last record, or
    the box has none; ``box``. A dump that does not count: ``stranger``, as no operation in it was
    issued while the box's process lived; ``no box``."""

    rank: int
    which: Which
    path: str


def beside(boxes: Iterable[Box], dumps: Round) -> list[Beside]:
    """*dumps*: a look at them."""
    by_rank = {box.rank: box for box in boxes}
    shared = Shared()
    found = []
    for state in dumps.states:
        if state.rank is None:
            continue
        box = by_rank.get(state.rank)
        which: Which = "no box" if box is None else _which(box, read(state.flight, None, shared))
        found.append(Beside(state.rank, which, state.worker.address))
    return found


def _which(box: Box, dump: RankRecord) -> Which:
    if not _is_of(box, dump):
        return "stranger"
    told = recorder_of(box)
    if told is None:
        return "dump"
    own, its = _issued(read(None, told.summary)), _issued(dump)
    # Of an operation that timed out, gloo's dump says that it has ended. The box says that it hung.
    behind = any(seq > its.get(key, -1) for key, seq in own.items())
    ahead = any(seq > own.get(key, -1) for key, seq in its.items())
    return "dump" if ahead and not behind else "box"


def _is_of(box: Box, dump: RankRecord) -> bool:
    """The newest operation was issued while the box's process lived, by the clock of its host."""
    issued = [
        group.last_issued.created_ns / 1e9
        for group in dump.groups.values()
        if group.last_issued is not None and group.last_issued.created_ns is not None
    ]
    began = box.identity.get("started")
    if not issued or not isinstance(began, int | float) or box.time is None:
        return False
    return began - LIFE_SECONDS <= max(issued) <= box.time + LIFE_SECONDS


def _issued(record: RankRecord) -> dict[Key, int]:
    return {
        key: group.last_issued.seq
        for key, group in record.groups.items()
        if group.last_issued is not None
    }


def with_dumps(rounds: Sequence[Round], dumps: Round, chosen: Iterable[Beside]) -> list[Round]:
    """*rounds* of boxes, in the last one of which dumps stand for the recorders, where they are the
    *chosen* ones: a dump tells of the end, not of the sample before."""
    counted = {each.rank for each in chosen if each.which == "dump"}
    flights: dict[int | None, RankState] = {
        state.rank: state for state in dumps.states if state.rank in counted
    }
    if not rounds or not flights:
        return list(rounds)
    last = rounds[-1]
    states = [_with(state, flights) for state in last.states]
    return [*rounds[:-1], replace(last, states=states)]


def _with(state: RankState, flights: Mapping[int | None, RankState]) -> RankState:
    dump = flights.get(state.rank)
    if dump is None:
        return state
    failures = {part: why for part, why in state.failures.items() if part != "fr_summary"}
    return replace(state, flight=dump.flight, flight_summary=None, failures=failures)


def lines(found: Sequence[Beside]) -> Iterator[str]:
    """Which one counts, a line for each kind."""
    for which, text in (
        ("dump", "torch's dumps count of {ranks}: they are later than the record in the box"),
        ("box", "the black boxes count of {ranks}: torch's dumps tell of no later operation"),
        (
            "stranger",
            "torch's dumps of {ranks} are not counted: no operation in them was issued in the life "
            "of the box's process",
        ),
        ("no box", "torch's dumps of {ranks} are not counted: there is no box beside them"),
    ):
        ranks = [each.rank for each in found if each.which == which]
        if ranks:
            yield text.format(ranks=named(ranks))
