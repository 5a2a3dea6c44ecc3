import asyncio
from collections.abc import Callable
from typing import final

from workerserver._parser import ParsedRequest
from workerserver.http.access import AccessPolicy
from workerserver.http.audit import Audit
from workerserver.http.limits import Limits
from workerserver.http.routes import Router
from workerserver.process._pulse import Meter
from workerserver.process.acceptor import Place
from workerserver.process.loop_thread import LoopThread
from workerserver.process.pool import DaemonPool
from workerserver.types import Response

__pyx_capi__: dict[str, object]

@final
class ServerState:
    loop: asyncio.AbstractEventLoop
    call_soon: Callable[..., object]
    router: Router
    policy: AccessPolicy
    pool: DaemonPool
    connections: set[WorkerProtocol]
    meter: Meter
    @property
    def requests(self) -> dict[tuple[str, int], int]: ...
    limits: Limits
    is_unix: bool
    audit: Audit
    stall_seconds: float
    drain_seconds: float
    closing: bool
    unsent_elsewhere: Callable[[], int] | None
    @property
    def unsent(self) -> int: ...
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        router: Router,
        policy: AccessPolicy,
        pool: DaemonPool,
        *,
        is_unix: bool,
        limits: Limits,
        thread: LoopThread | None = None,
        meter: Meter | None = None,
    ) -> None: ...

def date_field(second: int) -> bytes: ...
def wants_openmetrics(accept: bytes) -> bool: ...
def proof_key(token: bytes) -> bytes: ...
def is_proof(value: bytes | None) -> bool: ...
def whole_reply(response: Response, close: bool) -> bytes: ...

@final
class Session:
    def judge(self, keys: tuple[bytes, ...], request: ParsedRequest) -> int: ...
    def challenge(self, keys: tuple[bytes, ...]) -> tuple[tuple[str, str], ...]: ...

@final
class WorkerProtocol:
    fileno: int
    place: Place | None
    def __init__(self, state: ServerState) -> None: ...
    def connection_made(self, transport: asyncio.BaseTransport) -> None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def data_received(self, data: bytes) -> None: ...
    def eof_received(self) -> bool | None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def shutdown(self) -> None: ...
    def abort(self) -> None: ...
