"""Method and path -> handler: the whole map of what the server answers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

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
    WorkerServerError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from workerserver._parser import ParsedRequest
    from workerserver.http.registry import Registry
    from workerserver.process.credentials import Permission

__all__ = ["Router"]

INDEX = b'<h1>torch.distributed.WorkerServer</h1>\n<a href="/handler/">Handler names</a>\n'
PREFIX = "/handler/"
METRICS = "/metrics"
PROFILE = "/debug/pprof/profile"
MAX_CACHED = 256


class Router:
    """``resolve()`` is for the loop's thread. Everything else is read-only, for any thread."""

    def __init__(
        self,
        registry: Registry,
        metrics: Callable[[Request], Response] | None = None,
        *,
        profile: Callable[..., Awaitable[Response]] | None = None,
        for_browsers: bool = False,
    ) -> None:
        self.registry = registry
        self.started = time.monotonic()
        presence.tell(anew=True)
        self._functions: dict[str, Callable[..., Any]] = {
            "/": self._index,
            PREFIX: self._names,
            "/healthz": self._healthz,
        }
        if metrics is not None:
            self._functions[METRICS] = metrics
        if profile is not None:
            self._functions[PROFILE] = profile
        if for_browsers:
            self._functions[ui.UI] = ui.page
        # Made when first asked for: to compile a signature takes longer than most of the start.
        # Made per server: their counters of running requests are the server's own.
        self._pages: dict[str, Handler] = {}
        # (method, raw path) -> (handler, decoded path), for handlers of the registry's own.
        self._cache: dict[tuple[bytes, bytes], tuple[Handler, str]] = {}
        self._cache_version = -1

    def serves(self, path: str) -> bool:
        """Whether *path* is a page."""
        return path in self._functions

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

    def needs(self, request: ParsedRequest) -> Permission:
        """What the client's token has to permit. What is not there tells nobody anything."""
        try:
            return self.resolve(request.method, request.path)[0].permission
        except WorkerServerError:
            return "read"

    def _find(self, method: bytes, path: str) -> Handler:
        if path in self._functions:
            if method not in (b"GET", b"HEAD"):
                raise MethodNotAllowed("GET, HEAD")
            return self._page(path)
        if not path.startswith(PREFIX):
            raise NotFound
        name = path[len(PREFIX) :].removesuffix("/")
        if "/" in name:
            raise NotFound
        handler = self.registry.find(name)
        if method != b"POST":
            call = f"workerserver call {handler.name} TARGET, or curl -X POST URL"
            raise MethodNotAllowed("POST", f"To call handler {handler.name}: {call}")
        return handler

    def _page(self, path: str) -> Handler:
        page = self._pages.get(path)
        if page is None:
            inline = path not in (METRICS, ui.UI)  # their first calls import, and read files
            needed: Permission = "profile" if path == PROFILE else "read"
            page = self._pages[path] = Handler(
                path, self._functions[path], inline=inline, permission=needed
            )
        return page

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
        presence.look()
        body, status = health(self.started, max_step_age)
        return Response(body, status, "application/json")
