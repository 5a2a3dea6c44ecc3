"""Which of a process's flight recorders are asked for their traces, and how.

torch has one recorder for gloo (before 2.15 for every backend but NCCL), one for the old NCCL, and
from 2.15 on one for each other backend, which ``fr_trace_json?backend=`` names. Our workers say in
their summary which recorders hold something. A stock worker only lists its handlers: torch has
``fr_dump_file`` since it has a recorder for each backend.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from workerserver.cluster.ask.client import Visit
from workerserver.cluster.ask.exchange import Question
from workerserver.cluster.ask.questions import HANDLERS, TRACES, Memory, trace
from workerserver.cluster.failures import Failed
from workerserver.cluster.model import RankState
from workerserver.cluster.read.summary import GLOO, NCCL, recorders

__all__ = ["ask_for_traces", "ask_without_summary", "has_backends", "unasked"]

#: Handlers that tell what recorders a worker has.
OF_RECORDERS = frozenset({"fr_trace_json", "dump_nccl_trace_json", "fr_dump_file"})
#: Backends of torch 2.15 itself whose operations its hook records.
HOOKED = ("nccl2", "nccl-lazy")
#: Recorders of one process that are read.
MAX_RECORDERS = 16


def question(backend: str) -> Question:
    return TRACES.get(backend) or trace(f"fr_trace_json?backend={quote(backend, safe='')}")


def has_backends(state: RankState) -> bool:
    """The worker's torch has a recorder for each backend."""
    return state.recorders is not None and "fr_dump_file" in state.recorders


async def ask_without_summary(visit: Visit, state: RankState, memory: Memory) -> None:
    """The traces of a worker that has no summary, or can't give it now."""
    state.recorders = await _recorders(visit, memory)
    known = state.recorders
    wanted = [GLOO] if known is None or "fr_trace_json" in known else []
    if known is None or "dump_nccl_trace_json" in known:
        wanted.append(NCCL)
    if has_backends(state):
        wanted += HOOKED
        told = {*recorders(memory.summaries.get(state.worker)), *memory.backends}
        wanted += sorted(told - {GLOO, NCCL, *HOOKED})
    await ask_for_traces(visit, state, wanted)


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
    failed: Failed | None = None
    for backend in list(backends)[:MAX_RECORDERS]:
        try:
            found: Mapping[str, Any] = await visit.ask(question(backend))
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


def unasked(states: Iterable[RankState]) -> dict[int, list[str]]:
    """By the identity of each state without a summary: recorders that other ranks of the job have,
    and that only their names tell."""
    states = list(states)
    told: set[str] = set()
    for state in states:
        told |= recorders(state.flight_summary)
    names = sorted(told - {GLOO, NCCL, *HOOKED})[:MAX_RECORDERS]
    return {
        id(state): names
        for state in states
        if names and state.flight_summary is None and has_backends(state)
    }
