"""Which of a process's flight recorders are asked for their traces, and how.

torch has one recorder for gloo (before 2.15 for every backend but NCCL), one for the old NCCL, and
from 2.15 on one for each other backend, which ``fr_trace_json?backend=`` names. Our workers say in
their summary which recorders hold something. A stock worker only lists its handlers: torch has
``fr_dump_file`` since it has a recorder for each backend.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from workerserver.cluster.ask.client import Visit
from workerserver.cluster.ask.exchange import Question
from workerserver.cluster.ask.questions import HANDLERS, TRACES, Memory, trace
from workerserver.cluster.failures import Failed
from workerserver.cluster.model import RankState
from workerserver.cluster.read.summary import GLOO, NCCL, recorders

__all__ = [
    "ask_for_traces",
    "ask_without_summary",
    "gil_is_held",
    "has_backends",
    "question",
    "unasked",
]

#: Handlers that tell what recorders a worker has.
OF_RECORDERS = frozenset({"fr_trace_json", "dump_nccl_trace_json", "fr_dump_file"})
#: Backends of torch 2.15 itself whose operations its hook records.
HOOKED = ("nccl2", "nccl-lazy")
TORCHS = frozenset({GLOO, NCCL, *HOOKED})
#: A GIL that could not be had for so long won't be had soon.
GIL_HELD_SECONDS = 1.0
#: torch's server needs no GIL, and answers soon. What needs the GIL is not waited for any longer.
PATIENCE_SECONDS = 0.5
#: Recorders of one process that are read.
MAX_RECORDERS = 16


@lru_cache(maxsize=64)
def question(backend: str) -> Question:
    """For the trace of one recorder; the same object each time, so that answers that came early are
    found by it."""
    return TRACES.get(backend) or trace(f"fr_trace_json?backend={quote(backend, safe='')}")


def has_backends(state: RankState) -> bool:
    """The worker's torch has a recorder for each backend."""
    return state.recorders is not None and "fr_dump_file" in state.recorders


async def ask_without_summary(visit: Visit, state: RankState, memory: Memory) -> None:
    """The traces of a worker that has no summary, or can't give it now."""
    state.recorders = known = await _recorders(visit, memory)
    if gil_is_held(state):  # a recorder that it doesn't have would cost PATIENCE_SECONDS
        await ask_for_traces(visit, state, [GLOO])
        return
    wanted = [GLOO] if known is None or "fr_trace_json" in known else []
    if known is None or "dump_nccl_trace_json" in known:
        wanted.append(NCCL)
    if has_backends(state):
        wanted += [*HOOKED, *(each for each in memory.backends if each not in TORCHS)]
    await ask_for_traces(visit, state, wanted)


def gil_is_held(state: RankState) -> bool:
    """A summary would have to wait for the GIL. torch's own server gives traces without it."""
    held = state.health.gil_unavailable_s if state.health is not None else None
    return held is not None and held >= GIL_HELD_SECONDS


async def _recorders(visit: Visit, memory: Memory) -> frozenset[str] | None:
    """Which handlers of recorders the worker has, or None. A list may grow: when the process
    imports torch."""
    known = memory.recorders.get(visit.worker)
    if not known:
        try:
            known = OF_RECORDERS & set(await visit.ask(HANDLERS))
        except Failed:
            return None
        memory.recorders[visit.worker] = known
    return known


async def ask_for_traces(visit: Visit, state: RankState, backends: Iterable[str]) -> None:
    """Fill in ``flight`` and ``more_flights``. An empty trace is kept only if all traces are."""
    patience = PATIENCE_SECONDS if gil_is_held(state) else None
    failed: Failed | None = None
    for backend in list(backends)[:MAX_RECORDERS]:
        try:
            found: Mapping[str, Any] = await visit.ask(question(backend), patience)
        except Failed as failure:
            if failed is None or _is_missing(failed):
                failed = failure
            continue
        if state.flight is None or not state.flight.get("entries"):
            if state.flight is None or found.get("entries"):
                state.flight = found
        elif found.get("entries"):
            state.more_flights[backend] = found
    if failed is not None and (state.flight is None or not _is_missing(failed)):
        state.failures["flight"] = failed.failure


def _is_missing(failed: Failed) -> bool:
    """The worker has no such recorder."""
    failure = failed.failure
    return failure.reason == "missing" or failure.text.startswith("HTTP 501")


def unasked(states: Iterable[RankState], backends: Sequence[str]) -> dict[int, list[str]]:
    """By the identity of each state without a summary: recorders that other ranks of the job have,
    and that it was not asked for. *backends*: more of them that somebody has named."""
    states = list(states)
    told: set[str] = set(backends)
    for state in states:
        told |= recorders(state.flight_summary)
    alone = all(state.flight_summary is None for state in states)
    found = {}
    for state in states:
        if state.flight_summary is not None or not state.responded:
            continue
        if not state.recorded and gil_is_held(state):  # a collector passes on no traces
            found[id(state)] = [GLOO, *sorted(told - {GLOO})][:MAX_RECORDERS]
            continue
        if not state.recorded or state.recorders is None:
            continue
        if gil_is_held(state):
            names = told | {NCCL, *HOOKED} if alone else told
        else:
            names = told - {NCCL, *HOOKED}
        if not has_backends(state):
            names &= {NCCL}
        wanted = sorted(names - {GLOO})[:MAX_RECORDERS]
        if wanted:
            found[id(state)] = wanted
    return found
