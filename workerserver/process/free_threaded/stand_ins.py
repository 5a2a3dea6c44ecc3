"""The names of the package that need compiled modules elsewhere. Training runs as it would without
this package, and a server says why there is none.

Importing ``workerserver`` loads no compiled module there, ours or others'.
"""

from __future__ import annotations

import logging
import operator
import time
from collections.abc import Callable
from typing import Any, SupportsIndex, TypeVar

__all__ = [
    "WHY_NOT",
    "Limits",
    "WorkerServer",
    "get_handler_names",
    "handler",
    "heartbeat",
    "install",
    "last_heartbeat",
    "register_handler",
    "running_server",
    "serving",
    "unregister_handler",
]

F = TypeVar("F", bound=Callable[..., Any])

WHY_NOT = (
    "this is a free-threaded build of CPython, and the server reads a GIL that is not there; use "
    "the usual build"
)
logger = logging.getLogger("workerserver")
_last: tuple[int, float] | None = None


def heartbeat(step: SupportsIndex, /) -> None:
    """As the compiled one, for who asks ``last_heartbeat()``: there is no server that shows it."""
    global _last
    value = operator.index(step)
    if not -(1 << 63) <= value < 1 << 63:
        raise OverflowError("Python int too large to convert to C long")
    _last = (value, time.monotonic())


def last_heartbeat() -> tuple[int, float] | tuple[None, None]:
    """``(step, age in seconds)`` of the last heartbeat, or ``(None, None)`` if none ever came."""
    last = _last
    return (None, None) if last is None else (last[0], time.monotonic() - last[1])


class _NeedsServer:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(WHY_NOT)


class WorkerServer(_NeedsServer):
    """Raises RuntimeError."""


class Limits(_NeedsServer):
    """Raises RuntimeError: there is no server to limit."""


def running_server() -> None:
    """There is none."""


def serving(address: str, port: int = -1) -> bool:
    """Nothing is served."""
    return False


def install() -> Callable[[], None]:
    """Warn, and leave torch's own server where it is."""
    logger.warning("torch's own server stays: %s", WHY_NOT)
    return lambda: None


# --- handlers: a module that registers some is imported as elsewhere


def register_handler(name: str, function: Callable[..., Any], **options: Any) -> None:
    """Nobody will call it."""


def unregister_handler(name: str) -> None:
    """As if it had been served."""


def handler(name: str, **options: Any) -> Callable[[F], F]:
    """The decorated function stays as it is."""
    return lambda function: function


def get_handler_names() -> list[str]:
    """None is served."""
    return []
