"""The collector's side: its workers' answers as groups."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from workerserver.cluster.ask import collector_format
from workerserver.cluster.ask.bodies import HEALTH_FIELDS
from workerserver.cluster.ask.collector_format import passed_on, share
from workerserver.cluster.model import Failure, RankState
from workerserver.cluster.read.columns.summaries import Summary
from workerserver.ranks import pack

__all__ = ["encode"]


def encode(states: Sequence[RankState], limit: int) -> bytes:
    """The answer to ``collect?version=2``, of at most *limit* bytes: if groups take more, the
    answer has version 1."""
    most = share(states, limit)
    groups: dict[tuple[object, ...], list[tuple[int, RankState]]] = {}
    for number, state in enumerate(states):
        kept = _fitted(state, most)
        groups.setdefault(_key(kept), []).append((number, kept))
    fields = {"version": 2, "groups": [_group(each) for each in groups.values()]}
    answer = json.dumps(fields, separators=(",", ":"), allow_nan=False).encode("ascii")
    return answer if len(answer) <= limit else collector_format.encode(states, limit)


def _fitted(state: RankState, most: int) -> RankState:
    """*state*, without its summary if that is too large or if JSON can't hold it."""
    summary = state.flight_summary
    if summary is None:
        return state
    if isinstance(summary, Summary) and 2 * sum(map(len, summary.shape.parts)) < most:
        return state  # the rest of a worker's part is small
    fields, _ = passed_on(state, most)
    if fields["summary"] is not None:
        return state
    failures = {**state.failures, "fr_summary": Failure(*fields["failures"]["fr_summary"])}
    return replace(state, flight_summary=None, failures=failures)


def _key(state: RankState) -> tuple[object, ...]:
    """Equal for workers that say the same but for columns."""
    summary = state.flight_summary
    shape: object = None
    if isinstance(summary, Summary):
        shape = id(summary.shape)
    elif summary is not None:
        shape = _text(summary)
    return (
        state.worker.unix,
        state.worker.tls,
        state.kind,
        state.responded,
        state.health is None,
        state.digest,
        state.main_digest,
        state.mode,
        shape,
        *state.failures.items(),
    )


def _text(summary: Mapping[str, Any]) -> str:
    return json.dumps(dict(summary), separators=(",", ":"), allow_nan=False)


def _group(members: Sequence[tuple[int, RankState]]) -> dict[str, Any]:
    states = [state for _, state in members]
    first = states[0]
    return {
        "rows": pack([number for number, _ in members]),
        "rank": _column([state.rank for state in states]),
        "address": _addresses([state.worker.address for state in states]),
        "unix": first.worker.unix,
        "tls": first.worker.tls,
        "kind": first.kind,
        "responded": first.responded,
        "digest": first.digest,
        "main": first.main_digest,
        "mode": first.mode,
        "failures": {name: (each.reason, each.text) for name, each in first.failures.items()},
        "health": _healths(states),
        "summary": _summaries(states),
    }


def _column(values: Sequence[Any]) -> list[Any]:
    return [values[0]] if all(value == values[0] for value in values) else list(values)


def _addresses(addresses: Sequence[str]) -> dict[str, Any]:
    begin = _beginning(addresses)
    rests = [address[len(begin) :] for address in addresses]
    end = _beginning([rest[::-1] for rest in rests])[::-1]
    middle = [rest[: len(rest) - len(end)] for rest in rests]
    return {"begin": begin, "middle": _column(middle), "end": end}


def _beginning(texts: Sequence[str]) -> str:
    """What all *texts* begin with."""
    first, last = min(texts), max(texts)  # no other two differ sooner
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(letter for letter, _ in same)


def _healths(states: Sequence[RankState]) -> dict[str, list[Any]] | None:
    told = [state.health for state in states if state.health is not None]
    if not told:
        return None
    return {name: _column([getattr(each, name) for each in told]) for name, _ in HEALTH_FIELDS}


def _summaries(states: Sequence[RankState]) -> dict[str, Any] | None:
    first = states[0].flight_summary
    if first is None:
        return None
    if not isinstance(first, Summary):
        return {"parts": [_text(first)], "places": [], "times": [], "ranks": None}
    told = [state.flight_summary for state in states]
    rows = [each for each in told if isinstance(each, Summary)]
    return {
        "parts": first.shape.parts,
        "places": first.shape.places,
        "times": [_column(times) for times in zip(*(each.times for each in rows), strict=True)],
        "ranks": _column([each.rank for each in rows]) if first.shape.ranked else None,
    }
