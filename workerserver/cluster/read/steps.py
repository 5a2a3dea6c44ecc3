"""Reads the answer of the handler ``steps``: when a worker's last steps began, by its own clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workerserver.cluster.failures import short

__all__ = ["Pace", "read_steps"]

#: A worker gives 1,025 heartbeats.
MAX_BEATS = 4096
MAX_STEP = 1 << 63
MAX_SECONDS = 1e12


@dataclass(frozen=True, slots=True)
class Pace:
    """*steps* and when each began, in nanoseconds since the epoch by the worker's own clock, the
    oldest first. A heartbeat that repeats its step begins none. *tick_s*: how exact that is.
    *median_s*: how long a step usually takes, if the worker knows."""

    steps: tuple[int, ...]
    began_ns: tuple[int, ...]
    tick_s: float
    median_s: float | None = None


def read_steps(fields: Mapping[str, Any]) -> Pace:
    """ValueError if *fields* are no such answer."""
    time, tick = _seconds(fields, "time"), _seconds(fields, "tick_s")
    median = fields.get("step_median_s")
    beats = fields.get("beats")
    if not isinstance(beats, list) or len(beats) > MAX_BEATS:
        raise ValueError("beats is no short list")
    steps: list[int] = []
    began: list[int] = []
    for beat in beats:
        if not isinstance(beat, list) or len(beat) != 2:
            raise ValueError(f"a beat is {short(beat)}")
        step, age = beat
        if type(step) is not int or not -MAX_STEP <= step < MAX_STEP:
            raise ValueError(f"a step is {short(step)}")
        if type(age) not in (int, float) or not 0 <= age < MAX_SECONDS:
            raise ValueError(f"an age is {short(age)}")
        if not steps or steps[-1] != step:
            steps.append(step)
            began.append(int((time - age) * 1e9))
    usual = None if median is None else _seconds(fields, "step_median_s")
    return Pace(tuple(steps), tuple(began), tick, usual)


def _seconds(fields: Mapping[str, Any], name: str) -> float:
    value: Any = fields.get(name)
    if type(value) not in (int, float) or not 0 <= value < MAX_SECONDS:
        raise ValueError(f"{name} is {short(value)}")
    return float(value)
