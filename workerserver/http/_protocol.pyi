import asyncio
from typing import Protocol, final

from workerserver.http.access import AccessPolicy
from workerserver.http.routes import Router
from workerserver.process.pool import DaemonPool
from workerserver.types import Response

class _Limits(Protocol):
    @property
    def max_head(self) -> int: ...
    @property
    def max_headers(self) -> int: ...
    @property
    def max_body(self) -> int: ...
    @property
    def max_bodies(self) -> int: ...
    @property
    def max_connections(self) -> int: ...
    @property
    def head_timeout(self) -> float: ...
    @property
    def body_timeout(self) -> float: ...
    @property
    def idle_timeout(self) -> float: ...
    @property
    def gil_deadline(self) -> float: ...
    @property
    def gil_timeout(self) -> float: ...

@final
class ServerState:
    loop: asyncio.AbstractEventLoop
    router: Router
    policy: AccessPolicy
    pool: DaemonPool
    connections: set[WorkerProtocol]
    requests: dict[tuple[str, int], int]
    limits: _Limits
    is_unix: bool
    max_head: int
    max_headers: int
    max_body: int
    max_bodies: int
    max_connections: int
    head_timeout: float
    body_timeout: float
    idle_timeout: float
    stall_seconds: float
    drain_seconds: float
    closing: bool
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        router: Router,
        policy: AccessPolicy,
        pool: DaemonPool,
        *,
        is_unix: bool,
        limits: _Limits,
    ) -> None: ...

def whole_reply(response: Response, close: bool) -> bytes: ...

@final
class WorkerProtocol:
    fileno: int
    def __init__(self, state: ServerState) -> None: ...
    def connection_made(self, transport: asyncio.BaseTransport) -> None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def data_received(self, data: bytes) -> None: ...
    def eof_received(self) -> bool | None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def shutdown(self) -> None: ...
    def abort(self) -> None: ...
