import asyncio
import threading
from collections.abc import Callable
from typing import Any, Protocol, final

from workerserver._rules import Table

STATIC: int
LATE: int
HEALTH: int
DUMP: int
RELAY: int
NAME: str

class _Limits(Protocol):
    @property
    def max_connections(self) -> int: ...
    @property
    def head_timeout(self) -> float: ...
    @property
    def idle_timeout(self) -> float: ...
    @property
    def gil_deadline(self) -> float: ...
    @property
    def gil_timeout(self) -> float: ...

@final
class NativeHub:
    loop: asyncio.AbstractEventLoop
    thread: threading.Thread
    def __init__(self, loop: asyncio.AbstractEventLoop, watch: float) -> None: ...
    def set_relay(self, path: bytes, listener: int, inode: int) -> None: ...
    def close(self) -> None: ...

@final
class NativeListener:
    factory: Callable[[], Any]
    def __init__(
        self,
        hub: NativeHub,
        fd: int,
        factory: Callable[[], Any],
        refresh: Callable[[], object],
        *,
        local: bool,
        limits: _Limits,
        started: float,
        too_many: bytes,
        forbidden: bytes,
        head_late: bytes,
    ) -> None: ...
    @property
    def requests(self) -> dict[tuple[str, int], int]: ...
    @property
    def connections(self) -> int: ...
    def publish(
        self, table: Table, names: tuple[str, ...], answers: tuple[tuple[bytes, bytes], ...]
    ) -> None: ...
    def ignore(self, closing: bool = False) -> None: ...
    def drop(self, everything: bool) -> None: ...
    def close(self) -> None: ...
