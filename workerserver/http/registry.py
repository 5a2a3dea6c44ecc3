"""Name -> handler, its typed parameters, and how it may run.

A registry is written from any thread and read from the loop's: every change replaces the mapping
whole (copy on write) and raises ``version``, so readers take no lock and caches know when to drop
what they hold.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeVar

from workerserver._parser import QueryValidator
from workerserver.process.credentials import PERMISSIONS, Permission
from workerserver.process.loaded import imported
from workerserver.types import HandlerNotFound

__all__ = ["Handler", "Kind", "Registry", "Source"]

Kind = Literal["inline", "async", "thread"]
F = TypeVar("F", bound=Callable[..., Any])

#: Requests inside one handler at one time, unless it is registered with a limit of its own.
DEFAULT_LIMIT = 8


class Handler:
    """One named handler: the function, its compiled parameters, its kind and its limit.

    ``kind`` is ``async`` for a coroutine function (runs on the server's loop), ``inline`` for a
    short function that never blocks (called on the loop), ``thread`` for any other (runs in the
    server's bounded pool). ``permission``: what a client's token has to permit, if there are tokens
    for less than everything. ``running`` counts the requests inside it in this process.
    """

    __slots__ = (
        "audited", "function", "kind", "limit", "lock", "name", "permission", "requires", "running",
        "validator",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        inline: bool = False,
        limit: int = DEFAULT_LIMIT,
        requires: str | None = None,
        unknown_text: str | None = None,
        permission: Permission = "admin",
    ) -> None:
        if permission not in PERMISSIONS:
            known = ", ".join(PERMISSIONS)
            raise ValueError(f"permission of handler {name} is {permission!r}, none of {known}")
        if not callable(function):
            raise TypeError(f"handler {name} must be callable, not {type(function).__name__}")
        if limit < 1:
            raise ValueError(f"limit of handler {name} must be at least 1, not {limit}")
        self.name = name
        self.function = function
        self.kind: Kind = "async" if _is_async(function) else "inline" if inline else "thread"
        self.limit = limit
        self.requires = requires
        self.permission = permission
        self.audited = permission != "read"
        self.validator = QueryValidator.from_callable(function, unknown_text=unknown_text)
        self.running = 0
        self.lock = threading.Lock()

    @property
    def available(self) -> bool:
        """Whether this process has what the handler needs (a module that is already imported)."""
        return self.requires is None or imported(self.requires) is not None

    def acquire(self) -> bool:
        """Take one of the handler's places; False when all are taken."""
        with self.lock:
            if self.running >= self.limit:
                return False
            self.running += 1
            return True

    def release(self) -> None:
        with self.lock:
            self.running -= 1

    def after_fork(self) -> None:
        """In a forked child: no request is inside, and the lock isn't held."""
        self.lock = threading.Lock()
        self.running = 0

    def __repr__(self) -> str:
        return f"<Handler {self.name} {self.kind}>"


class Source(Protocol):
    """A second place where a registry looks for handlers; torch's own registry is one."""

    def names(self) -> list[str]: ...

    def find(self, name: str) -> Handler | None: ...

    def after_fork(self) -> None: ...


class Registry:
    """Handlers by name. Thread-safe; see the module for how it is read without a lock."""

    def __init__(self, fallback: Source | None = None) -> None:
        self._handlers: dict[str, Handler] = {}
        self._lock = threading.RLock()  # a signal handler may come in between, and register
        self.fallback = fallback
        self.version = 0
        self._watchers: list[Callable[[], None]] = []
        _registries.add(self)

    def register(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        inline: bool = False,
        limit: int = DEFAULT_LIMIT,
        requires: str | None = None,
        unknown_text: str | None = None,
        permission: Permission = "admin",
        shadow: bool = False,
        replace: bool = False,
    ) -> None:
        """Serve *function* as ``POST /handler/NAME``.

        *inline* runs the function on the server's loop: use it only for a function that is short
        and never blocks. *limit* bounds the requests inside the function at one time. One more gets
        503. *requires* names a module without which the handler is neither listed nor served.
        *permission*: what a client's token has to permit (``read``, ``profile``, ``admin``), if
        there are tokens for less than everything. *shadow* allows a name that the fallback has too.
        The fallback's handler is then hidden. *replace* allows a name that is registered here
        already. Requests inside the earlier handler end as they would have.

        Raises ValueError for a name that is taken (``Handler X already registered``), TypeError
        for a non-callable or for a signature that can't be turned into parameters.
        """
        if not isinstance(name, str):
            raise TypeError(f"handler name must be str, not {type(name).__name__}")
        if not name or "/" in name or not name.isprintable():
            raise ValueError(f"handler name {name!r} can't be part of a path")
        handler = Handler(
            name,
            function,
            inline=inline,
            limit=limit,
            requires=requires,
            unknown_text=unknown_text,
            permission=permission,
        )
        hides = not shadow and self.fallback is not None and name in self.fallback.names()
        with self._lock:
            taken = not replace if name in self._handlers else hides
            if taken:
                raise ValueError(f"Handler {name} already registered")
            self._handlers = {**self._handlers, name: handler}
            self.version += 1
        self._changed()

    def unregister(self, name: str) -> None:
        """Stop serving *name*. ValueError (``Failed to find handler X``) if it isn't ours."""
        with self._lock:
            if name not in self._handlers:
                raise ValueError(f"Failed to find handler {name}")
            self._handlers = {key: value for key, value in self._handlers.items() if key != name}
            self.version += 1
        self._changed()

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call *callback* after each change, in the thread that made it."""
        with self._lock:
            self._watchers = [*self._watchers, callback]

    def off_change(self, callback: Callable[[], None]) -> None:
        """Call *callback* no more."""
        with self._lock:
            self._watchers = [watcher for watcher in self._watchers if watcher != callback]

    def _changed(self) -> None:
        for watcher in self._watchers:
            watcher()

    def handler(
        self,
        name: str,
        *,
        inline: bool = False,
        limit: int = DEFAULT_LIMIT,
        requires: str | None = None,
        unknown_text: str | None = None,
        shadow: bool = False,
        replace: bool = False,
        permission: Permission = "admin",
    ) -> Callable[[F], F]:
        """Serve the decorated function as ``POST /handler/NAME``; the function stays as it is.

            @workerserver.handler("loader_state")
            def loader_state(depth: int = 10) -> dict:
                return {"queued": queue.qsize(), "next": peek(depth)}

        Then ``workerserver call loader_state depth=3 TARGET`` prints what it returns. The function
        returns bytes, a str, a Response, or anything that JSON can hold. If it raises, the answer
        is 500 with the exception's text, and training goes on.

        The signature says which parameters a request may have: ``int``, ``float``, ``bool``,
        ``str``, ``Literal[...]``, ``X | None``, ``Annotated[float, Range(0, 60)]``. A parameter
        without a default has to be given. A wrong or an unknown one is answered with 400, and the
        function does not run. A parameter annotated ``Request`` gets the request itself.

        A plain function runs in one of the server's few threads, and takes the GIL from the
        training loop while it runs. An ``async def`` runs on the server's event loop.

        *replace*: take the place of an earlier handler of this name. A notebook needs that, because
        a cell may run again. Without *replace*, a name that is taken raises ValueError. *limit*:
        how many requests may be inside the function at one time. One more is answered with 503.
        *inline*: run on the server's loop. Use that only for a function that is short and never
        blocks. *requires*: the name of a module. The handler exists only while that module is
        loaded. *shadow*: the name may be that of a handler of torch's, which is then hidden.
        *unknown_text*: the text of the answer to a request with an unknown parameter. *permission*:
        what a client's token has to permit: ``read``, ``profile`` or ``admin``.
        """

        def decorate(function: F) -> F:
            self.register(
                name,
                function,
                inline=inline,
                limit=limit,
                requires=requires,
                unknown_text=unknown_text,
                shadow=shadow,
                replace=replace,
                permission=permission,
            )
            return function

        return decorate

    def after_fork(self) -> None:
        """In a forked child: no request is inside any handler, and no lock is held."""
        self._lock = threading.RLock()
        self._watchers = []  # the parent's servers
        for handler in self._handlers.values():
            handler.after_fork()
        if self.fallback is not None:
            self.fallback.after_fork()

    def names(self) -> list[str]:
        """Every name that can be called now, the fallback's too, sorted."""
        names = {name for name, handler in self._handlers.items() if handler.available}
        if self.fallback is not None:
            names.update(self.fallback.names())
        return sorted(names)

    def own(self, name: str) -> Handler | None:
        """The handler called *name* that was registered here, if its process has what it needs."""
        handler = self._handlers.get(name)
        return handler if handler is not None and handler.available else None

    def find(self, name: str) -> Handler:
        """The handler called *name*; raises HandlerNotFound."""
        handler = self.own(name)
        if handler is not None:
            return handler
        if self.fallback is not None:
            found = self.fallback.find(name)
            if found is not None:
                return found
        raise HandlerNotFound(name)


def _is_async(function: Callable[..., Any]) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 (looks for an async __call__)
    )


_registries: weakref.WeakSet[Registry] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for registry in list(_registries):
        registry.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
