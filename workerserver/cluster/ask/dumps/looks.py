"""Dumps as a source: one look at the ranks whose recorders torch has left in files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from workerserver.cluster.ask.dumps.files import Dump
from workerserver.cluster.ask.rounds import Round
from workerserver.cluster.model import Failure, RankState, Worker
from workerserver.cluster.read.recorder import Key

__all__ = ["look_at"]

NO_STACKS = Failure("missing", "a dump of a flight recorder has no stacks of now")


def look_at(
    dumps: Sequence[Dump], failed: Mapping[tuple[int, Key], Collection[int]], *, dated: bool
) -> Round:
    """The look, at the moment of the first dump: later ones know no less. Its time is 0 if the
    files' times can't be believed (not *dated*). *failed*: by rank and group, the numbers of
    operations that are not to count as ended."""
    states = []
    for dump in dumps:
        worker = Worker(dump.path, False, dump.rank)
        state = RankState(worker, dump.rank, kind="dump", responded=True)
        numbers = {key: each for (rank, key), each in failed.items() if rank == dump.rank}
        state.flight = _without_ends(dump.trace, numbers) if numbers else dump.trace
        state.failures["stacks"] = NO_STACKS
        states.append(state)
    return Round(states, min((dump.time for dump in dumps), default=0.0) if dated else 0.0)


def _without_ends(
    trace: Mapping[str, Any], failed: Mapping[Key, Collection[int]]
) -> Mapping[str, Any]:
    numbers = {(key.name, key.desc): each for key, each in failed.items()}
    backends = {(key.name, key.desc): key.backend for key in failed}
    entries = []
    for entry in trace["entries"]:
        if isinstance(entry, dict):
            group = entry.get("process_group")
            name = tuple(map(str, group)) if isinstance(group, list) else ()
            backend = str(entry.get("profiling_name")).partition(":")[0]
            if (
                len(name) == 2
                and entry.get("collective_seq_id") in numbers.get(name, ())
                and backend == backends[name]
            ):
                entry = {**entry, "retired": False}
        entries.append(entry)
    return {**trace, "entries": entries}
