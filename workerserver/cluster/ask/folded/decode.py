"""The asker's side: groups of a collector's workers as states. Nothing in them is trusted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any

from workerserver.cluster.ask.bodies import (
    MAX_RANKS,
    digest_of,
    health_columns,
    json_object,
)
from workerserver.cluster.ask.collector_format import (
    STRANGER,
    checked,
    checked_failures,
    checked_kind,
    checked_text,
    decode_workers,
    malformed,
    most_workers,
    with_missing,
    worker_behind,
)
from workerserver.cluster.ask.exchange import Answer
from workerserver.cluster.failures import short
from workerserver.cluster.model import Failure, RankState, Worker
from workerserver.cluster.read.columns.summaries import FIRST_TIME, Summary, shape_of
from workerserver.ranks import unpack

__all__ = ["decode"]

#: Of summaries that workers have in common and that can't be kept as one shape, in all of a group.
MAX_ALIKE_CHARACTERS = 16 << 20


def decode(answer: Answer, collector: Worker) -> list[RankState]:
    """The states of the collector's workers, to be asked further through *collector*, in the order
    in which the collector knows them; of either version.

    ValueError if the answer as a whole is wrong. If a group is wrong, only its ranks get a failure.
    A worker that is none of the collector's ranks gets a failure too, and so does a rank that is
    missing in the answer.
    """
    fields = json_object(answer.body)
    version, groups = fields.get("version"), fields.get("groups")
    if version != 2:
        return decode_workers(fields, collector)
    most = most_workers(collector)
    if not isinstance(groups, list) or len(groups) > most:
        raise ValueError(f"groups is no list, or of more than {most}")
    found: dict[int, RankState] = {}
    left = most
    for number, group in enumerate(groups):
        rows, members = _group(group, collector, f"groups[{number}]", left)
        left -= len(rows)
        found.update(zip(rows, members, strict=True))
    if sorted(found) != list(range(most - left)):
        raise ValueError("groups have a worker twice, or not all workers")
    states = {found[row].worker: found[row] for row in range(len(found))}
    return with_missing(states, collector)


def _group(
    group: Any, collector: Worker, name: str, most: int
) -> tuple[Sequence[int], Sequence[RankState]]:
    """The workers of one group, of at most *most*, and their states."""
    if not isinstance(group, dict):
        raise ValueError(f"{name} is no object")
    rows = unpack(checked_text(group.get("rows"), "rows"), most)
    ranks = _column(group.get("rank"), "rank", len(rows))
    for rank in ranks:
        if rank is not None and (type(rank) is not int or not 0 <= rank < MAX_RANKS):
            raise ValueError(f"rank is {short(rank)}")
    try:
        states = _states(group, collector, ranks)
    except ValueError as error:
        text = f"{name}: {error}"
        if None in ranks:
            raise ValueError(text) from None
        states = [malformed(rank, collector, text) for rank in ranks]
    return rows, states


def _column(values: Any, name: str, count: int) -> list[Any]:
    if not isinstance(values, list) or len(values) not in (1, count):
        raise ValueError(f"{name} is {short(values)}")
    return values if len(values) == count else values * count


def _states(
    group: Mapping[str, Any], collector: Worker, ranks: Sequence[int | None]
) -> list[RankState]:
    count = len(ranks)
    kind = checked_kind(group)
    unix, tls = checked(group, "unix", bool), checked(group, "tls", bool)
    responded = checked(group, "responded", bool)
    digest = digest_of(group) if group.get("digest") is not None else (None, None)
    mode = group["mode"] if digest[0] is not None else None
    failures = checked_failures(checked(group, "failures", dict))
    told = checked(group, "health", dict, type(None))
    healths: Iterable[Any] = repeat(None, count) if told is None else health_columns(told, count)
    known = frozenset(collector.ranks)
    states = []
    for rank, address, health, summary in zip(
        ranks,
        _addresses(checked(group, "address", dict), count),
        healths,
        _summaries(checked(group, "summary", dict, type(None)), count),
        strict=True,
    ):
        worker = worker_behind(collector, address, rank, unix=unix, tls=tls)
        state = RankState(worker, rank, kind, health, digest[0], digest[1], mode)
        state.responded = responded
        state.flight_summary = summary
        if failures:
            state.failures.update(failures)
        if known and rank is not None and rank not in known:
            state.failures["healthz"] = Failure("lied", STRANGER)
        states.append(state)
    return states


def _addresses(told: Mapping[str, Any], count: int) -> list[str]:
    begin = checked_text(told.get("begin"), "address")
    end = checked_text(told.get("end"), "address")
    middle = _column(told.get("middle"), "address", count)
    found = [begin + checked_text(each, "address") + end for each in middle]
    checked_text(max(found, key=len, default=""), "address")
    return found


def _summaries(told: Mapping[str, Any] | None, count: int) -> Iterator[Any]:
    if told is None:
        return repeat(None, count)
    parts, places, times = (checked(told, name, list) for name in ("parts", "places", "times"))
    if not all(isinstance(part, str) for part in parts) or len(parts) != len(places) + 1:
        raise ValueError(f"parts of the summary are {short(parts)}")
    if not all(type(place) is int and 0 <= place < len(times) for place in places):
        raise ValueError(f"places of the summary are {short(places)}")
    if set(places) != set(range(len(times))):
        raise ValueError(f"places of the summary are {short(places)}")
    columns = [_column(each, "times", count) for each in times]
    for column in columns:
        if not all(type(each) is int and 0 < each < FIRST_TIME for each in column):
            raise ValueError(f"times of the summary are {short(column)}")
    ranks = told.get("ranks")
    shape = shape_of(tuple(parts), tuple(places), ranked=ranks is not None)
    if shape is None:
        if places or ranks is not None:
            raise ValueError("the summary is no JSON object")
        # Each of these workers is read by itself later, so one long text would be work without end.
        if len(parts[0]) * count > MAX_ALIKE_CHARACTERS:
            raise ValueError(f"the summary has {len(parts[0])} characters, for {count} workers")
        return repeat(json_object(parts[0]), count)
    own: Iterable[Any] = repeat(shape.rank, count)
    if ranks is not None:
        own = [checked({"rank": rank}, "rank", int) for rank in _column(ranks, "ranks", count)]
    rows: Iterable[tuple[int, ...]] = zip(*columns, strict=True) if columns else repeat((), count)
    return iter([Summary(shape, each, rank) for each, rank in zip(rows, own, strict=True)])
