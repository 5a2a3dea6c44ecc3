"""Method and path -> handler: the whole map of what the server answers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

from workerserver._parser import unquote
from workerserver.http import ui
from workerserver.http.registry import Handler
from workerserver.job import presence
from workerserver.process._pulse import health
from workerserver.types import (
    MethodNotAllowed,
    NotFound,
    Range,
    Request,
    Response,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from workerserver.http.registry import Registry

__all__ = ["Router"]

INDEX = b'<h1>torch.distributed.WorkerServer</h1>\n<a href="/handler/">Handler names</a>\n'
PREFIX = "/handler/"
MAX_CACHED = 256


class Router:
    """``resolve()`` is for the loop's thread. Everything else is read-only, for any thread."""

    def __init__(
        self,
        registry: Registry,
        metrics: Callable[[Request], Response] | None = None,
        *,
        for_browsers: bool = False,
    ) -> None:
        self.registry = registry
        self.started = time.monotonic()
        presence.tell(anew=True)
        # Made per server: their counters of running requests are the server's own.
        self._pages = {
            "/": Handler("/", self._index, inline=True),
            PREFIX: Handler(PREFIX, self._names, inline=True),
            "/healthz": Handler("/healthz", self._healthz, inline=True),
        }
        if metrics is not None:
            self._pages["/metrics"] = Handler("/metrics", metrics)  # it reads a folder of /proc
        if for_browsers:
            self._pages[ui.UI] = Handler(ui.UI, ui.page)  # its first call reads files
        # (method, raw path) -> (handler, decoded path), for handlers of the registry's own.
        self._cache: dict[tuple[bytes, bytes], tuple[Handler, str]] = {}
        self._cache_version = -1

    def serves(self, path: str) -> bool:
        """Whether *path* is a page."""
        return path in self._pages

    @property
    def uptime_s(self) -> float:
        return time.monotonic() - self.started

    def resolve(self, method: bytes, raw_path: bytes) -> tuple[Handler, str]:
        """The handler for a request and its decoded path.

        Raises NotFound, HandlerNotFound, MethodNotAllowed or MalformedRequest (not UTF-8).
        """
        if self._cache_version != self.registry.version:
            self._cache = {}
            self._cache_version = self.registry.version
        found = self._cache.get((method, raw_path))
        if found is not None:
            return found
        path = unquote(raw_path)
        handler = self._find(method, path)
        if len(self._cache) < MAX_CACHED and self._lasting(handler):
            self._cache[(method, raw_path)] = (handler, path)
        return handler, path

    def _find(self, method: bytes, path: str) -> Handler:
        page = self._pages.get(path)
        if page is not None:
            if method not in (b"GET", b"HEAD"):
                raise MethodNotAllowed("GET, HEAD")
            return page
        if not path.startswith(PREFIX):
            raise NotFound
        name = path[len(PREFIX) :].removesuffix("/")
        if "/" in name:
            raise NotFound
        handler = self.registry.find(name)
        if method != b"POST":
            raise MethodNotAllowed("POST")
        return handler

    def _lasting(self, handler: Handler) -> bool:
        """Whether *handler* stays the answer until the registry's version changes."""
        return handler.name in self._pages or self.registry.own(handler.name) is handler

    def _index(self, **ignored: str) -> Response:
        return Response(INDEX, content_type="text/html")

    def _names(self, **ignored: str) -> Response:
        return Response.json(self.registry.names())

    def _healthz(self, max_step_age: Annotated[float | None, Range(0.0, 1e9)] = None) -> Response:
        """200: the process answers. With *max_step_age*, 503 if the last step is older than that
        many seconds."""
        presence.tell()
        body, status = health(self.started, max_step_age)
        return Response(body, status, "application/json")
