"""Black boxes as a source: what ranks would have answered, as their last samples tell it.

A box keeps several samples of the stacks. Two rounds are made of the last two, so that the judge
sees what moved between them, as it does with live ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from workerserver.blackbox.read import Box, Moment
from workerserver.cluster.ask import bodies
from workerserver.cluster.ask.fetch_full import take_own
from workerserver.cluster.ask.rounds import Round
from workerserver.cluster.failures import short
from workerserver.cluster.model import Failure, RankState, Worker
from workerserver.cluster.read.boxes.endings import stacks_of
from workerserver.cluster.read.steps import Pace, read_steps

__all__ = ["paces_of", "recorder_of", "rounds_of"]

NO_RECORDER = Failure("missing", "its black box has no record of the flight recorder of then")
#: A rank looks at its recorders every 5 s. A record tells of so many seconds before and after.
RECORDER_SECONDS = 15.0
NO_STACKS = Failure("missing", "its black box has no stacks")


def rounds_of(boxes: Iterable[Box]) -> list[Round]:
    """Two rounds, the earlier one first; one, if no box has two samples."""
    every = list(boxes)
    rounds = []
    for back in (2, 1):
        samples = [box.stacks[-back] if len(box.stacks) >= back else None for box in every]
        if back == 2 and not any(samples):
            continue
        times = [sample.time for sample in samples if sample is not None]
        states = [_state(box, sample) for box, sample in zip(every, samples, strict=True)]
        rounds.append(Round(states, max(times, default=0.0)))
    return rounds


def paces_of(boxes: Iterable[Box]) -> dict[str, Pace]:
    """When the last steps of each rank began, by the box's path, where the box tells it."""
    found = {}
    for box in boxes:
        if box.steps is not None:
            with contextlib.suppress(ValueError):
                found[box.path] = read_steps(box.steps.value)
    return found


def _state(box: Box, sample: Moment | None) -> RankState:
    host = box.identity.get("host")
    worker = Worker(box.path, False, box.rank, host if isinstance(host, str) else None)
    state = RankState(worker, box.rank, kind="workerserver", responded=True)
    _recorder(state, box, sample)
    _health(state, box, sample)
    _stacks(state, sample)
    return state


class Recorded(NamedTuple):
    """The summary of the recorders, and from when until when it was true, in seconds since the
    epoch."""

    summary: Mapping[str, Any]
    since: float
    until: float


def recorder_of(box: Box) -> Recorded | None:
    told = box.recorder
    since = told.value.get("since") if told is not None else None
    summary = told.value.get("summary") if told is not None else None
    if told is None or not isinstance(since, int | float) or not isinstance(summary, dict):
        return None
    return Recorded(summary, float(since), told.time)


def _recorder(state: RankState, box: Box, sample: Moment | None) -> None:
    """What the recorders held at the time of *sample*: they are recorded while nothing goes on."""
    told = recorder_of(box)
    if told is None or (sample is not None and not _covers(told.since, told.until, sample.time)):
        state.failures["fr_summary"] = NO_RECORDER
    else:
        state.flight_summary = told.summary


def _covers(since: float, until: float, when: float) -> bool:
    return since - RECORDER_SECONDS <= when <= until + RECORDER_SECONDS


def _health(state: RankState, box: Box, sample: Moment | None) -> None:
    """The figures that were written with the sample, or last."""
    moments = box.states
    if sample is not None:
        moments = tuple(each for each in moments if each.time <= sample.time) or moments[:1]
    told: Any = moments[-1].value.get("health") if moments else None
    if not isinstance(told, dict):
        state.failures["healthz"] = Failure("missing", "its black box has no figures")
        return
    try:
        state.health = bodies.health_of(told)
    except ValueError as error:
        state.failures["healthz"] = Failure("malformed", short(error))


def _stacks(state: RankState, sample: Moment | None) -> None:
    told = stacks_of(sample)
    if sample is None or told is None:
        state.failures["stacks"] = NO_STACKS
        return
    take_own(state, told)
    state.mode = told.mode
    digest = sample.value.get("digest")
    if isinstance(digest, dict):
        try:
            state.digest, state.main_digest = bodies.digest_of(digest)
        except ValueError as error:
            state.failures["digest"] = Failure("malformed", short(error))
