"""``wait_counter_values``: torch's wait counters, from its own C++ handler."""

from __future__ import annotations

from workerserver.handlers.torch_bridge import call
from workerserver.http.registry import Registry
from workerserver.types import Request, Response

__all__ = ["register", "wait_counter_values"]


def wait_counter_values(**ignored: str) -> Response:
    """JSON ``{name: {active_count, total_calls, total_time_us, max_time_us}}``.

    NotImplementedHere on a torch that has no such handler.
    """
    return call("wait_counter_values", Request("POST", "/handler/wait_counter_values", {}))


def register(registry: Registry) -> None:
    registry.register(
        "wait_counter_values",
        wait_counter_values,
        requires="torch",
        permission="read",
        shadow=True,
    )
