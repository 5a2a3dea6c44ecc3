"""The servers under test: ours, and our protocol on asyncio's own loop and transports."""

from __future__ import annotations

import asyncio
import functools
import os
import ssl
import tempfile
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from support.certificates import make_certificate
from support.wire import Address, Client, TlsAddress
from workerserver.http._protocol import ServerState, WorkerProtocol
from workerserver.http.access import AccessPolicy, standard_rules
from workerserver.http.registry import Registry
from workerserver.http.routes import Router
from workerserver.process.pool import DaemonPool
from workerserver.server import Limits, WorkerServer

Kind = Literal["unix", "tcp", "uvloop-unix", "uvloop-tcp", "asyncio-unix", "asyncio-tcp", "tls"]
OURS: tuple[Kind, ...] = ("unix", "tcp")  # the native transport, where there is one
UVLOOP: tuple[Kind, ...] = ("uvloop-unix", "uvloop-tcp")
PLAIN: tuple[Kind, ...] = ("asyncio-unix", "asyncio-tcp")


class Served(Protocol):
    """A server under test, on any loop and transport."""

    kind: Kind
    address: Address
    registry: Registry
    state: ServerState

    @property
    def connections(self) -> int:
        """Connections open now."""

    def call(self, function: Callable[[], Any]) -> Any:
        """What *function* gives, called on the server's loop."""

    def close(self) -> None: ...


class _Server:
    """The server's name, and calls into its loop."""

    address: Address
    state: ServerState

    def __init__(self, kind: Kind, folder: Path, registry: Registry) -> None:
        self.kind = kind
        self.registry = registry
        self.unix = kind.endswith("unix")
        self.path = str(folder / f"{len(os.listdir(folder))}.sock")  # for a Unix socket

    def complete(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.state.loop).result(10)

    def call(self, function: Callable[[], Any]) -> Any:
        async def run() -> Any:
            return function()

        return self.complete(run())


@functools.cache
def server_context() -> ssl.SSLContext:
    """The context of a server with a self-signed certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = make_certificate(Path(folder))
        context.load_cert_chain(certificate, key)
    return context


class Ours(_Server):
    """WorkerServer: the default transport, or uvloop's, over TLS too."""

    def __init__(
        self,
        kind: Kind,
        folder: Path,
        registry: Registry,
        limits: Limits | None = None,
        token: str | None = None,
    ) -> None:
        super().__init__(kind, folder, registry)
        self.server = WorkerServer(
            *((self.path, -1) if self.unix else ("127.0.0.1", 0)),
            registry=registry,
            limits=limits,
            token=token,
            transport="uvloop" if kind in UVLOOP else None,
            tls=server_context() if kind == "tls" else None,
        )
        self.address = self.path if self.unix else ("127.0.0.1", self.server.port)
        if kind == "tls":
            self.address = TlsAddress(self.address)
        self.state = self.server.state

    @property
    def connections(self) -> int:
        return self.server.connections

    def close(self) -> None:
        self.server.shutdown()


class Plain(_Server):
    """WorkerProtocol on asyncio's own loop and transports."""

    def __init__(
        self,
        kind: Kind,
        folder: Path,
        registry: Registry,
        limits: Limits | None = None,
        token: str | None = None,
    ) -> None:
        super().__init__(kind, folder, registry)
        self._loop = asyncio.new_event_loop()
        self._pool = DaemonPool()
        self.state = ServerState(
            self._loop,
            Router(registry),
            AccessPolicy(standard_rules(unix=self.unix, token=token)),
            self._pool,
            is_unix=self.unix,
            limits=limits or Limits(),
        )
        self._thread = threading.Thread(target=self._loop.run_forever, name="workerserver-test")
        self._thread.start()
        self.complete(self._listen())

    @property
    def connections(self) -> int:
        return len(self.state.connections)

    async def _listen(self) -> None:
        factory: Any = partial(WorkerProtocol, self.state)  # asyncio's methods, not its base class
        if self.unix:
            self._server = await self._loop.create_unix_server(factory, self.path, backlog=1024)
            self.address = self.path
        else:
            self._server = await self._loop.create_server(factory, "127.0.0.1", 0, backlog=1024)
            self.address = self._server.sockets[0].getsockname()

    async def _close(self) -> None:
        self._server.close()
        for connection in list(self.state.connections):
            connection.abort()
        while self.state.connections:
            await asyncio.sleep(0.005)

    def close(self) -> None:
        self._pool.close()
        self.complete(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


Serve = Callable[..., Served]
Connect = Callable[[Address], Client]
