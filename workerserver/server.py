"""WorkerServer: a listener and its connections, from start to a shutdown that can't deadlock."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import errno
import logging
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, get_args

from workerserver.handlers import default_registry
from workerserver.handlers.metrics import Published, openmetrics_for, response
from workerserver.handlers.sampling import profile_page
from workerserver.handlers.stacks import limit_snapshots
from workerserver.http._protocol import ServerState, WorkerProtocol
from workerserver.http.access import AccessPolicy, hosts_from_environment, standard_rules
from workerserver.http.limits import Limits
from workerserver.http.registry import Registry
from workerserver.http.routes import Router
from workerserver.job import presence
from workerserver.process import FREE_THREADED
from workerserver.process._pulse import Meter, immortalise
from workerserver.process.credentials import Token, tokens_from_environment
from workerserver.process.free_threaded.stand_ins import WHY_NOT
from workerserver.process.loop_thread import LoopThread
from workerserver.process.pool import DaemonPool
from workerserver.process.sockets import (
    Figures,
    UnixListener,
    bind_tcp,
    close_accepted,
    fill_standard_descriptors,
)
from workerserver.process.tls import ServerTls, tls_from_environment
from workerserver.types import Request, Response

if TYPE_CHECKING:
    from workerserver.native._bridge import NativeHub
    from workerserver.process.acceptor import Acceptor
if sys.platform == "linux" or TYPE_CHECKING:
    # Here and not at the first start, which is to be quick.
    from workerserver.native.publication import Publication, hub_of, standby_threads

__all__ = ["Limits", "Transport", "WorkerServer"]

Transport = Literal["native", "uvloop"]

logger = logging.getLogger("workerserver")
START_SECONDS = 10.0
GRACE_SECONDS = 1.0
RECORD_AFTER_SECONDS = 0.005  # from the start until the record of the process is written
#: What a system call says that isn't there, or is forbidden, for as long as the process lives.
NOT_HERE = (errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EINVAL)
_warned = False  # that the native transport is not available


class WorkerServer:
    """Serves the handlers of this process on a Unix socket or a TCP port, from construction on.

    If *port* is -1, *host_or_file* is the path of a socket. Otherwise *host_or_file* is a host
    (``""`` or ``"::"``: every interface, IPv6 and IPv4), and port 0 takes a free port. The server
    is a context manager. ``shutdown()`` ends the server.

    *transport* is ``native`` (the default on Linux: an I/O thread that never needs the GIL) or
    ``uvloop``. Without *transport*, WORKERSERVER_TRANSPORT counts. With *tls* (or the files that
    WORKERSERVER_TLS_CERT and WORKERSERVER_TLS_KEY name) a TCP server speaks TLS, and the transport
    is ``uvloop``.

    Raises RuntimeError ``{} already exists``, ``Error binding to {}`` or ``Error binding to
    {}:{}`` (its ``__cause__`` says why), and on a free-threaded build of CPython. Raises ValueError
    for a token or a certificate that can't be read, for an unknown transport, and for a
    WORKERSERVER_GIL_* that is no number of seconds.
    """

    def __init__(
        self,
        host_or_file: str,
        port: int = -1,
        *,
        registry: Registry | None = None,
        limits: Limits | None = None,
        token: str | None = None,
        transport: Transport | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        if FREE_THREADED:
            raise RuntimeError(WHY_NOT)
        self.registry = default_registry if registry is None else registry
        host_or_file = os.fspath(host_or_file)
        self._host_or_file = host_or_file
        self._asked = _address_key(host_or_file, port)
        self._unix = port == -1
        self._tokens = (Token("", "admin", token),) if token else tokens_from_environment()
        self._hosts = () if self._unix else (host_or_file, *hosts_from_environment())
        self._tls = None if tls is None else ServerTls(tls)
        if self._tls is None and not self._unix:
            self._tls = tls_from_environment()
        if self._tls is not None and (self._unix or transport == "native"):
            raise ValueError(f"no TLS on {'a Unix socket' if self._unix else 'transport native'}")
        self._transport = _choose_transport(transport if self._tls is None else "uvloop")
        self._may_fall_back = not (transport or os.environ.get("WORKERSERVER_TRANSPORT"))
        limits = limits or Limits.from_environment()
        self._lock = threading.RLock()  # a signal handler may shut down what is shutting down
        self._closed = False
        self._pid = os.getpid()
        self._listener: UnixListener | None = None
        self._native: Publication | None = None
        self._taken_back = False  # the native listener's descriptor is ours again
        self._acceptor: Acceptor | None = None
        try:
            fill_standard_descriptors()
            if self._unix:
                self._listener = UnixListener(host_or_file)
                self._socket = self._listener.socket
                self.port = -1
            else:
                self._check_exposure(host_or_file, port)
                self._socket = bind_tcp(host_or_file, port)
                self.port = int(self._socket.getsockname()[1])
            self._bound = self._socket.getsockname()
            try:
                self._start(limits)
            except BaseException:
                self._socket.close()
                if self._listener is not None:
                    self._listener.remove()
                raise
        except OSError as error:  # out of descriptors; TimeoutError: the loop is kept busy
            place = host_or_file if self._unix else f"{host_or_file}:{port}"
            raise RuntimeError(f"Error binding to {place}") from error
        _live.add(self)

    def _check_exposure(self, host: str, port: int) -> None:
        if self._tokens or _is_loopback(host):
            return
        if os.environ.get("WORKERSERVER_REQUIRE_TOKEN") == "1":
            raise RuntimeError(f"Error binding to {host}:{port}") from PermissionError(
                "WORKERSERVER_REQUIRE_TOKEN=1: a server that other machines can reach needs "
                "WORKERSERVER_TOKEN or WORKERSERVER_TOKEN_FILE"
            )
        logger.warning(
            "serving on %s without a token: everyone who can reach this machine can read this "
            "process's stacks and run its handlers; set WORKERSERVER_TOKEN or bind to 127.0.0.1",
            host or "all interfaces",
        )

    def _start(self, limits: Limits) -> None:
        self._router = Router(
            self.registry, self._metrics, profile=profile_page, for_browsers=not self._unix
        )
        policy = AccessPolicy(
            standard_rules(
                unix=self._unix,
                token=self._tokens,
                hosts=self._hosts,
                tls=self.tls,
                needs=self._router.needs,
            )
        )
        self._thread = LoopThread.acquire()
        try:
            limits = limits.within_descriptors()
            self._meter = Meter(self._thread.share, limits.budgets)
            self._published = Published(self._meter, self.registry)
            self._pool = DaemonPool(limits.max_threads, meter=self._meter)
            self.state = ServerState(
                self._thread.loop,
                self._router,
                policy,
                self._pool,
                is_unix=self._unix,
                limits=limits,
                thread=self._thread,
                meter=self._meter,
            )
            self._thread.share.share = limits.gil_share
            limit_snapshots(limits.max_snapshots)
            presence.serves(self, self.address, self._pool.submit, unix=self._unix, tls=self.tls)
            self._thread.run(self._listen(), START_SECONDS)
        except BaseException:
            presence.stops(self)
            with contextlib.suppress(RuntimeError):
                self._thread.call_soon(presence.settle)
            self._thread.release(GRACE_SECONDS)
            raise

    def in_background(self, work: Callable[[], None]) -> None:
        """Have *work* in the run folder done soon, by a thread of the server."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._thread.call_soon(presence.in_background, work)

    async def _listen(self) -> None:
        # Not now: the caller would get the GIL, and so its server, only after that. The time begins
        # in the loop's next turn, which tells the caller that the server is there.
        loop = self._thread.loop
        loop.call_soon(loop.call_later, RECORD_AFTER_SECONDS, presence.settle)
        hub = self._native_hub() if self._transport == "native" else None
        if hub is not None:
            self._native = Publication(
                hub, self._socket.fileno(), self.state, self._publish_metrics
            )
            return
        from workerserver.process.acceptor import Acceptor, Rules  # most processes have none

        factory: Any = partial(WorkerProtocol, self.state)  # asyncio's methods, not its base class
        limits = self.state.limits
        secret = self.state.policy.asks_secret
        rules = Rules(
            standing="trusted" if self._unix else "unproven" if secret else "open",
            max_unproven=limits.max_unproven,
            max_peer=limits.max_peer,
            timeout=limits.head_timeout,
        )
        self._acceptor = Acceptor(self._socket, self._tls, factory, self._thread.places, rules)

    def _native_hub(self) -> NativeHub | None:
        """The I/O thread; None, with a warning, where a filter of the container or an old kernel
        has no timerfd, say, and nobody asked for this very transport."""
        global _warned
        try:
            return hub_of(self._thread)
        except OSError as error:
            if not self._may_fall_back or error.errno not in NOT_HERE:
                raise
            if not _warned:
                _warned = True
                logger.warning(
                    "the native I/O thread can't run here (%s): serving with uvloop's transport, "
                    "which does not answer while the GIL is held",
                    error.strerror,
                )
        self._transport = "uvloop"
        return None

    # --- what it is

    @property
    def address(self) -> str:
        """The socket's path, or ``host:port`` (an IPv6 host in brackets)."""
        if self._unix:
            return self._host_or_file
        host = self._host_or_file or "::"
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def uptime_s(self) -> float:
        return self._router.uptime_s

    @property
    def connections(self) -> int:
        """Connections open now."""
        if self._native is not None:
            return self._native.listener.connections
        return len(self.state.connections)

    @property
    def transport(self) -> Transport:
        return self._transport

    @property
    def tls(self) -> bool:
        return self._tls is not None

    @property
    def requests(self) -> dict[tuple[str, int], int]:
        """Replies so far, by (handler name, status); ``""`` where no handler was found."""
        return self._meter.replies()

    @property
    def standby_threads(self) -> int | None:
        """Threads of torch's own server, which stands by; None where there can be none."""
        return standby_threads() if sys.platform == "linux" else None

    @property
    def places(self) -> Figures:
        """What is taken of the places for connections of the process, on this transport."""
        return self._thread.places.figures if self._native is None else self._native.figures

    def _publish_metrics(self) -> None:
        """Tell what the metrics show and only Python knows."""
        told = presence.told()
        who = {name: getattr(told, name, None) for name in ("rank", "world_size", "job", "host")}
        self._published.refresh(who, self.standby_threads)

    def _metrics(self, request: Request, **ignored: str) -> Response:
        """For what the I/O thread does not answer by itself: another transport, HEAD."""
        self._publish_metrics()
        openmetrics = openmetrics_for(request)
        if self._native is not None:
            return response(self._native.listener.exposition(openmetrics), openmetrics)
        places = self.places
        body = self._meter.exposition(
            openmetrics,
            started=self._router.started,
            connections=self.connections,
            unproven=places.unproven,
            busiest=places.busiest_peer,
            evicted=places.evicted,
            refused=places.refused,
            unsent=self.state.unsent,
        )
        return response(body, openmetrics)

    def __repr__(self) -> str:
        return f"<WorkerServer {self.address}{' closed' if self._closed else ''}>"

    # --- the end

    def __enter__(self) -> WorkerServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.shutdown()

    def shutdown(self, timeout: float = 5.0) -> None:
        """Stop serving; returns within *timeout* seconds, whatever the handlers do.

        Async handlers are cancelled. A handler that sleeps in a thread is left behind. That thread
        is a daemon and keeps nothing alive. shutdown() may be called twice, in a forked child, and
        from a handler.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._pid != os.getpid():
            return  # the parent's server: nothing of it is ours to touch
        give_up = time.monotonic() + timeout
        elsewhere = presence.stops(self)
        if self._listener is not None:
            self._listener.remove()
        self._pool.close()
        if not self._thread.canary.alive:
            self._leave()
            return
        closing = self._thread.submit(self._close(min(GRACE_SECONDS, timeout / 4)))
        if threading.current_thread() is self._thread.thread or self._pool.inside():
            # Called by a handler, and _close() waits for that handler's own reply.
            closing.add_done_callback(lambda closed: self._thread.release(0.0))
            return
        ended = bool(concurrent.futures.wait((closing,), timeout).done)
        if ended:
            ended = self._thread.release(max(0.0, give_up - time.monotonic()))
        else:
            # The loop closes everything when it comes back. Until then no new server may get this
            # thread, the port has to be free, and clients have to be refused.
            self._thread.abandon()
            closing.add_done_callback(lambda closed: self._thread.release(0.0))
            if self._native is not None:
                self._native.listener.ignore()
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            presence.settle()
        if elsewhere:
            presence.settled(max(0.0, give_up - time.monotonic()))
        if not ended:
            logger.warning("a handler keeps the server's loop busy: leaving its thread behind")

    def _leave(self) -> None:
        """Something has closed the process's descriptors. Their numbers are others' by now, so
        nothing that has one is closed, and the loop's thread, if it sleeps, is not woken."""
        self._thread.canary.report()
        self._thread.abandon()
        self._immortalise()
        immortalise(self._thread)
        immortalise(self._thread.loop)
        self._socket.detach()
        presence.settle()
        _live.discard(self)

    async def _close(self, grace: float) -> None:
        """On the loop: accept no more, and wait up to *grace* seconds for replies under way."""
        self.state.closing = True
        presence.settle()
        if self._acceptor is not None:
            self._acceptor.close()
        elif self._native is not None:
            self._taken_back = True
            self._native.listener.ignore(closing=True)
            self._socket.close()
            self._native.listener.drop(False)
        for connection in list(self.state.connections):
            connection.shutdown()
        loop = self._thread.loop
        give_up = loop.time() + grace
        while self.connections and loop.time() < give_up:
            await asyncio.sleep(0.01)
        for connection in list(self.state.connections):
            connection.abort()
        if self._native is not None:
            self._native.close()
            give_up = loop.time() + GRACE_SECONDS
            while self.state.connections and loop.time() < give_up:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0)  # let the aborted transports say connection_lost()
        _live.discard(self)  # not before: a child forked meanwhile has descriptors to close

    def _after_fork(self) -> None:
        """In a forked child: close the inherited descriptors, touch nothing else.

        The parent's loop, transports and their epoll registrations live on in the parent; here
        they must neither run nor be destroyed.
        """
        connections: list[WorkerProtocol] = list(self.state.connections)
        self._immortalise()
        self._lock = threading.RLock()
        self._closed = True
        try:
            ours = self._socket.getsockname() == self._bound
        except OSError:
            ours = False  # closed, perhaps with everything else (see canary.py)
        listener = self._socket.detach()
        if not ours:
            return
        # The native thread's descriptors are closed already, by pthread_atfork().
        mine = [] if self._native and not self._taken_back else [listener]
        if self._native is None:
            mine += [connection.fileno for connection in connections]
        for fd in mine:
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)

    def _immortalise(self) -> None:
        """Keep everything that would close a descriptor when it is freed."""
        for thing in (
            self,
            self._acceptor,
            self._native,
            self.state,
            self._socket,
            *self.state.connections,
        ):
            immortalise(thing)


def _choose_transport(asked: str | None) -> Transport:
    known: tuple[Transport, ...] = get_args(Transport)
    if sys.platform != "linux":
        known = ("uvloop",)
    chosen = asked or os.environ.get("WORKERSERVER_TRANSPORT") or known[0]
    for transport in known:
        if chosen == transport:
            return transport
    name = "transport" if asked else "WORKERSERVER_TRANSPORT"
    raise ValueError(f"{name} must be {' or '.join(known)} here, not {chosen!r}")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    import ipaddress  # needed on TCP only

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_live: set[WorkerServer] = set()


def serving(host_or_file: str, port: int = -1) -> bool:
    """Whether a server of this process was asked for this very address and still serves."""
    key = _address_key(host_or_file, port)
    return any(server._asked == key and not server._closed for server in list(_live))


def running_server() -> WorkerServer | None:
    """A server of this process with the default handlers; None if there is none."""
    ours = (each for each in list(_live) if each.registry is default_registry and not each._closed)
    return next(ours, None)


def _address_key(host_or_file: str, port: int) -> tuple[str, int]:
    if port == -1:
        with contextlib.suppress(OSError):  # the working directory is gone
            return os.path.abspath(host_or_file), port
    return host_or_file, port


def _shutdown_all() -> None:
    """At interpreter exit: all servers together get one bounded time."""
    give_up = time.monotonic() + 5.0
    for server in list(_live):
        server.shutdown(max(0.2, give_up - time.monotonic()))


def _after_fork_in_child() -> None:
    for server in list(_live):
        server._after_fork()
    plain = [server._bound for server in _live if server._native is None]
    if plain:
        close_accepted(plain)
    _live.clear()
    LoopThread.after_fork()


atexit.register(_shutdown_all)
os.register_at_fork(after_in_child=_after_fork_in_child)
