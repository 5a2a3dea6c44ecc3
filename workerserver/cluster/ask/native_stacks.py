"""Native frames: each rank is asked for its own, since equal Python stacks may differ in these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from workerserver.cluster.ask.client import Client, Visit
from workerserver.cluster.ask.questions import NATIVE_STACKS
from workerserver.cluster.model import Failure, RankState, Thread
from workerserver.cluster.read.native.naming import name_frames
from workerserver.cluster.read.stacks import Stacks

__all__ = ["native_stacks"]

#: Ranks that are asked: the first ones.
MAX_ASKED = 1024
#: What a worker that knows no native frames says, with status 400.
OLD = "its workerserver is too old to tell native frames"


async def native_stacks(
    client: Client, states: Sequence[RankState], *, whole: bool, most: int = MAX_ASKED
) -> int:
    """Ask the first *most* of *states* for native frames, and give names to these; return how many
    have answered. *whole*: the answer's threads replace those that are known. Else native frames
    are added to known threads, where the Python stack is still the same."""
    able = [state for state in states if state.kind == "workerserver" and state.responded]
    asked = {state.worker: state for state in able[:most]}

    async def talk(visit: Visit) -> Stacks:
        try:
            stacks: Stacks = await visit.ask(NATIVE_STACKS)
            return stacks
        finally:
            asked[visit.worker].bytes_received += visit.received

    answered = []
    for worker, outcome in (await client.visit(asked, talk)).items():
        state = asked[worker]
        if isinstance(outcome, Failure):
            old = outcome.reason == "refused" and "Unknown parameter native" in outcome.text
            state.failures["native frames"] = replace(outcome, text=OLD) if old else outcome
        else:
            state.threads = outcome.threads if whole else _joined(state.threads, outcome.threads)
            answered.append(state)
    for state in able[most:]:
        state.failures["native frames"] = Failure(
            "too large", f"only {most} ranks are asked for native frames"
        )
    name_frames(answered)
    return len(answered)


def _joined(known: Sequence[Thread], told: Sequence[Thread]) -> tuple[Thread, ...]:
    """*known* with the native frames of the same threads in *told*."""
    by_ident = {each.ident: each for each in told if each.ident}
    found = []
    for thread in known:
        other = by_ident.get(thread.ident or 0)
        same = other is not None and other.frames == thread.frames
        found.append(replace(thread, native=other.native) if other and same else thread)
    return tuple(found)
