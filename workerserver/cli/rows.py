"""The rows of ``top``: one for each worker, and equal ones folded into one line."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workerserver.cli.job_command import unreachable
from workerserver.cli.text import seconds
from workerserver.cluster.ask.rounds import Round
from workerserver.cluster.failures import nobody_listens
from workerserver.cluster.model import Health, RankState, cores_used
from workerserver.cluster.show.tree import short_fold

__all__ = ["COLUMNS", "ORDERS", "Row", "Shown", "cells", "folded", "matches", "rows"]

Row = dict[str, Any]

#: If the server has waited this long for the GIL, a thread of the worker holds the GIL.
GIL_AWAY_SECONDS = 1.0
#: No step for so long, and for so many usual steps, is told.
NO_STEP_SECONDS = 10.0
NO_STEP_STEPS = 10.0
#: A worker that has made no step yet starts for so long at most, if no other rank makes steps.
START_SECONDS = 60.0


def rows(
    look: Round,
    before: Round | None = None,
    vanished: Sequence[RankState] = (),
    seen: Collection[str] = (),
) -> list[Row]:
    """A row per worker, workers with trouble first. *before* is the look before this one.
    *vanished*: workers of the job that are found no more. *seen*: the addresses of those that have
    answered before."""
    gone = {(each["address"], each["rank"]): each for each in unreachable(look.states)}
    last = {state.worker: state.health for state in before.states} if before is not None else {}
    healths = [state.health for state in look.states if state.health is not None]
    stepping = any(each.step is not None for each in healths)
    found = []
    for state in look.states:
        row = _row(state, gone, last.get(state.worker), stepping=stepping)
        if nobody_listens(state) and state.worker.address in seen:
            row["state"] = "ended"
        found.append(row)
    found += [_ended(state) for state in vanished]
    return sorted(found, key=_trouble)


def _row(
    state: RankState,
    gone: dict[tuple[str, int | None], dict[str, Any]],
    last: Health | None,
    *,
    stepping: bool,
) -> Row:
    health, failure = state.health, gone.get((state.worker.address, state.rank))
    used = cores_used(health, last)
    # A stock server has no health.
    answered = failure is None if health is not None else state.kind == "torch"
    if failure is not None and not answered:
        word = failure["reason"]
    else:
        word = "torch" if health is None else _state(health, stepping=stepping)
    row = _of_health(state, health)
    row["answered"] = answered
    row["state"] = word
    row["text"] = failure["text"] if failure is not None and not answered else None
    row["cpu"] = None if used is None else round(used, 3)
    return row


def _of_health(state: RankState, health: Health | None) -> Row:
    return {
        "rank": state.rank,
        "host": state.worker.host,
        "address": state.worker.address,
        "answered": False,
        "state": "",
        "text": None,
        "step": health.step if health is not None else None,
        "step_age_s": health.step_age_s if health is not None else None,
        "gil_wait_s": health.gil_wait_s if health is not None else None,
        "gil_unavailable_s": health.gil_unavailable_s if health is not None else None,
        "cpu": None,
        "rss_bytes": health.rss_bytes if health is not None else None,
        "uptime_s": health.uptime_s if health is not None else None,
    }


def _ended(state: RankState) -> Row:
    row = _of_health(state, None)
    return {**row, "state": "ended", "text": "the worker is there no more"}


def _state(health: Health, *, stepping: bool) -> str:
    if (health.gil_unavailable_s or 0.0) >= GIL_AWAY_SECONDS:
        return "no GIL"
    if health.step is None:
        young = health.uptime_s is not None and health.uptime_s < START_SECONDS
        return "starting" if stepping or young else health.status
    limit = max(NO_STEP_SECONDS, NO_STEP_STEPS * (health.step_median_s or 0.0))
    if health.step_age_s is not None and health.step_age_s >= limit:
        return "no step"
    return health.status


# ---- orders


def _number(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _rank(row: Row) -> tuple[int, str]:
    return (1 << 62 if row["rank"] is None else row["rank"], row["address"])


def _trouble(row: Row) -> tuple[object, ...]:
    return (row["answered"], _number(row["step"], float("inf")), _rank(row))


#: By which the rows can be sorted.
ORDERS: Mapping[str, Callable[[Row], tuple[object, ...]]] = {
    "trouble": lambda row: (row["answered"], row["state"] == "ok", _trouble(row)),
    "rank": lambda row: (_rank(row),),
    "step": lambda row: (_number(row["step"], float("inf")), _rank(row)),
    "step age": lambda row: (-_number(row["step_age_s"], -1.0), _rank(row)),
    "cpu": lambda row: (-_number(row["cpu"], -1.0), _rank(row)),
    "memory": lambda row: (-_number(row["rss_bytes"], -1.0), _rank(row)),
}


def matches(row: Row, words: str) -> bool:
    """Whether *row* has all *words* in its state, host or address. A number is a rank, and "2-5"
    are ranks."""
    text = " ".join(filter(None, (state_words(row), row["host"], row["address"]))).lower()
    for word in words.lower().split():
        span = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", word)
        if span is not None:
            low, high = int(span[1]), int(span[2] or span[1])
            if row["rank"] is None or not low <= row["rank"] <= high:
                return False
        elif word not in text:
            return False
    return True


# ---- lines


@dataclass(frozen=True)
class Shown:
    """One line of the table: a row, or several that are alike."""

    rows: Sequence[Row]

    @property
    def ranks(self) -> list[int]:
        return [row["rank"] for row in self.rows if row["rank"] is not None]


def folded(found: Iterable[Row]) -> list[Shown]:
    """Rows of which the same is to be said, in the order of their first ones."""
    alike: dict[tuple[object, ...], list[Row]] = {}
    for row in found:
        alike.setdefault((row["answered"], row["state"], row["text"], row["step"]), []).append(row)
    return [Shown(some) for some in alike.values()]


def state_words(row: Row) -> str:
    """``no step 60s``"""
    if row["state"] == "no step":
        return f"no step {seconds(row['step_age_s'])}"
    return str(row["state"])


#: Titles, in order; and how soon a column is left out where the terminal is narrow: 0 never.
COLUMNS: Sequence[tuple[str, int]] = (
    ("RANK", 0),
    ("STATE", 0),
    ("STEP", 0),
    ("STEP AGE", 2),
    ("GIL WAIT", 6),
    ("GIL AWAY", 3),
    ("CPU", 4),
    ("MEMORY", 5),
    ("UPTIME", 7),
    ("TARGET", 8),
)


def cells(shown: Shown) -> tuple[str, ...]:
    """A line's cells, as COLUMNS has them. Of several rows the worst value counts."""
    found, first = shown.rows, shown.rows[0]
    ages = [row["step_age_s"] for row in found if row["step_age_s"] is not None]
    waits = [row["gil_wait_s"] for row in found if row["gil_wait_s"] is not None]
    away = [row["gil_unavailable_s"] for row in found if row["gil_unavailable_s"]]
    used = [row["cpu"] for row in found if row["cpu"] is not None]
    memory = [row["rss_bytes"] for row in found if row["rss_bytes"] is not None]
    uptimes = [row["uptime_s"] for row in found if row["uptime_s"] is not None]
    state = state_words(first)
    if first["state"] == "no step":
        state = f"no step {seconds(max(ages, default=None))}"
    return (
        _ranks(shown),
        state,
        "-" if first["step"] is None else str(first["step"]),
        seconds(max(ages, default=None)),
        f"{max(waits) * 1000:.2f} ms" if waits else "-",
        seconds(max(away, default=None)),
        _range([f"{each:.0%}" for each in (min(used), max(used))]) if used else "-",
        f"{max(memory) / 2**20:.0f} MiB" if memory else "-",
        seconds(min(uptimes, default=None)),
        _target(found),
    )


def _ranks(shown: Shown) -> str:
    if not shown.ranks:
        return "-" if len(shown.rows) == 1 else f"{len(shown.rows)} x -"
    return short_fold(sorted(shown.ranks))


def _range(ends: Sequence[str]) -> str:
    low, high = ends
    return low if low == high else f"{low.rstrip('%')}-{high}"


def _target(found: Sequence[Row]) -> str:
    if len(found) == 1:
        return str(found[0]["address"] or "-")
    hosts = {row["host"] for row in found}
    count = f"{len(found)} workers"
    return count if hosts == {None} else f"{count} on {len(hosts)} host{'s' * (len(hosts) > 1)}"
