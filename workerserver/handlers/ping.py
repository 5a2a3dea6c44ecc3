"""``ping``: is the server's loop alive?"""

from __future__ import annotations

from workerserver.http.registry import Registry
from workerserver.types import Response

__all__ = ["ping", "register"]

_PONG = Response(b"pong")


def ping(**ignored: str) -> Response:
    """``pong``, with any parameters."""
    return _PONG


def register(registry: Registry) -> None:
    registry.register("ping", ping, inline=True, permission="read", shadow=True)
