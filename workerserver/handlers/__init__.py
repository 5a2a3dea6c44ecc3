"""The built-in handlers, one module per family, and the registry that every server serves."""

from __future__ import annotations

from workerserver.handlers import (
    flight_recorder,
    ping,
    profiler,
    pyspy,
    sampling,
    stacks,
    steps,
    wait_counters,
)
from workerserver.handlers.torch_bridge import TorchBridge
from workerserver.http.registry import Registry

__all__ = [
    "default_registry",
    "get_handler_names",
    "handler",
    "register_builtins",
    "register_handler",
    "unregister_handler",
]


def register_builtins(registry: Registry) -> None:
    """Register every built-in handler in *registry*, with torch's registry as the fallback."""
    registry.fallback = TorchBridge()
    for family in (
        ping, stacks, steps, flight_recorder, wait_counters, profiler, sampling, pyspy,
    ):  # fmt: skip
        family.register(registry)


#: The registry that every server of this process serves, unless the server gets another one.
default_registry = Registry()
register_builtins(default_registry)

handler = default_registry.handler
register_handler = default_registry.register
unregister_handler = default_registry.unregister
get_handler_names = default_registry.names
