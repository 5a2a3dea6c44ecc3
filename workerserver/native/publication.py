"""Which answers a server gives to the native I/O thread, and how they are kept up to date."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from workerserver import handlers
from workerserver.handlers import ping, stacks, steps
from workerserver.http._protocol import WorkerProtocol, whole_reply
from workerserver.http.access import PEER_REFUSED, AccessPolicy, NativeForm
from workerserver.http.responses import error_response
from workerserver.http.routes import INDEX, PREFIX, Router
from workerserver.job import presence
from workerserver.native._bridge import (
    DUMP,
    HEALTH,
    LATE,
    METRICS,
    RELAY,
    STATIC,
    STEPS,
    NativeHub,
    NativeListener,
    Table,
    judges_field,
)
from workerserver.native.torch_standby import fallback
from workerserver.process import threads
from workerserver.process._pulse import watch_switch
from workerserver.process.environment import seconds
from workerserver.process.loop_thread import LoopThread
from workerserver.process.own import is_part_of
from workerserver.stacks._stacks import prepare
from workerserver.stacks.known import publish
from workerserver.types import Forbidden, RequestTimeout, Response, ServerBusy, WorkerServerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from workerserver.http._protocol import ServerState
    from workerserver.process.sockets import Figures

__all__ = ["Publication", "hub_of", "standby_threads"]

ENTER_SECONDS = 5.0  # for the I/O thread's first steps, which need the GIL
GIL_WATCH_SECONDS = 5.0  # seconds between two turns that the I/O thread asks for
LEARN_AFTER_SECONDS = 0.005  # from the start until the library functions that wait are learnt
RELAY_AFTER_SECONDS = 0.02  # seconds from the start until torch's own server is started too

Method = Literal["GET", "POST"]
QueryRule = Literal["any", "none", "healthz", "dump", "opaque"]


def standby_threads() -> int:
    """How many threads torch's own server, which stands by, has in this process."""
    return fallback.threads


class Plan(NamedTuple):
    """What is published: nothing but values, so that two plans can be compared.

    *routes* are ``(method, path, query rule, action)``, *rules* each rule's native form and the
    action for what it refuses. The number in an action says which of *names* a reply counts for
    and which of *answers* it is.
    """

    routes: tuple[tuple[Method, str, QueryRule, int], ...]
    rules: tuple[tuple[NativeForm, int | None], ...]
    names: tuple[str, ...]
    answers: tuple[tuple[bytes, bytes], ...]


def hub_of(thread: LoopThread) -> NativeHub:
    """The I/O thread that works for *thread*'s loop, started if need be; on the loop's thread.

    Raises ValueError for a WORKERSERVER_GIL_WATCH that is no number of seconds, OSError if
    the I/O thread can't be started.
    """
    for attached in thread.attached:
        if isinstance(attached, NativeHub):
            return attached
    watch = seconds("WORKERSERVER_GIL_WATCH", GIL_WATCH_SECONDS)
    hub = NativeHub(thread.loop, watch, thread.canary)

    def close() -> None:
        hub.close()
        if thread.newest:  # else another thread's hub watches
            watch_switch(False)

    watch_switch(watch > 0)
    try:
        threads.start(hub.thread)
        # Started is not enough: the thread needs the GIL once more before it serves. C code that
        # takes the GIL right after the constructor would keep it from that.
        if not hub.await_thread(ENTER_SECONDS):
            raise TimeoutError(f"the I/O thread did not begin to serve in {ENTER_SECONDS:g} s")
    except BaseException:
        hub.close()
        raise
    thread.attach(hub, close)
    return hub


class Publication:
    """One listener of the I/O thread and the answers it is given, replaced whole.

    Made and closed on the loop's thread; ``refresh()`` may be called from any.
    """

    def __init__(
        self,
        hub: NativeHub,
        fd: int,
        state: ServerState,
        publish_metrics: Callable[[], None],
    ) -> None:
        limits = state.limits
        self._hub = hub
        self._publish_metrics = publish_metrics
        self._router: Router = state.router
        self._policy: AccessPolicy = state.policy
        forms = self._policy.native or ()
        # Whether the I/O thread looks at every header field that a rule reads.
        self._sees_fields = all(judges_field(name) for form in forms for name in form.fields)
        self._limits = limits
        self._lock = threading.RLock()
        self._published: object = None
        self._numbers: dict[str, int] = {}
        self._closed = False
        self._relayed = False  # the hub knows torch's own server
        self._begun = False  # the caller has its server, and what takes long may be done
        self._refused = 0  # requests that the I/O thread has refused, as far as the audit knows
        self._audit = state.audit
        self.listener = NativeListener(
            hub,
            fd,
            partial(WorkerProtocol, state),
            self._turn,
            # Rules about connections hold before the first request can be answered.
            Table([], rules=[(form, None) for form in forms]),
            local=state.is_unix,
            limits=limits,
            started=self._router.started,
            too_many=_final(ServerBusy(f"{limits.max_connections} connections")),
            forbidden=_final(Forbidden(PEER_REFUSED)),
            asks_secret=self._policy.asks_secret,
            meter=state.meter,
            head_late=_final(RequestTimeout("head", limits.head_timeout)),
        )
        hub.set_snapshots(max(limits.max_snapshots, 1.0))
        state.unsent_elsewhere = lambda: self.listener.unsent
        prepare()  # with the GIL, what reading stacks without it needs to know
        self._router.registry.on_change(self.refresh)
        self.refresh()
        # The caller would get the GIL, and so its server, only after these: a half millisecond for
        # what reading waits needs to know, milliseconds until torch's own server has started. The
        # loop's next turn tells the caller: the times begin there, however long this one took.
        hub.loop.call_soon(hub.loop.call_later, LEARN_AFTER_SECONDS, publish)
        hub.loop.call_soon(hub.loop.call_later, RELAY_AFTER_SECONDS, self._begin)

    @property
    def figures(self) -> Figures:
        """What is taken of the places for connections."""
        return self._hub.figures

    def _begin(self) -> None:
        self._begun = True
        self._turn()

    def _turn(self) -> None:
        if self._closed or not self._begun:
            return
        if not self._relayed and fallback.start_if_possible():
            self._hub.set_relay(fallback.path_bytes() or b"", *fallback.listener())
            self._relayed = True
        publish()  # again: after a shortage that may have passed, and what was imported since
        presence.look()  # the rank may have become known
        self._tell_refused()
        self.refresh()

    def _tell_refused(self) -> None:
        if not self._policy.asks_secret:
            return
        refused = self.listener.requests.get(("", 401), 0)
        if refused > self._refused:
            self._audit.refused_many(refused - self._refused)
            self._refused = refused

    def refresh(self) -> None:
        """Publish again if anything has changed: our handlers, or torch's, which change without
        notice."""
        with self._lock:
            self._publish_metrics()
            plan = self._plan()
            if plan == self._published:
                return
            table = Table(plan.routes, rules=plan.rules, limits=self._limits)
            self.listener.publish(table, plan.names, plan.answers)
            self._published = plan

    def _number(self, name: str) -> int:
        """A name keeps its number for good: replies are counted by it, under later tables too."""
        return self._numbers.setdefault(name, len(self._numbers))

    def _plan(self) -> Plan:
        """What to publish now.

        Nothing, if a rule has no native form, or reads a header field that the I/O thread passes
        over: the I/O thread then forwards every request to the loop, where the policy is asked.
        """
        routes: list[tuple[Method, str, QueryRule, int]] = []
        rules: list[tuple[NativeForm, int | None]] = []
        answers: dict[int, tuple[bytes, bytes]] = {}

        def answer(name: str, kind: int, response: Response | None = None) -> int:
            """The action by which requests for *name* are answered."""
            number = self._number(name)
            if response is not None:
                answers[number] = whole_reply(response, False), whole_reply(response, True)
            return kind | number << 8

        if self._policy.native is not None:
            for form in self._policy.native:
                refused = None
                if self._sees_fields and form.refusal is not None:
                    refused = answer("", STATIC, error_response(form.refusal()))
                rules.append((form, refused))
            if self._sees_fields:
                self._add_routes(routes, answer)
        every = tuple(answers.get(number, (b"", b"")) for number in range(len(self._numbers)))
        return Plan(tuple(routes), tuple(rules), tuple(self._numbers), every)

    def _add_routes(
        self,
        routes: list[tuple[Method, str, QueryRule, int]],
        answer: Callable[[str, int, Response | None], int],
    ) -> None:
        def add(
            method: Method,
            name: str,
            path: str,
            rule: QueryRule,
            kind: int,
            response: Response | None = None,
        ) -> None:
            routes.append((method, path, rule, answer(name, kind, response)))

        registry = self._router.registry
        listed = registry.names()
        add("GET", "/", "/", "any", STATIC, Response(INDEX, content_type="text/html"))
        # Not at once: torch's registry changes without telling us, and the loop can ask it.
        add("GET", PREFIX, PREFIX, "any", LATE, Response.json(listed))
        add("GET", "/healthz", "/healthz", "healthz", HEALTH)
        if self._router.serves("/metrics"):
            add("GET", "/metrics", "/metrics", "any", METRICS)
        handler = registry.own("ping")
        if handler is not None and handler.function is ping.ping:
            add("POST", "ping", f"{PREFIX}ping", "any", STATIC, ping.ping())
        handler = registry.own("dump_traceback")
        if handler is not None and handler.function is stacks.dump_traceback:
            add("POST", "dump_traceback", f"{PREFIX}dump_traceback", "dump", DUMP)
        handler = registry.own("steps")
        if handler is not None and handler.function is steps.steps:
            add("POST", "steps", f"{PREFIX}steps", "none", STEPS)
        for name in fallback.names():
            handler = registry.own(name)
            ours = handler is None or is_part_of(handlers, handler.function.__module__)
            if ours and name in listed and self._may_read(name):
                add("POST", name, PREFIX + name, "opaque", RELAY)

    def _may_read(self, name: str) -> bool:
        """Whether each token permits *name*, so that the I/O thread may answer without asking what
        the client's token permits. What it answers by itself needs no more than ``read``."""
        return not self._policy.graded or self._router.registry.find(name).permission == "read"

    def close(self) -> None:
        """On the loop's thread: close the listener and every connection."""
        self._closed = True
        self._router.registry.off_change(self.refresh)
        self.listener.close()


def _final(error: WorkerServerError) -> bytes:
    return whole_reply(error_response(error), True)
