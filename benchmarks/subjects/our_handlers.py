"""Handlers that our benchmarked server has besides the built-in ones."""

from __future__ import annotations

from workerserver import Request, Response
from workerserver.handlers import default_registry

__all__ = ["register"]


def inline() -> str:
    return "done"


def upload(request: Request) -> str:
    return str(len(request.body))


def register(body: bytes) -> None:
    """Register ``inline``, ``upload``, and ``body``, which answers with *body*."""

    def large() -> Response:
        return Response(body, 200, "application/json")

    default_registry.register("inline", inline, inline=True)
    default_registry.register("upload", upload)
    default_registry.register("body", large)
