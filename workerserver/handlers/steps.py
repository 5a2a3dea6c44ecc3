"""``steps``: when the last steps of the training loop came, by ``heartbeat(step)``."""

from __future__ import annotations

from workerserver.http.registry import Registry
from workerserver.process import _pulse
from workerserver.types import Response

__all__ = ["register", "steps"]


def steps() -> Response:
    """JSON: the last 1,025 heartbeats, which are 1,024 step times.

    ``{"version": 1, "pid": int, "rank": int or null, "time": float, "tick_s": float,
    "step_median_s": float or null, "beats": [[step, age_s], ...]}``. *beats*: the oldest first, and
    empty without a heartbeat. *age_s*: seconds before *time*, by the process's own clock, which
    ticks every *tick_s* seconds. *time*: seconds since the epoch.
    """
    return Response(_pulse.steps(), content_type="application/json")


def register(registry: Registry) -> None:
    registry.register("steps", steps, inline=True, permission="read")
