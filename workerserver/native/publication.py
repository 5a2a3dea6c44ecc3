"""What a server has the native I/O thread answer by itself, and keeping that up to date."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Literal

from workerserver.handlers import ping, stacks
from workerserver.http._protocol import WorkerProtocol, whole_reply
from workerserver.http.access import PEER_REFUSED, AccessPolicy
from workerserver.http.responses import error_response
from workerserver.http.routes import INDEX, PREFIX, Router
from workerserver.native._bridge import (
    DUMP,
    HEALTH,
    LATE,
    RELAY,
    STATIC,
    NativeHub,
    NativeListener,
    Table,
)
from workerserver.native.torch_standby import fallback
from workerserver.process import threads
from workerserver.process._pulse import watch_switch
from workerserver.process.environment import seconds
from workerserver.process.loop_thread import LoopThread
from workerserver.stacks._stacks import prepare
from workerserver.types import Forbidden, RequestTimeout, Response, ServerBusy, WorkerServerError

if TYPE_CHECKING:
    from workerserver.http._protocol import ServerState

__all__ = ["Publication", "hub_of"]

GIL_WATCH = 5.0  # seconds between two turns that the I/O thread asks for
RELAY_AFTER = 0.02  # seconds from the start until torch's own server is started too

Route = tuple[Literal["GET", "POST"], str, Literal["any", "none", "healthz", "dump", "opaque"], int]


def hub_of(thread: LoopThread) -> NativeHub:
    """The I/O thread that works for *thread*'s loop, started if need be; on the loop's thread.

    Raises ValueError for a WORKERSERVER_GIL_WATCH that is no number of seconds, RuntimeError or
    OSError if the I/O thread can't be had.
    """
    for attached in thread.attached:
        if isinstance(attached, NativeHub):
            return attached
    watch = seconds("WORKERSERVER_GIL_WATCH", GIL_WATCH)
    hub = NativeHub(thread.loop, watch)

    def close() -> None:
        hub.close()
        if thread.newest:  # else another thread's hub watches
            watch_switch(False)

    watch_switch(watch > 0)
    try:
        threads.start(hub.thread)
    except BaseException:
        hub.close()
        raise
    thread.attach(hub, close)
    return hub


class Publication:
    """One listener of the I/O thread and the answers it is given, replaced whole.

    Made and closed on the loop's thread; ``refresh()`` may be called from any.
    """

    def __init__(self, hub: NativeHub, fd: int, state: ServerState) -> None:
        limits = state.limits
        self._hub = hub
        self._router: Router = state.router
        self._policy: AccessPolicy = state.policy
        self._limits = limits
        self._lock = threading.RLock()
        self._published: object = None
        self._numbers: dict[str, int] = {}
        self._closed = False
        self._relayed = False  # the hub knows torch's own server
        self.listener = NativeListener(
            hub,
            fd,
            partial(WorkerProtocol, state),
            self._turn,
            local=state.is_unix,
            limits=limits,
            started=self._router.started,
            too_many=_final(ServerBusy(f"{limits.max_connections} connections")),
            forbidden=_final(Forbidden(PEER_REFUSED)),
            head_late=_final(RequestTimeout("head", limits.head_timeout)),
        )
        prepare()  # with the GIL, what reading stacks without it needs to know
        self._router.registry.on_change(self.refresh)
        self.refresh()
        # torch's own server takes milliseconds to start, some of them with the GIL, which whoever
        # starts ours needn't wait for.
        hub.loop.call_later(RELAY_AFTER, self._turn)

    def _turn(self) -> None:
        if self._closed:
            return
        if not self._relayed and fallback.start_if_possible():
            self._hub.set_relay(fallback.path_bytes() or b"", *fallback.listener())
            self._relayed = True
        self.refresh()

    def refresh(self) -> None:
        """Publish what has changed: the handlers, and torch's, which change without notice."""
        with self._lock:
            plan = self._plan()
            if plan == self._published:
                return
            routes, names, answers = plan
            table = Table(
                routes,
                check_host=self._policy.check_host,
                names=sorted(self._policy.names),
                prefix=self._policy.prefix,
                token=self._policy.token,
                max_head=min(self._limits.max_head, 8192),
                max_headers=min(self._limits.max_headers, 100),
            )
            self.listener.publish(table, names, answers)
            self._published = plan

    def _plan(
        self,
    ) -> tuple[tuple[Route, ...], tuple[str, ...], tuple[tuple[bytes, bytes], ...]]:
        """The routes; by the number in a route's action, the name it counts for and its answers."""
        routes: list[Route] = []
        answers: dict[int, tuple[bytes, bytes]] = {}

        def add(
            method: Literal["GET", "POST"],
            name: str,
            path: str,
            rule: Literal["any", "none", "healthz", "dump", "opaque"],
            kind: int,
            response: Response | None = None,
        ) -> None:
            # A name keeps its number for good: replies are counted by it, under later tables too.
            number = self._numbers.setdefault(name, len(self._numbers))
            routes.append((method, path, rule, kind | number << 8))
            if response is not None:
                answers[number] = whole_reply(response, False), whole_reply(response, True)

        registry = self._router.registry
        listed = registry.names()
        add("GET", "/", "/", "any", STATIC, Response(INDEX, content_type="text/html"))
        # Not at once: torch's registry changes without telling us, and the loop can ask it.
        add("GET", PREFIX, PREFIX, "any", LATE, Response.json(listed))
        add("GET", "/healthz", "/healthz", "healthz", HEALTH)
        handler = registry.own("ping")
        if handler is not None and handler.function is ping.ping:
            add("POST", "ping", f"{PREFIX}ping", "any", STATIC, ping.ping())
        handler = registry.own("dump_traceback")
        if handler is not None and handler.function is stacks.dump_traceback:
            add("POST", "dump_traceback", f"{PREFIX}dump_traceback", "dump", DUMP)
        for name in fallback.names():
            handler = registry.own(name)
            ours = handler is None or handler.function.__module__.startswith(
                "workerserver.handlers."
            )
            if ours and name in listed:
                add("POST", name, PREFIX + name, "opaque", RELAY)
        every = tuple(answers.get(number, (b"", b"")) for number in range(len(self._numbers)))
        return tuple(routes), tuple(self._numbers), every

    def close(self) -> None:
        """On the loop's thread: close the listener and every connection."""
        self._closed = True
        self._router.registry.off_change(self.refresh)
        self.listener.close()


def _final(error: WorkerServerError) -> bytes:
    return whole_reply(error_response(error), True)
